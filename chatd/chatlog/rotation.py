"""The rotation of the chat log: renamed at a size or each day, compressed, and the oldest removed.

Only the supervisor rotates. It renames while it holds the lock of the log, under which every line is written, so the
rotated file can be compressed at once. Two chatds on one log may both rotate it: each checks again under the lock. The
next start finishes what a killed one left incomplete.
"""

import contextlib
import errno
import fcntl
import gzip
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.chatlog.lock import LogLock
from chatd.config.settings import Config
from chatd.config.values import bytes_of
from chatd.runtime.timers import Periodic

log = Logger()

PACKED = ".gz"
_HALF_PACKED = ".part"
_ROTATED = re.compile(r"-[0-9]{8}T[0-9]{9}Z")
_DATE = re.compile(rb'(?:\{"time":")?([0-9]{4}-[0-9]{2}-[0-9]{2})T')
_PIECE = 1_048_576  # bytes packed between two looks whether to stop
_TRY_AGAIN = 0.001  # seconds between two looks at a lock


class Rotation:
    """Rotates the chat log of a configuration, from ``start`` to ``stop``."""

    def __init__(
        self,
        clock: Any,
        config: Config,
        in_thread: Callable[..., "Deferred[Any]"],
        now: Callable[[], float] = time.time,
    ) -> None:
        """``in_thread`` calls a function in a thread, ``now`` returns seconds since 1970."""
        self._in_thread = in_thread
        self._now = now
        self._looking = Periodic(clock, config.rotation_check_interval, self._look, "rotating the chat log")
        self._stopping = threading.Event()
        self._troubled = ""
        self.configure(config)

    def start(self) -> None:
        """Look now and then whether the log is to be rotated; first finish what was left half done."""
        self._looking.start()

    def stop(self) -> None:
        """Stop. A file that is being compressed is left for the next start."""
        self._stopping.set()
        self._looking.stop()

    def configure(self, config: Config) -> None:
        """Use another configuration."""
        self._config = config
        self._rotator = Rotator(config, self._now, self._stopping.is_set) if config.chat_log_rotate else None

    def _look(self) -> "Deferred[None] | None":
        if self._rotator is None:
            return None
        return self._in_thread(self._rotator.run).addCallbacks(lambda _: self._mended(), self._not_rotated)

    def _not_rotated(self, failure: Failure) -> None:
        failure.trap(OSError)
        why = failure.getErrorMessage()
        if why != self._troubled:
            self._troubled = why
            log.error(
                "cannot rotate the chat log {path}: {why}",
                path=self._config.chat_log,
                why=why,
                event="chat_log_rotation_failed",
            )

    def _mended(self) -> None:
        if self._troubled:
            self._troubled = ""
            log.info(
                "rotating the chat log {path} works again",
                path=self._config.chat_log,
                event="chat_log_rotation_recovered",
            )


class Rotator:
    """Looks at the log, in a thread: it may take as long as the disk does."""

    def __init__(self, config: Config, now: Callable[[], float], stopping: Callable[[], bool]) -> None:
        """``now`` returns seconds since 1970, ``stopping`` whether to stop compressing."""
        self._path = Path(config.chat_log)
        self._rule = config.chat_log_rotate
        self._keep = config.chat_log_keep
        self._lock_seconds = config.rotation_lock_timeout
        self._now = now
        self._stopping = stopping
        self._unpacked = True

    def run(self) -> None:
        """Rotate the log where it is due; pack what is rotated, and remove what is too many. Raises OSError."""
        if self._is_due(self._path):
            self._rotate()
            self._unpacked = True
        if self._unpacked:
            for path in self._rotated()[: -self._keep] if self._keep else ():  # first: packing needs room on the disk
                self._remove(path)
            done = [self._pack(path) for path in self._rotated() if path.suffix != PACKED]
            self._unpacked = not all(done)

    def _rotated(self) -> list[Path]:
        """List rotated logs, packed or not, oldest first."""
        name = self._path.name
        found: dict[str, Path] = {}
        for path in sorted(self._path.parent.glob(f"{_literally(name)}-*")):
            stamp = path.name[len(name) :].removesuffix(PACKED)
            if _ROTATED.fullmatch(stamp):
                found.setdefault(stamp, path)  # the plain one comes first: it is being packed
        return list(found.values())

    def _is_due(self, path: Path) -> bool:
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if not found.st_size or not path.is_file():
            return False
        return self._first_day(path) < self._today if self._rule == "day" else found.st_size >= bytes_of(self._rule)

    @property
    def _today(self) -> Any:
        return datetime.fromtimestamp(self._now(), UTC).date()

    def _first_day(self, path: Path) -> Any:
        """Return the day of the first line; today if it is no line of a chat log."""
        with path.open("rb") as file:
            found = _DATE.match(file.read(64))
        with contextlib.suppress(ValueError):  # there is no such day
            return date.fromisoformat(found[1].decode()) if found else self._today
        return self._today

    def _rotate(self) -> None:
        """Rename it under its lock, so that whoever writes next does so to a new one."""
        lock = LogLock(str(self._path))
        try:
            if not self._locked(lock) or not self._is_due(self._path):
                return  # a writer is frozen, or another chatd was first
            os.rename(self._path, self._new_name())
        finally:
            lock.close()
        _settle(self._path.parent)

    def _new_name(self) -> Path:
        milliseconds = int(self._now() * 1000)
        while True:
            seconds, rest = divmod(milliseconds, 1000)
            stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%S")
            name = self._path.with_name(f"{self._path.name}-{stamp}{rest:03d}Z")
            if not name.exists() and not name.with_name(name.name + PACKED).exists():
                return name
            milliseconds += 1

    def _locked(self, lock: LogLock) -> bool:
        late = time.monotonic() + self._lock_seconds
        while time.monotonic() < late and not self._stopping():
            if lock.take():
                return True
            time.sleep(_TRY_AGAIN)
        return False

    def _pack(self, path: Path) -> bool:
        """Put a packed log in the place of a plain one. Return whether that is done. Raise OSError.

        At each moment at least one of them is whole. The half packed one is locked: another chatd may be at it. Only
        its owner can open it (mode 0600), so nobody who may read the logs can hold that lock.
        """
        half = _half_packed(path)
        descriptor = os.open(half, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "r+b") as target:
            try:
                fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.stat(half), os.fstat(descriptor)):
                    return False
            except (BlockingIOError, FileNotFoundError):  # the other has it, or is done with it
                return False
            try:
                return not path.exists() or self._put_packed(path, half, target)
            finally:
                half.unlink(missing_ok=True)  # on a full disk it would take what those who write need

    def _put_packed(self, path: Path, half: Path, target: BinaryIO) -> bool:
        """Pack a log, unless the packed one might not find room: writers would have none until it fails."""
        with path.open("rb") as source:
            if shutil.disk_usage(path.parent).free <= os.fstat(source.fileno()).st_size:
                raise OSError(errno.ENOSPC, "not enough free space to compress it", str(path))
            if not self._pack_into(half, target, source):
                return False
        os.rename(half, path.with_name(path.name + PACKED))
        _settle(path.parent)
        path.unlink(missing_ok=True)  # another chatd that keeps fewer may have removed it
        return True

    def _pack_into(self, half: Path, target: BinaryIO, source: BinaryIO) -> bool:
        """Pack a log into a file that is on the disk then; give whether it is all there, or a stop came between."""
        os.fchmod(target.fileno(), 0o600)
        target.truncate(0)
        with gzip.GzipFile(half.name[1:].removesuffix(_HALF_PACKED), "wb", fileobj=target) as file:
            while piece := source.read(_PIECE):
                if self._stopping():
                    return False
                file.write(piece)
        target.flush()
        os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
        os.fsync(target.fileno())
        return True

    def _remove(self, path: Path) -> None:
        """Remove a rotated log, and what a killed chatd left of packing it."""
        plain = path.with_suffix("") if path.suffix == PACKED else path
        for file in (_half_packed(plain), plain, plain.with_name(plain.name + PACKED)):
            file.unlink(missing_ok=True)


def _half_packed(path: Path) -> Path:
    """Name what a rotated log is packed into before it is whole."""
    return path.with_name(f".{path.name}{_HALF_PACKED}")


def _literally(name: str) -> str:
    """Return a glob pattern that matches only a name."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _settle(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
