"""The JSON format, ``chatd.v1``: the requests of a client and the events of the server, as values and as bytes.

A frame holds one JSON object; its ``type`` names the class here, as the tags of the classes say. Requests are checked
while they are parsed: a field has its type, or the request is refused. Null differs from an absent field. Unknown
fields are ignored. Of a field that is given twice the last one counts, but each must be valid, and two ``type`` must
be equal.

Events are not checked: the types are. ``docs/schema.py`` writes both down as JSON Schema.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from chatd.protocol.close_codes import CloseCode
from chatd.protocol.json_line import encode
from chatd.protocol.message import Batch, Message, OffsetGap, PresenceEvent, StreamPosition, rfc3339_ms
from chatd.protocol.text import Format
from chatd.protocol.websocket_frames import deflated_text_frame

LARGEST = 2**53 - 1
"""The largest integer that every reader of JSON has exactly; the smallest is its negative (RFC 7493, section 2.2)."""
REF_LENGTH = 64
ID_LENGTH = 64
EPOCH_LENGTH = 64
HISTORY_PAGE = 1000
"""Maximum messages of history in one answer."""
_AROUND = 4096  # bytes of a request beside its text

Ref = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)] | Annotated[str, Meta(max_length=REF_LENGTH)]
Number = Annotated[int, Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Epoch = Annotated[str, Meta(pattern=r"^[0-9A-Za-z]+$(?!\n)", max_length=EPOCH_LENGTH)]  # it becomes part of keys
_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time", "pattern": _TIME})]


class _Request(Struct, frozen=True, gc=False, tag_field="type", kw_only=True):
    ref: Ref | UnsetType = UNSET


class _Event(Struct, frozen=True, gc=False, tag_field="type"):
    pass


class _Answer(_Event, frozen=True, gc=False, kw_only=True):
    ref: Ref | UnsetType = UNSET


# What a client sends


class Publish(_Request, frozen=True, gc=False, tag="publish"):
    """Publish a message in a room; with the same id it is published once. Answered by `ack`."""

    room: str
    text: Annotated[str, Meta(min_length=1)]
    """Never empty: it would be an empty frame to a pipe client."""
    id: Annotated[str, Meta(min_length=1, max_length=ID_LENGTH)] | UnsetType = UNSET


class Since(Struct, frozen=True, gc=False):
    """From where on messages are wanted: after a position, or the last so many."""

    epoch: Epoch | UnsetType = UNSET
    offset: Number | UnsetType = UNSET
    last: Number | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Raise ValueError unless it is one of the two."""
        given = (self.epoch is not UNSET, self.offset is not UNSET, self.last is not UNSET)
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError("expected epoch and offset, or last")


_ONE_OF_TWO = {
    "oneOf": [
        {"required": ["epoch", "offset"], "properties": {"last": False}},
        {"required": ["last"], "properties": {"epoch": False, "offset": False}},
    ]
}


class Join(_Request, frozen=True, gc=False, tag="join"):
    """Join a room. Answered by `joined`."""

    room: str
    since: Annotated[Since, Meta(extra_json_schema=_ONE_OF_TWO)] | UnsetType = UNSET

    @property
    def position(self) -> StreamPosition | None:
        """After which it wants all messages; None where it named none."""
        since = self.since
        if since is UNSET or since.epoch is UNSET or since.offset is UNSET:
            return None
        return StreamPosition(since.epoch, since.offset)

    @property
    def last(self) -> int:
        """How many of the last messages it wants."""
        return 0 if self.since is UNSET or self.since.last is UNSET else self.since.last


class Leave(_Request, frozen=True, gc=False, tag="leave"):
    """Leave a room. Answered by `left`."""

    room: str


class Members(_Request, frozen=True, gc=False, tag="members"):
    """Request the members of a room. Answered by `members`."""

    room: str


class History(_Request, frozen=True, gc=False, tag="history"):
    """Request messages of a room, before an offset or up to now. Answered by `history`."""

    room: str
    before: Positive | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=HISTORY_PAGE)] = 50


class Nick(_Request, frozen=True, gc=False, tag="nick"):
    """Change the nick, in all rooms. Answered by `nick`."""

    nick: str


class Auth(_Request, frozen=True, gc=False, tag="auth"):
    """Bring a new token before the old one runs out. Answered by `auth`."""

    token: str


class Ping(_Request, frozen=True, gc=False, tag="ping"):
    """Ask for a sign of life. Answered by `pong`."""


Request = Publish | Join | Leave | Members | History | Nick | Auth | Ping
"""Everything that a client may send."""


class BadRequest(Exception):
    """The frame of a client is not a valid request."""

    def __init__(self, ref: int | str | UnsetType, message: str) -> None:
        """Store the request's reference and one line with the fault and its field."""
        super().__init__(message)
        self.ref = ref
        self.message = message


_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: it has no UTF-8
_TYPES = ", ".join(kind.__struct_config__.tag for kind in get_args(Request))


def read_request(text: str | bytes) -> Request:
    """Read the text of a frame. Raise BadRequest."""
    try:
        return _decoder.decode(text)
    except RecursionError:  # which would come again, were its reference looked for
        raise BadRequest(UNSET, "nested too deep") from None
    except ValueError as error:
        found = _read_loosely(text)
        raise BadRequest(_reference(found), _complaint(error, found)) from None


def _read_loosely(text: str | bytes) -> dict[str, object]:
    """Read an object that may be no request, or not even JSON: half of a surrogate pair, NaN."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _reference(found: dict[str, object]) -> int | str | UnsetType:
    try:
        ref: int | str = msgspec.convert(found.get("ref"), Ref)
    except msgspec.ValidationError:
        return UNSET
    return UNSET if _is_halved(ref) else ref


def _complaint(error: ValueError, found: dict[str, object]) -> str:
    """Return the fault that msgspec found, the field first: ``limit: expected int <= 1000``."""
    if isinstance(error, msgspec.ValidationError):
        what, _, field = str(error).replace("`", "").partition(" - at $.")
        if field == "type":
            what = f"expected one of {_TYPES}"
    elif halved := [name for name, value in found.items() if _is_halved(value) or _is_halved(name)]:
        what, field = "half of a surrogate pair", ascii(halved[0])[1:-1][:64]  # a text was cut within a character
    else:
        what, field = str(error).removeprefix("JSON is malformed: "), "not JSON"
    what = what[:1].lower() + what[1:]
    return f"{field}: {what}" if field else what


def _is_halved(value: object) -> bool:
    return isinstance(value, str) and _HALF.search(value) is not None


# What the server sends


class Limits(Struct, frozen=True, gc=False):
    """The limits of a client; null: no limit."""

    message_bytes: int
    messages_per_s: float | None
    rooms: int


class Welcome(_Event, frozen=True, gc=False, tag="welcome"):
    """Always the first frame."""

    session: str
    nick: str | None
    server: str
    limits: Limits
    ping_s: float
    subject: str | UnsetType = UNSET


class MessageEvent(_Event, frozen=True, gc=False, tag="message", omit_defaults=True):
    """A message of a room; its nick is null if the sender has none, its action true if it was sent with `/me`."""

    room: str
    epoch: str
    offset: Positive
    id: str
    time: Time
    session: str
    nick: str | None
    text: str
    action: bool = False
    subject: str = ""
    """The subject of the sender's token; present only if there is one."""


class Joined(_Answer, frozen=True, gc=False, tag="joined"):
    """The client is in the room, with the earlier messages; offset is that of the room's newest message."""

    room: str
    epoch: str
    offset: Number
    recovered: bool
    """Whether the messages are all that came after the position in the request."""
    lost: int | None
    """How many of those are lost; null if unknown."""
    messages: Sequence[MessageEvent]
    """The requested messages, oldest first."""
    more: bool | UnsetType = UNSET
    """True where that is not all of it: the rest follows, each message by itself."""


class Left(_Answer, frozen=True, gc=False, tag="left"):
    """The client is not in the room any more."""

    room: str


class Ack(_Answer, frozen=True, gc=False, tag="ack", omit_defaults=True):
    """The message is in the chat log and in the room's order; a duplicate was there before, at this offset."""

    room: str
    epoch: str
    offset: Positive
    id: str
    time: Time
    duplicate: bool = False


class Presence(_Event, frozen=True, gc=False, tag="presence"):
    """Somebody joined or left the room, or has another nick than it was."""

    room: str
    event: Literal["join", "leave", "nick"]
    session: str
    nick: str | None
    was: str | UnsetType | None = UNSET
    subject: str | UnsetType = UNSET


class Member(Struct, frozen=True, gc=False):
    """A member of a room."""

    session: str
    nick: str | None
    since: Time
    subject: str | UnsetType = UNSET


class MembersAnswer(_Answer, frozen=True, gc=False, tag="members"):
    """The members of the room and their number; members is null if they are too many to be listed."""

    room: str
    members: Sequence[Member] | None
    count: int


class HistoryAnswer(_Answer, frozen=True, gc=False, tag="history"):
    """The requested messages of the room, oldest first."""

    room: str
    epoch: str
    messages: Sequence[MessageEvent]
    more: bool | UnsetType = UNSET
    """True where history has older messages: they are to be had before the offset of the first one here."""


class NickAnswer(_Answer, frozen=True, gc=False, tag="nick"):
    """The nick that the client has now, which may differ from the requested one, and the previous one."""

    nick: str
    was: str | None


class AuthAnswer(_Answer, frozen=True, gc=False, tag="auth"):
    """The token is valid for so many seconds; null: without end. Without a request it announces the end."""

    expires_in: float | None


class Pong(_Answer, frozen=True, gc=False, tag="pong"):
    """The sign of life."""


class Gap(_Event, frozen=True, gc=False, tag="gap"):
    """The messages from one offset to another are lost for this client; null if it is unknown which."""

    room: str
    epoch: str
    first: int | None = msgspec.field(name="from")
    last: int | None = msgspec.field(name="to")


Code = Literal["bad_request", "bad_room", "not_joined", "forbidden", "rate_limited", "too_large", "unavailable"]


class Error(_Answer, frozen=True, gc=False, tag="error"):
    """The request was not executed; if a retry helps, after so many seconds."""

    code: Code
    message: str
    retry_after: float | UnsetType = UNSET


class Bye(_Event, frozen=True, gc=False, tag="bye"):
    """The last frame before the server closes with this code; if the client may reconnect, after so many seconds."""

    code: int
    reason: str
    reconnect_after: float | UnsetType = UNSET


Event = (
    Welcome
    | MessageEvent
    | Joined
    | Left
    | Ack
    | Presence
    | MembersAnswer
    | HistoryAnswer
    | NickAnswer
    | AuthAnswer
    | Pong
    | Gap
    | Error
    | Bye
)
"""All events of the server."""


def message_event(message: Message, room: str, epoch: str, offset: int) -> MessageEvent:
    """Return the event of a message with its offset; its id is the sender's own if it has one."""
    return MessageEvent(
        room,
        epoch,
        offset,
        message.dedup_id or message.id,
        rfc3339_ms(message.time),
        message.session,
        message.nick or None,
        message.text,
        message.action,
        message.subject,
    )


def gap_event(room: str, gap: OffsetGap) -> Gap:
    """Return the event of a gap."""
    first = None if gap.count is None else gap.last - gap.count + 1
    return Gap(room, gap.epoch, first, None if first is None else gap.last)


def presence_event(room: str, change: PresenceEvent) -> Presence:
    """Return the event of a join, leave or nick."""
    was: str | UnsetType | None = (change.was or None) if change.what == "nick" else UNSET
    return Presence(room, change.what, change.session, change.nick or None, was, change.subject or UNSET)


def token_ends(seconds: float | None) -> AuthAnswer:
    """Return the event of the token's remaining seconds; None: without end."""
    return AuthAnswer(None if seconds is None else round(seconds, 1))


def bye(close_code: CloseCode, again: float | None) -> Bye:
    """Return the event of a close code, with the seconds after which the client may reconnect, if it may."""
    return Bye(close_code.code, close_code.reason, UNSET if again is None else again)


def message_events(batch: Batch) -> list[MessageEvent]:
    """Return the events of the messages of a batch."""
    return [
        message_event(message, batch.room, batch.epoch, offset)
        for offset, message in enumerate(batch.messages, batch.first)
    ]


def message_json(message: Message, room: str, epoch: str, offset: int) -> bytes:
    """Return the text of the frame of a message."""
    return encode(message_event(message, room, epoch, offset))


def change_json(room: str, change: PresenceEvent) -> bytes:
    """Return the text of the frame of a presence event."""
    return encode(presence_event(room, change))


def longest_json(text: int) -> int:
    """Return the longest frame that is read of a client, in bytes, where a text may have so many."""
    return 6 * text + _AROUND  # each byte may come as \\u0000


JSON = Format(message_json, change_json, deflated=Format(message_json, change_json, deflated_text_frame))
"""The format of ``chatd.v1``."""
