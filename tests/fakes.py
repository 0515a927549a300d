"""Test doubles: small, and true to the contracts that the real parts fulfil (see ``tests/room/test_bus.py``)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from chatd.closing import Closing
from chatd.message import Batch, Message
from chatd.room.bus import BusListener
from chatd.room.outbox import NotPublished, Place


class FakeBus:
    """A bus in memory for one worker: what is published comes back when ``pump`` is called."""

    listener: BusListener

    def __init__(self, publisher: str = "fake") -> None:
        self.publisher = publisher
        self.away = ""
        self.full = False
        self.space = 1_000_000
        self.rooms: dict[str, list[Deferred[None]]] = {}
        self.confirm_at_once = True
        self.refuse: NotPublished | None = None
        self.published: list[tuple[str, list[Message]]] = []
        self._queue: list[Batch] = []
        self._tops: dict[str, int] = {}
        self._sequence = 0

    @property
    def open(self) -> bool:
        return not self.away and not self.full

    def weight(self, message: Message) -> int:
        return len(message.text)

    def publish(self, room: str, messages: Sequence[Message]) -> "Deferred[Place]":
        if self.refuse is not None:
            return fail(self.refuse)
        self.published.append((room, list(messages)))
        self._sequence += 1
        first = self._tops.get(room, 0) + 1
        self._tops[room] = first + len(messages) - 1
        self._queue.append(Batch(room, "e", first, self.publisher, self._sequence, tuple(messages)))
        return succeed(Place("e", first))

    def pump(self) -> None:
        """Deliver what has been published."""
        queue, self._queue = self._queue, []
        for batch in queue:
            if batch.room in self.rooms:
                self.listener.deliver(batch)

    def flushed(self) -> "Deferred[None]":
        return succeed(None)

    def probe(self) -> "Deferred[None]":
        return fail(NotPublished(self.away)) if self.away else succeed(None)

    def subscribe(self, room: str) -> "Deferred[None]":
        waiters = self.rooms.setdefault(room, [])
        if self.confirm_at_once:
            return succeed(None)
        done: Deferred[None] = Deferred()
        waiters.append(done)
        return done

    def confirm(self, room: str) -> None:
        """Let the broker confirm a subscription."""
        waiters, self.rooms[room] = self.rooms[room], []
        for waiter in waiters:
            waiter.callback(None)

    def unsubscribe(self, room: str) -> None:
        self.rooms.pop(room, None)


@dataclass(eq=False)
class FakeMember:
    """A client in a room that remembers what happened to it."""

    id: str
    address: str = "192.0.2.1"
    echo: bool = False
    blobs: list[bytes] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def deliver(self, blob: bytes) -> None:
        self.blobs.append(blob)

    def carry_on(self) -> None:
        self.events.append("carry on")

    def bus_away(self) -> None:
        self.events.append("bus away")

    def refused(self, closing: Closing) -> None:
        self.events.append(closing)


@dataclass(eq=False)
class FakeLine:
    """The connection of a session, that remembers what it was told."""

    blobs: list[bytes] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def deliver(self, blob: bytes) -> None:
        self.blobs.append(blob)

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def close(self, closing: Closing) -> None:
        self.events.append(closing)
