"""Options and internal limits: defaults, units, checks, and where they are read from."""
