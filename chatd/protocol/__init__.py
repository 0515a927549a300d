"""Bytes to values and back: pure functions without sockets or clocks."""
