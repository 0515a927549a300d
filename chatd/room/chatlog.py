r"""The chat log: the twisted.logger observer that owns ``logs/chat.log``.

One message is one line, appended before the message is published::

    2026-11-22T20:33:45.123Z ops -@127.0.0.1 6f2a91c07e.7.1 the text

time (RFC 3339, UTC), room, who (``-``, for nobody has a name yet, ``@`` and the address), message id, text, with
one space between them. Text that would end the line or move the terminal it is read on comes out as escapes
(``escape``, ``unescape``). A message that was logged and then could not be published has a second line with
its id, whose who is ``!`` and whose text is ``refused``, or ``unknown`` where the broker may have had it.

Several workers, and several chatds, may append to one file. Each batch is one write on an O_APPEND descriptor,
made while holding the file's lock (``flock``), so that whoever writes next can tell a line that was torn by
a full disk or a killed process from one that is being written. A batch that can't be written wholly is taken back.
"""

import errno
import fcntl
import os
import re
import stat
import time as clock
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from twisted.logger import ILogObserver, Logger
from zope.interface import implementer

from chatd.message import Message

_UNSAFE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([\\nrt]))")
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_SHAPE = b"0000-00-00T00:00:00.000Z "  # how a line begins
_LINE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z) ([^ ]+) ([^ ]+) ([^ ]+) (.*)")
_DIGIT = re.compile(rb"[0-9]")
_TAIL = 65_536  # bytes read at once when looking for the last whole line


def escape(text: str) -> str:
    r"""Write any text in one line that no terminal trips over; ``unescape`` gives it back.

    ``\`` becomes ``\\``; newline, carriage return and tab ``\n``, ``\r``, ``\t``; other C0 and C1 controls and DEL
    ``\x1b``; line and paragraph separators, bidirectional overrides and lone surrogates ``\u2028``.
    """
    if text.isprintable() and "\\" not in text:
        return text  # nearly always, and five times as fast
    return _UNSAFE.sub(_escape_one, text)


def _escape_one(match: re.Match[str]) -> str:
    one = match[0]
    number = ord(one)
    return _SHORT.get(one) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def unescape(line: str) -> str:
    """Read back what ``escape`` wrote."""
    return _ESCAPED.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else _LONG[m[3]], line)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one author said in a room at a time, and what the log says of it beside."""

    room: str
    address: str
    """Where the author connects from; stays on this host."""
    messages: Sequence[Message]


def message_lines(entry: Entry) -> str:
    """Give the lines of an entry's messages, each with its newline."""
    room, address = escape(entry.room), escape(entry.address)
    return "".join(
        [
            f"{timestamp(each.time)} {room} {_who(each)}@{address} {each.id} {escape(each.text)}\n"
            for each in entry.messages
        ]
    )


def _who(message: Message) -> str:
    """Name the author: ``-`` has no nick, ``ann`` has one, ``*ann`` does what follows (``/me``)."""
    if not message.nick:
        return "-"
    nick = escape(message.nick) if message.nick != "-" else r"\x2d"
    return f"*{nick}" if message.action else nick


def outcome_lines(entry: Entry, outcome: str, now: int) -> str:
    """Give the second lines of messages that were not published: outcome is ``refused`` or ``unknown``."""
    head = f"{timestamp(now)} {escape(entry.room)} !"
    return "".join([f"{head} {each.id} {outcome}\n" for each in entry.messages])


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chat log, its escapes read back."""

    time: str
    """As it stands there: RFC 3339, UTC."""
    room: str
    who: str
    id: str
    text: str

    @property
    def is_outcome(self) -> bool:
        """Whether it is a second line, whose text says what became of the message with that id."""
        return self.who == "!"


def read_line(line: bytes) -> Line | None:
    """Read a line, without its newline; None where it is no line of a chat log."""
    try:
        found = _LINE.fullmatch(line.decode())
    except UnicodeDecodeError:
        return None
    if found is None:
        return None
    time, room, who, id, text = found.groups()
    return Line(time, unescape(room), unescape(who), id, unescape(text))


@lru_cache(maxsize=4)  # the messages of a batch share it
def timestamp(milliseconds: int) -> str:
    """Write milliseconds since 1970 as RFC 3339 in UTC."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@implementer(ILogObserver)
class ChatLog:
    """Appends the entries of an event to the file.

    Give it to a Logger of its own (``Logger(observer=chat_log)``): called that way its OSError reaches whoever
    logs, where the global publisher would swallow it, and no other observer sees what people say. An event has
    ``entries``, and ``outcome`` and ``now`` where they say what became of entries logged before.
    """

    def __init__(self, path: str, log: Logger, *, lock_seconds: float, calm_seconds: float = 0.0) -> None:
        """Take the file's path, the server's own log, and two times in seconds.

        How long to wait for another writer; and how long after a write that failed the file is taken to be good
        again if no write of that size has shown it before.
        """
        self._path = path
        self._log = log
        self._lock_seconds = lock_seconds
        self._file = -1
        self._regular = True
        self._calm_seconds = calm_seconds
        self._broken = False
        self._needed = 0
        self._failed_at = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Append an event's entries. Raises OSError where they can't be; then none of them are in the file."""
        entries: Iterable[Entry] = event["entries"]
        if outcome := event.get("outcome"):
            lines = [outcome_lines(each, outcome, event["now"]) for each in entries]
        else:
            lines = [message_lines(each) for each in entries]
        self._append("".join(lines).encode())

    def check(self) -> None:
        """Open the file anew if it was renamed or removed. Call it every ``log_check_seconds``."""
        try:
            if self._moved():
                self._open()
            elif self._broken and (not self._needed or clock.monotonic() >= self._failed_at + self._calm_seconds):
                self._probe()
        except OSError as error:
            self._say_broken(error)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, data: bytes) -> None:
        needed = 0
        try:
            if self._file < 0 or os.fstat(self._file).st_nlink == 0:  # removed: what goes there is in no log
                self._open()
            needed = len(data)
            self._write(data)
        except OSError as error:
            self._needed, self._failed_at = needed, clock.monotonic()
            self._say_broken(error)
            raise
        if needed >= self._needed:  # a smaller one may still fit on a full disk
            self._say_mended()

    def _write(self, data: bytes) -> None:
        if not self._regular:  # /dev/stderr, /dev/null, a named pipe: nothing to lock, nothing to take back
            self._write_whole(data)
            return
        self._lock(wait=not self._broken)
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
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _write_whole(self, data: bytes) -> None:
        if os.write(self._file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _lock(self, *, wait: bool) -> None:
        """Take the lock, which others hold for some microseconds: a frozen holder must not freeze us for long."""
        give_up = None
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not wait:
                    raise
                now = clock.monotonic()
                give_up = give_up or now + self._lock_seconds
                if now > give_up:
                    raise
                clock.sleep(0.0001)

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
        begin = os.pread(self._file, len(_SHAPE), whole)
        if not _SHAPE.startswith(_DIGIT.sub(b"0", begin)):
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

    def _open(self) -> None:
        self.close()
        os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)

    def _probe(self) -> None:
        """Try, while the file can't be written, whether it can be again: only the disk knows."""
        if not self._regular:  # what was written could not be taken back: the next message tells
            return
        self._lock(wait=False)
        try:
            size = os.lseek(self._file, 0, os.SEEK_END)
            try:
                self._write_whole(b"\n")
            finally:
                os.ftruncate(self._file, size)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._say_mended()

    def _say_broken(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            self._log.error(
                "the chat log {path} cannot be written, messages are refused: {why}",
                path=self._path,
                why=error.strerror or error,
                trouble="chat log",
            )

    def _say_mended(self) -> None:
        if self._broken:
            self._broken = False
            self._log.info("the chat log {path} can be written again", path=self._path, trouble="chat log", over=True)


def log_entries(log: Logger, entries: Sequence[Entry]) -> None:
    """Append entries through a Logger whose observer is the ChatLog. Raises OSError."""
    log.info("{entries}", entries=entries)


def log_outcome(log: Logger, entries: Sequence[Entry], outcome: str, now: int) -> None:
    """Say of entries that were logged before that they were ``refused``, or that it is ``unknown``. Raises OSError."""
    log.info("{outcome}: {entries}", entries=entries, outcome=outcome, now=now)
