"""Connections that come with one key, on workers of their own with the real Valkey: in the end one of them has it."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import Logger

from chatd.broker.bus import Bus
from chatd.protocol.close_codes import TAKEN_OVER
from chatd.protocol.message import StreamPosition
from chatd.rooms.hub import Hub
from tests.broker.listening import BusTestCase, messages
from tests.broker.server import Client
from tests.fakes import Events, FakeMember

KEY = "a-key-of-mine"


class Worker:
    """A bus and its hub."""

    def __init__(self, bus: Bus, hub: Hub) -> None:
        self.bus = bus
        self.hub = hub
        self._connections = 0

    def come(self) -> FakeMember:
        """Join with the key."""
        self._connections += 1
        member = FakeMember(f"{self.bus.resume_positions._worker}.{self._connections}", key=KEY)
        self.hub.join("ops", member).addCallbacks(lambda _: member.events.append("joined"), member.events.append)
        return member


class TestTakeOver(BusTestCase):
    """Three workers."""

    @pytest.fixture(autouse=True)
    def _real_valkey(self, valkey_url: str) -> None:
        self.valkey_url = valkey_url

    async def workers(self, **knobs: Any) -> list[Worker]:
        made: list[Worker] = []
        for _ in range(3):
            bus, config = self._make_bus(
                self.valkey_url, {"resume_position_write_interval": 0.02, "takeover_timeout": 5, **knobs}
            )
            hub = Hub(bus, Logger(observer=Events()), config, reactor)
            bus.start()
            hub.start()
            self.addCleanup(hub.stop)
            made.append(Worker(bus, hub))
            await self.until(lambda: made[-1].bus.queues.open)
        return made

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something to hold; the test's own timeout is its bound."""
        while not condition():
            await deferLater(reactor, 0.005)

    def owner(self) -> str:
        """Return the connection that owns the resume position."""
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            return str((broker.ask("HGET", f"{self.prefix}:place:{KEY}:ops", "session") or b"").decode())

    def fights(self) -> int:
        """Return how often it was taken over from a connected client."""
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            return round(float(broker.ask("HGET", f"{self.prefix}:place:{KEY}:ops", "fights") or 0))

    def forget(self) -> None:
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            broker.ask("DEL", f"{self.prefix}:place:{KEY}:ops")

    async def test_who_comes_goes_on_where_the_one_before_stood(self) -> None:
        one, two, _ = await self.workers(resume_position_write_interval=60)
        old = one.come()
        await self.until(lambda: old.events)
        published = await one.bus.queues.publish("ops", messages("a", "b"))
        await self.until(lambda: old.count == 2)
        new = two.come()
        await self.until(lambda: new.events)
        assert (old.events, new.events) == (["joined", TAKEN_OVER], ["joined"])
        assert (new.sender_id, new.got) == (old.id, StreamPosition(published.first.epoch, 2))

    async def test_of_three_that_come_in_a_row_the_newest_has_it_where_the_first_stood(self) -> None:
        one, two, three = await self.workers(resume_position_write_interval=60)
        old = one.come()
        await self.until(lambda: old.events)
        published = await one.bus.queues.publish("ops", messages("a", "b"))
        await self.until(lambda: old.count == 2)
        hear, said = one.bus.resume_positions.received, list[bytes]()
        one.bus.resume_positions.received = said.append  # type: ignore[assignment, method-assign]
        middle = two.come()
        await self.until(lambda: said)
        new = three.come()
        await self.until(lambda: middle.events)
        for each in said:
            hear(each)
        await self.until(lambda: new.events)
        assert (old.events, middle.events, new.events) == (["joined", TAKEN_OVER], [TAKEN_OVER], ["joined"])
        assert (new.sender_id, new.got) == (old.id, StreamPosition(published.first.epoch, 2))

    async def test_who_has_waited_in_vain_gives_way_to_who_came_meanwhile_unheard(self) -> None:
        one, two, three = await self.workers(takeover_timeout=0.3)
        old = one.come()
        await self.until(lambda: old.events)
        for frozen in (one, two):
            frozen.bus.resume_positions.received = lambda data: None  # type: ignore[method-assign]
        middle = two.come()
        await self.until(lambda: self.owner() == middle.id)
        new = three.come()
        await self.until(lambda: middle.events and new.events)
        assert (middle.events, new.events) == ([TAKEN_OVER], ["joined"])

    async def test_who_does_not_hear_that_its_place_was_taken_learns_it_when_it_moves_on(self) -> None:
        one, two, _ = await self.workers(takeover_timeout=0.1)
        old = one.come()
        await self.until(lambda: old.events)
        one.bus.resume_positions.received = lambda data: None  # type: ignore[method-assign]
        new = two.come()
        await self.until(lambda: new.events)
        await one.bus.queues.publish("ops", messages("a"))
        await self.until(lambda: len(old.events) == 2)
        assert (old.events, new.events) == (["joined", TAKEN_OVER], ["joined"])

    async def test_or_in_a_while_where_it_does_not(self) -> None:
        one, two, _ = await self.workers(takeover_timeout=0.1, resume_position_refresh_interval=0.1)
        old = one.come()
        await self.until(lambda: old.events)
        one.bus.resume_positions.received = lambda data: None  # type: ignore[method-assign]
        new = two.come()
        await self.until(lambda: len(old.events) == 2 and new.events)
        assert (old.events, new.events) == (["joined", TAKEN_OVER], ["joined"])

    async def test_after_the_broker_lost_its_memory_there_is_one_again(self) -> None:
        one, two, _ = await self.workers(resume_position_refresh_interval=0.1)
        old = one.come()
        await self.until(lambda: old.events)
        self.forget()
        new = two.come()
        await self.until(lambda: TAKEN_OVER in old.events or TAKEN_OVER in new.events)
        assert [*old.events, *new.events].count(TAKEN_OVER) == 1

    async def test_clients_that_take_it_from_each_other_stop_and_one_keeps_it(self) -> None:
        workers = await self.workers(takeover_burst=4, takeover_interval=1000)
        member, turn = await self.comes(workers[0]), 0
        while True:
            turn += 1
            assert turn <= 5
            new = workers[turn % 3].come()
            await self.until(lambda new=new: new.events)  # type: ignore[misc]
            if new.events != ["joined"]:
                break
            await self.until(lambda member=member: TAKEN_OVER in member.events)  # type: ignore[misc]
            member.received_all = True
            workers[(turn - 1) % 3].hub.leave("ops", member)
            await self.until(lambda turn=turn: self.fights() == turn)  # type: ignore[misc]
            member = new
        [failure] = new.events
        assert 900 <= failure.value.seconds <= 1000
        assert (turn, member.events, self.owner()) == (5, ["joined"], member.id)

    async def test_one_that_comes_again_and_again_after_broken_connections_is_always_let_in(self) -> None:
        workers = await self.workers(takeover_burst=2, takeover_interval=1000)
        before = await self.comes(workers[0])
        for turn in range(1, 8):
            member = await self.comes(workers[turn % 3])
            await self.until(lambda before=before: TAKEN_OVER in before.events)  # type: ignore[misc]
            workers[(turn - 1) % 3].hub.leave("ops", before)
            before = member
        assert self.fights() == 0

    async def comes(self, worker: Worker) -> FakeMember:
        """Join with the key, and expect success."""
        member = worker.come()
        await self.until(lambda: member.events)
        assert member.events == ["joined"]
        return member

    async def test_many_that_come_at_once_everywhere_leave_one(self) -> None:
        workers = await self.workers()
        members = [worker.come() for _ in range(20) for worker in workers]
        await self.until(lambda: sum(TAKEN_OVER in member.events for member in members) == 59)
        (last,) = [member for member in members if TAKEN_OVER not in member.events]
        await self.until(lambda: last.events)
        assert last.events == ["joined"]
        assert self.owner() == last.id
