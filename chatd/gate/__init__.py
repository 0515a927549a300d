"""Who may come in as what: pages of which origin, and whose word on an address is taken. No sockets, no clock."""
