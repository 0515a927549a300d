"""What a running chatd takes: memory, descriptors, keys in its broker; and how late its event loops are.

Memory is a process's own (``RssAnon``, proc(5)): what a leak leaks. Pages of libraries and files, which processes
share, come and go with their number, and with what the kernel wants them for. PSS, which counts those by shares, is
told beside it.

Clients move between workers, so those count together.
"""

import os
import re
import socket
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.system.daemon import Daemon

MIB = 1_048_576


@dataclass(frozen=True)
class Vital:
    """One thing that is measured."""

    name: str
    unit: str
    grain: float
    """What it may gain without a meaning."""


VITALS = (
    Vital("parent", "MiB", 0.25),
    Vital("workers", "MiB", 0.25),
    Vital("broker", "MiB", 0.25),
    Vital("keys", "", 5),
    Vital("descriptors", "", 2),
    Vital("lag", "ms", 1),
)
LAG = "lag"
PSS = "PSS of all"


class Vitals:
    """Reads those of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        """Take what to read."""
        self._daemon = daemon
        self._lag = (0.0, 0.0)
        self._waits = (0, 0)

    def pids(self) -> tuple[int, ...]:
        """Give the processes that are to stay the same while growth is measured."""
        return (self._daemon.process.pid, *sorted([*self._daemon.worker_pids(), *self._daemon.broker_pids()]))

    def read(self) -> dict[str, float]:
        """Give a reading, by the name of what is measured. Raises OSError where a process has just ended."""
        daemon = self._daemon
        everybody = self.pids()
        return {
            "parent": _own([daemon.process.pid]),
            "workers": _own(daemon.worker_pids()),
            "broker": _own(daemon.broker_pids()),
            "keys": self._keys(),
            "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in everybody),
            PSS: sum(_kibibytes(pid, "smaps_rollup", "Pss") for pid in everybody) / 1024,
        }

    def _keys(self) -> int:
        """Ask the broker for the keys that it will never forget: how many others there are depends on how busy it was.

        0 where it has no state folder, and its socket is anywhere.
        """
        path = self._daemon.folder / "state" / "broker" / "broker.sock"
        if not path.exists():
            return 0
        with socket.socket(socket.AF_UNIX) as broker:
            broker.settimeout(20)
            broker.connect(str(path))
            broker.sendall(b"INFO keyspace\r\n")
            found = re.search(rb"db0:keys=(\d+),expires=(\d+)", broker.recv(4096))
        return int(found[1]) - int(found[2]) if found else 0

    def lag(self) -> float:
        """Give the milliseconds by which the workers' timers came late, on an average, since the last time.

        For how long the kernel lets them wait for a processor, each time, is its doing, and that of whatever else runs
        on the machine: it is taken off.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self._daemon.port}/-/metrics", timeout=20) as answer:
            text = answer.read().decode()
        late = self._lag, (_metric(text, "sum"), _metric(text, "count"))
        waited = self._waits, _waits(self._daemon.worker_pids())
        self._lag, self._waits = late[1], waited[1]
        return max(0.0, 1e3 * _mean(*late) - 1e-6 * _mean(*waited))


def _mean(before: tuple[float, float], now: tuple[float, float]) -> float:
    """Give the mean of what was counted between two looks at a sum and a count."""
    count = now[1] - before[1]
    return max(0.0, (now[0] - before[0]) / count) if count > 0 else 0.0


def _waits(pids: Iterable[int]) -> tuple[int, int]:
    """Give the nanoseconds that processes have waited for a processor, and how many times they ran (sched-stats)."""
    rows = [[int(each) for each in Path(f"/proc/{pid}/schedstat").read_text().split()] for pid in pids]
    return sum(row[1] for row in rows), sum(row[2] for row in rows)


def _own(pids: Iterable[int]) -> float:
    return sum(_kibibytes(pid, "status", "RssAnon") for pid in pids) / 1024


def _kibibytes(pid: int, file: str, name: str) -> int:
    found = re.search(rf"(?m)^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text())
    return int(found[1]) if found else 0


def _metric(text: str, kind: str) -> float:
    found = re.search(rf"(?m)^chatd_event_loop_lag_seconds_{kind}(?:\{{\}})? (\S+)", text)
    return float(found[1]) if found else 0.0
