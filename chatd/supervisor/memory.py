"""How much memory this machine, or the container that chatd runs in, has."""

import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return the physical memory in bytes, or what the control group may use if that is less.

    A control group is bounded by itself and by all those that it is in (Linux, Documentation/admin-guide/cgroup-v2.rst;
    version 1 as well). Root is where ``/proc`` and ``/sys`` are.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for file in _limit_files(root):
        try:
            text = file.read_text("ascii").strip()
        except OSError:  # a group of another namespace, or the topmost one
            continue
        if text.isdecimal() and int(text) > 0:  # else it is "max"
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
        for folder in (path, *path.parents):
            yield folder / ("memory.limit_in_bytes" if controllers else "memory.max")
            if folder == top:
                break
