"""The file of the chat log: checked and opened.

It is a file on a disk, which chatd locks and from which it takes back a batch that was not written wholly; or
``/dev/null``. A pipe, a terminal or a socket is refused: writing to one may block a worker, with all its clients, for
as long as nobody reads.
"""

import errno
import os
import re
import stat
import tempfile

from chatd.chatlog.lock import LogLock
from chatd.config.values import BadValue

ADVICE = "name a file, and follow it with: tail -F FILE"
_NO_FILE = "it is no file on a disk"
_LINKS = 40  # symbolic links followed, as many as Linux does
_DESCRIPTORS = re.compile(r"/proc/\w+(/task/\w+)?/fd")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def open_log(path: str) -> int:
    """Open the file, which is made if it is not there, with its folder; return the descriptor. Raise OSError."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return _open(path, os.O_CREAT)


def _open(path: str, flags: int = 0) -> int:
    flags |= os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o640)
    if not is_regular(descriptor) and not os.path.samestat(os.fstat(descriptor), os.stat(os.devnull)):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _NO_FILE, path)
    return descriptor


def is_regular(descriptor: int) -> bool:
    """Return whether a descriptor is a file on a disk."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def check_log(path: str, *, make: bool = True) -> None:
    """Check that messages can be logged. Raise BadValue with one line that says what to do.

    Missing folders and files are created, unless make is false; then it is checked that they can be. A full disk is no
    mistake: it may have room later, and messages are refused until then.
    """
    if _is_of_a_process(path):
        raise BadValue(f"--chat-log {path} cannot be used: {_NO_FILE}; {ADVICE}")
    lock = LogLock(path)
    try:
        if make:
            os.close(open_log(path))
        else:
            _try_to_open(path)
        if path != os.devnull and (make or os.path.lexists(lock.path)):
            lock.take()
    except OSError as error:
        if error.errno not in _FULL:
            advice = f"; {ADVICE}" if error.errno in (errno.EINVAL, errno.ENXIO) else ""
            where = f": {error.filename}" if error.filename not in (None, path, lock.path) else ""
            raise BadValue(f"--chat-log {path} cannot be used: {error.strerror or error}{where}{advice}") from error
    finally:
        lock.close()


def _try_to_open(path: str) -> None:
    """Raise the OSError with which ``open_log`` would end; make nothing."""
    try:
        os.close(_open(path))
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(path))
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        tempfile.TemporaryFile(dir=folder).close()


def _is_of_a_process(path: str) -> bool:
    """Return whether a path means another file in each process, such as /dev/stdout or /proc/self/fd/1."""
    for _ in range(_LINKS):
        if _DESCRIPTORS.fullmatch(os.path.realpath(os.path.dirname(path))):
            return True
        if not os.path.islink(path):
            return False
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return False
