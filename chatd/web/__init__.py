"""HTTP on the same port as WebSockets."""
