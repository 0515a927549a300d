"""Open files: how many a process may have, and how many connections that is enough for."""

import resource

from chatd.config.settings import Config


def raise_open_files_limit() -> int:
    """Raise the limit of open files (RLIMIT_NOFILE) as far as it goes; give it, 0 where there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        hard = soft
    return 0 if hard == resource.RLIM_INFINITY else hard


def max_worker_connections(config: Config, files: int) -> int:
    """Give how many connections a worker that may have so many open files takes: some are for the rest of it.

    Those that come after still get to read why they are refused, as long as there is room for them.
    """
    most = config.max_connections_worker
    if files:
        most = min(most, files - config.spare_descriptors - config.full_house_margin)
    return max(1, most)
