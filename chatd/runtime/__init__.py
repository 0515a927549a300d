"""The base of every process: timers, transports, TLS contexts, watched files, pipes between processes."""
