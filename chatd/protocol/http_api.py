"""The HTTP interface of a room beyond its URL: content negotiation, headers, bodies, and the JSON of answers."""

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from chatd.protocol.http_head import Refused, RequestHead, bad_request, parameter, room_name, split_target
from chatd.protocol.json_v1 import EPOCH_LENGTH, ID_LENGTH, Member
from chatd.protocol.message import StreamPosition
from chatd.protocol.nick import BadNick, read_nick
from chatd.protocol.text import read_line, utf8_size

TEXT = "text/plain"
JSON = "application/json"
JSON_LINES = "application/x-ndjson"
EVENTS = "text/event-stream"
LINES = f"{TEXT}; charset=utf-8"
"""Text, as it is sent."""
HTML = "text/html"
FORMS = (TEXT, JSON, JSON_LINES, EVENTS, HTML)
"""In which a room is shown."""

LAST = 50
"""The default number of messages in an answer."""

HEARTBEAT_LEAST, HEARTBEAT_MOST = 5, 300
"""Seconds from one heartbeat of a stream to the next, if its client asks for them."""

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)
_EVENT_ID = re.compile(rf"([0-9A-Za-z]{{1,{EPOCH_LENGTH}}})-(\d{{1,15}})", re.ASCII)


def choose_form(accept: str | None) -> str:
    """Return the form that the client prefers (RFC 9110, section 12.5.1); of equal ones, the one that it names first.

    A client that names no known form gets text; a wildcard stands for text.
    """
    best, form = 0.0, TEXT
    for name, quality in _weighted(accept):
        named = TEXT if name in ("*/*", "text/*") else name
        if named in FORMS and quality > best:
            best, form = quality, named
    return form


def takes_gzip(accept_encoding: str | None) -> bool:
    """Return whether the client accepts gzip, and prefers it at least as much as no compression (section 12.5.3)."""
    likes = dict(_weighted(accept_encoding))
    gzip = likes.get("gzip", likes.get("x-gzip", likes.get("*", 0.0)))  # x-gzip: its name of old (section 8.4.1.3)
    return gzip > 0 and gzip >= likes.get("identity", 0.0)


def _weighted(listed: str | None) -> list[tuple[str, float]]:
    """Read a list of what a client likes, and how much (section 12.4.2)."""
    weighted = []
    for item in (listed or "").lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = next((float(found[1]) for part in parameters if (found := _QUALITY.fullmatch(part))), 1.0)
        weighted.append((name, quality))
    return weighted


def asks_for_events(head: RequestHead) -> bool:
    """Return whether a request is for a stream of events, as an EventSource sends it."""
    if head.method != "GET" or choose_form(head.headers.get("accept")) != EVENTS:
        return False
    try:
        room_name(split_target(head.target)[0][1:])
    except Refused:
        return False
    return True


def read_event_id(text: str) -> StreamPosition:
    """Read where a stream of events broke off, ``EPOCH-OFFSET``. Raise Refused: 400."""
    if found := _EVENT_ID.fullmatch(text):
        return StreamPosition(found[1], int(found[2]))
    raise bad_request("Last-Event-ID must be that of an event: EPOCH-OFFSET")


def read_before(target: bytes) -> StreamPosition | None:
    """Return the position before which messages are requested, if a target has one. Raise Refused: 400."""
    value = parameter(target, b"before")
    if value is None:
        return None
    if (found := _EVENT_ID.fullmatch(value.decode("latin-1"))) and int(found[2]):
        return StreamPosition(found[1], int(found[2]))
    raise bad_request("before must name a message: EPOCH-OFFSET")


def link_to_older(start: StreamPosition, last: int) -> str:
    """Return the header that links to the messages before a position (RFC 8288).

    The link is relative, so that it works behind a proxy that changes the path.
    """
    return f'<?before={start.epoch}-{start.offset}&last={last}>; rel="prev"'


def read_heartbeat(target: bytes) -> int | None:
    """Return the seconds between two heartbeats, if a target has them; 0 for none. Raise Refused: 400."""
    value = parameter(target, b"heartbeat")
    if value is None:
        return None
    seconds = int(value) if re.fullmatch(rb"[0-9]{1,3}", value) else -1
    if seconds != 0 and not HEARTBEAT_LEAST <= seconds <= HEARTBEAT_MOST:
        raise bad_request(f"heartbeat must be 0 or {HEARTBEAT_LEAST} to {HEARTBEAT_MOST} seconds")
    return seconds


class PublishBody(Struct, frozen=True, gc=False):
    """The body of a request to publish, in JSON."""

    text: str
    nick: str | None = None
    id: Annotated[str, Meta(min_length=1, max_length=ID_LENGTH)] | None = None
    """With the same id, under the same nick, it is published once."""


_decoder = msgspec.json.Decoder(PublishBody)


def media_type(content_type: str | None) -> str:
    """Return the type of a body: ``JSON`` or ``TEXT``. Raise Refused: 415.

    The type of ``curl --data``, a form, is text here.
    """
    kind, _, rest = (content_type or TEXT).partition(";")
    kind = kind.strip().lower()
    charset = re.search(r'charset="?([^";\s]+)', rest, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, "bad_request", "the body must be UTF-8")
    if kind == JSON:
        return JSON
    if kind.startswith("text/") or kind in ("application/x-www-form-urlencoded", "application/octet-stream"):
        return TEXT
    raise Refused(415, "bad_request", "the body must be text/plain or application/json")


def check_coding(content_encoding: str | None) -> None:
    """Check that a body has no content coding. Raise Refused: 415."""
    if content_encoding and content_encoding.strip().lower() != "identity":
        message = "the body must not be compressed: Content-Encoding is not supported"
        raise Refused(415, "bad_request", message, (("Accept-Encoding", "identity"),))


def read_publish_body(content_type: str | None, body: bytes, most: int) -> PublishBody:
    """Parse the body of a request to publish, whose text may have so many bytes. Raise Refused: 400, 413 or 415."""
    if media_type(content_type) == JSON:
        parsed = _read_json(body)
    else:
        try:
            parsed = PublishBody(body.decode())
        except UnicodeDecodeError:
            raise bad_request("the body must be UTF-8") from None
    text = read_line(parsed.text)
    if not text:
        raise bad_request("there is no text")
    if utf8_size(text) > most:
        raise Refused(413, "too_large", f"the text is longer than {most} bytes of UTF-8")
    return PublishBody(text, _nick(parsed.nick), parsed.id)


def _read_json(body: bytes) -> PublishBody:
    try:
        return _decoder.decode(body)
    except RecursionError:
        raise bad_request("nested too deep") from None
    except ValueError as error:
        raise bad_request(str(error).replace("`", "")) from None


def _nick(nick: str | None) -> str | None:
    if nick is None:
        return None
    try:
        return read_nick(nick)
    except BadNick as bad:
        raise bad_request(f"nick: {bad}") from None


# What is answered, as JSON


class PublishAnswer(Struct, frozen=True, gc=False, omit_defaults=True):
    """The stream position of a published message; a duplicate was published before, at this offset."""

    room: str
    epoch: str
    offset: int
    id: str
    time: str
    duplicate: bool = False


class PresenceAnswer(Struct, frozen=True, gc=False):
    """The members of a room; members is null if they are too many to be listed."""

    room: str
    members: Sequence[Member] | None
    count: int


class ListedRoom(Struct, frozen=True, gc=False):
    """A room: its number of members, and the position of its newest message."""

    room: str
    members: int
    epoch: str
    offset: int


class RoomList(Struct, frozen=True, gc=False):
    """The rooms that there are, by name; there may be more than are listed."""

    rooms: Sequence[ListedRoom]
    more: bool
