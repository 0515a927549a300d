"""Test doubles: small, and true to the contracts that the real parts fulfil (see ``tests/room/test_bus.py``)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.closing import Closing
from chatd.message import Batch, Message
from chatd.room.bus import BusListener
from chatd.room.chatlog import Entry
from chatd.room.outbox import NotPublished, Position
from chatd.wire.text import BARE, Dress


@implementer(ILogObserver)
class Events:
    """A log observer that remembers what was logged."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    @property
    def said(self) -> list[tuple[str, str]]:
        """Level and text of each event."""
        return [(event["log_level"].name, formatEvent(event)) for event in self.events]


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

    def weight(self, messages: Sequence[Message]) -> int:
        return sum(len(each.text) for each in messages)

    def publish(self, room: str, messages: Sequence[Message]) -> "Deferred[Position]":
        if self.refuse is not None:
            return fail(self.refuse)
        self.published.append((room, list(messages)))
        self._sequence += 1
        first = self._tops.get(room, 0) + 1
        self._tops[room] = first + len(messages) - 1
        self._queue.append(Batch(room, "e", first, self.publisher, self._sequence, tuple(messages)))
        return succeed(Position("e", first))

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
    dress: Dress = BARE
    blobs: list[bytes] = field(default_factory=list)
    count: int = 0
    """Messages that were delivered, by what was said of each blob."""
    events: list[Any] = field(default_factory=list)

    def deliver(self, blob: bytes, count: int) -> None:
        self.blobs.append(blob)
        self.count += count

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

    def deliver(self, blob: bytes, count: int) -> None:
        self.blobs.append(blob)

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def close(self, closing: Closing) -> None:
        self.events.append(closing)


class FakeTransport(StringTransport):
    """A server's end of a socket; the clock's next turn closes it, as the reactor's does.

    While ``client_reads`` is False what is written waits, and a push producer hears at every write that it is too
    much, as from Twisted's sockets. What comes while reading is paused waits too.
    """

    MARK = 65_536

    def __init__(self, clock: Clock, protocol: Any, peer: IAddress | None = None) -> None:
        super().__init__(peerAddress=peer or IPv4Address("TCP", "192.0.2.7", 40000))
        self.clock = clock
        self.protocol = protocol
        self.client_reads = True
        self.aborted = False
        self.lost: Failure | None = None
        self._unwritten = 0
        self._producer_paused = False
        self._unread = b""

    # What the client does

    def receive(self, data: bytes) -> None:
        """Let the client send."""
        if self.producerState == "paused":
            self._unread += data
        elif not self.disconnecting and self.lost is None:
            self.protocol.dataReceived(data)

    def catch_up(self) -> None:
        """Let the client read all that waits for it, and go on reading."""
        self.client_reads, self._unwritten = True, 0
        if self.producer is not None and self._producer_paused:
            self._producer_paused = False
            self.producer.resumeProducing()
        if self.disconnecting:
            self.clock.callLater(0, self._lose, ConnectionDone())

    def vanish(self) -> None:
        """Let the client be gone."""
        self._lose(ConnectionLost())

    # What the protocol does

    def write(self, data: bytes) -> None:
        if self.lost is not None:
            return
        super().write(data)
        if not self.client_reads:
            self._unwritten += len(data)
            if self._unwritten > self.MARK and self.producer is not None:
                self._producer_paused = True
                self.producer.pauseProducing()

    def loseConnection(self) -> None:  # noqa: N802 - Twisted's name
        self.disconnecting = True
        if not self._unwritten:
            self.clock.callLater(0, self._lose, ConnectionDone())

    def abortConnection(self) -> None:  # noqa: N802 - Twisted's name
        self.disconnecting = self.aborted = True
        self.clock.callLater(0, self._lose, ConnectionAborted())

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.producerState = "paused"

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        if not self.disconnecting:
            self.producerState = "producing"
            self.clock.callLater(0, self._read_on)

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: N802 - Twisted's name
        """Do as a TCP socket does."""

    def _read_on(self) -> None:
        unread, self._unread = self._unread, b""
        if unread:
            self.receive(unread)

    def _lose(self, error: Exception) -> None:
        if self.lost is None:
            self.lost = Failure(error)
            self.protocol.connectionLost(self.lost)


@implementer(ILogObserver)
class FakeChatLog:
    """The observer of a chat log in memory; a full one can't be written."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.full = False
        self.log = Logger(namespace="chatd.chat", observer=self)

    def __call__(self, event: LogEvent) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.entries += event["entries"]
