"""The writer of ``logs/chat.log``: a twisted.logger observer, and syncs to the disk.

A message is one line (``chatlog/line``), appended before the message is published.

Several workers, and several chatds, may append to one file. Each batch is one write on an O_APPEND descriptor, made
while holding the lock of the log (``chatlog/lock``). So the next writer can tell a line that was torn by a full disk or
a killed process from one that is being written. A batch that cannot be written completely is removed again. Nobody
writes to a file that was renamed while the lock was held (``chatlog/rotation``).
"""

import errno
import os
import re
import time as clock
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.chatlog.file import is_regular, open_log
from chatd.chatlog.line import LogEntry, message_lines, message_objects, outcome_lines, outcome_objects
from chatd.chatlog.lock import LogLock
from chatd.monitoring.metrics import LOG_WRITE_SECONDS

log = Logger()

_SHAPES = (b"0000-00-00T00:00:00.000Z ", b'{"time":"0000-00-00T00:00:00.000Z",')  # how a line begins
_DIGIT = re.compile(rb"[0-9]")
_TAIL = 65_536  # bytes read at once when looking for the last whole line
_NAP = 0.0001  # seconds between two looks at the lock


class LogBusy(BlockingIOError):
    """Another process holds the lock of the chat log: nothing was written, and the next try may succeed."""


@implementer(ILogObserver)
class ChatLog:
    """The observer that appends the entries of an event to the file.

    Use a Logger of its own (``Logger(observer=chat_log)``): its OSError then reaches the caller, and no other observer
    sees messages. An event has ``entries``, and ``outcome`` and ``now`` if it reports the outcome of earlier entries.

    If another process holds the lock, LogBusy is raised: try again in some milliseconds. After ``lock_seconds``
    another OSError is raised, as if the disk were full.
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
        """Prepare to append to a path; ``log`` is the server's own log.

        Another process may hold the lock for ``lock_seconds`` before messages are refused. One call waits for the lock
        for ``spin_seconds``. ``calm_seconds`` after a failed write the file is tried again, if no write of that size
        has succeeded before. ``synced``: ``take_unsynced`` will be called.
        """
        self._path = path
        self._folder = os.path.dirname(path) or "."
        self._log = log
        self._lock = LogLock(path)
        self._lock_seconds = lock_seconds
        self._spin_seconds = spin_seconds
        self._busy_since = 0.0  # when another process was first seen holding the lock; 0: none does
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
            self._report_broken(error)
            raise
        if needed >= self._needed:  # a smaller one may still fit on a full disk
            self._report_repaired()
        LOG_WRITE_SECONDS.observe(clock.monotonic() - began)

    def check(self) -> None:
        """Open the file anew if it was renamed or removed. Call it every ``chat_log_check_interval``."""
        try:
            if self._moved():
                self._open()
            elif self._broken and (not self._needed or clock.monotonic() >= self._failed_at + self._calm_seconds):
                self._probe()
        except OSError as error:
            self._report_broken(error)

    def hurry(self, lock_seconds: float) -> None:
        """Reduce the time to wait for the lock, because the worker stops."""
        self._lock_seconds = min(self._lock_seconds, lock_seconds)

    def close(self) -> None:
        """Close the file, and its lock."""
        self._close_file()
        self._lock.close()

    def take_unsynced(self) -> list[int]:
        """Return descriptors of the files and folders that may not be on the disk. The caller closes them."""
        descriptors: list[int] = []
        try:
            if self._new:
                descriptors.append(os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC))
            if self._file >= 0 and self._regular:
                descriptors.append(os.dup(self._file))
        except OSError:  # they are returned the next time
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        unsynced, self._unsynced = self._unsynced, []
        self._new = self._dirty = False
        return unsynced + descriptors

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
        self._lock_current_file()
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

    def _lock_current_file(self) -> None:
        """Acquire the lock and open the file at the path: a previous holder may have renamed the open one."""
        self._take_lock()
        try:
            if self._moved():
                self._open()
        except OSError:
            self._lock.release()
            raise

    def _take_lock(self) -> None:
        """Acquire the lock. Others hold it for microseconds; a frozen holder must not block this process."""
        give_up = 0.0
        while not self._lock.take():
            now = clock.monotonic()
            give_up = give_up or now + self._spin_seconds
            if self._broken or now >= give_up:
                self._raise_busy(now)
            clock.sleep(_NAP)
        self._busy_since = 0.0

    def _raise_busy(self, now: float) -> None:
        """Raise LogBusy while the lock may be released in time, else an OSError."""
        self._busy_since = self._busy_since or now
        if not self._broken and now < self._busy_since + self._lock_seconds:
            raise LogBusy
        self._busy_since = 0.0
        raise OSError(errno.EAGAIN, f"another process holds {self._lock.path!r}")

    def _cut_torn_line(self, size: int) -> int:
        """Remove the incomplete line of a killed writer, which was never published. Return the new size.

        A line that does not begin like one of the chat log is kept: it is the wrong file.
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
            "removed an incomplete line of {bytes} bytes from the end of the chat log {path}",
            path=self._path,
            bytes=size - whole,
            event="chat_log_line_removed",
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
        """Try whether a file that could not be written can be written again."""
        if not self._regular:  # a test write could not be removed: wait for the next message
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
        self._report_repaired()

    def _report_broken(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            self._log.error(
                "cannot write the chat log {path}; messages are refused: {why}",
                path=self._path,
                why=error.strerror or error,
                problem="chat log",
                event="chat_log_write_failed",
            )

    def _report_repaired(self) -> None:
        if self._broken:
            self._broken = False
            self._log.info(
                "writing the chat log {path} works again",
                path=self._path,
                problem="chat log",
                resolved=True,
                event="chat_log_write_recovered",
            )


def log_entries(chat: Logger, entries: Sequence[LogEntry]) -> None:
    """Append entries through a Logger whose observer is the ChatLog. Raise LogBusy or another OSError."""
    chat.info("{entries}", entries=entries)


def log_outcome(chat: Logger, entries: Sequence[LogEntry], outcome: str, now: int) -> None:
    """Append the outcome of entries that were logged before: refused, unknown, duplicate. Raise LogBusy or OSError."""
    chat.info("{outcome}: {entries}", entries=entries, outcome=outcome, now=now)


class SyncListener(Protocol):
    """The interface that a Sync calls; the publisher holds messages until they are on the disk."""

    def synced(self, ticket: int) -> None:
        """Handle that everything up to a ticket is on the disk."""

    def sync_failed(self, ticket: int, why: str) -> None:
        """Handle that what is not synced up to this ticket may never be on the disk."""


class Sync:
    """The syncs of a worker's chat log: one at a time, in a thread, each for all that was written before it.

    Each request gets a ticket (1, 2, 3 …). When a sync is over, everything up to its ticket may be published.
    """

    def __init__(
        self,
        take_unsynced: Callable[[], Sequence[int]],
        in_thread: Callable[..., "Deferred[Any]"],
        flush: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """``take_unsynced`` returns descriptors to sync, ``in_thread`` calls ``flush`` in a thread."""
        self._take_unsynced = take_unsynced
        self._in_thread = in_thread
        self._flush = flush or flush_and_close
        self._listeners: list[SyncListener] = []
        self._written = 0
        self._running = False
        self._failed = False

    def listen(self, listener: SyncListener) -> None:
        """Call a listener after each sync."""
        self._listeners.append(listener)

    def request(self) -> int:
        """Request a sync of what was written, after one that is running. Return its ticket."""
        self._written += 1
        if not self._running:
            self._run()
        return self._written

    def _run(self) -> None:
        ticket, self._running = self._written, True
        try:
            syncing = self._in_thread(self._flush, self._take_unsynced())
        except OSError as error:  # no descriptors; reported later: the caller has no ticket yet
            syncing = self._in_thread(_fail, error)
        syncing.addCallbacks(self._synced, self._sync_failed, callbackArgs=(ticket,), errbackArgs=(ticket,)).addErrback(
            lambda failure: log.failure("handling the result of a sync failed", failure, event="sync_result_failed")
        )

    def _synced(self, _: object, ticket: int) -> None:
        if self._failed:
            self._failed = False
            log.info(
                "syncing the chat log works again",
                problem="chat log sync",
                resolved=True,
                event="chat_log_sync_recovered",
            )
        self._run_next(ticket)
        for listener in self._listeners:
            with log.failuresHandled("publishing synced messages failed", event="synced_publish_failed"):
                listener.synced(ticket)

    def _sync_failed(self, failure: Failure, ticket: int) -> None:
        why = failure.getErrorMessage()
        if not self._failed:
            self._failed = True
            log.error(
                "cannot sync the chat log; messages are refused: {why}",
                why=why,
                problem="chat log sync",
                event="chat_log_sync_failed",
            )
        self._run_next(ticket)
        for listener in self._listeners:
            with log.failuresHandled("refusing messages that were not synced failed", event="unsynced_refusal_failed"):
                listener.sync_failed(ticket, why)

    def _run_next(self, ticket: int) -> None:
        self._running = False
        if self._written > ticket:
            self._run()


def flush_and_close(descriptors: Sequence[int]) -> None:
    """Sync descriptors to the disk (fdatasync(2)) and close them. Raise OSError.

    If one fails, the others are synced all the same: nobody has their descriptors to try again.
    """
    trouble: OSError | None = None
    for descriptor in descriptors:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            trouble = trouble or error
        finally:
            os.close(descriptor)
    if trouble is not None:
        raise trouble


def _fail(error: OSError) -> None:
    raise error
