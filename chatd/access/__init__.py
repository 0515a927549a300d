"""Who may do what, and how fast. No sockets, no clock."""
