"""The formats of a stream over HTTP: lines, JSON lines or events, in a response without end.

HTTP/1.1 gets each message as a chunk (RFC 9112, section 7.1), so that a client can tell an end from a broken
connection. HTTP/1.0 gets the bytes alone. A message is encoded once for all clients of one form.
"""

from collections.abc import Callable
from dataclasses import dataclass

from chatd.protocol import json_v1, text
from chatd.protocol.close_codes import BUS_AWAY, FLOODING, CloseCode
from chatd.protocol.http_api import EVENTS, JSON, JSON_LINES, LINES, TEXT, asks_for_events
from chatd.protocol.http_head import Refused, RequestHead
from chatd.protocol.json_line import encode
from chatd.protocol.message import Message, OffsetGap, PresenceEvent
from chatd.protocol.text import Format

Frame = Callable[[bytes], bytes]


def chunk(data: bytes) -> bytes:
    """Return data as a chunk, which must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(data: bytes) -> bytes:
    return data


LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, eq=False)
class Stream:
    """One form, in chunks or not."""

    content_type: str
    format: Format
    """The format of messages and presence events."""
    lost: Callable[[str, OffsetGap], bytes]
    """Encodes a gap of a room."""
    another_nick: Callable[[str, str], bytes]
    """Encodes the nick of a client that got another one than requested."""
    token_ends: Callable[[float], bytes]
    """Encodes in how many seconds the token ends."""
    close_code: Callable[[CloseCode, float | None], bytes]
    """Encodes why the stream ends, and after how many seconds to reconnect."""
    beginning: Callable[[float], bytes]
    """Encodes the start of the stream, with the seconds after which to reconnect if it breaks off."""
    heartbeat: bytes
    """A sign of life that means nothing to the client."""
    beats: bool
    """Whether the client gets heartbeats without asking for them."""
    end: bytes


def _nothing(*_: object) -> bytes:
    return b""


def _lines(frame: Frame, end: bytes, *, presence: bool) -> Stream:
    """Show a room as a named client at a terminal sees it."""

    def frame_line(data: bytes) -> bytes:
        return frame(data + b"\n")

    def line(shown: str) -> bytes:
        return frame_line(shown.encode())

    return Stream(
        LINES,
        text.text_format(text.named, text.change if presence else None, frame_line),
        lost=lambda room, gap: line(text.lost(gap.count)),
        another_nick=lambda wanted, has: line(text.taken(wanted, has)),
        token_ends=lambda seconds: line(text.token_ends(seconds)) if presence else b"",
        close_code=lambda close_code, again: line(text.closing_notice(close_code.reason)),
        beginning=_nothing,
        heartbeat=frame_line(b""),
        beats=False,  # people see an empty line, scripts may count it
        end=end,
    )


def _json_lines(frame: Frame, end: bytes, *, presence: bool) -> Stream:
    """Return the form of JSON events, one on each line."""

    def frame_line(data: bytes) -> bytes:
        return frame(data + b"\n")

    return Stream(
        JSON_LINES,
        Format(json_v1.message_json, json_v1.change_json if presence else _nothing, frame_line),
        lost=lambda room, gap: frame_line(encode(json_v1.gap_event(room, gap))),
        another_nick=_nothing,
        token_ends=lambda seconds: frame_line(encode(json_v1.token_ends(seconds))),
        close_code=lambda close_code, again: frame_line(encode(json_v1.bye(close_code, again))),
        beginning=_nothing,
        heartbeat=frame_line(b""),
        beats=True,
        end=end,
    )


def _events(frame: Frame, end: bytes, *, presence: bool) -> Stream:
    """Return the form of JSON events for an EventSource (WHATWG HTML, section 9.2.6); JSON has no line ends."""
    return Stream(
        EVENTS,
        Format(_message, _change if presence else _nothing, frame),
        lost=lambda room, gap: frame(_event(b"gap", encode(json_v1.gap_event(room, gap)), _id(gap.epoch, gap.last))),
        another_nick=_nothing,
        token_ends=lambda seconds: frame(_event(b"auth", encode(json_v1.token_ends(seconds)))),
        close_code=lambda close_code, again: frame(_event(b"bye", encode(json_v1.bye(close_code, again)))),
        beginning=lambda again: frame(b"retry: %d\n\n" % (again * 1000)),
        heartbeat=frame(b":\n\n"),
        beats=True,
        end=end,
    )


def _message(message: Message, room: str, epoch: str, offset: int) -> bytes:
    return _event(b"message", json_v1.message_json(message, room, epoch, offset), _id(epoch, offset))


def _change(room: str, change: PresenceEvent) -> bytes:
    return _event(b"presence", json_v1.change_json(room, change))


def _event(kind: bytes, data: bytes, id: bytes = b"") -> bytes:
    return b"%bevent: %b\ndata: %b\n\n" % (id, kind, data)


def _id(epoch: str, offset: int) -> bytes:
    """Return the id with which the client reconnects."""
    return b"id: %b-%d\n" % (epoch.encode("ascii"), offset)


class Postponed(Refused):
    """A temporary refusal for an EventSource: a stream of events that ends at once.

    An EventSource treats any status but 200 as final (WHATWG HTML, section 9.2.2), and never reconnects.
    """

    content_type = EVENTS

    def __init__(self, refused: Refused, again: float) -> None:
        """Store the message of a refusal, and after how many seconds the client is to reconnect."""
        headers = (*refused.headers, ("Access-Control-Allow-Origin", "*"))  # it says nothing of the room
        super().__init__(200, refused.code, refused.message, headers, reason=refused.reason)
        self._again = again

    def body(self) -> bytes:
        """Return the stream."""
        code = (FLOODING if self.code == "rate_limited" else BUS_AWAY).code
        return b"retry: %d\n\n" % (self._again * 1000) + _event(
            b"bye", encode(json_v1.Bye(code, self.message, self._again))
        )


def refused_to(head: RequestHead, refused: Refused, spread: Callable[[], float]) -> Refused:
    """Return the error for the client of a request; spread returns how many seconds later than others it retries."""
    if refused.retry_after is None or not asks_for_events(head):
        return refused
    return Postponed(refused, round(refused.retry_after + spread(), 1))


_MAKERS = {TEXT: _lines, JSON: _json_lines, JSON_LINES: _json_lines, EVENTS: _events}
_STREAMS = {
    (form, chunked, presence): make(chunk if chunked else _whole, LAST_CHUNK if chunked else b"", presence=presence)
    for form, make in _MAKERS.items()
    for chunked in (False, True)
    for presence in (False, True)
}


def stream(form: str, *, chunked: bool, presence: bool) -> Stream:
    """Return the one stream for a form: subscribers with the same format share its frames.

    Presence: with presence events.
    """
    return _STREAMS[form, chunked, presence]
