r"""Messages as plain text, in two formats: for pipes and for people. Also the lines of the server, and commands.

A pipe receives the text of a message unchanged, one message in one frame. A client with a nick receives text that is
safe for a terminal: it cannot move the cursor or change the direction of the text, and each message stays one line.
Controls (except tab), line and paragraph separators and overrides of direction are escaped: ``\x1b``, ``\u2028``,
``\u202e``. A backslash is not escaped.

Every line of the server starts with ``* ``. A line of a client that starts with one ``/`` is a command. A message of a
pipe has no nick in front of it. If it looks like a line of the server or of a client with a nick, also after white
space, clients with a nick receive it with ``: `` in front, as if the nick of the sender were empty.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import dropwhile, islice
from math import ceil
from typing import NamedTuple

from chatd.protocol.message import Batch, Message, PresenceEvent
from chatd.protocol.nick import NICK_LENGTH, BadNick, folded, looks, read_nick
from chatd.protocol.websocket_frames import deflated_text_frame, text_frame

LAST = 20
"""The default number of messages of ``/last``."""

_REPEATED = 32  # characters of a command that does not exist
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")

_ATTRIBUTED = re.compile(r"\*\s|[^\s:]*:\s")  # to the server, or to a client with that nick

_UNSAFE = (
    *range(0x09),
    *range(0x0A, 0x20),
    *range(0x7F, 0xA0),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
)
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _UNSAFE}
_ANY_UNSAFE = re.compile(f"[{re.escape(''.join(map(chr, _UNSAFE)))}]")


def read_line(text: str) -> str:
    r"""Return the line of a text message: one ``\n`` or ``\r\n`` at its end is dropped.

    An empty line is published to no one: an empty frame makes websocat 1.13 stop reading.
    """
    if text[-1:] != "\n":
        return text
    return text[:-2] if text[-2:-1] == "\r" else text[:-1]


def utf8_size(text: str) -> int:
    """Count the bytes of a text's UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def safe(text: str) -> str:
    """Escape what a terminal would obey instead of show."""
    # Each way is the fast one for its texts: ASCII is translated by a table, other text character by character.
    return text.translate(_ESCAPES) if text.isascii() or _ANY_UNSAFE.search(text) else text


class Format:
    """The encoding of messages and presence events for a kind of client. A batch is encoded once per format."""

    def __init__(
        self,
        show: Callable[[Message, str, str, int], bytes],
        tell: Callable[[str, PresenceEvent], bytes],
        frame: Callable[[bytes], bytes] = text_frame,
        deflated: "Format | None" = None,
    ) -> None:
        """Store how to encode a message of a room, epoch and offset, and a presence event of a room; empty: not at all.

        Frame adds the framing. Deflated is the same format for clients that have agreed to compression.
        """
        self._show = show
        self._tell = tell
        self._frame = frame
        self.deflated = deflated or self

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        """Return the frame of each message, in their order."""
        frame, show = self._frame, self._show
        return [
            frame(show(message, batch.room, batch.epoch, offset))
            for batch in batches
            for offset, message in enumerate(batch.messages, batch.first)
        ]

    def change(self, room: str, change: PresenceEvent) -> bytes:
        """Return the frame of a presence event; empty if the format has none for it."""
        data = self._tell(room, change)
        return self._frame(data) if data else b""


def text_format(
    show: Callable[[Message], str],
    tell: Callable[[PresenceEvent], str] | None = None,
    frame: Callable[[bytes], bytes] = text_frame,
    deflated: Format | None = None,
) -> Format:
    """Return a format in which a message is a line, and so is a presence event of a member with a nick."""

    def show_message(message: Message, room: str, epoch: str, offset: int) -> bytes:
        return show(message).encode()

    def show_change(room: str, change: PresenceEvent) -> bytes:
        return tell(change).encode() if tell is not None and change.nick else b""

    return Format(show_message, show_change, frame, deflated)


def bare(message: Message) -> str:
    """Show a message to a bare client: its text, after the nick of its sender, if there is one."""
    if not message.nick:
        return message.text
    return f"* {message.nick} {message.text}" if message.action else f"{message.nick}: {message.text}"


def named(message: Message) -> str:
    """Return a message for a text client: with the nick, safe for a terminal, and not mistakable for another line."""
    shown = safe(bare(message))
    return f": {shown}" if not message.nick and _speaks_as_another(message.text) else shown


def _speaks_as_another(text: str) -> bool:
    """Return whether the text of a sender without a nick looks like a line of the server, or of a sender with a nick.

    White space before it makes no difference.
    """
    length = NICK_LENGTH + 2
    text = text.lstrip()
    if not text[:length].isascii():
        text = "".join(islice(dropwhile(str.isspace, looks(text)), length))
    return _ATTRIBUTED.match(text, 0, length) is not None


# What the server says


def notice(text: str) -> str:
    """Return a line of the server, which is safe whatever the text holds."""
    return f"* {safe(text)}"


def joined(nick: str) -> str:
    """Return the line for a join."""
    return notice(f"{nick} joined")


def left(nick: str) -> str:
    """Return the line for a leave."""
    return notice(f"{nick} left")


def renamed(was: str, nick: str) -> str:
    """Return the line for another nick."""
    return notice(f"{was} is now {nick}")


def taken(nick: str, given: str) -> str:
    """Return the line for a client that got another nick than requested.

    The first number means that no token proves it.
    """
    return you_are(given) if given.endswith("*1") else notice(f"{nick} is taken, you are {given}")


def you_are(nick: str) -> str:
    """Return the line with a client's own nick."""
    return notice(f"you are {nick}")


def missed(count: int) -> str:
    """Return the line for messages that were skipped for a client."""
    return notice(f"{_counted(count, 'line')} missed")


def lost(count: int | None) -> str:
    """Return the line for messages that are lost; None: unknown how many."""
    return notice("some lines may be lost" if count is None else f"{_counted(count, 'line')} lost")


def cut(count: int) -> str:
    """Return the line for an answer that has fewer messages than requested, because more do not fit."""
    return notice(f"the last {_counted(count, 'line')}: more do not fit in one answer")


def not_sent(reason: str, retry_after: float | None = None) -> str:
    """Return the line for a message that was refused, and in how many seconds it may be sent; None: unknown."""
    again = "" if retry_after is None else f", try again in {max(1, ceil(retry_after))} s"
    return notice(f"not sent: {reason}{again}")


def closing_notice(reason: str) -> str:
    """Return the line for the reason of a close: websocat shows no close reason."""
    return notice(f"closing: {reason}")


def token_ends(seconds: float) -> str:
    """Return the line for the end of a token."""
    return notice(f"your token runs out in {_counted(max(1, round(seconds)), 'second')}")


def pong(seconds: float) -> str:
    """Answer ``/ping``: how long it took through the message bus and back."""
    return notice(f"pong after {seconds * 1000:.1f} ms")


def who(nicks: Iterable[str], bare_count: int) -> str:
    """Return the answer to ``/who``: all nicks in order, and the number of members without one."""
    names = ", ".join(sorted(nicks, key=lambda nick: (folded(nick), nick)))
    nameless = f"{bare_count} without a nick" if bare_count else ""
    return notice(f"here: {' and '.join(filter(None, (names, nameless))) or 'nobody'}")


def counted(count: int) -> str:
    """Return the answer to ``/who`` in a room that is too large for a list."""
    return notice(f"{_counted(count, 'member')} {'is' if count == 1 else 'are'} here")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def change(event: PresenceEvent) -> str:
    """Return the line for a presence event."""
    if event.what == "nick":
        return renamed(event.was, event.nick) if event.was else joined(event.nick)
    return joined(event.nick) if event.what == "join" else left(event.nick)


BARE = text_format(bare, deflated=text_format(bare, frame=deflated_text_frame))
"""One message one frame, the text unchanged."""

NAMED = text_format(named, change, deflated=text_format(named, change, deflated_text_frame))
"""Messages safe for a terminal, with nicks, and presence events."""


# What people type


@dataclass(frozen=True, slots=True)
class Say:
    """Send a text to the room; an action if it says what the sender does: ``* ann waves``."""

    text: str
    action: bool = False


@dataclass(frozen=True, slots=True)
class Rename:
    """Change the nick to a valid one."""

    nick: str


@dataclass(frozen=True, slots=True)
class Last:
    """Send the last messages of the room, at least one; there may be fewer."""

    count: int


class Ask(Enum):
    """The commands of one word."""

    WHO = "who"
    PING = "ping"
    QUIT = "quit"


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the client alone, each line a message."""

    lines: tuple[str, ...]


Command = Say | Rename | Last | Ask | Answer


def read_command(line: str) -> Command:
    """Parse the command of a line that is not empty; an invalid one is an Answer with the reason."""
    if not line.startswith("/") or line.startswith("//"):
        return Say(line.removeprefix("/"))
    word, *rest = line.split(maxsplit=1)
    rule = _RULES.get(word)
    if rule is None:
        return Answer((notice(f"no such command: {word[:_REPEATED]} (try /help)"),))
    return rule.read(rest[0].rstrip() if rest else "") or Answer((notice(f"usage: {rule.usage}"),))


def _ask(command: Ask) -> Callable[[str], Command | None]:
    return lambda argument: None if argument else command


def _rename(nick: str) -> Command | None:
    try:
        return Rename(read_nick(nick)) if nick else None
    except BadNick as bad:
        return Answer((notice(str(bad)),))


def _last(count: str) -> Command | None:
    if not count:
        return Last(LAST)
    return Last(int(count)) if _NUMBER.fullmatch(count) else None


class _Rule(NamedTuple):
    usage: str
    meaning: str
    read: Callable[[str], Command | None]
    """Return None for an argument that does not fit the usage."""


_RULES = {
    "/help": _Rule("/help", "these lines", lambda argument: None if argument else Answer(HELP)),
    "/who": _Rule("/who", "who is here", _ask(Ask.WHO)),
    "/nick": _Rule("/nick NAME", "be called NAME", _rename),
    "/last": _Rule("/last [N]", f"the last N lines, or {LAST}", _last),
    "/me": _Rule("/me TEXT", "say what you do: * you TEXT", lambda text: Say(text, action=True) if text else None),
    "/ping": _Rule("/ping", "how long a line takes to come back", _ask(Ask.PING)),
    "/quit": _Rule("/quit", "leave", _ask(Ask.QUIT)),
}

HELP: tuple[str, ...] = (
    *(notice(f"{rule.usage}: {rule.meaning}") for rule in _RULES.values()),
    notice("//TEXT: say /TEXT"),
)
"""The answer to ``/help``."""
