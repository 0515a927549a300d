"""Coverage-guided fuzzing of what comes from the network: ``python -m tests.fuzz --help``."""
