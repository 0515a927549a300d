"""One connected client: its session and its connection."""
