"""The chat log: the twisted.logger observer that owns ``logs/chat.log``.

A message is a line (``logline``), appended before the message is published.

Several workers, and several chatds, may append to one file. Each batch is one write on an O_APPEND descriptor,
made while holding the log's lock (``loglock``). So the next writer can tell a line that was torn by a full disk or
a killed process from one that is being written. A batch that can't be written wholly is taken back. Nobody writes to
a file that was renamed while the lock was held (``chatlog/rotation``).
"""

import errno
import os
import re
import time as clock
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.logger import ILogObserver, Logger
from zope.interface import implementer

from chatd.chatlog.file import is_regular, open_log
from chatd.chatlog.line import LogEntry, message_lines, message_objects, outcome_lines, outcome_objects
from chatd.chatlog.lock import LogLock
from chatd.monitoring.metrics import LOG_WRITE_SECONDS

_SHAPES = (b"0000-00-00T00:00:00.000Z ", b'{"time":"0000-00-00T00:00:00.000Z",')  # how a line begins
_DIGIT = re.compile(rb"[0-9]")
_TAIL = 65_536  # bytes read at once when looking for the last whole line
_NAP = 0.0001  # seconds between two looks at the lock


class LogBusy(BlockingIOError):
    """Another process holds the lock of the chat log for now: nothing was written, and the next try may succeed."""


@implementer(ILogObserver)
class ChatLog:
    """Appends the entries of an event to the file.

    Give it to a Logger of its own (``Logger(observer=chat_log)``): called that way its OSError reaches whoever
    logs, where the global publisher would swallow it, and no other observer sees what people say. An event has
    ``entries``, and ``outcome`` and ``now`` where they say what became of entries logged before.

    It does not wait for a lock that another process holds, but raises LogBusy: try again in some milliseconds. Once
    the lock was held for ``lock_seconds`` it raises another OSError, as if the disk were full.
    """

    def __init__(
        self,
        path: str,
        log: Logger,
        *,
        lock_seconds: float,
        spin_seconds: float = 0.0,
        calm_seconds: float = 0.0,
        json: bool = False,
        synced: bool = False,
    ) -> None:
        """Take the file's path, the server's own log, and three times in seconds.

        The first is how long another process may hold the lock before messages are refused. The second is how long
        one call waits for the lock. The third is how long after a write that failed the file is taken to be good
        again if no write of that size has shown it before. Then whether lines are JSON, and whether somebody calls
        ``take_unsynced``.
        """
        self._path = path
        self._folder = os.path.dirname(path) or "."
        self._log = log
        self._lock = LogLock(path)
        self._lock_seconds = lock_seconds
        self._spin_seconds = spin_seconds
        self._busy_since = 0.0  # since when others have had the lock; 0: they do not
        self._file = -1
        self._regular = True
        self._calm_seconds = calm_seconds
        self._broken = False
        self._needed = 0
        self._failed_at = 0.0
        self._message_lines = message_objects if json else message_lines
        self._outcome_lines = outcome_objects if json else outcome_lines
        self._synced = synced
        self._unsynced: list[int] = []  # files that were renamed since
        self._dirty = False  # whether something was written that may not be on the disk
        self._new = False  # whether the file's name may not be there

    def __call__(self, event: dict[str, Any]) -> None:
        """Append an event's entries. Raise LogBusy or another OSError if none of them are in the file."""
        began = clock.monotonic()
        needed = 0
        try:
            if self._file < 0 or os.fstat(self._file).st_nlink == 0:  # removed: what goes there is in no log
                self._open()
            if self._busy_since:  # a batch that waits is not formatted again and again
                self._take_lock()
                self._lock.release()
            data = self._format(event)
            needed = len(data)
            self._write(data)
            self._dirty = self._synced and self._regular
        except LogBusy:
            raise
        except OSError as error:
            self._needed, self._failed_at = needed, clock.monotonic()
            self._say_broken(error)
            raise
        if needed >= self._needed:  # a smaller one may still fit on a full disk
            self._say_mended()
        LOG_WRITE_SECONDS.observe(clock.monotonic() - began)

    def check(self) -> None:
        """Open the file anew if it was renamed or removed. Call it every ``log_check_seconds``."""
        try:
            if self._moved():
                self._open()
            elif self._broken and (not self._needed or clock.monotonic() >= self._failed_at + self._calm_seconds):
                self._probe()
        except OSError as error:
            self._say_broken(error)

    def hurry(self, lock_seconds: float) -> None:
        """Wait no longer than so many seconds for a lock that others hold: the worker stops."""
        self._lock_seconds = min(self._lock_seconds, lock_seconds)

    def close(self) -> None:
        """Close the file, and its lock."""
        self._close_file()
        self._lock.close()

    def take_unsynced(self) -> list[int]:
        """Give descriptors, the caller's to close, of what may not be on the disk: files, and folders with names."""
        taken: list[int] = []
        try:
            if self._new:
                taken.append(os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC))
            if self._file >= 0 and self._regular:
                taken.append(os.dup(self._file))
        except OSError:  # what is unsynced is so still, for the next time
            for each in taken:
                os.close(each)
            raise
        unsynced, self._unsynced = self._unsynced, []
        self._new = self._dirty = False
        return unsynced + taken

    def _format(self, event: dict[str, Any]) -> bytes:
        entries: Iterable[LogEntry] = event["entries"]
        if outcome := event.get("outcome"):
            lines = [self._outcome_lines(entry, outcome, event["now"]) for entry in entries]
        else:
            lines = [self._message_lines(entry) for entry in entries]
        return "".join(lines).encode()

    def _write(self, data: bytes) -> None:
        if not self._regular:  # /dev/null: nothing to lock, nothing to take back
            self._write_whole(data)
            return
        self._lock_the_one_in_place()
        try:
            size = os.lseek(self._file, 0, os.SEEK_END)
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                whole = self._cut_torn_line(size)
                data = b"\n" + data if whole == size else data
                size = whole
            try:
                self._write_whole(data)
            except OSError:
                os.ftruncate(self._file, size)
                raise
        finally:
            self._lock.release()

    def _write_whole(self, data: bytes) -> None:
        if os.write(self._file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _lock_the_one_in_place(self) -> None:
        """Take the lock, and have the file open that the path names: who had it before may have renamed that."""
        self._take_lock()
        try:
            if self._moved():
                self._open()
        except OSError:
            self._lock.release()
            raise

    def _take_lock(self) -> None:
        """Take the lock, which others hold for some microseconds: a frozen holder must not freeze us."""
        give_up = 0.0
        while not self._lock.take():
            now = clock.monotonic()
            give_up = give_up or now + self._spin_seconds
            if self._broken or now >= give_up:
                self._say_busy(now)
            clock.sleep(_NAP)
        self._busy_since = 0.0

    def _say_busy(self, now: float) -> None:
        """Raise LogBusy while the lock may come free in time, else an OSError that messages are refused with."""
        self._busy_since = self._busy_since or now
        if not self._broken and now < self._busy_since + self._lock_seconds:
            raise LogBusy
        self._busy_since = 0.0
        raise OSError(errno.EAGAIN, f"another process holds {self._lock.path!r}")

    def _cut_torn_line(self, size: int) -> int:
        """Take away the half line that a killed writer left; it was never published. Gives the new size.

        What does not begin like a line of ours is not touched: somebody named the wrong file.
        """
        whole = size
        while whole:
            start = max(0, whole - _TAIL)
            end = os.pread(self._file, whole - start, start).rfind(b"\n")
            if end >= 0:
                whole = start + end + 1
                break
            whole = start
        begin = _DIGIT.sub(b"0", os.pread(self._file, max(map(len, _SHAPES)), whole))
        if not any(shape.startswith(begin[: len(shape)]) for shape in _SHAPES):
            return size
        os.ftruncate(self._file, whole)
        self._log.warn(
            "the chat log {path} ended in half a line of {bytes} bytes; it was cut off",
            path=self._path,
            bytes=size - whole,
        )
        return whole

    def _moved(self) -> bool:
        if self._file < 0:
            return True
        try:
            there, ours = os.stat(self._path), os.fstat(self._file)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # may not look; what is open can still be written
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _close_file(self) -> None:
        if self._file >= 0:
            if self._dirty:
                self._unsynced.append(self._file)
            else:
                os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self._close_file()
        self._file = open_log(self._path)
        self._regular = is_regular(self._file)
        self._new = self._synced and self._regular

    def _probe(self) -> None:
        """Try, while the file can't be written, whether it can be again: only the disk knows."""
        if not self._regular:  # what was written could not be taken back: the next message tells
            return
        self._take_lock()
        try:
            size = os.lseek(self._file, 0, os.SEEK_END)
            try:
                self._write_whole(b"\n")
            finally:
                os.ftruncate(self._file, size)
        finally:
            self._lock.release()
        self._say_mended()

    def _say_broken(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            self._log.error(
                "the chat log {path} cannot be written, messages are refused: {why}",
                path=self._path,
                why=error.strerror or error,
                problem="chat log",
            )

    def _say_mended(self) -> None:
        if self._broken:
            self._broken = False
            self._log.info(
                "the chat log {path} can be written again", path=self._path, problem="chat log", resolved=True
            )


def log_entries(log: Logger, entries: Sequence[LogEntry]) -> None:
    """Append entries through a Logger whose observer is the ChatLog. Raise LogBusy or another OSError."""
    log.info("{entries}", entries=entries)


def log_outcome(log: Logger, entries: Sequence[LogEntry], outcome: str, now: int) -> None:
    """Append what became of entries that were logged before: refused, unknown, duplicate. Raise LogBusy or OSError."""
    log.info("{outcome}: {entries}", entries=entries, outcome=outcome, now=now)
