"""The state folder: what outlives a restart of everything, and who may use it.

``DIR/lock`` is held by the one chatd that uses the folder, and by its broker: a broker whose parent was killed
lives a moment longer, and its file must not have two writers. ``DIR/broker/`` (mode 0700) is the broker's.

``DIR/broker/lineage`` is a token, by which workers know across restarts that nothing they saw was lost, and which
file it was written to, so that a copy does not pass for the original: a folder that was restored from a backup has
lost what came after the backup, and begins a new lineage. Restoring may also write into the files that are there, or
leave one alone that looks the same, so the file is made anew at each start and stop.
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from twisted.logger import Logger

from chatd.config.settings import BadValue

log = Logger()

LOCK = "lock"
BROKER = "broker"
LINEAGE = "lineage"

_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800


class DataDir:
    """A state folder, from ``take`` to ``release``."""

    def __init__(self, path: str, lock_seconds: float) -> None:
        """Take the folder, which need not be there yet, and how long another's end may take."""
        self.path = Path(path)
        self.broker = self.path / BROKER
        """The broker's folder."""
        self.lineage = ""
        """The token, once taken."""
        self.lock = -1
        """A descriptor that holds the lock while it, or one that a child inherited, is open."""
        self._lock_seconds = lock_seconds

    def check(self) -> None:
        """See whether it could be taken, without making anything. Raises BadValue."""
        with self._explained():
            if (self.path / LOCK).exists():
                os.close(self._locked(os.O_RDONLY))
            there = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise BadValue(f"--state {self.path} cannot be used: {there} cannot be written to")

    def take(self) -> None:
        """Lock it, make what is not there, settle the lineage; waits for another's end. Raises BadValue."""
        with self._explained():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = self._locked(os.O_RDWR | os.O_CREAT)
            self.broker.mkdir(exist_ok=True)
            self.broker.chmod(0o700)
            known = _read(self.broker / LINEAGE) if any(self.broker.rglob("*.aof")) else ""
            self.lineage = known or secrets.token_hex(8)
            try:
                _write(self.broker / LINEAGE, self.lineage)
            except OSError as error:  # on a full disk the old one does
                if not known:
                    raise
                log.warn("the lineage in {folder} stays as it is: {why}", folder=str(self.broker), why=str(error))

    def release(self) -> None:
        """Let the next one have it."""
        if self.lock >= 0:
            with contextlib.suppress(OSError):
                _write(self.broker / LINEAGE, self.lineage)
            os.close(self.lock)
            self.lock = -1

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadValue(f"--state {self.path} cannot be used: {error.strerror or error}") from error

    def _locked(self, flags: int) -> int:
        """Lock the folder. It may wait: twistd starts services before it runs the reactor, so nobody is served yet."""
        descriptor = os.open(self.path / LOCK, flags, 0o600)
        late = time.monotonic() + self._lock_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > late:
                    os.close(descriptor)
                    raise BadValue(f"--state {self.path} is in use by another chatd") from None
                time.sleep(0.02)
            else:
                return descriptor


def _read(path: Path) -> str:
    """Give the token, if the file is the one it was written to."""
    try:
        with path.open("rb") as file:
            token, _, identity = file.read(200).decode("utf-8", "replace").strip().partition(" ")
            return token if identity == _identity(file.fileno()) else ""
    except FileNotFoundError:
        return ""


def _write(path: Path, token: str) -> None:
    """Put the token into a new file, whole or not at all, also where the power fails."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with new.open("xb") as file:
        file.write(f"{token} {_identity(file.fileno())}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _identity(descriptor: int) -> str:
    """Name an open file: its inode, and when it was made, for inodes are used again.

    Not the device: its number may change with a boot. The time of birth is in statx(2), which Python's os.stat does
    not ask (3.11); where a file system does not know it, it is 0.
    """
    found = ctypes.create_string_buffer(256)
    with contextlib.suppress(AttributeError):  # no glibc
        ctypes.CDLL(None).statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, found)
    known = struct.unpack_from("I", found)[0] & _STATX_BTIME
    born, nanoseconds = struct.unpack_from("qI", found, 80) if known else (0, 0)
    return f"{os.fstat(descriptor).st_ino} {born}.{nanoseconds:09}"
