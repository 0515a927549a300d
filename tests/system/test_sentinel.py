"""Sentinels, real ones: the master is found, lost and found again, whatever becomes of it."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from chatd.broker.bus import Bus
from chatd.config.broker_url import broker_address
from tests.broker.listening import BusTestCase, Follower, messages
from tests.broker.server import Error
from tests.broker.trio import Node, Trio
from tests.waiting import PATIENCE, until

QUICK: dict[str, Any] = {"sentinel_timeout": 0.3, "redis_connect_timeout": 2.0}


def later(seconds: float) -> "Deferred[None]":
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)
    return done


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds that nobody tells of."""
    end = reactor.seconds() + PATIENCE
    while not condition():
        assert reactor.seconds() < end, f"waited {PATIENCE:g} s for {what}"
        await later(0.02)


async def elsewhere(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds that takes a question to a server."""
    await deferToThread(until, condition, what)


class SentinelTestCase(BusTestCase):
    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        self.trio = self.make_trio()
        self.trio.__enter__()
        self.addCleanup(self.trio.__exit__)
        self.first, self.second = self.trio.servers
        self.addCleanup(self._stop_all)  # before the servers go

    def make_trio(self) -> Trio:
        return Trio()

    async def away(self, bus: Bus, why: str) -> None:
        """Wait until a bus is away, for a reason."""
        await eventually(lambda: why in bus.away, f"{why!r} to be said in place of {bus.away!r}")

    async def moved(self, bus: Bus, to: Node) -> None:
        """Wait until both links of a bus are with a server."""

        def here() -> bool:
            links = (bus._publishing, bus._subscribing)
            peers = [link.protocol and link.protocol.transport.getPeer().host for link in links]
            return bus.queues.open and peers == [to.spot.address] * 2

        await eventually(here, "both links to be there")


class TestSentinels(SentinelTestCase):
    async def test_the_master_is_found_though_the_first_one_that_is_asked_is_dead(self) -> None:
        self.trio.sentinels[0].kill()
        bus, listener = await self.ready(self.trio.url, "ops", **QUICK)
        await self.moved(bus, self.first)
        await bus.queues.publish("ops", messages("a"))
        await listener.until(lambda: listener.texts() == ["a"])

    async def test_the_master_is_found_though_the_first_one_that_is_asked_is_frozen(self) -> None:
        self.trio.sentinels[0].signal(signal.SIGSTOP)
        bus, _ = await self.ready(self.trio.url, "ops", **QUICK)
        await self.moved(bus, self.first)

    async def test_it_is_said_why_there_is_no_master(self) -> None:
        address = broker_address(self.trio.url.replace("/chat", "/other"))
        bus, _ = self.make(address, **QUICK)
        first = self.trio.sentinels[0].spot.address
        await self.away(bus, f"{first}:26379: ERR No such master with that name")
        for each in self.trio.sentinels:
            each.kill()
        await self.away(bus, "Connection refused")
        assert bus.away.startswith("no Sentinel knows a master (")

    async def test_another_master_takes_over_and_everybody_is_told_of_another_epoch(self) -> None:
        one, listener = await self.follow(self.trio.url, "ops", **QUICK)
        two, others = await self.follow(self.trio.url, "ops", **QUICK)
        await one.queues.publish("ops", messages("a"))
        await eventually(lambda: listener.texts() == others.texts() == ["a"], "all to hear it")
        self.first.kill()
        await self.moved(one, self.second)
        await self.moved(two, self.second)
        await two.queues.publish("ops", messages("b"))
        await eventually(lambda: listener.texts() == others.texts() == ["a", "b"], "all to hear it")
        assert [gap.count for each in (listener, others) for gap in each.gaps] == [None, None]

    async def test_a_master_that_is_replaced_while_it_lives_is_left(self) -> None:
        bus, listener = await self.ready(self.trio.url, "ops", **QUICK)
        self.trio.sentinels[0].ask("SENTINEL", "FAILOVER", "chat")
        await self.moved(bus, self.second)
        await bus.queues.publish("ops", messages("a"))
        await listener.until(lambda: listener.texts() == ["a"])

    async def test_a_master_that_is_none_any_more_and_drops_nobody_is_left(self) -> None:
        bus, _ = await self.ready(self.trio.url, "ops", **QUICK)
        self.second.ask("REPLICAOF", "NO", "ONE")
        for each in self.trio.sentinels:
            each.ask("SENTINEL", "REMOVE", "chat")
            each.ask("SENTINEL", "MONITOR", "chat", self.second.spot.address, 6379, 2)
        await self.moved(bus, self.second)

    async def test_a_server_that_is_no_master_is_not_used(self) -> None:
        for each in self.trio.sentinels:
            each.signal(signal.SIGSTOP)
        self.first.ask("REPLICAOF", self.second.spot.address, 6379)
        for each in self.trio.sentinels:
            each.signal(signal.SIGCONT)
        bus, _ = self.make(self.trio.url, **QUICK)
        await self.away(bus, "the Sentinels name a server that is a slave")

    async def test_a_master_that_is_made_the_master_again_is_another_run(self) -> None:
        bus, _ = await self.ready(self.trio.url, "ops", **QUICK)
        published = await bus.queues.publish("ops", messages("a"))
        epochs = {published.first.epoch}
        for there in (self.second, self.first):
            await elsewhere(self.trio.is_whole, "the replica to have all")
            assert {each.role() for each in self.trio.servers} == {"master", "slave"}
            await elsewhere(self.fails_over, "a Sentinel to find the replica good enough")
            await self.moved(bus, there)
            published = await bus.queues.publish("ops", messages("b"))
            epochs.add(published.first.epoch)
        assert len(epochs) == 3

    def fails_over(self) -> bool:
        """Ask for it; a Sentinel that has not heard of the replica for a moment refuses."""
        try:
            self.trio.sentinels[0].ask("SENTINEL", "FAILOVER", "chat")
        except Error:
            return False
        return True


class TestLoad(SentinelTestCase):
    """A failover while much is being said: whatever was acknowledged is heard once by all, or they are told."""

    async def test_a_frozen_master_costs_nobody_a_line(self) -> None:
        await self.fail_over(lambda: self.first.signal(signal.SIGSTOP))

    async def fail_over(self, break_it: Callable[[], None]) -> None:
        buses = [await self.follow(self.trio.url, "ops", **QUICK, history_size=100_000) for _ in range(3)]
        acknowledged: list[str] = []
        numbers = itertools.count()
        talking = True

        async def talk(bus: Bus) -> None:
            while talking:
                if bus.queues.open:
                    texts = [str(next(numbers)) for _ in range(5)]
                    await bus.queues.publish("ops", messages(*texts))
                    acknowledged.extend(texts)
                await later(0.002)

        talks = [Deferred.fromCoroutine(talk(bus)) for bus, _ in buses]
        await self.more(buses)
        break_it()
        await elsewhere(lambda: self.trio.master() is self.second, "another master")
        for bus, _ in buses:
            await self.moved(bus, self.second)
        await self.more(buses)
        talking = False
        await gatherResults(talks)
        for _, listener in buses:
            await self.all_heard(listener, acknowledged)

    async def more(self, buses: list[tuple[Bus, Follower]]) -> None:
        """Wait until all have heard more."""
        before = [len(listener.texts()) for _, listener in buses]
        heard = lambda: all(len(listener.texts()) > old + 500 for (_, listener), old in zip(buses, before, strict=True))  # noqa: E731
        await eventually(heard, "all to hear more")

    async def all_heard(self, listener: Follower, acknowledged: list[str]) -> None:
        await eventually(lambda: len(listener.texts()) >= len(acknowledged), "all to be heard")
        assert len(set(listener.texts())) == len(listener.texts())
        assert set(listener.texts()) == set(acknowledged)
        assert [gap.count for gap in listener.gaps] == [None]


class TestPasswords(SentinelTestCase):
    """Sentinels and servers that ask for one each, which stand in files."""

    def make_trio(self) -> Trio:
        return Trio(password="of-the-servers", sentinel_password="of-the-sentinels")

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        (self.folder / "servers").write_text("of-the-servers\n")
        (self.folder / "sentinels").write_text("of-the-sentinels\n")

    async def test_they_are_let_in_with(self) -> None:
        bus, listener = await self.ready(self.trio.url, "ops", **QUICK, **self.files())
        await bus.queues.publish("ops", messages("a"))
        await listener.until(lambda: listener.texts() == ["a"])

    async def test_a_wrong_one_is_said(self) -> None:
        os.replace(self.folder / "servers", self.folder / "sentinels")
        bus, _ = self.make(self.trio.url, **QUICK, redis_sentinel_password_file=str(self.folder / "sentinels"))
        await self.away(bus, "WRONGPASS")

    def files(self) -> dict[str, str]:
        return {
            "redis_password_file": str(self.folder / "servers"),
            "redis_sentinel_password_file": str(self.folder / "sentinels"),
        }
