"""What all processes of a chatd have counted, added up: in files in one folder, as prometheus-client reads them.

Each process writes a share of its own, ``KIND_NAME.db``, under a name that it has for its lifetime. The next one
under the same name counts on from there: counters never go down when a worker dies, and there are never more
files than there were workers at once. A dead worker's gauges are removed. The folder goes with the parent.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from chatd.config.settings import Config
from chatd.monitoring.metrics import SAMPLES
from chatd.runtime.single_flight import SingleFlight
from chatd.runtime.timers import Periodic

log = Logger()

PREFIX = "chatd-metrics-"
PLACES = ("/dev/shm", os.path.abspath(tempfile.gettempdir()))  # noqa: S108 - what is made there is 0700
"""Where the folder is made: in memory, where a write waits for no disk."""
_FILES = {"counter": "counter", "gauge": "gauge_livesum", "histogram": "histogram"}
_FILE_BYTES = 65_536  # what prometheus-client makes it
_STALE_SECONDS = 60.0  # after which whoever made a folder has surely locked it


class MetricsDirectory:
    """The folder, which the parent makes and removes; it is locked as long as it is in use. Raises OSError."""

    def __init__(self) -> None:
        _sweep()
        self.path = _make()
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # systemd-tmpfiles leaves it alone, too
        self._taken: set[int] = set()

    def take(self) -> str:
        """Give a new process the path of its share."""
        number = next(each for each in range(1, len(self._taken) + 2) if each not in self._taken)
        self._taken.add(number)
        return f"{self.path}/{number}"

    def give_back(self, share: str) -> None:
        """Let the next process have a share: that one has ended, and what it gauged is no more."""
        folder, name = os.path.split(share)
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{folder}/{_FILES['gauge']}_{name}.db")
        self._taken.discard(int(name))

    def remove(self) -> None:
        """Remove it all."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


class MetricsFile:
    """One process's part: its numbers, written where others find them. Raises OSError."""

    def __init__(self, path: str) -> None:
        """Take its path, as ``take`` gives it."""
        # Takes a tenth of a second to import, and only those who write or expose need it.
        from prometheus_client.mmap_dict import MmapedDict, mmap_key  # noqa: PLC0415

        folder, name = os.path.split(path)
        self.folder = folder
        self._files: dict[str, Any] = {}
        for kind, prefix in _FILES.items():
            file = f"{folder}/{prefix}_{name}.db"
            _allocate(file)
            self._files[kind] = MmapedDict(file)
        self._rows: list[list[Any]] = []
        for sample in SAMPLES:
            key = mmap_key(sample.family, sample.name, [*sample.labels], [*sample.labels.values()], sample.text)
            before = self._files[sample.kind].read_value(key)[0]
            self._rows.append([self._files[sample.kind], key, sample.read, before, 0.0])

    def write(self) -> None:
        """Write what has changed since the last time."""
        for row in self._rows:
            file, key, read, before, last = row
            if (value := read()) != last:
                row[4] = value
                file.write_value(key, before + value, 0.0)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class NoMetrics(Exception):
    """There are no metrics; the log has said why."""


class Meter:
    """One process's, from ``start`` to ``stop``."""

    def __init__(self, reactor: Any, path: str, config: Config, look: Callable[[float], None]) -> None:
        """Take the path of the process's share, empty where there is none; and what gauges the process.

        That is called each second, before what was counted is written; with how many seconds late.
        """
        self._reactor = reactor
        self._path = path
        self._config = config
        self._look = look
        self._share: MetricsFile | None = None
        self._ticking = Periodic(reactor, config.metrics_seconds, self._tick, "writing metrics")
        self._due = 0.0
        self._sum = SingleFlight(reactor, self._add_up, config.metrics_kept_seconds)

    def start(self) -> None:
        """Begin."""
        if not self._path:
            return
        try:
            self._share = MetricsFile(self._path)
        except OSError as error:
            log.warn("there are no metrics: {why}", why=str(error))
            return
        self._due = self._reactor.seconds()
        self._ticking.start()

    def stop(self) -> None:
        """Write once more, and no more."""
        self._ticking.stop()
        if self._share is not None:
            share, self._share = self._share, None
            self._gauge(0.0)
            share.write()
            share.close()

    def exposed(self) -> "Deferred[bytes]":
        """Give what all processes have counted, in Prometheus' text format; fails with NoMetrics.

        It is worked out in a thread, once for all who ask meanwhile, and is good for a fraction of a second.
        """
        return fail(NoMetrics()) if self._share is None else self._sum.get()

    def _add_up(self) -> "Deferred[bytes]":
        if self._share is None:
            return fail(NoMetrics())
        self._share.write()
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, expose, self._share.folder)

    def _tick(self) -> None:
        now = self._reactor.seconds()
        late, self._due = now - self._due, now + self._config.metrics_seconds
        self._gauge(late)
        if self._share is not None:
            self._share.write()

    def _gauge(self, late: float) -> None:
        with log.failuresHandled("a process could not be gauged"):
            self._look(late)


def expose(folder: str) -> bytes:
    """Add up all that is in a folder, in Prometheus' text format. It reads files, and takes milliseconds a worker."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)
    return generate_latest(registry)


def _allocate(file: str) -> None:
    """Have the file's blocks before anything is mapped: a full disk would be a SIGBUS later."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    finally:
        os.close(descriptor)


def _make() -> str:
    for place in PLACES[:-1]:
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix=PREFIX, dir=place)
    return tempfile.mkdtemp(prefix=PREFIX, dir=PLACES[-1])


def _sweep() -> None:
    """Remove folders of this user whose chatd was killed before it could."""
    for folder in {each for place in PLACES for each in Path(place).glob(f"{PREFIX}*")}:
        with contextlib.suppress(OSError):
            about = folder.stat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > _STALE_SECONDS:
                lock = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)
