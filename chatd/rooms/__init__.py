"""The order of messages in a room, and the room's subscribers."""
