"""Real buses for tests, and a listener that records what a bus calls."""

import itertools
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from chatd.broker.bus import Bus
from chatd.broker.resume_positions import ResumePosition
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.settings import Config
from chatd.protocol.message import Batch, Message, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms.ordering import Item, Ordering
from tests.fakes import Events

_numbers = itertools.count(1)


def messages(*texts: str) -> list[Message]:
    """Make messages of these texts."""
    return [Message(f"s.{next(_numbers)}", int(time.time() * 1000), "s", text) for text in texts]


def saved(bus: Bus) -> "Deferred[Any]":
    """Return a Deferred that fires when the resume positions and presence of a bus are stored."""
    return gatherResults([bus.resume_positions.saved(), bus.presence.flushed()])


class BusListener:
    """A listener of a bus that fills no gap; it drops a repeated batch, known by its publisher and sequence."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.repeated: list[Batch] = []
        self.changes = 0
        self.tops: dict[str, StreamPosition] = {}
        """The newest stream position of each room when rooms were compared."""
        self.resume_positions: dict[tuple[str, str], ResumePosition] = {}
        """Resume positions of connections, by room and session."""
        self.disconnected: list[str] = []
        """Connections that were closed."""
        self.presence_events: list[PresenceEvent] = []
        """Presence events of rooms that are watched."""
        self.nicks: dict[str, str] = {}
        """Nicks that members lost, by sender_id, and what they are called now."""
        self._newest: dict[tuple[str, str], int] = {}
        self._waiting: list[tuple[Callable[[], Any], Deferred[None]]] = []

    def deliver(self, batch: Batch) -> None:
        who = (batch.room, batch.publisher)
        if batch.sequence <= self._newest.get(who, 0):
            self.repeated.append(batch)
        else:
            self._newest[who] = batch.sequence
            self.batches.append(batch)
        self.look()

    def bus_changed(self) -> None:
        self.changes += 1
        self.look()

    def recover(self, room: str, top: StreamPosition) -> None:
        self.tops[room] = top
        self.look()

    def disconnect(self, room: str, session: str) -> ResumePosition | None:
        place = self.resume_positions.pop((room, session), None)
        if place is not None:
            self.disconnected.append(session)
            self.look()
        return place

    def logged(self) -> "Deferred[None] | None":
        return None

    def presence_changed(self, room: str, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        self.presence_events += changes
        self.look()

    def renamed(self, room: str, sender_id: str, nick: str) -> None:
        self.nicks[sender_id] = nick
        self.look()

    def texts(self, room: str = "ops") -> list[str]:
        """Return the texts that were received in a room, in order."""
        return [message.text for batch in self.batches if batch.room == room for message in batch.messages]

    def offsets(self, room: str = "ops") -> list[int]:
        """Return the offsets that were received in a room."""
        return [offset for batch in self.batches if batch.room == room for offset in range(batch.first, batch.last + 1)]

    def until(self, condition: Callable[[], Any]) -> "Deferred[None]":
        """Return a Deferred that fires when a condition holds; it is checked whenever the bus calls."""
        done: Deferred[None] = Deferred()
        self._waiting.append((condition, done))
        self.look()
        return done

    def look(self) -> None:
        """Check the conditions again."""
        for waiting in list(self._waiting):
            if waiting[0]():
                self._waiting.remove(waiting)
                waiting[1].callback(None)


class Follower(BusListener):
    """A listener that orders rooms as the hub does and fills gaps from history."""

    def __init__(self, bus: Bus, config: Config) -> None:
        super().__init__()
        self.gaps: list[OffsetGap] = []
        self.drops = False
        """Whether batches are dropped."""
        self.dropped: list[Batch] = []
        """The dropped batches."""
        self._bus = bus
        self._config = config
        self._orderings: dict[str, Ordering] = {}

    async def follow(self, room: str) -> None:
        """Follow a room from now on."""
        self._orderings[room] = Ordering(
            self._config, lambda after, most: self._bus.history.read(room, after, most), self._out
        )
        await self._bus.subscribe(room)
        await self._orderings[room].start()

    def ordering(self, room: str) -> Ordering:
        """Return the ordering of a room."""
        return self._orderings[room]

    def deliver(self, batch: Batch) -> None:
        if self.drops:
            self.dropped.append(batch)
            self.look()
        else:
            self._orderings[batch.room].receive(batch)

    def recover(self, room: str, top: StreamPosition) -> None:
        self._orderings[room].recover(top)
        super().recover(room, top)

    def _out(self, each: Item, _: Batch | None) -> None:
        if isinstance(each, PresenceEvent):
            self.presence_events.append(each)
        elif isinstance(each, OffsetGap):
            self.gaps.append(each)
        elif each.messages:
            self.batches.append(each)
        self.look()


FAST: dict[str, Any] = {
    "redis_ping_interval": 0.1,
    "redis_reconnect_min_delay": 0.01,
    "redis_reconnect_max_delay": 0.05,
    "redis_settle_delay": 0.05,
}
"""Limits that make outages short."""
PATIENT = {"redis_missed_pings": 200}
"""With FAST, a broker that a busy machine keeps from answering for a moment is not taken for dead."""


class BusTestCase(TestCase):
    """Makes buses and stops them."""

    timeout = 20

    def setUp(self) -> None:
        self.prefix = f"t{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._running: list[Bus] = []
        self.addCleanup(self._stop_all)
        self.events = Events()
        globalLogPublisher.addObserver(self.events)
        self.addCleanup(globalLogPublisher.removeObserver, self.events)

    def make(self, address: str | BrokerAddress, **knobs: Any) -> tuple[Bus, BusListener]:
        """Return a bus that was started, and its listener."""
        bus, _ = self._make_bus(address, knobs)
        bus.listener = listener = BusListener()
        bus.start()
        return bus, listener

    def _make_bus(self, address: str | BrokerAddress, knobs: dict[str, Any]) -> tuple[Bus, Config]:
        run = knobs.pop("run", "")
        config = Config(**{"redis_prefix": self.prefix, **FAST, **knobs})
        broker = broker_address(address) if isinstance(address, str) else address
        bus = Bus(reactor, broker, config, f"w{next(_numbers)}", run=run)
        self._running.append(bus)
        return bus, config

    def _stop_all(self) -> None:
        for bus in self._running[:]:
            self.stop(bus)

    def stop(self, bus: Bus) -> None:
        """Stop a bus before the test ends."""
        self._running.remove(bus)
        bus.stop()

    async def ready(self, address: str | BrokerAddress, *rooms: str, **knobs: Any) -> tuple[Bus, BusListener]:
        """Return a bus that is open and subscribed to these rooms."""
        bus, listener = self.make(address, **knobs)
        await listener.until(lambda: bus.queues.open)
        for room in rooms:
            await bus.subscribe(room)
        return bus, listener

    async def follow(self, address: str, *rooms: str, **knobs: Any) -> tuple[Bus, Follower]:
        """Return a bus that is open, and a listener that follows these rooms."""
        bus, config = self._make_bus(address, knobs)
        bus.listener = follower = Follower(bus, config)
        bus.start()
        await follower.until(lambda: bus.queues.open)
        for room in rooms:
            await follower.follow(room)
        return bus, follower

    def logged(self) -> list[tuple[str, str]]:
        """Return level and text of the bus's log events."""
        events = [event for event in self.events.events if event.get("log_namespace", "").startswith("chatd.")]
        told = Events()
        told.events = events
        return told.said

    def logged_or_look(self, listener: BusListener) -> bool:
        """Return whether the bus has logged an event; check again until it has."""
        if not self.logged():
            reactor.callLater(0.01, listener.look)
        return bool(self.logged())

    def away_or_look(self, bus: Bus, listener: BusListener, why: str) -> bool:
        """Return whether the bus is away for a reason; check again until it is."""
        if why not in bus.away:
            reactor.callLater(0.01, listener.look)
        return why in bus.away
