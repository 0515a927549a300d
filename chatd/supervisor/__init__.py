"""The process that twistd starts: sockets, broker, workers. No messages pass through it."""
