"""What a client hears that follows a room over HTTP: lines, JSON lines or events, in an answer without end.

To HTTP/1.1 it goes in chunks, each message one (RFC 9112, section 7.1), and so ends where it is meant to end or is
seen to have been cut off; to HTTP/1.0 as it is. It is framed once for all who hear it in one form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatd.closing import Closing
from chatd.message import Batch, Change, Gap, Message
from chatd.wire import events, text
from chatd.wire.events import encode
from chatd.wire.http import EVENTS, JSON, TEXT
from chatd.wire.text import Dress

Frame = Callable[[bytes], bytes]


def chunk(data: bytes) -> bytes:
    """Make it a chunk; there are no empty ones but the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(data: bytes) -> bytes:
    return data


LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, eq=False)
class Stream:
    """One form, in chunks or not."""

    content_type: str
    dress: Dress
    """How it shows messages, and who comes and goes."""
    lost: Callable[[str, Gap], bytes]
    """Tells, of a room, what is gone for good."""
    another_nick: Callable[[str, str], bytes]
    """Tells who follows under another nick than it wanted which it is."""
    closing: Callable[[Closing, float | None], bytes]
    """Tells why the stream ends, and in how many seconds to come back."""
    beginning: Callable[[float], bytes]
    """Goes before all else; takes in how many seconds to come back should the stream break off."""
    heartbeat: bytes = b""
    """What may be sent when nothing else is, to be heard by nobody."""
    end: bytes = b""


class _Dress:
    """How messages, and who comes and goes, look in a form."""

    def __init__(self, show: Callable[[Message, str, str, int], bytes], tell: Callable[[str, Change], bytes]) -> None:
        """Take how a message looks, of its room, epoch and offset; and a change in a room."""
        self._show = show
        self._tell = tell

    @property
    def deflated(self) -> Dress:
        """The same: nothing is compressed."""
        return self

    def frames(self, batches: Sequence[Batch]) -> list[bytes]:
        """Give what is sent for each message."""
        show = self._show
        return [
            show(message, batch.room, batch.epoch, offset)
            for batch in batches
            for offset, message in enumerate(batch.messages, batch.first)
        ]

    def change(self, room: str, change: Change) -> bytes:
        """Give what is sent for a change; empty where it is not told."""
        return self._tell(room, change)


def _nothing(*_: object) -> bytes:
    return b""


def _lines(frame: Frame, end: bytes, *, told: bool) -> Stream:
    """Show a room as a named client at a terminal sees it."""

    def line(shown: str) -> bytes:
        return frame(shown.encode() + b"\n")

    def change(room: str, change: Change) -> bytes:
        return line(text.change(change)) if change.nick else b""

    return Stream(
        "text/plain; charset=utf-8",
        _Dress(lambda message, *_: line(text.named(message)), change if told else _nothing),
        lost=lambda room, gap: line(text.lost(gap.count)),
        another_nick=lambda wanted, has: line(text.taken(wanted, has)),
        closing=lambda closing, again: line(text.closing(closing.reason)),
        beginning=_nothing,
        end=end,
    )


def _json_lines(frame: Frame, end: bytes, *, told: bool) -> Stream:
    """Show what a program hears, an object a line."""

    def line(event: events.Event) -> bytes:
        return frame(encode(event) + b"\n")

    return Stream(
        "application/x-ndjson",
        _Dress(
            lambda *message: line(events.message_event(*message)),
            (lambda *change: line(events.presence_event(*change))) if told else _nothing,
        ),
        lost=lambda room, gap: line(events.gap_event(room, gap)),
        another_nick=_nothing,
        closing=lambda closing, again: line(events.bye(closing, again)),
        beginning=_nothing,
        end=end,
    )


def _events(frame: Frame, end: bytes, *, told: bool) -> Stream:
    """Show what a program hears, as an EventSource takes it (WHATWG HTML, section 9.2.6); JSON has no line ends."""

    def event(kind: bytes, event: events.Event, id: bytes = b"") -> bytes:
        return frame(b"%bevent: %b\ndata: %b\n\n" % (id, kind, encode(event)))

    def message(message: Message, room: str, epoch: str, offset: int) -> bytes:
        return event(b"message", events.message_event(message, room, epoch, offset), _id(epoch, offset))

    return Stream(
        EVENTS,
        _Dress(message, (lambda *change: event(b"presence", events.presence_event(*change))) if told else _nothing),
        lost=lambda room, gap: event(b"gap", events.gap_event(room, gap), _id(gap.epoch, gap.last)),
        another_nick=_nothing,
        closing=lambda closing, again: event(b"bye", events.bye(closing, again)),
        beginning=lambda again: frame(b"retry: %d\n\n" % (again * 1000)),
        heartbeat=frame(b":\n\n"),
        end=end,
    )


def _id(epoch: str, offset: int) -> bytes:
    """Say where the client is to come back to."""
    return b"id: %b-%d\n" % (epoch.encode("ascii"), offset)


_MAKERS = {TEXT: _lines, JSON: _json_lines, EVENTS: _events}
_STREAMS = {
    (form, chunked, told): make(chunk if chunked else _whole, LAST_CHUNK if chunked else b"", told=told)
    for form, make in _MAKERS.items()
    for chunked in (False, True)
    for told in (False, True)
}


def stream(form: str, *, chunked: bool, told: bool) -> Stream:
    """Give a form, the same one for all who ask: members that share a dress share its frames.

    Told is who hears who comes and goes.
    """
    return _STREAMS[form, chunked, told]
