"""Access control: tokens, origins, bans, client addresses and rate limits. No sockets, no clock."""
