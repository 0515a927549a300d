r"""A line of the chat log: how a message is written, and how it is read back.

One message is one line::

    2026-11-22T20:33:45.123Z ops -@127.0.0.1 6f2a91c07e.7.1 the text

time (RFC 3339, UTC), room, who (the nick, or ``-`` for a sender without one, ``@`` and the address), message id, text,
with one space between them. If the sender's token has a subject, who is ``nick:SUBJECT@ADDRESS``: no nick has a
colon, no address an ``@``; a space of the subject is ``\x20``. Text that would end the line or move the terminal it is
read on comes out as escapes (``escape``, ``unescape``). A message that was logged and then could not be published has a
second line with its id, whose who is ``!`` and whose text is ``refused``, or ``unknown`` where the broker may have had
it.

For programs the same can be JSON, an object a line: ``time``, ``room``, ``nick`` (null for nobody), ``address``,
``id`` and ``text``, ``action`` (true) if the sender does what the text says, and ``subject`` if its token has
one; a second line has ``outcome`` in place of sender and text. A log may have lines of both kinds.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from chatd.protocol.message import Message, rfc3339_ms

_UNSAFE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([\\nrt]))")
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_SPACE = r"\x20"
_LINE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z) ([^ ]+) ([^ ]+) ([^ ]+) (.*)")


def escape(text: str) -> str:
    r"""Return a text as one line that is safe for a terminal; ``unescape`` reverses it.

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
    """Return the text that ``escape`` got."""
    return _ESCAPED.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else _LONG[m[3]], line)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Messages that one sender published together, with the room and the address."""

    room: str
    address: str
    """The address of the sender, which stays on this host."""
    messages: Sequence[Message]


def message_lines(entry: LogEntry) -> str:
    """Return the lines of an entry's messages, with newlines."""
    room, address = escape(entry.room), escape(entry.address)
    return "".join(
        [
            f"{rfc3339_ms(message.time)} {room} {_who(message)}@{address} {message.id} {escape(message.text)}\n"
            for message in entry.messages
        ]
    )


def _who(message: Message) -> str:
    """Return the sender: ``-`` has no nick, ``ann`` has one, ``*ann`` does what follows, ``ann:u-17`` has a subject."""
    who = "-"
    if message.nick:
        nick = escape(message.nick) if message.nick != "-" else r"\x2d"
        who = f"*{nick}" if message.action else nick
    return f"{who}:{escape(message.subject).replace(' ', _SPACE)}" if message.subject else who


def outcome_lines(entry: LogEntry, outcome: str, now: int) -> str:
    """Return the outcome lines of messages that were not published: ``refused`` or ``unknown``."""
    head = f"{rfc3339_ms(now)} {escape(entry.room)} !"
    return "".join([f"{head} {message.id} {outcome}\n" for message in entry.messages])


class _LogText(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message, as JSON."""

    time: str
    room: str
    nick: str | None
    address: str
    id: str
    text: str
    action: bool = False
    subject: str = ""


class _Outcome(msgspec.Struct, frozen=True):
    """The outcome of a message, as JSON."""

    time: str
    room: str
    id: str
    outcome: str


_encode = msgspec.json.Encoder().encode


def message_objects(entry: LogEntry) -> str:
    """Return an entry's messages as JSON, one line message."""
    room, address = entry.room, entry.address
    plain = room.isprintable() and address.isprintable()
    return "".join(
        [
            _object(
                _LogText(
                    rfc3339_ms(message.time),
                    room,
                    message.nick or None,
                    address,
                    message.id,
                    message.text,
                    message.action,
                    message.subject,
                ),
                plain and message.text.isprintable() and message.nick.isprintable() and message.subject.isprintable(),
            )
            for message in entry.messages
        ]
    )


def outcome_objects(entry: LogEntry, outcome: str, now: int) -> str:
    """Return the outcomes of an entry's messages as JSON, one line message."""
    time, plain = rfc3339_ms(now), entry.room.isprintable()
    return "".join([_object(_Outcome(time, entry.room, message.id, outcome), plain) for message in entry.messages])


def _object(value: _LogText | _Outcome, plain: bool) -> str:
    """Return a JSON line that is safe for a terminal: JSON itself does not escape C1 controls and overrides."""
    if plain:
        return f"{_encode(value).decode()}\n"
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).replace("\x7f", r"\u007f") + "\n"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a chat log, its escapes read back."""

    time: str
    """As it stands there: RFC 3339, UTC."""
    room: str
    who: str
    id: str
    text: str

    @property
    def is_outcome(self) -> bool:
        """Return whether it is an outcome line, whose text is the outcome of the message with that id."""
        return self.who == "!"


def read_line(line: bytes) -> LogLine | None:
    """Parse a line of either kind, without its newline. Return None if it is no line of a chat log."""
    try:
        if line.startswith(b"{"):
            return _read_object(json.loads(line))
        found = _LINE.fullmatch(line.decode())
    except (ValueError, RecursionError):
        return None
    if found is None:
        return None
    time, room, who, id, text = found.groups()
    return LogLine(time, unescape(room), unescape(who), id, unescape(text))


def _read_object(fields: dict[str, Any]) -> LogLine | None:
    if "outcome" in fields:
        who, text = "!", fields["outcome"]
    else:
        nick = fields.get("nick")
        who = "-" if nick is None else f"{'*' if fields.get('action') else ''}{nick}"
        if "subject" in fields:
            who = f"{who}:{fields['subject']}"
        who, text = f"{who}@{fields.get('address')}", fields.get("text")
    values = [fields.get("time"), fields.get("room"), who, fields.get("id"), text]
    strings = [value for value in values if isinstance(value, str)]
    return LogLine(*strings) if len(strings) == len(values) else None
