"""The lock of a chat log, held while the log is written or renamed.

It is ``flock`` on an empty file of its own beside the log (``logs/.chat.log.lock``, mode 0600). A lock on the log
itself could be held by everybody who may read the log: neither ``flock`` nor a read lock of ``fcntl`` needs the right
to write. The file stays when the log is renamed. Several chatds on one log share it, also if one of them reaches the
log through a symbolic link.
"""

import contextlib
import errno
import fcntl
import os


class LogLock:
    """The lock of the chat log at a path. It belongs to one thread."""

    def __init__(self, log_path: str) -> None:
        """Prepare to lock the log at a path, which need not exist yet."""
        folder, name = os.path.split(os.path.realpath(log_path))
        self.path = os.path.join(folder, f".{name}.lock")
        """The path of the lock file."""
        self._folder = folder
        self._file = -1
        self._identity = (0, 0)

    def take(self) -> bool:
        """Acquire the lock without waiting. Return whether this succeeded. Raise OSError if there is no lock file.

        The folder is made if it does not exist. A lock file that was removed is made again, as the next process would
        do: two processes must not lock two files.
        """
        while True:
            if self._file < 0:
                self._open()
            taken = True
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = False
            if self._is_in_place():
                return taken
            self.close()

    def release(self) -> None:
        """Release the lock."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file. A lock that is held ends with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        os.makedirs(self._folder, exist_ok=True)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OSError(error.errno, self._advice(error), self.path) from error
        found = os.fstat(self._file)
        self._identity = (found.st_dev, found.st_ino)

    def _advice(self, error: OSError) -> str:
        """Return why the lock file cannot be opened, and what to do about it."""
        why = f"its lock file {self.path} cannot be opened: {error.strerror}"
        if error.errno not in (errno.EACCES, errno.EPERM):
            return why
        if os.path.lexists(self.path):
            return f"{why}; remove the lock file if another user made it"
        return f"{why}; its folder must be writable by the user that chatd runs as"

    def _is_in_place(self) -> bool:
        with contextlib.suppress(PermissionError):  # the folder may not be searched: what is open is still locked
            try:
                found = os.stat(self.path, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return (found.st_dev, found.st_ino) == self._identity
        return True
