"""The bus on the real Valkey, and the contract that the double in ``tests.fakes`` keeps as well."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import TestCase

from chatd.config import Config, broker_address
from chatd.message import encode
from chatd.room.bus import Bus, broker_endpoint
from chatd.room.outbox import NotPublished, Position
from tests.fakes import Events, FakeBus
from tests.room.listening import BusTestCase, Ears, messages
from tests.room.server import Client

TEXTS = ["007", "1_000", "1.50", "👋 Å", "a\nb\r", "\0\x1b[2J", " ", "x" * 16384, *map(chr, range(256))]


class Contract:
    """What every bus promises: mixed into a TestCase that says how to make one."""

    make_bus: Callable[[], "Deferred[tuple[Any, Ears]]"]

    def deliver(self, bus: Any) -> None:
        """Let the bus deliver what was published."""

    async def test_what_is_published_comes_back_to_its_own_listener_as_it_was(self) -> None:
        bus, ears = await self.make_bus()
        await bus.subscribe("ops")
        taken = messages(*TEXTS)
        place = await bus.publish("ops", taken)
        self.deliver(bus)
        await ears.until(lambda: ears.batches)
        (batch,) = ears.batches
        assert list(batch.messages) == taken
        assert (batch.room, Position(batch.epoch, batch.first)) == ("ops", place)

    async def test_offsets_follow_one_another_from_1_in_each_room(self) -> None:
        bus, ears = await self.make_bus()
        for room in ("ops", "dev"):
            await bus.subscribe(room)
        places = [await bus.publish(room, messages("x", "y")) for room in ("ops", "ops", "dev", "ops")]
        assert [place.first for place in places] == [1, 3, 1, 5]
        self.deliver(bus)
        await ears.until(lambda: len(ears.texts("ops")) == 6 and ears.texts("dev"))
        assert (ears.offsets("ops"), ears.offsets("dev")) == ([1, 2, 3, 4, 5, 6], [1, 2])

    async def test_what_is_handed_over_together_stays_in_order(self) -> None:
        bus, ears = await self.make_bus()
        await bus.subscribe("ops")
        texts = [str(number) for number in range(200)]
        for text in texts:
            bus.publish("ops", messages(text))
        await bus.flushed()
        self.deliver(bus)
        await ears.until(lambda: len(ears.texts()) == 200)
        assert (ears.texts(), ears.offsets()) == (texts, list(range(1, 201)))

    async def test_rooms_that_are_published_in_one_turn_are_all_heard_each_in_its_order(self) -> None:
        bus, ears = await self.make_bus()
        rooms = [f"r{number}" for number in range(20)]
        for room in rooms:
            await bus.subscribe(room)
        published = [bus.publish(room, messages(f"{room} {turn}", "more")) for turn in range(3) for room in rooms]
        positions = await gatherResults(published)
        self.deliver(bus)
        await ears.until(lambda: sum(len(ears.texts(room)) for room in rooms) == 120)
        for room in rooms:
            assert ears.texts(room) == [f"{room} 0", "more", f"{room} 1", "more", f"{room} 2", "more"]
            assert ears.offsets(room) == [1, 2, 3, 4, 5, 6]
        assert [each.first for each in positions] == [1] * 20 + [3] * 20 + [5] * 20

    async def test_a_room_that_was_not_subscribed_is_not_heard(self) -> None:
        bus, ears = await self.make_bus()
        await bus.subscribe("ops")
        await bus.publish("dev", messages("for dev"))
        await bus.publish("ops", messages("for ops"))
        self.deliver(bus)
        await ears.until(lambda: ears.texts("ops"))
        assert ears.texts("dev") == []

    async def test_a_room_that_was_unsubscribed_is_not_heard_any_more(self) -> None:
        bus, ears = await self.make_bus()
        for room in ("ops", "dev"):
            await bus.subscribe(room)
        bus.unsubscribe("dev")
        await bus.publish("dev", messages("for dev"))
        await bus.publish("ops", messages("for ops"))
        self.deliver(bus)
        await ears.until(lambda: ears.texts("ops"))
        assert ears.texts("dev") == []

    async def test_a_room_can_be_subscribed_again(self) -> None:
        bus, ears = await self.make_bus()
        await bus.subscribe("ops")
        bus.unsubscribe("ops")
        await bus.subscribe("ops")
        await bus.publish("ops", messages("hello"))
        self.deliver(bus)
        await ears.until(ears.texts)
        assert ears.texts() == ["hello"]

    async def test_a_bus_that_is_well_is_open_and_not_away(self) -> None:
        bus, _ = await self.make_bus()
        assert (bus.open, bus.away) == (True, "")
        assert bus.space >= bus.weight(messages("hello")) > 0

    async def test_a_probe_comes_back(self) -> None:
        bus, _ = await self.make_bus()
        await bus.probe()

    async def test_nothing_in_flight_is_flushed(self) -> None:
        bus, _ = await self.make_bus()
        await bus.flushed()


class TestFakeBus(Contract, TestCase):
    async def _make(self) -> tuple[Any, Ears]:
        bus = FakeBus()
        bus.listener = ears = Ears()
        return bus, ears

    make_bus = _make  # type: ignore[assignment]

    def deliver(self, bus: Any) -> None:
        bus.pump()


@pytest.mark.usefixtures("broker")
class TestBus(Contract, BusTestCase):
    valkey_url: str

    async def _make(self) -> tuple[Bus, Ears]:
        return await self.ready(self.valkey_url)

    make_bus = _make  # type: ignore[assignment]

    async def test_two_buses_share_rooms_and_see_one_order(self) -> None:
        one, heard_by_one = await self.ready(self.valkey_url, "ops")
        two, heard_by_two = await self.ready(self.valkey_url, "ops")
        for number in range(100):
            await gatherResults([bus.publish("ops", messages(f"{number}")) for bus in (one, two)])
        for ears in (heard_by_one, heard_by_two):
            await ears.until(lambda ears=ears: len(ears.batches) == 200)  # type: ignore[misc]
        assert heard_by_one.batches == heard_by_two.batches
        assert heard_by_one.offsets() == list(range(1, 201))

    async def test_another_prefix_has_other_rooms(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops")
        other, _ = await self.ready(self.valkey_url, "ops", redis_prefix=f"{self.prefix}-other")
        await other.publish("ops", messages("theirs"))
        await bus.publish("ops", messages("ours"))
        await ears.until(lambda: ears.batches)
        assert (ears.texts(), ears.offsets()) == (["ours"], [1])

    async def test_room_names_come_through_as_they_are(self) -> None:
        rooms = ["007", "1_000", "1.50", "å👋", "a:b", "*", "[x]"]
        bus, ears = await self.ready(self.valkey_url, *rooms)
        for room in rooms:
            await bus.publish(room, messages(room))
        await ears.until(lambda: len(ears.batches) == len(rooms))
        assert [ears.texts(room) for room in rooms] == [[room] for room in rooms]

    async def test_what_was_under_way_when_a_room_was_unsubscribed_is_not_heard(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops", "dev")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            heard_by = client.ask("PUBLISH", f"{self.prefix}:room:dev", b"e 1 w 1\n" + encode(messages("late")))
        assert heard_by == 1
        bus.unsubscribe("dev")
        await bus.publish("ops", messages("hello"))
        await ears.until(ears.texts)
        assert ears.texts("dev") == []

    async def test_two_who_subscribe_to_one_room_both_hear_of_it(self) -> None:
        bus, _ = await self.ready(self.valkey_url)
        await gatherResults([bus.subscribe("ops"), bus.subscribe("ops")])
        await bus.subscribe("ops")

    async def test_what_is_no_batch_is_logged_and_takes_nothing_with_it(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("PUBLISH", f"{self.prefix}:room:ops", "\xff no batch")
        await bus.publish("ops", messages("hello"))
        await ears.until(lambda: ears.batches)
        assert ears.texts() == ["hello"]
        assert self.said() == [("critical", "a message from the bus could not be handled")]
        assert len(self.flushLoggedErrors(Exception)) == 1

    async def test_a_forgotten_script_is_loaded_again(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("SCRIPT", "FLUSH")
        texts = [str(number) for number in range(10)]
        for text in texts:
            bus.publish("ops", messages(text))
        await bus.flushed()
        await ears.until(lambda: len(ears.texts()) == 10)
        assert (ears.texts(), ears.again, self.said()) == (texts, [], [])

    async def test_the_window_closes_and_opens_again(self) -> None:
        bus, ears = await self.ready(self.valkey_url, window_bytes=1000)
        seen: list[bool] = []
        for room in "abcdef":
            bus.publish(room, messages("x"))
            seen.append(bus.open)
        assert seen == [True] * 4 + [False] * 2
        assert (bus.away, bus.space < 0) == ("", True)
        await ears.until(lambda: bus.open)
        await bus.flushed()
        assert bus.space == 1000

    async def test_a_batch_the_broker_refuses_for_good_fails_alone(self) -> None:
        bus, _ = await self.ready(self.valkey_url, "ops", "bad")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("SET", f"{self.prefix}:room:bad", "no hash")
        failed, fine = bus.publish("bad", messages("one")), bus.publish("ops", messages("two"))
        with pytest.raises(NotPublished, match="WRONGTYPE") as refusal:
            await failed
        assert not refusal.value.unknown
        assert (await fine).first == 1
        assert bus.open
        assert [level for level, _ in self.said()] == ["error"]

    async def test_stop_fails_what_waits_and_probes(self) -> None:
        bus, _ = await self.ready(self.valkey_url)
        sent, waiting, probe = bus.publish("ops", messages("1")), bus.publish("ops", messages("2")), bus.probe()
        self.stop(bus)
        for done, unknown in ((sent, True), (waiting, False), (probe, False)):
            with pytest.raises(NotPublished, match="the server stopped") as refusal:
                await done
            assert refusal.value.unknown is unknown
        assert self.said() == []

    # A connection that breaks

    def cut(self, kind: str) -> None:
        """Let the broker drop all connections of a kind."""
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("CLIENT", "KILL", "TYPE", kind)

    async def test_rooms_are_heard_again_after_the_subscribing_link_was_cut(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops", "dev")
        self.cut("pubsub")
        await ears.until(lambda: not bus.open)
        await ears.until(lambda: bus.open)
        for room in ("ops", "dev"):
            await bus.publish(room, messages("hello"))
        await ears.until(lambda: ears.texts("ops") and ears.texts("dev"))

    async def test_a_room_subscribed_while_away_is_heard_later(self) -> None:
        bus, ears = await self.ready(self.valkey_url)
        self.cut("pubsub")
        await ears.until(lambda: not bus.open)
        await bus.subscribe("ops")
        await ears.until(lambda: bus.open)
        await bus.publish("ops", messages("hello"))
        await ears.until(ears.texts)

    async def test_a_room_unsubscribed_while_away_is_not_heard_later(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops", "dev")
        self.cut("pubsub")
        await ears.until(lambda: not bus.open)
        bus.unsubscribe("dev")
        await ears.until(lambda: bus.open)
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            assert client.ask("PUBSUB", "NUMSUB", f"{self.prefix}:room:dev")[1] == 0
            assert client.ask("PUBSUB", "NUMSUB", f"{self.prefix}:room:ops")[1] == 1

    async def test_nothing_is_lost_or_twice_when_links_are_cut_under_load(self) -> None:
        one, heard_by_one = await self.ready(self.valkey_url, "ops")
        two, heard_by_two = await self.ready(self.valkey_url, "ops", bus_settle_seconds=0.3)
        published: list[Position] = []
        for number in range(300):
            one.publish("ops", messages(str(number))).addCallback(published.append)
            if number % 100 == 50:
                self.cut("normal")
                self.cut("pubsub")
                await heard_by_one.until(lambda: not one.open)
                await heard_by_two.until(lambda: not two.open)
                await gatherResults([heard_by_one.until(lambda: one.open), heard_by_two.until(lambda: two.open)])
        await one.flushed()
        texts = [str(number) for number in range(300)]
        await heard_by_one.until(lambda: len(heard_by_one.texts()) >= 300)
        assert heard_by_one.texts() == texts
        assert heard_by_one.offsets() == list(range(1, 301))
        assert len(published) == 300

    async def test_publishes_in_flight_over_a_cut_arrive_once(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops", "last")
        path = self.valkey_url.removeprefix("unix://")
        for round_ in range(5):
            bus.publish("ops", messages(f"{round_}a"))
            with Client(path) as client:
                client.ask("CLIENT", "KILL", "TYPE", "normal")
            bus.publish("ops", messages(f"{round_}b"))
            await bus.flushed()
        await bus.publish("last", messages("the end"))
        await ears.until(lambda: ears.texts("last"))
        assert ears.texts() == [f"{round_}{part}" for round_ in range(5) for part in "ab"]
        assert ears.offsets() == list(range(1, 11))

    async def test_an_outage_and_its_end_are_said_once(self) -> None:
        bus, ears = await self.ready(self.valkey_url)
        self.cut("normal")
        self.cut("pubsub")
        await ears.until(lambda: not bus.open)
        assert bus.away == "connection lost"
        await ears.until(lambda: bus.open)
        (lost, back) = self.said()
        assert lost == ("warn", f"the message bus {self.valkey_url} is away: connection lost")
        assert back[0] == "info"
        assert back[1].startswith(f"the message bus {self.valkey_url} is back after 0.")

    async def test_after_an_outage_it_waits_for_others_to_be_back(self) -> None:
        bus, ears = await self.ready(self.valkey_url, bus_settle_seconds=60)
        self.cut("pubsub")
        await ears.until(lambda: not bus.open)
        await bus.subscribe("ops")
        await deferLater(reactor, 0)  # the link counts at the end of the turn that confirmed its rooms
        assert (bus.open, bus.away) == (False, "waiting for other workers to be back")
        await bus.probe()
        assert not bus.open

    async def test_a_room_that_was_heard_is_subscribed_anew_after_a_cut_before_it_counts(self) -> None:
        bus, ears = await self.ready(self.valkey_url, "ops")
        self.cut("pubsub")
        await ears.until(lambda: not bus.open)
        subscribed = bus.subscribe("ops")
        assert not subscribed.called
        await subscribed

    async def test_a_probe_fails_at_once_while_a_link_is_away(self) -> None:
        bus, ears = await self.ready(self.valkey_url)
        self.cut("normal")
        await ears.until(lambda: not bus.open)
        with pytest.raises(NotPublished, match="connection lost"):
            await bus.probe()

    async def test_a_probe_under_way_fails_when_a_link_breaks(self) -> None:
        bus, _ = await self.ready(self.valkey_url)
        probe = bus.probe()
        self.cut("normal")
        with pytest.raises(NotPublished, match="connection lost"):
            await probe


def test_a_start_that_takes_two_ticks_is_said_once(events: Events) -> None:
    clock = MemoryReactorClock()
    bus = Bus(clock, broker_address("unix:///nowhere"), Config(bus_tick_seconds=1), "w1")
    bus.listener = Ears()
    bus.start()
    clock.advance(1)
    assert events.said == []
    for _ in range(3):
        clock.advance(1)
    assert events.said == [("warn", "the message bus unix:///nowhere is away: not connected yet")]
    bus.stop()


# Addresses


def test_a_unix_socket_is_dialled_by_its_path() -> None:
    memory = MemoryReactorClock()
    endpoint = broker_endpoint(memory, broker_address("unix:///run/x.sock"), 3)
    assert isinstance(endpoint, UNIXClientEndpoint)


def test_a_host_is_dialled_by_its_name_and_port() -> None:
    endpoint = broker_endpoint(reactor, broker_address("redis://example.org:7000/2"), 3)
    assert isinstance(endpoint, HostnameEndpoint)
    assert "example.org" in repr(endpoint) and "7000" in repr(endpoint)
