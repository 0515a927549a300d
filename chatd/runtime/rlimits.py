"""Open files: how many a process may have, and for how many connections they suffice."""

import resource

from chatd.config.settings import Config


def raise_open_files_limit() -> int:
    """Raise the limit of open files (RLIMIT_NOFILE) as far as possible; return it, 0 if there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        hard = soft
    return 0 if hard == resource.RLIM_INFINITY else hard


def max_worker_connections(config: Config, files: int) -> int:
    """Return how many connections a worker accepts that may have so many open files.

    It needs some files for itself, and some to answer further connections with an error.
    """
    most = config.connections_per_worker
    if files:
        most = min(most, files - config.reserved_open_files - config.rejected_connections_margin)
    return max(1, most)
