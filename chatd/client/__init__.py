"""One client: what it may do (session) and the bytes that carry it (connection)."""
