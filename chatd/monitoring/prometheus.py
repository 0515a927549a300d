"""The metrics of all processes, added up: files in one directory that prometheus-client reads.

Each process writes files of its own, ``KIND_NUMBER.db``, under a number that it has for its lifetime. The next process
with that number adds to the old counters: no counter decreases when a worker dies, and there are never more files than
there were workers at once. The gauges of a dead worker are removed. The supervisor removes the directory.
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
PLACES = ("/dev/shm", os.path.abspath(tempfile.gettempdir()))  # noqa: S108 - the directory is 0700
"""Folders in which the directory is created: in memory first, because writing must not wait for a disk."""
_FILES = {"counter": "counter", "gauge": "gauge_livesum", "histogram": "histogram"}
_FILE_BYTES = 65_536  # as prometheus-client creates them
_STALE_SECONDS = 60.0  # by then a supervisor that lives has locked the directory that it created


class MetricsDirectory:
    """The directory of the metrics files. The supervisor creates it, keeps it locked, and removes it."""

    def __init__(self) -> None:
        """Create and lock the directory, and remove stale ones. Raise OSError."""
        _remove_stale()
        self.path = _create()
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # systemd-tmpfiles respects the lock, too
        self._numbers: set[int] = set()

    def allocate(self) -> str:
        """Return the path of the metrics files of a new process, without kind and suffix."""
        number = next(number for number in range(1, len(self._numbers) + 2) if number not in self._numbers)
        self._numbers.add(number)
        return f"{self.path}/{number}"

    def release(self, path: str) -> None:
        """Remove the gauges of a process that has ended, and let the next process have its number."""
        directory, number = os.path.split(path)
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{directory}/{_FILES['gauge']}_{number}.db")
        self._numbers.discard(int(number))

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


class MetricsFile:
    """The metrics files of this process, one for each kind of metric."""

    def __init__(self, path: str) -> None:
        """Open the files at a path that ``allocate`` has returned. Raise OSError."""
        # Importing it takes a tenth of a second, and only those that write or expose metrics need it.
        from prometheus_client.mmap_dict import MmapedDict, mmap_key  # noqa: PLC0415

        self.directory, number = os.path.split(path)
        self._files: dict[str, Any] = {}
        for kind, prefix in _FILES.items():
            file = f"{self.directory}/{prefix}_{number}.db"
            _allocate(file)
            self._files[kind] = MmapedDict(file)
        self._rows: list[list[Any]] = []
        for sample in SAMPLES:
            key = mmap_key(sample.family, sample.name, [*sample.labels], [*sample.labels.values()], sample.text)
            before = self._files[sample.kind].read_value(key)[0]
            self._rows.append([self._files[sample.kind], key, sample.read, before, 0.0])

    def write(self) -> None:
        """Write the values that have changed since the last call."""
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
    """Metrics are unavailable; the log says why."""


class Meter:
    """The metrics of this process, written each second, and the sum of all processes on request."""

    def __init__(self, reactor: Any, path: str, config: Config, measure: Callable[[float], None]) -> None:
        """Set the path of the metrics files; empty if metrics are unavailable.

        Measure is called each second, before the files are written, with the seconds by which the timer was late.
        """
        self._reactor = reactor
        self._path = path
        self._config = config
        self._measure = measure
        self._file: MetricsFile | None = None
        self._writing = Periodic(reactor, config.metrics_write_interval, self._tick, "writing metrics")
        self._due = 0.0
        self._sum = SingleFlight(reactor, self._add_up, config.metrics_ttl)

    def start(self) -> None:
        """Open the files and start writing. Log it if that is not possible."""
        if not self._path:
            return
        try:
            self._file = MetricsFile(self._path)
        except OSError as error:
            log.warn("metrics are unavailable: {why}", why=str(error), event="metrics_unavailable")
            return
        self._due = self._reactor.seconds()
        self._writing.start()

    def stop(self) -> None:
        """Write once more and close the files."""
        self._writing.stop()
        if self._file is not None:
            file, self._file = self._file, None
            self._call_measure(0.0)
            file.write()
            file.close()

    def exposed(self) -> "Deferred[bytes]":
        """Return the metrics of all processes in Prometheus' text format. Fail with NoMetrics.

        A thread adds them up, once for all requests at a time. The result is used for a fraction of a second.
        """
        return fail(NoMetrics()) if self._file is None else self._sum.get()

    def _add_up(self) -> "Deferred[bytes]":
        if self._file is None:
            return fail(NoMetrics())
        self._file.write()
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, expose, self._file.directory)

    def _tick(self) -> None:
        now = self._reactor.seconds()
        late, self._due = now - self._due, now + self._config.metrics_write_interval
        self._call_measure(late)
        if self._file is not None:
            self._file.write()

    def _call_measure(self, late: float) -> None:
        with log.failuresHandled("measuring the process failed", event="measurement_failed"):
            self._measure(late)


def expose(directory: str) -> bytes:
    """Return the sum of all files of a directory in Prometheus' text format. This takes milliseconds per worker."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)
    return generate_latest(registry)


def _allocate(file: str) -> None:
    """Allocate the file's blocks before it is mapped, because a full disk would be a SIGBUS later. Raise OSError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    finally:
        os.close(descriptor)


def _create() -> str:
    for place in PLACES[:-1]:
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix=PREFIX, dir=place)
    return tempfile.mkdtemp(prefix=PREFIX, dir=PLACES[-1])


def _remove_stale() -> None:
    """Remove directories of this user whose supervisor was killed."""
    for directory in {path for place in PLACES for path in Path(place).glob(f"{PREFIX}*")}:
        with contextlib.suppress(OSError):
            status = directory.stat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _STALE_SECONDS:
                lock = os.open(directory, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(directory, ignore_errors=True)
                finally:
                    os.close(lock)
