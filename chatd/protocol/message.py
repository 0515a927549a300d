"""Messages, batches of them and presence events: their values, and their encoding on the bus and in histories.

A batch is ``EPOCH OFFSET PUBLISHER SEQUENCE\\n`` in ASCII, then the messages in msgpack. The script
``broker/scripts/publish.lua`` writes the first line before the messages, which it does not parse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

LATEST = 253_402_300_799_999
"""The last millisecond of year 9999, the last year of RFC 3339."""
_1970 = datetime.fromtimestamp(0, UTC)


@lru_cache(maxsize=1024)  # messages of a batch often share their time
def rfc3339_ms(milliseconds: int) -> str:
    """Return a time up to LATEST, in milliseconds since 1970, as text of RFC 3339: ``2026-01-01T12:00:00.123Z``."""
    time = _1970 + timedelta(milliseconds=milliseconds)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message, as all subscribers get it."""

    id: str
    """Unique: the sender's connection and a number."""
    time: Annotated[int, msgspec.Meta(le=LATEST)]
    """When the server accepted it: milliseconds since 1970, UTC."""
    session: str
    """The sender id: that of a connection, or of all connections that a client has had with one resume key."""
    text: str
    nick: str = ""
    """The sender's nick; empty: none."""
    action: bool = False
    """Whether the text describes an action of the sender: ``/me``."""
    dedup_id: str = ""
    """The id that its sender gave it; empty: none."""
    subject: str = ""
    """The subject of the sender's token (``sub``); empty: none."""


UNBEGUN = "none"
"""The epoch of a room that has none yet, because the broker refuses writes (``scripts/read.lua``)."""


class StreamPosition(msgspec.Struct, frozen=True, gc=False):
    """A position in a room's order: that of the message with this offset, 1, 2, 3 … within an epoch; 0: before all."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        """Write it as the scripts do: ``EPOCH OFFSET``."""
        return f"{self.epoch} {self.offset}"


class OffsetGap(msgspec.Struct, frozen=True, gc=False):
    """Messages that are lost; the next one follows ``last``."""

    epoch: str
    last: int
    count: int | None
    """How many messages; None if unknown, because the broker has begun another epoch."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Messages of one room that were published together; they have the offsets first, first + 1, …"""

    room: str
    epoch: str
    first: int
    publisher: str
    """The worker that published them."""
    sequence: int
    """Rises from batch to batch of a publisher, over all its rooms; one that is published again keeps its number."""
    messages: tuple[Message, ...]
    before: StreamPosition | None = None
    """The position of the first message in another run of the broker, which had answered that it was published."""
    size: int = 0
    """How many bytes it had on the bus."""

    @property
    def last(self) -> int:
        """The offset of the newest message."""
        return self.first + len(self.messages) - 1

    def first_ones(self, count: int) -> "Batch":
        """Return it up to so many messages."""
        return replace(self, messages=self.messages[:count])

    def without_first(self, count: int) -> "Batch":
        """Return the batch without so many messages at its start."""
        before = self.before and StreamPosition(self.before.epoch, self.before.offset + count)
        return replace(self, first=self.first + count, messages=self.messages[count:], before=before)

    def without(self, session: str) -> "Iterator[Batch]":
        """Return it without one sender's messages: what remains, in pieces that have their offsets."""
        start = 0
        for place, message in enumerate(self.messages):
            if message.session == session:
                if start < place:
                    yield replace(self, first=self.first + start, messages=self.messages[start:place])
                start = place + 1
        if start == 0:
            yield self
        elif start < len(self.messages):
            yield replace(self, first=self.first + start, messages=self.messages[start:])


@dataclass(frozen=True, slots=True)
class HistoryRange:
    """A stretch of a room's history."""

    batches: Sequence[Batch]
    """In order, and all of one epoch; the first batch may begin with messages that were not requested."""
    top: StreamPosition
    """The position of the room's newest message when the range was read."""
    more: bool = False
    """Whether history has more between these and the top."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """The last messages before some offset."""

    batches: Sequence[Batch]
    """In order, and all of one epoch."""
    more: bool = False
    """Whether history has older messages, which were not requested, or did not fit."""

    @property
    def start(self) -> StreamPosition | None:
        """The position of the oldest message; None where there is none."""
        return StreamPosition(self.batches[0].epoch, self.batches[0].first) if self.batches else None

    @property
    def count(self) -> int:
        """How many messages there are."""
        return sum(len(batch.messages) for batch in self.batches)

    @property
    def size(self) -> int:
        """How many bytes they had on the bus."""
        return sum(batch.size for batch in self.batches)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Message, ...])


_AGAIN = b"!"  # no array begins so in msgpack


def again(payload: bytes, first: StreamPosition) -> bytes:
    """Mark what ``encode`` gave as published once more, and where its first message stood."""
    return payload if payload.startswith(_AGAIN) else b"%b%b\n%b" % (_AGAIN, str(first).encode("ascii"), payload)


def encode(messages: Sequence[Message]) -> bytes:
    """Return the bytes in which messages travel on the bus, without the first line."""
    return _encoder.encode(messages)


def decode(room: str, data: bytes) -> Batch:
    """Decode a batch of a room from the bus or from history. Raise ValueError if it is not one."""
    head, _, payload = data.partition(b"\n")
    epoch, first, publisher, sequence = head.decode("ascii").split(" ")
    before = None
    if payload.startswith(_AGAIN):
        mark, _, payload = payload.partition(b"\n")
        its_epoch, its_first = mark.removeprefix(_AGAIN).decode("ascii").split(" ")
        before = StreamPosition(its_epoch, int(its_first))
    return Batch(room, epoch, int(first), publisher, int(sequence), _decoder.decode(payload), before, len(data))


class PresenceEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A join, a leave, or a change of nick."""

    what: Literal["join", "leave", "nick"]
    session: str
    """The sender id, as in a message."""
    nick: str
    """Its name; empty where it has none."""
    was: str
    """Its name before that, where it took another one."""
    subject: str = ""
    """The subject of its token (``sub``); empty: none."""


@dataclass(frozen=True, slots=True)
class PresenceUpdate:
    """Presence events of a room on the bus, ordered with its messages."""

    version: int
    """Follows on that of the changes before."""
    after: StreamPosition
    """The newest message before them."""
    count: int
    """How many members there are now."""
    changes: Sequence[PresenceEvent] | None
    """None if they are too many to be sent one by one."""


_CHANGES = b"*"  # no batch begins so
_changes_decoder = msgspec.msgpack.Decoder(tuple[PresenceEvent, ...])


def tells_changes(data: bytes) -> bool:
    """Return whether data from the bus is a PresenceUpdate, and not a batch."""
    return data.startswith(_CHANGES)


def decode_changes(data: bytes) -> PresenceUpdate:
    """Read it. Raise ValueError for what is none."""
    head, _, payload = data.partition(b"\n")
    version, epoch, top, count = head.removeprefix(_CHANGES).decode("ascii").split(" ")
    changes = _changes_decoder.decode(payload) if payload else None
    return PresenceUpdate(int(version), StreamPosition(epoch, int(top)), int(count), changes)
