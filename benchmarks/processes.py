"""What the kernel says of a server's processes: which they are, the CPU they took, the memory they hold (proc(5))."""

import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Give the fields of /proc/PID/stat behind the name; none where the process has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pids: Iterable[int]) -> list[int]:
    """Give those that run, or could; not those that have ended and only wait to be asked how."""
    return [pid for pid in pids if (fields := _stat(pid)) and fields[0] != "Z"]


def family(roots: Iterable[int]) -> list[int]:
    """Give the ids of processes and of all their descendants, in order."""
    parents = {pid: int(fields[1]) for pid in map(int, filter(str.isdigit, os.listdir(PROC))) if (fields := _stat(pid))}
    found = {pid for pid in roots if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Give the user and system time that processes have taken up to now, in seconds."""
    return sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid))) / TICKS


def machine_seconds() -> float:
    """Give the time that all cores together were not idle, up to now, in seconds."""
    user, nice, system, _idle, _waiting, interrupts, soft, stolen, *_ = (PROC / "stat").read_text().split()[1:]
    return sum(map(int, (user, nice, system, interrupts, soft, stolen))) / TICKS


def memory_bytes(pids: Iterable[int]) -> int:
    """Give what processes hold of the machine's memory: shared pages count in parts (PSS), in bytes."""
    total = 0
    for pid in pids:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total
