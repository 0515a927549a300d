"""Bytes in, values out: pure functions that know neither sockets nor clocks."""
