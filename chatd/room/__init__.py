"""What a room is, on this worker (hub) and across all of them (bus, chat log)."""
