"""The state folder: the private broker's data, which outlive a restart of everything.

``DIR/lock`` is locked by the one chatd that uses the folder, and by its broker. A broker whose supervisor was killed
lives a moment longer, and its file must not have two writers. ``DIR/broker/`` (mode 0700) is the broker's.

``DIR/broker/lineage`` holds a token that names the broker's data. Workers compare it across restarts: with the same
token no message was lost in between. A folder restored from a backup needs a new token (``begin_new_lineage``),
because the messages after the backup are gone.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from chatd.config.values import BadValue

LOCK = "lock"
BROKER = "broker"
LINEAGE = "lineage"


class DataDir:
    """A state folder, from ``acquire`` to ``release``."""

    def __init__(self, path: str, lock_seconds: float) -> None:
        """Use the folder at path, which need not exist; wait up to lock_seconds for another process to release it."""
        self.path = Path(path)
        self.broker = self.path / BROKER
        """The broker's folder."""
        self.lineage = ""
        """The token, after ``acquire``."""
        self.lock = -1
        """A descriptor. The lock is held until this one and those that children inherited are closed."""
        self._lock_seconds = lock_seconds

    def check(self) -> None:
        """Raise BadValue if ``acquire`` would. Create nothing."""
        with self._as_bad_value():
            if (self.path / LOCK).exists():
                os.close(self._open_locked(os.O_RDONLY))
            existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
            if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
                raise BadValue(f"--data-dir {self.path} cannot be used: {existing} cannot be written to")

    def acquire(self) -> None:
        """Lock the folder, create what is missing and set ``lineage``. Raise BadValue."""
        with self._as_bad_value():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = self._open_locked(os.O_RDWR | os.O_CREAT)
            self.broker.mkdir(exist_ok=True)
            self.broker.chmod(0o700)
            self.lineage = _read(self.broker / LINEAGE) if any(self.broker.rglob("*.aof")) else ""
            if not self.lineage:
                self.lineage = secrets.token_hex(8)
                _write(self.broker / LINEAGE, self.lineage)

    def begin_new_lineage(self) -> None:
        """Remove the token, so that the next ``acquire`` creates another. Raise BadValue, e.g. if it is in use."""
        with self._as_bad_value():
            if not (self.path / LOCK).exists():
                raise BadValue(f"{self.path} is not a state folder of chatd")
            lock = self._open_locked(os.O_RDWR)
            try:
                (self.broker / LINEAGE).unlink(missing_ok=True)
            finally:
                os.close(lock)

    def release(self) -> None:
        """Unlock the folder."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    @contextlib.contextmanager
    def _as_bad_value(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadValue(f"--data-dir {self.path} cannot be used: {error.strerror or error}") from error

    def _open_locked(self, flags: int) -> int:
        # It may block: twistd starts services before it runs the reactor, so there are no clients yet.
        descriptor = os.open(self.path / LOCK, flags, 0o600)
        deadline = time.monotonic() + self._lock_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise BadValue(f"--data-dir {self.path} is in use by another chatd") from None
                time.sleep(0.02)
            else:
                return descriptor


def _read(path: Path) -> str:
    """Return the token, or an empty string if the file has none."""
    with contextlib.suppress(FileNotFoundError):
        words = path.read_bytes().decode("ascii", "replace").split()
        return words[0] if words and words[0].isalnum() else ""
    return ""


def _write(path: Path, token: str) -> None:
    """Replace the file, in a way that leaves no half of it after a power failure."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(f"{token}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
