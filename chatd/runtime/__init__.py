"""What every process runs on: timers, transports, TLS contexts, watched files, pipes between processes."""
