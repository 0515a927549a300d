"""RFC 6455 and 7692, as a client on a raw socket sees chatd's own connections. What is expected is the RFCs' word."""
