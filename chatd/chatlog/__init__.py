"""``logs/chat.log``: written, rotated, verified."""
