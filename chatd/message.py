"""Message and Batch: what travels from a client through the bus to all members of a room.

A batch on the bus is ``EPOCH OFFSET PUBLISHER SEQUENCE\\n`` in ASCII, then the messages in msgpack. The script
``room/scripts/publish.lua`` puts the first line before the messages, which it does not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message, as everybody gets it."""

    id: str
    """Unique: the author's session and a number."""
    time: int
    """When it was taken: milliseconds since 1970, UTC."""
    session: str
    """The author's connection; its own lines are left out of what it hears."""
    text: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one room that were published together; they have the offsets first, first + 1, …"""

    room: str
    epoch: str
    first: int
    publisher: str
    """The worker that published them."""
    sequence: int
    """Rises from batch to batch of a publisher, over all its rooms; one that is published again keeps its number."""
    messages: tuple[Message, ...]
    again: bool = False
    """Whether another run of the broker had it already: only for those who were there when it was said."""
    size: int = 0
    """How many bytes it had on the bus."""

    @property
    def last(self) -> int:
        """The offset of the newest message."""
        return self.first + len(self.messages) - 1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Message, ...])


_AGAIN = b"!"  # no array begins so in msgpack


def again(payload: bytes) -> bytes:
    """Mark what ``encode`` gave as published once more."""
    return payload if payload.startswith(_AGAIN) else _AGAIN + payload


def encode(messages: Sequence[Message]) -> bytes:
    """Give the bytes in which messages travel on the bus, without the first line."""
    return _encoder.encode(messages)


def decode(room: str, data: bytes) -> Batch:
    """Read what came from the bus for a room. Raises ValueError for what is no batch."""
    head, _, payload = data.partition(b"\n")
    epoch, first, publisher, sequence = head.decode("ascii").split(" ")
    messages = _decoder.decode(payload.removeprefix(_AGAIN))
    marked = payload.startswith(_AGAIN)
    return Batch(room, epoch, int(first), publisher, int(sequence), messages, marked, len(payload))
