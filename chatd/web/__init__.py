"""What the port says to HTTP."""
