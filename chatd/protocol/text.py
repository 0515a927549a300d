r"""Plain text: the bare dress and the named one, what the server says in it, and the commands that people type.

Bare is the contract of a pipe: one message is one frame; its text goes out as it came in. What a named client gets is
safe for its terminal: it can neither move the cursor nor turn the writing round, and each message stays one line.
Controls (tab apart), line and paragraph separators and overrides of direction come out escaped: ``\x1b``, ``\u2028``,
``\u202e``. A backslash stays as it is.

Every line of the server starts with ``* ``. A line of a client that starts with one ``/`` is a command. What a pipe
says comes without a name. If it looks like a line of the server or of somebody with a name, also behind blanks, a named
client gets it with ``: `` before it, as from somebody whose name is empty.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import dropwhile, islice
from math import ceil
from typing import NamedTuple, Protocol

from chatd.protocol.message import Batch, Message, PresenceEvent
from chatd.protocol.nick import NICK_LENGTH, BadNick, folded, looks, read_nick
from chatd.protocol.websocket_frames import deflated_text_frame, text_frame

LAST = 20
"""Messages that ``/last`` asks for where no number is given."""

_REPEATED = 32  # characters of a command that does not exist
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")

_ATTRIBUTED = re.compile(r"\*\s|[^\s:]*:\s")  # to the server, or to somebody with that nick

_UNSAFE = (
    *range(0x09),
    *range(0x0A, 0x20),
    *range(0x7F, 0xA0),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
)
_ESCAPES = {each: f"\\x{each:02x}" if each < 0x100 else f"\\u{each:04x}" for each in _UNSAFE}
_ANY_UNSAFE = re.compile(f"[{re.escape(''.join(map(chr, _UNSAFE)))}]")


def read_line(text: str) -> str:
    r"""Read a text message as a line: one ``\n`` or ``\r\n`` at its end is dropped.

    What is empty then stays so, and is for nobody: an empty frame makes websocat 1.13 deaf.
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


class Format(Protocol):
    """How things look to a kind of client: the hub frames a batch once for each dress that members wear."""

    @property
    def deflated(self) -> "Format":
        """The same for clients that have agreed to compression."""

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        """Return the frame of each message, in their order."""

    def change(self, room: str, change: PresenceEvent) -> bytes:
        """Return the frame that tells who came or went; empty where such clients are not told."""


class TextFormat:
    """A dress in which a message is a line."""

    def __init__(
        self,
        show: Callable[[Message], str],
        tell: Callable[[PresenceEvent], str] | None = None,
        frame: Callable[[bytes], bytes] = text_frame,
        deflated: Format | None = None,
    ) -> None:
        """Store how a message reads, how it reads that somebody came or went, and how UTF-8 is framed.

        Deflated is the same dress for clients that have agreed to compression.
        """
        self._show = show
        self._tell = tell
        self._frame = frame
        self.deflated = deflated or self

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        """Return each message's frame."""
        show, frame = self._show, self._frame
        return [frame(show(each).encode()) for batch in batches for each in batch.messages]

    def change(self, room: str, change: PresenceEvent) -> bytes:
        """Return the frame that tells it, of somebody who has a name."""
        return b"" if self._tell is None or not change.nick else self._frame(self._tell(change).encode())


def bare(message: Message) -> str:
    """Show a message to a bare client: its text, after the name of its author where that has one."""
    if not message.nick:
        return message.text
    return f"* {message.nick} {message.text}" if message.action else f"{message.nick}: {message.text}"


def named(message: Message) -> str:
    """Show a message to a named client: the same, safe, and nobody else's."""
    shown = safe(bare(message))
    return f": {shown}" if not message.nick and _speaks_as_another(message.text) else shown


def _speaks_as_another(text: str) -> bool:
    """Return whether what somebody without a nick says looks like a line of the server, or of somebody with a nick.

    Blanks before it do not make it look different.
    """
    length = NICK_LENGTH + 2
    text = text.lstrip()
    if not text[:length].isascii():
        text = "".join(islice(dropwhile(str.isspace, looks(text)), length))
    return _ATTRIBUTED.match(text, 0, length) is not None


# What the server says


def notice(text: str) -> str:
    """Say anything, in one line that is safe whatever the text holds."""
    return f"* {safe(text)}"


def joined(nick: str) -> str:
    """Say who has come into the room."""
    return notice(f"{nick} joined")


def left(nick: str) -> str:
    """Say who has gone."""
    return notice(f"{nick} left")


def renamed(was: str, nick: str) -> str:
    """Say who has another nick."""
    return notice(f"{was} is now {nick}")


def taken(nick: str, given: str) -> str:
    """Say which nick a client got in place of the one that it wanted. The first number says that no token proves it."""
    return you_are(given) if given.endswith("*1") else notice(f"{nick} is taken, you are {given}")


def you_are(nick: str) -> str:
    """Say which nick a client has."""
    return notice(f"you are {nick}")


def missed(count: int) -> str:
    """Say how many lines were left out for a client."""
    return notice(f"{_counted(count, 'line')} missed")


def lost(count: int | None) -> str:
    """Say how many lines nobody can give a client any more; None: nobody knows."""
    return notice("some lines may be lost" if count is None else f"{_counted(count, 'line')} lost")


def cut(count: int) -> str:
    """Return the line that tells that an answer has fewer lines than were asked for, because more do not fit."""
    return notice(f"the last {_counted(count, 'line')}: more do not fit in one answer")


def not_sent(reason: str, retry_after: float | None = None) -> str:
    """Say why a line was not sent, and in how many seconds it may be; None: that is not known."""
    again = "" if retry_after is None else f", try again in {max(1, ceil(retry_after))} s"
    return notice(f"not sent: {reason}{again}")


def closing_notice(reason: str) -> str:
    """Say why the server is about to close: websocat shows no close reason."""
    return notice(f"closing: {reason}")


def token_ends(seconds: float) -> str:
    """Say that a token runs out."""
    return notice(f"your token runs out in {_counted(max(1, round(seconds)), 'second')}")


def pong(seconds: float) -> str:
    """Answer ``/ping``: how long it took through the message bus and back."""
    return notice(f"pong after {seconds * 1000:.1f} ms")


def who(nicks: Iterable[str], bare_count: int) -> str:
    """Answer ``/who``: all nicks in order, and how many members have none."""
    names = ", ".join(sorted(nicks, key=lambda nick: (folded(nick), nick)))
    nameless = f"{bare_count} without a nick" if bare_count else ""
    return notice(f"here: {' and '.join(filter(None, (names, nameless))) or 'nobody'}")


def counted(count: int) -> str:
    """Answer ``/who`` in a room that is too large for a list."""
    return notice(f"{_counted(count, 'member')} {'is' if count == 1 else 'are'} here")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def change(told: PresenceEvent) -> str:
    """Say who came, went, or took another nick."""
    if told.what == "nick":
        return renamed(told.was, told.nick) if told.was else joined(told.nick)
    return joined(told.nick) if told.what == "join" else left(told.nick)


BARE = TextFormat(bare, deflated=TextFormat(bare, frame=deflated_text_frame))
"""One message one frame, the text unchanged."""

NAMED = TextFormat(named, change, deflated=TextFormat(named, change, deflated_text_frame))
"""The same, safe for a terminal, and who comes and goes."""


# What people type


@dataclass(frozen=True, slots=True)
class Say:
    """Send a text to the room; an action where it is what the author does: ``* ann waves``."""

    text: str
    action: bool = False


@dataclass(frozen=True, slots=True)
class Rename:
    """Take another nick, which is a good one."""

    nick: str


@dataclass(frozen=True, slots=True)
class Last:
    """Show the last messages of the room, at least one; more may be asked for than there is."""

    count: int


class Ask(Enum):
    """What is asked for by a word alone."""

    WHO = "who"
    PING = "ping"
    QUIT = "quit"


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the asker alone, each line a message."""

    lines: tuple[str, ...]


Command = Say | Rename | Last | Ask | Answer


def read_command(line: str) -> Command:
    """Read what a named client wants by a line that is not empty; what can't be done is an Answer that says why."""
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
    """Gives None for an argument that does not fit the usage."""


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
    *(notice(f"{each.usage}: {each.meaning}") for each in _RULES.values()),
    notice("//TEXT: say /TEXT"),
)
"""The answer to ``/help``."""
