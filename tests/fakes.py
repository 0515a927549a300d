"""Test doubles: small, and true to the contracts that the real parts fulfil (see ``tests/broker/test_bus.py``)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.broker.bus import BusListener
from chatd.broker.presence_list import Identity, MemberList, OccupiedRoom, PresentMember
from chatd.broker.publish_queue import NotPublished, PublishResult
from chatd.broker.resume_positions import ResumePosition
from chatd.chatlog.line import LogEntry
from chatd.monitoring.prometheus import NoMetrics
from chatd.protocol.close_codes import CloseCode
from chatd.protocol.message import Batch, HistoryRange, Message, OffsetGap, PresenceEvent, StreamPosition
from chatd.protocol.text import BARE, Format

T = TypeVar("T")


@contextmanager
def reactor_by_hand() -> Iterator[Any]:
    """Return a reactor that the test runs step by step, and close what it has opened."""
    reactor: Any = EPollReactor()
    try:
        yield reactor
    finally:
        reactor.removeAll()
        for reader in list(reactor._internalReaders):
            reactor._internalReaders.discard(reader)
            reader.connectionLost(Failure(ConnectionError()))
        reactor._poller.close()


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


class Comparing:
    """Counts how often two of a kind are compared."""

    def __init__(self, kind: type[Any], patch: Any) -> None:
        self.count = 0

        def compare(one: object, other: object) -> bool:
            self.count += 1
            return one is other

        patch.setattr(kind, "__eq__", compare, raising=False)
        patch.setattr(kind, "__hash__", object.__hash__, raising=False)


class FakeBus:
    """A bus in memory for one worker: what is published comes back when ``pump`` is called, or is lost on the way.

    It keeps history, as the broker does, of every room and epoch. Answers come at once, or with ``answer`` where
    ``answer_at_once`` is off.
    """

    listener: BusListener

    def __init__(self, publisher: str = "fake", history: int = 1000) -> None:
        self.publisher = publisher
        self.kept_messages = history
        self.presence = self.history = self.resume_positions = self.queues = self
        self.away = ""
        self.refusing = ""
        """In which words writes are refused, where that is why it is away."""
        self.starting = False
        self.full = False
        self.space = 1_000_000
        self.rooms: dict[str, list[Deferred[None]]] = {}
        self.confirm_at_once = True
        self._heard: set[str] = set()
        self.answer_at_once = True
        self.refuse: NotPublished | None = None
        self.published: list[tuple[str, list[Message]]] = []
        self.kept: dict[tuple[str, str], list[Batch]] = {}
        """History: batches of each room and epoch."""
        self.read_bytes: list[int] = []
        """How many bytes each step of reading backwards brought."""
        self.places: dict[tuple[str, str], ResumePosition] = {}
        """By room and key."""
        self.owners: dict[tuple[str, str], str] = {}
        """Which connection has which of them."""
        self.fights: list[tuple[str, str]] = []
        """Rooms and keys of places that were taken from clients that were still there."""
        self.present: dict[str, dict[str, str]] = {}
        """Nicks, by room and sender id."""
        self.presence_limit = 500
        self.lingered: dict[str, bool] = {}
        """Whether those who left may linger."""
        self.watched: set[str] = set()
        self.changes: list[tuple[str, StreamPosition, PresenceEvent]] = []
        """Presence events that are not delivered yet."""
        self._queue: list[Batch] = []
        self._tops: dict[str, StreamPosition] = {}
        self._epochs = 0
        self._sequence = 0
        self._asked: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    @property
    def open(self) -> bool:
        return not self.away and not self.full

    @property
    def unreachable(self) -> str:
        return "" if self.starting or self.refusing else self.away

    def weight(self, messages: Sequence[Message]) -> int:
        return sum(len(each.text) for each in messages)

    # Messages

    def publish(
        self,
        room: str,
        messages: Sequence[Message],
        ids: Mapping[int, str] | None = None,
        ticket: int = 0,
        weight: int | None = None,
    ) -> Any:
        if self.refuse is not None:
            return fail(self.refuse)
        self.published.append((room, list(messages)))
        self._sequence += 1
        return succeed(PublishResult(self.say(room, messages, self._sequence, self.publisher)))

    def say(
        self,
        room: str,
        messages: Sequence[Message],
        sequence: int,
        publisher: str,
        before: StreamPosition | None = None,
    ) -> StreamPosition:
        """Assign offsets, keep the messages and deliver them, as the script does; return the position of the first."""
        top, size = self.top(room), 100 * len(messages)
        batch = Batch(room, top.epoch, top.offset + 1, publisher, sequence, tuple(messages), before, size)
        self._tops[room] = StreamPosition(top.epoch, batch.last)
        kept = self.kept.setdefault((room, top.epoch), [])
        kept.append(batch)
        while kept and kept[0].last <= batch.last - self.kept_messages:
            del kept[0]
        self._queue.append(batch)
        return StreamPosition(top.epoch, batch.first)

    def top(self, room: str) -> StreamPosition:
        """Return the stream position of a room."""
        return self._tops.setdefault(room, StreamPosition(f"e{self._epochs}", 0))

    def restart(self) -> None:
        """Lose everything that the broker had; batches on their way are still delivered."""
        self._epochs += 1
        self._tops.clear()
        self.kept.clear()
        self.places.clear()
        self.owners.clear()

    def pump(self, lost: Callable[[Batch], bool] = lambda _: False) -> None:
        """Deliver what has been published, but for what is lost on the way."""
        queue, self._queue = self._queue, []
        for batch in queue:
            if batch.room in self.rooms and not lost(batch):
                self.listener.deliver(batch)
        changes, self.changes = self.changes, []
        for room, after, change in changes:
            self.listener.presence_changed(room, after, [change])

    def compare(self) -> None:
        """Report the position of each room: all batches on their way are delivered, or lost."""
        self.pump()
        for room in list(self.rooms):
            self.listener.recover(room, self.top(room))

    def flushed(self) -> "Deferred[None]":
        return succeed(None)

    def probe(self) -> "Deferred[None]":
        return fail(NotPublished(self.away)) if self.away else succeed(None)

    # Who is where

    def enter(self, room: str, sender_id: str, identity: Identity) -> "Deferred[str]":
        if self.refusing:
            return Deferred()
        if not identity.nick:  # nobody waits for that
            return succeed(self._name(room, sender_id, identity, "join"))
        return self._answer(lambda: self._name(room, sender_id, identity, "join"))

    def rename(self, room: str, sender_id: str, identity: Identity) -> "Deferred[str]":
        return self._answer(lambda: self._name(room, sender_id, identity, "nick"))

    def find_nick(self, room: str, identity: Identity) -> "Deferred[str]":
        taken = set(self.present.get(room, {}).values())
        return self._answer(lambda: "" if identity.nick in taken else identity.nick)

    def leave(self, room: str, sender_id: str, *, linger: bool) -> None:
        if (nick := self.present.setdefault(room, {}).pop(sender_id, None)) is not None:
            self.lingered[sender_id] = linger
            self._tell(room, PresenceEvent("leave", sender_id, nick, ""))

    def members(self, room: str) -> "Deferred[MemberList]":
        there = self.present.get(room, {})
        present = [PresentMember(sender_id, nick, 0) for sender_id, nick in there.items()]
        return self._answer(
            lambda: MemberList(1, len(present), present if len(present) <= self.presence_limit else None)
        )

    def watch(self, room: str) -> None:
        self.watched.add(room)

    def unwatch(self, room: str) -> None:
        self.watched.remove(room)

    def _name(self, room: str, sender_id: str, identity: Identity, what: Literal["join", "nick"]) -> str:
        there = self.present.setdefault(room, {})
        taken = {nick for each, nick in there.items() if each != sender_id}
        nick = next((each for each in identity.choices() if each not in taken), "")
        was = there.get(sender_id)
        there[sender_id] = nick
        if was != nick:
            self._tell(room, PresenceEvent(what, sender_id, nick, was or ""))
        return nick

    def _tell(self, room: str, change: PresenceEvent) -> None:
        if room in self.watched:
            self.changes.append((room, self.top(room), change))

    # History and places

    def read(self, room: str, after: StreamPosition | None, most: int) -> "Deferred[HistoryRange]":
        return self._answer(lambda: self._span(room, after, most))

    def read_back(
        self, room: str, epoch: str, last: int, after: int, most: int
    ) -> "Deferred[tuple[list[Batch], bool]]":
        return self._answer(lambda: self._span_back(room, epoch, last, after, most))

    def tops(self, rooms: Sequence[str]) -> "Deferred[list[StreamPosition]]":
        return self._answer(lambda: [self._tops.get(room, StreamPosition("", 0)) for room in rooms])

    def list_rooms(self) -> "Deferred[tuple[list[OccupiedRoom], bool]]":
        return self._answer(
            lambda: (
                [OccupiedRoom(room, len(self.present.get(room, ())), top) for room, top in self._tops.items()],
                False,
            )
        )

    def claim(self, room: str, key: str, session: str) -> "Deferred[ResumePosition]":
        def claim() -> ResumePosition:
            owner = self.owners.get((room, key))
            if owner is not None and owner != session and (place := self.listener.disconnect(room, owner)) is not None:
                self._keep((room, key), place)
            self.owners[room, key] = session
            return self.places.setdefault((room, key), ResumePosition(None, session))

        return self._answer(claim)

    def save(self, room: str, key: str, session: str, place: ResumePosition, *, left: bool = False) -> None:
        if self.owners.get((room, key), session) == session:
            self._keep((room, key), place)
            self.owners[room, key] = session
            if left:
                del self.owners[room, key]

    def count_takeover(self, room: str, key: str) -> None:
        self.fights.append((room, key))

    def saved(self) -> "Deferred[None]":
        return succeed(None)

    def answer(self, count: int = 1_000_000) -> None:
        """Answer the oldest queries by the current state, and those that are sent meanwhile."""
        while self._asked and count:
            count -= 1
            work, done = self._asked.pop(0)
            done.callback(work())

    def _answer(self, work: Callable[[], T]) -> "Deferred[T]":
        if self.answer_at_once:
            return succeed(work())
        done: Deferred[T] = Deferred(lambda _: self._asked.remove((work, done)))
        self._asked.append((work, done))
        return done

    def _keep(self, name: tuple[str, str], place: ResumePosition) -> None:
        if place.position is not None:
            self.places[name] = place

    def _span(self, room: str, after: StreamPosition | None, most: int) -> HistoryRange:
        top = self.top(room)
        if after is None or not self.kept_messages:
            return HistoryRange((), top)
        rest = [each for each in self.kept.get((room, after.epoch), ()) if each.last > after.offset]
        old = bool(rest) and after.epoch != top.epoch
        if not rest and after.epoch != top.epoch:
            rest = self.kept.get((room, top.epoch), [])
        batches: list[Batch] = []
        for batch in rest:
            if sum(each.size for each in batches) >= most:
                return HistoryRange(batches, top, more=True)
            batches.append(batch)
        return HistoryRange(batches, top, more=old)

    def _span_back(self, room: str, epoch: str, last: int, after: int, most: int) -> tuple[list[Batch], bool]:
        kept = self.kept.get((room, epoch), []) if self.kept_messages else []
        wanted = [batch for batch in kept if batch.first <= last and batch.last > after]
        batches: list[Batch] = []
        while wanted and sum(batch.size for batch in batches) < most:
            batches.append(wanted.pop())
        self.read_bytes.append(sum(batch.size for batch in batches))
        return batches, bool(wanted)

    # Rooms

    def subscribe(self, room: str) -> "Deferred[None]":
        waiters = self.rooms.setdefault(room, [])
        if self.confirm_at_once:
            self._heard.add(room)
        if room in self._heard:
            return succeed(None)
        done: Deferred[None] = Deferred(waiters.remove)
        waiters.append(done)
        return done

    def subscribed(self, room: str) -> bool:
        return room in self._heard

    def unhear(self) -> None:
        """Break the connection, so that rooms have to be subscribed again."""
        self.confirm_at_once = False
        self._heard.clear()

    def confirm(self, room: str) -> None:
        """Confirm a subscription."""
        self._heard.add(room)
        waiters, self.rooms[room] = self.rooms[room], []
        for waiter in waiters:
            waiter.callback(None)

    def unsubscribe(self, room: str) -> None:
        self.rooms.pop(room, None)
        self._heard.discard(room)


@dataclass(eq=False)
class FakeMember:
    """A client in a room that remembers what happened to it."""

    id: str
    address: str = "192.0.2.1"
    echo: bool = False
    format: Format = BARE
    key: str = ""
    since: StreamPosition | None = None
    last: int = 0
    sender_id: str = ""
    nick: str = ""
    subject: str = ""
    receives_presence: bool = False
    delays_leave: bool = False
    recovers_at_once: bool = False
    buffer_full: bool = False
    fall_behind: Callable[[], None] | None = None
    """A function that is called instead of accepting a delivery."""
    blobs: list[bytes] = field(default_factory=list)
    count: int = 0
    """Messages that were delivered, by what was said of each blob."""
    events: list[Any] = field(default_factory=list)
    got: StreamPosition | None = None
    """Up to where it has got everything."""
    received_all: bool = False
    early: list[StreamPosition] = field(default_factory=list)
    """Up to where it was given everything, as it learned soon after it was."""

    def __post_init__(self) -> None:
        self.sender_id = self.sender_id or self.id

    @property
    def identity(self) -> Identity:
        return Identity(self.nick)

    def deliver(self, blob: bytes, count: int) -> bool:
        if self.fall_behind is not None:
            self.fall_behind()
            return False
        return self.replay(blob, count)

    def replay(self, blob: bytes, count: int) -> bool:
        self.blobs.append(blob)
        self.count += count
        return True

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        self.events.append(("too slow", gap) if slow else gap)

    def record(self, position: StreamPosition) -> StreamPosition | None:
        self.got = position
        return position

    def record_early(self, position: StreamPosition) -> None:
        self.early.append(position)

    def resume_publishing(self) -> None:
        self.events.append("carry on")

    def bus_away(self) -> None:
        self.events.append("bus away")

    def disconnect(self, close_code: CloseCode) -> None:
        self.events.append(close_code)

    def publish_refused(self, close_code: CloseCode) -> None:
        self.events.append(close_code)

    def recovered(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        self.events.append(("began", top, list(gaps), list(batches)))

    def renamed(self, nick: str) -> None:
        self.events.append(("renamed", nick))

    def missed_presence(self) -> None:
        self.events.append("missed changes")


@dataclass(eq=False)
class FakeLine:
    """The connection of a session, that remembers what it was told."""

    blobs: list[bytes] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    buffer_full: bool = False
    bytes_written_and_arrived: tuple[int, int] = (0, 0)

    def progress(self) -> tuple[int, int]:
        """Return how many bytes were written, and how many have arrived."""
        return self.bytes_written_and_arrived

    def deliver(self, blob: bytes, count: int) -> bool:
        self.blobs.append(blob)
        return True

    def replay(self, blob: bytes, count: int) -> bool:
        self.blobs.append(blob)
        return True

    def send(self, blob: bytes) -> None:
        self.blobs.append(blob)

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def close(self, close_code: CloseCode) -> None:
        self.events.append(close_code)


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
        """Receive data from the client."""
        if self.producerState == "paused":
            self._unread += data
        elif not self.disconnecting and self.lost is None:
            self.protocol.dataReceived(data)

    def catch_up(self) -> None:
        """Read everything that waits for the client, and continue to read."""
        self.client_reads = True
        self.read_what_waits()

    def read_what_waits(self) -> None:
        """Read everything that waits for the client."""
        self._unwritten = 0
        if self.producer is not None and self._producer_paused:
            self._producer_paused = False
            self.producer.resumeProducing()
        if self.disconnecting:
            self.clock.callLater(0, self._lose, ConnectionDone())

    def vanish(self) -> None:
        """Lose the connection."""
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
            if self.producer is not None:
                self.producer.stopProducing()
            self.protocol.connectionLost(self.lost)


@implementer(ILogObserver)
class FakeChatLog:
    """The observer of a chat log in memory; a full one can't be written."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.full = False
        self.log = Logger(namespace="chatd.chat", observer=self)

    def __call__(self, event: LogEvent) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.entries += event["entries"]


class FakeMeter:
    """A worker's metrics, as the test sets them; there may be none."""

    def __init__(self) -> None:
        self.text: bytes | None = b"chatd_rooms 1.0\n"

    def exposed(self) -> "Deferred[bytes]":
        return succeed(self.text) if self.text is not None else fail(NoMetrics())
