"""Real buses for tests, and a listener that remembers what it heard."""

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


class Ears:
    """Hears a bus, with all its holes; a batch that comes again is dropped, known by its publisher and sequence."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.again: list[Batch] = []
        self.changes = 0
        self.tops: dict[str, StreamPosition] = {}
        """How far each room had come when it was compared last."""
        self.places: dict[tuple[str, str], ResumePosition] = {}
        """How far connections, by room and session, have come."""
        self.given_up: list[str] = []
        """Those of them that were hung up on."""
        self.comings: list[PresenceEvent] = []
        """Who came and went in rooms that are watched."""
        self.nicks: dict[str, str] = {}
        """Nicks that members lost, by sender_id, and what they are called now."""
        self._newest: dict[tuple[str, str], int] = {}
        self._waiting: list[tuple[Callable[[], Any], Deferred[None]]] = []

    def deliver(self, batch: Batch) -> None:
        who = (batch.room, batch.publisher)
        if batch.sequence <= self._newest.get(who, 0):
            self.again.append(batch)
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
        place = self.places.pop((room, session), None)
        if place is not None:
            self.given_up.append(session)
            self.look()
        return place

    def logged(self) -> "Deferred[None] | None":
        return None

    def presence_changed(self, room: str, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        self.comings += changes
        self.look()

    def renamed(self, room: str, sender_id: str, nick: str) -> None:
        self.nicks[sender_id] = nick
        self.look()

    def texts(self, room: str = "ops") -> list[str]:
        """All that was heard in a room, in order."""
        return [message.text for batch in self.batches if batch.room == room for message in batch.messages]

    def offsets(self, room: str = "ops") -> list[int]:
        """The offsets of all that was heard in a room."""
        return [offset for batch in self.batches if batch.room == room for offset in range(batch.first, batch.last + 1)]

    def until(self, condition: Callable[[], Any]) -> "Deferred[None]":
        """Fire once a condition holds; it is looked at whenever the bus calls."""
        done: Deferred[None] = Deferred()
        self._waiting.append((condition, done))
        self.look()
        return done

    def look(self) -> None:
        """Look at the conditions again."""
        for each in list(self._waiting):
            if each[0]():
                self._waiting.remove(each)
                each[1].callback(None)


class Follower(Ears):
    """Hears rooms as the hub does: through timelines, which read from history what is missing."""

    def __init__(self, bus: Bus, config: Config) -> None:
        super().__init__()
        self.gaps: list[OffsetGap] = []
        self.deaf = False
        """Whether what comes is lost on the way."""
        self.missed: list[Batch] = []
        """What was."""
        self._bus = bus
        self._config = config
        self._orderings: dict[str, Ordering] = {}

    async def follow(self, room: str) -> None:
        """Hear a room from now on."""
        self._orderings[room] = Ordering(
            self._config, lambda after, most: self._bus.history.read(room, after, most), self._out
        )
        await self._bus.subscribe(room)
        await self._orderings[room].start()

    def ordering(self, room: str) -> Ordering:
        """Give the order of a room, as far as it was heard."""
        return self._orderings[room]

    def deliver(self, batch: Batch) -> None:
        if self.deaf:
            self.missed.append(batch)
            self.look()
        else:
            self._orderings[batch.room].receive(batch)

    def recover(self, room: str, top: StreamPosition) -> None:
        self._orderings[room].recover(top)
        super().recover(room, top)

    def _out(self, each: Item, _: Batch | None) -> None:
        if isinstance(each, PresenceEvent):
            self.comings.append(each)
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
"""What makes outages short."""
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

    def make(self, address: str | BrokerAddress, **knobs: Any) -> tuple[Bus, Ears]:
        """Give a bus that was started, and who hears it."""
        bus, _ = self._make_bus(address, knobs)
        bus.listener = ears = Ears()
        bus.start()
        return bus, ears

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

    async def ready(self, address: str | BrokerAddress, *rooms: str, **knobs: Any) -> tuple[Bus, Ears]:
        """Give a bus that is open and hears these rooms."""
        bus, ears = self.make(address, **knobs)
        await ears.until(lambda: bus.queues.open)
        for room in rooms:
            await bus.subscribe(room)
        return bus, ears

    async def follow(self, address: str, *rooms: str, **knobs: Any) -> tuple[Bus, Follower]:
        """Give a bus that is open, and who follows these rooms on it."""
        bus, config = self._make_bus(address, knobs)
        bus.listener = follower = Follower(bus, config)
        bus.start()
        await follower.until(lambda: bus.queues.open)
        for room in rooms:
            await follower.follow(room)
        return bus, follower

    def said(self) -> list[tuple[str, str]]:
        """What the bus said in the server's own log: level and text."""
        events = [event for event in self.events.events if event.get("log_namespace", "").startswith("chatd.")]
        told = Events()
        told.events = events
        return told.said

    def said_or_look(self, ears: Ears) -> bool:
        """Whether the bus has said that it is away; looked at again until it has."""
        if not self.said():
            reactor.callLater(0.01, ears.look)
        return bool(self.said())

    def away_or_look(self, bus: Bus, ears: Ears, why: str) -> bool:
        """Whether the bus is away for a reason; looked at again until it is."""
        if why not in bus.away:
            reactor.callLater(0.01, ears.look)
        return why in bus.away
