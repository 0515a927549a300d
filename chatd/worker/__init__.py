"""One worker process, put together; run with ``python -m chatd.worker``."""
