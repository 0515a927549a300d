"""The process that twistd starts: ports, broker, workers, and no messages."""
