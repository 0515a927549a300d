"""The memory of the private broker, on a real Valkey that may use little of it."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater

from chatd.broker.bus import Bus
from chatd.broker.eviction import Eviction
from chatd.broker.queries import MEMORY, SHORTEN, Script
from chatd.config.settings import Config
from chatd.monitoring.metrics import BROKER_MEMORY, BROKER_MEMORY_LIMIT, HISTORIES_DROPPED
from tests.broker.listening import BusTestCase, messages
from tests.broker.server import Server
from tests.fakes import Events

MIB = 1_048_576
LIMIT = 32 * MIB
FAST: dict[str, Any] = {"eviction_check_interval": 0.01, "eviction_keys_per_scan": 50, "eviction_drops_per_check": 2}


class TestEviction(BusTestCase):
    timeout = 30

    def setUp(self) -> None:
        super().setUp()
        self.server = Server()
        self.addCleanup(self.server.close)
        self.start(LIMIT)
        self.dropped = HISTORIES_DROPPED.value

    def start(self, limit: int) -> None:
        self.server.start(
            "--maxmemory", str(limit), "--maxmemory-policy", "noeviction", "--lazyfree-lazy-user-del", "no"
        )

    async def ready_to_evict(self, *rooms: str, **knobs: Any) -> Bus:
        bus, self.listener = await self.ready(self.server.url, *rooms, **FAST, **knobs)
        bus.eviction.start()
        return bus

    async def fill(self, bus: Bus, room: str, size: int = MIB) -> None:
        """Publish messages in a room, a batch after the other; all of them are taken."""
        for _ in range(size // 65_536):
            await bus.queues.publish(room, messages(*["x" * 16_384] * 4))

    async def flood(self, bus: Bus) -> None:
        """Publish in one room after the other until a history is dropped and there is room again."""
        number = 0
        while HISTORIES_DROPPED.value == self.dropped:
            await self.fill(bus, f"flood{number}")
            number += 1
        await self.settle()

    async def kept(self, bus: Bus, room: str) -> int:
        """Return how many messages of a room's history there are."""
        span = await bus.history.read(room, None, 1)
        batches, _ = await bus.history.read_back(room, span.top.epoch, span.top.offset, 0, 64 * MIB)
        return sum(len(batch.messages) for batch in batches)

    def used(self) -> int:
        fields = dict(line.split(":", 1) for line in self.server.ask("INFO", "memory").decode().split() if ":" in line)
        return int(fields["used_memory"])

    async def settle(self) -> None:
        """Wait until there is room again."""
        while self.used() > LIMIT * Config.eviction_start_share:
            await deferLater(reactor, 0.01)

    async def test_many_rooms_never_fill_the_broker_and_those_silent_for_the_longest_are_gone_first(self) -> None:
        bus = await self.ready_to_evict("last", recent_history_time=0)
        rooms = [f"r{number}" for number in range(60)]
        for room in rooms:
            await self.fill(bus, room)
        await bus.queues.publish("last", messages("hello"))
        await self.listener.until(lambda: self.listener.texts("last") == ["hello"])
        await self.settle()
        found = [await self.kept(bus, room) for room in rooms]
        assert found[:30] == [0] * 30
        assert found[-1] > 0
        assert found == sorted(found)
        assert await self.kept(bus, "last") == 1
        assert HISTORIES_DROPPED.value - self.dropped >= 30
        assert BROKER_MEMORY_LIMIT.value == LIMIT
        assert 0 < BROKER_MEMORY.value <= LIMIT

    async def test_a_room_that_is_silent_goes_before_a_younger_one_that_is_small(self) -> None:
        bus = await self.ready_to_evict(recent_history_time=0)
        await bus.queues.publish("old", messages("x"))
        await deferLater(reactor, 0.01)
        await bus.queues.publish("young", messages("x"))
        await self.flood(bus)
        assert await self.kept(bus, "old") == 0
        assert (await bus.queues.publish("old", messages("y"))).first.offset == 2  # only the history is gone

    async def test_rooms_that_are_not_silent_keep_the_newer_half(self) -> None:
        bus = await self.ready_to_evict()
        for _ in range(20):
            for room in ("a", "b", "c"):
                await self.fill(bus, room)
        await self.settle()
        assert HISTORIES_DROPPED.value > self.dropped
        for room in ("a", "b", "c"):
            top = (await bus.history.read(room, None, 1)).top
            batches, _ = await bus.history.read_back(room, top.epoch, top.offset, 0, 64 * MIB)
            assert batches[0].last == top.offset == 20 * 64
            assert 0 < await self.kept(bus, room) < 1000

    async def test_it_is_said_when_histories_are_dropped(self) -> None:
        bus = await self.ready_to_evict()
        await self.flood(bus)
        while not self.logged():
            await deferLater(reactor, 0.01)
        texts = [text for _, text in self.logged()]
        assert texts[0].endswith(
            "of 32 MiB (--redis-maxmemory); the histories of rooms without recent messages are dropped"
        )

    async def test_one_worker_at_a_time_makes_room(self) -> None:
        one = await self.ready_to_evict(eviction_lock_ttl=1000.0)
        await deferLater(reactor, 0.05)
        two = await self.ready_to_evict(eviction_lock_ttl=1000.0)
        assert await one.eviction._measure() != (0, 0)
        assert await two.eviction._measure() == (0, 0)
        self.stop(one)
        self.server.ask("DEL", f"{self.prefix}:eviction")  # its time is over
        assert (await two.eviction._measure())[1] == LIMIT

    async def test_when_the_broker_is_full_any_worker_makes_room(self) -> None:
        one, _ = await self.ready(self.server.url, **FAST)
        with pytest.raises(Exception, match="OOM"):
            while True:
                self.server.ask("XADD", f"{self.prefix}:history:e:r{self.used()}", "1-0", "b", "x" * 500_000)
        one.eviction.start()
        await self.settle()
        await one.queues.publish("ops", messages("hello"))

    async def test_with_no_limit_nothing_is_dropped(self) -> None:
        self.server.kill()
        self.start(0)
        bus = await self.ready_to_evict()
        await self.fill(bus, "ops")
        assert await bus.eviction._measure() == (0, 0) or BROKER_MEMORY_LIMIT.value == 0
        assert await self.kept(bus, "ops") == 64
        assert HISTORIES_DROPPED.value == self.dropped

    async def test_without_histories_it_is_said_that_there_is_nothing_to_drop_and_it_goes_on(self) -> None:
        bus = await self.ready_to_evict()
        for number in range(28):
            self.server.ask("SET", f"{self.prefix}:other:{number}", "x" * MIB)
        while not any(level == "error" for level, _ in self.logged()):
            await deferLater(reactor, 0.01)
        self.server.ask("FLUSHALL")
        await bus.queues.publish("ops", messages("hello"))
        assert await self.kept(bus, "ops") == 1
        while len(self.logged()) < 2:
            await deferLater(reactor, 0.01)
        assert [text.partition(" uses ")[0] for _, text in self.logged()] == [
            "the private broker",
            "the private broker has free memory again",
        ]


class FullBroker:
    """A private broker on a clock, full of what is no history; its keys are listed in four steps."""

    def __init__(self) -> None:
        self.used = 95 * MIB
        self.steps = 0
        self.batches = 0
        """How many batches there are in its only history."""
        self.clock = Clock()
        queries: Any = self
        self.eviction = Eviction(self.clock, queries, Config(), "w")
        self.eviction.start()

    def ask(self, script: Script, keys: list[bytes], arguments: Callable[[bytes], list[Any]]) -> "Deferred[Any]":
        if script is MEMORY:
            return succeed([1, self.used, 100 * MIB])
        if script is SHORTEN:
            batches, self.batches = self.batches, 0
            return succeed(batches)
        self.steps += 1
        cursor = (int(arguments(b"")[0]) + 1) % 4
        return succeed([str(cursor).encode(), *([b"h", 1000] if cursor == 1 else [])])

    def steps_in(self, seconds: float) -> int:
        """Return in how many steps its keys are listed from now on."""
        before = self.steps
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
        return self.steps - before


def test_while_nothing_can_be_dropped_histories_are_looked_at_less_and_less_often() -> None:
    broker = FullBroker()
    assert broker.steps_in(70) <= 4 * 8  # after 1, 2, 4, … seconds
    assert 4 * 9 <= broker.steps_in(300) <= 4 * 11  # each 30 seconds
    broker.batches = 1
    assert 0 < broker.steps_in(30) <= 4 * 7  # one is dropped, and it begins anew
    broker.used = 70 * MIB
    assert broker.steps_in(0.5) == 0
    broker.used = 95 * MIB
    assert broker.steps_in(0.5) >= 4


def test_a_broker_without_histories_to_drop_is_logged_once_until_it_has_room_again(events: Events) -> None:
    broker = FullBroker()
    broker.steps_in(100)
    broker.used = 50 * MIB
    broker.steps_in(1)
    assert events.said == [
        ("error", "the private broker uses 95 MiB and has no history left to drop"),
        ("info", "the private broker has free memory again"),
    ]
    assert [(event["problem"], event.get("resolved", False)) for event in events.events] == [
        ("broker full", False),
        ("broker full", True),
    ]
