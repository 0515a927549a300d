"""The memory of this machine, or of the container that chatd runs in."""

import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return the physical memory in bytes, or the limit of the control group if that is less.

    The limits of a control group and of all groups above it apply (Linux, Documentation/admin-guide/cgroup-v2.rst;
    version 1 as well). Root is the directory of ``/proc`` and ``/sys``.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for file in _limit_files(root):
        try:
            text = file.read_text("ascii").strip()
        except OSError:  # a group of another namespace, or the root group
            continue
        if text.isdecimal() and int(text) > 0:  # or else "max"
            yield int(text)


def _limit_files(root: Path) -> Iterator[Path]:
    try:
        lines = Path(root, "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path(root, "sys/fs/cgroup", "memory" if controllers else "")
        path = top / group.lstrip("/")
        for directory in (path, *path.parents):
            yield directory / ("memory.limit_in_bytes" if controllers else "memory.max")
            if directory == top:
                break
