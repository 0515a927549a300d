"""The bus on the real Valkey, and the contract that the double in ``tests.fakes`` keeps as well."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from chatd.broker.bus import Bus
from chatd.broker.presence_list import Identity
from chatd.broker.publish_queue import NotPublished, PublishResult
from chatd.broker.resume_positions import ResumePosition
from chatd.chatlog.verify import Ledger, read_histories
from chatd.config.broker_url import BrokerAddress, broker_address
from chatd.config.settings import Config
from chatd.protocol.message import OffsetGap, StreamPosition, encode
from chatd.rooms.hub import Hub
from tests.blocks import block
from tests.broker.listening import PATIENT, BusListener, BusTestCase, messages, saved
from tests.broker.server import Client, Server
from tests.broker.wire import Wire
from tests.fakes import Comparing, Events, FakeBus
from tests.rows import rows

TEXTS = ["007", "1_000", "1.50", "👋 Å", "a\nb\r", "\0\x1b[2J", " ", "x" * 16384, *map(chr, range(256))]


class Contract:
    """What every bus promises: mixed into a TestCase that says how to make one."""

    make_bus: Callable[..., "Deferred[tuple[Any, BusListener]]"]

    def deliver(self, bus: Any) -> None:
        """Let the bus deliver what was published."""

    def compare(self, bus: Any) -> None:
        """Let it compare how far its rooms have come; a real one does by itself."""

    async def test_what_is_published_comes_back_to_its_own_listener_as_it_was(self) -> None:
        bus, listener = await self.make_bus()
        await bus.subscribe("ops")
        taken = messages(*TEXTS)
        published = await bus.queues.publish("ops", taken)
        self.deliver(bus)
        await listener.until(lambda: listener.batches)
        (batch,) = listener.batches
        assert list(batch.messages) == taken
        assert (batch.room, StreamPosition(batch.epoch, batch.first)) == ("ops", published.first)

    async def test_offsets_follow_one_another_from_1_in_each_room(self) -> None:
        bus, listener = await self.make_bus()
        for room in ("ops", "dev"):
            await bus.subscribe(room)
        published = [await bus.queues.publish(room, messages("x", "y")) for room in ("ops", "ops", "dev", "ops")]
        assert [each.first.offset for each in published] == [1, 3, 1, 5]
        self.deliver(bus)
        await listener.until(lambda: len(listener.texts("ops")) == 6 and listener.texts("dev"))
        assert (listener.offsets("ops"), listener.offsets("dev")) == ([1, 2, 3, 4, 5, 6], [1, 2])

    async def test_what_is_handed_over_together_stays_in_order(self) -> None:
        bus, listener = await self.make_bus()
        await bus.subscribe("ops")
        texts = [str(number) for number in range(200)]
        for text in texts:
            bus.queues.publish("ops", messages(text))
        await bus.queues.flushed()
        self.deliver(bus)
        await listener.until(lambda: len(listener.texts()) == 200)
        assert (listener.texts(), listener.offsets()) == (texts, list(range(1, 201)))

    async def test_rooms_that_are_published_in_one_turn_are_all_heard_each_in_its_order(self) -> None:
        bus, listener = await self.make_bus()
        rooms = [f"r{number}" for number in range(20)]
        for room in rooms:
            await bus.subscribe(room)
        published = [
            bus.queues.publish(room, messages(f"{room} {turn}", "more")) for turn in range(3) for room in rooms
        ]
        places = await gatherResults(published)
        self.deliver(bus)
        await listener.until(lambda: sum(len(listener.texts(room)) for room in rooms) == 120)
        for room in rooms:
            assert listener.texts(room) == [f"{room} 0", "more", f"{room} 1", "more", f"{room} 2", "more"]
            assert listener.offsets(room) == [1, 2, 3, 4, 5, 6]
        assert [each.first.offset for each in places] == [1] * 20 + [3] * 20 + [5] * 20

    async def test_a_room_that_was_not_subscribed_is_not_heard(self) -> None:
        bus, listener = await self.make_bus()
        await bus.subscribe("ops")
        await bus.queues.publish("dev", messages("for dev"))
        await bus.queues.publish("ops", messages("for ops"))
        self.deliver(bus)
        await listener.until(lambda: listener.texts("ops"))
        assert listener.texts("dev") == []

    async def test_a_room_that_was_unsubscribed_is_not_heard_any_more(self) -> None:
        bus, listener = await self.make_bus()
        for room in ("ops", "dev"):
            await bus.subscribe(room)
        bus.unsubscribe("dev")
        await bus.queues.publish("dev", messages("for dev"))
        await bus.queues.publish("ops", messages("for ops"))
        self.deliver(bus)
        await listener.until(lambda: listener.texts("ops"))
        assert listener.texts("dev") == []

    async def test_a_room_can_be_subscribed_again(self) -> None:
        bus, listener = await self.make_bus()
        await bus.subscribe("ops")
        bus.unsubscribe("ops")
        await bus.subscribe("ops")
        await bus.queues.publish("ops", messages("hello"))
        self.deliver(bus)
        await listener.until(listener.texts)
        assert listener.texts() == ["hello"]

    async def test_a_bus_that_is_well_is_open_and_not_away(self) -> None:
        bus, _ = await self.make_bus()
        assert (bus.queues.open, bus.away) == (True, "")
        assert bus.queues.space >= bus.queues.weight(messages("hello")) > 0

    async def test_a_probe_comes_back(self) -> None:
        bus, _ = await self.make_bus()
        await bus.probe()

    async def test_nothing_in_flight_is_flushed(self) -> None:
        bus, _ = await self.make_bus()
        await bus.queues.flushed()

    async def test_a_room_is_heard_from_its_subscription_to_its_end(self) -> None:
        bus, _ = await self.make_bus()
        assert not bus.subscribed("ops")
        await bus.subscribe("ops")
        assert bus.subscribed("ops")
        bus.unsubscribe("ops")
        assert not bus.subscribed("ops")

    async def test_how_far_a_room_has_come_is_said_now_and_then_behind_what_was_published(self) -> None:
        bus, listener = await self.make_bus()
        for room in ("ops", "dev"):
            await bus.subscribe(room)
        published = (await bus.queues.publish("ops", messages("one", "two"))).first
        self.compare(bus)
        top = StreamPosition(published.epoch, 2)
        await listener.until(lambda: listener.tops.get("ops") == top and "dev" in listener.tops)
        assert listener.texts() == ["one", "two"]
        assert listener.tops["dev"].offset == 0

    async def test_a_room_that_was_unsubscribed_is_not_compared(self) -> None:
        bus, listener = await self.make_bus()
        for room in ("ops", "dev"):
            await bus.subscribe(room)
        bus.unsubscribe("dev")
        self.compare(bus)
        await listener.until(lambda: "ops" in listener.tops)
        assert "dev" not in listener.tops

    # History

    async def test_where_the_order_of_a_room_stands_can_be_read_before_anything_was_said(self) -> None:
        bus, _ = await self.make_bus()
        span = await bus.history.read("ops", None, 1000)
        assert (list(span.batches), span.top.offset, span.more) == ([], 0, False)
        assert (await bus.queues.publish("ops", messages("x"))).first == StreamPosition(span.top.epoch, 1)

    async def test_what_follows_a_position_is_read_as_it_was_heard(self) -> None:
        bus, listener = await self.make_bus()
        await bus.subscribe("ops")
        for texts in (["one", "two"], ["three"], ["four", "five"]):
            published = await bus.queues.publish("ops", messages(*texts))
        self.deliver(bus)
        await listener.until(lambda: len(listener.batches) == 3)
        epoch = published.first.epoch
        for offset, batches in ((0, listener.batches), (2, listener.batches[1:]), (5, [])):
            span = await bus.history.read("ops", StreamPosition(epoch, offset), 100_000)
            assert (list(span.batches), span.top, span.more) == (batches, StreamPosition(epoch, 5), False)

    async def test_history_is_read_in_steps_that_together_have_all_of_it_once(self) -> None:
        bus, _ = await self.make_bus()
        texts = [str(number) for number in range(40)]
        for text in texts:
            published = await bus.queues.publish("ops", messages(text))
        after, read, steps, more = StreamPosition(published.first.epoch, 0), [], 0, True
        while more:
            span = await bus.history.read("ops", after, 500)
            read += [message.text for batch in span.batches for message in batch.messages]
            after, more, steps = StreamPosition(after.epoch, span.batches[-1].last), span.more, steps + 1
        assert (read, steps > 3) == (texts, True)

    async def test_history_is_read_backwards_from_within_a_batch_to_within_a_batch(self) -> None:
        bus, listener = await self.make_bus()
        await bus.subscribe("ops")
        for texts in (["1", "2"], ["3"], ["4", "5", "6"], ["7"]):
            published = await bus.queues.publish("ops", messages(*texts))
        self.deliver(bus)
        await listener.until(lambda: len(listener.batches) == 4)
        epoch, heard = published.first.epoch, listener.batches[::-1]
        for last, after, found in (
            (7, 0, heard),
            (6, 0, heard[1:]),
            (5, 0, heard[1:]),
            (4, 2, heard[1:3]),
            (3, 1, heard[2:]),
            (2, 0, heard[3:]),
            (99, 6, heard[:1]),
            (99, 7, []),
        ):
            assert await bus.history.read_back("ops", epoch, last, after, 100_000) == (found, False)
        assert await bus.history.read_back("ops", "none", 7, 0, 100_000) == ([], False)

    async def test_history_is_read_backwards_in_steps_that_together_have_all_of_it_once(self) -> None:
        bus, _ = await self.make_bus()
        texts = [str(number) for number in range(40)]
        for text in texts:
            published = await bus.queues.publish("ops", messages(text))
        read, last, steps, more = [], 40, 0, True
        while more:
            batches, more = await bus.history.read_back("ops", published.first.epoch, last, 0, 500)
            read += [message.text for batch in batches for message in batch.messages]
            last, steps = batches[-1].first - 1, steps + 1
        assert (read, steps > 3) == (texts[::-1], True)

    async def test_without_history_nothing_is_read_backwards(self) -> None:
        bus, _ = await self.make_bus(history_size=0)
        published = await bus.queues.publish("ops", messages("one", "two"))
        assert await bus.history.read_back("ops", published.first.epoch, 2, 0, 100_000) == ([], False)

    async def test_a_position_of_an_epoch_that_is_gone_gets_all_of_the_one_of_now(self) -> None:
        bus, _ = await self.make_bus()
        published = await bus.queues.publish("ops", messages("one", "two"))
        span = await bus.history.read("ops", StreamPosition("none", 70), 1000)
        assert [(batch.epoch, batch.first) for batch in span.batches] == [(published.first.epoch, 1)]
        assert span.top == StreamPosition(published.first.epoch, 2)

    async def test_history_has_the_newest_messages(self) -> None:
        bus, _ = await self.make_bus(history_size=3)
        for number in range(5):
            published = await bus.queues.publish("ops", messages(str(number)))
        span = await bus.history.read("ops", StreamPosition(published.first.epoch, 0), 100_000)
        assert [message.text for batch in span.batches for message in batch.messages][-3:] == ["2", "3", "4"]

    async def test_without_history_only_the_top_is_read(self) -> None:
        bus, _ = await self.make_bus(history_size=0)
        published = await bus.queues.publish("ops", messages("one", "two"))
        span = await bus.history.read("ops", StreamPosition(published.first.epoch, 0), 100_000)
        assert (list(span.batches), span.top, span.more) == ([], StreamPosition(published.first.epoch, 2), False)

    # Places

    async def test_a_place_begins_with_who_claims_it_first(self) -> None:
        bus, _ = await self.make_bus()
        assert await bus.resume_positions.claim("ops", "k", "s1") == ResumePosition(None, "s1")

    async def test_a_place_that_was_left_is_claimed_as_it_was_saved_and_nobody_is_hung_up_on(self) -> None:
        bus, listener = await self.make_bus()
        await bus.resume_positions.claim("ops", "k", "s1")
        kept = ResumePosition(StreamPosition("e", 7), "s1")
        bus.resume_positions.save("ops", "k", "s1", kept, left=True)
        await saved(bus)
        assert await bus.resume_positions.claim("ops", "k", "s2") == kept
        assert listener.disconnected == []

    async def test_who_still_has_a_place_is_hung_up_on_and_its_newest_position_counts(self) -> None:
        bus, listener = await self.make_bus()
        await bus.resume_positions.claim("ops", "k", "s1")
        bus.resume_positions.save("ops", "k", "s1", ResumePosition(StreamPosition("e", 7), "s1"))
        await saved(bus)
        listener.resume_positions["ops", "s1"] = ResumePosition(StreamPosition("e", 9), "s1")
        assert await bus.resume_positions.claim("ops", "k", "s2") == ResumePosition(StreamPosition("e", 9), "s1")
        assert listener.disconnected == ["s1"]

    async def test_who_has_not_come_anywhere_leaves_the_place_as_it_was(self) -> None:
        bus, listener = await self.make_bus()
        bus.resume_positions.save("ops", "k", "s1", ResumePosition(StreamPosition("e", 7), "s1"))
        await saved(bus)
        listener.resume_positions["ops", "s1"] = ResumePosition(None, "s1")
        assert await bus.resume_positions.claim("ops", "k", "s2") == ResumePosition(StreamPosition("e", 7), "s1")

    async def test_who_has_a_place_no_more_cannot_save_it(self) -> None:
        bus, _ = await self.make_bus()
        kept = ResumePosition(StreamPosition("e", 7), "s1")
        bus.resume_positions.save("ops", "k", "s1", kept)
        await saved(bus)
        await bus.resume_positions.claim("ops", "k", "s2")
        for left in (False, True):
            bus.resume_positions.save("ops", "k", "s1", ResumePosition(StreamPosition("e", 99), "s1"), left=left)
            await saved(bus)
        assert await bus.resume_positions.claim("ops", "k", "s3") == kept

    async def test_a_place_is_of_one_room_and_one_key(self) -> None:
        bus, _ = await self.make_bus()
        bus.resume_positions.save("ops", "k", "s1", ResumePosition(StreamPosition("e", 7), "s1"), left=True)
        await saved(bus)
        for room, key in (("dev", "k"), ("ops", "k2")):
            assert await bus.resume_positions.claim(room, key, "s2") == ResumePosition(None, "s2")

    async def test_with_nothing_to_save_all_is_saved(self) -> None:
        bus, _ = await self.make_bus()
        await saved(bus)


class TestFakeBus(Contract, TestCase):
    async def _make(self, history_size: int = 1000) -> tuple[Any, BusListener]:
        bus = FakeBus(history=history_size)
        bus.listener = listener = BusListener()
        return bus, listener

    make_bus = _make  # type: ignore[assignment]

    def deliver(self, bus: Any) -> None:
        bus.pump()

    def compare(self, bus: Any) -> None:
        bus.compare()


@pytest.mark.usefixtures("broker")
class TestBus(Contract, BusTestCase):
    valkey_url: str

    async def _make(self, history_size: int = 1000) -> tuple[Bus, BusListener]:
        return await self.ready(self.valkey_url, history_size=history_size, offset_check_interval=0.05)

    make_bus = _make  # type: ignore[assignment]

    async def test_what_its_author_has_published_is_not_published_again_by_any_worker(self) -> None:
        one, listener = await self.ready(self.valkey_url, "ops")
        two, _ = await self.ready(self.valkey_url)
        first = (await one.queues.publish("ops", messages("a", "b"), {1: "x"})).first
        again = await two.queues.publish("ops", messages("b", "c", "d", "d"), {0: "x", 2: "y", 3: "y"})
        assert again.first == StreamPosition(first.epoch, 3)
        assert again.duplicates == {0: StreamPosition(first.epoch, 2), 3: StreamPosition(first.epoch, 4)}
        await listener.until(lambda: len(listener.texts()) == 4)
        assert (listener.texts(), listener.offsets()) == (["a", "b", "c", "d"], [1, 2, 3, 4])

    async def test_the_same_id_of_another_author_or_in_another_room_is_another(self) -> None:
        bus, _ = await self.ready(self.valkey_url)
        await bus.queues.publish("ops", messages("a"), {0: "x"})
        theirs = await bus.queues.publish("ops", [replace(each, session="t") for each in messages("a")], {0: "x"})
        elsewhere = await bus.queues.publish("dev", messages("a"), {0: "x"})
        assert (theirs.duplicates, elsewhere.duplicates) == ({}, {})

    async def test_ids_over_cuts_are_no_duplicates_of_themselves(self) -> None:
        bus, listener = await self.follow(self.valkey_url, "ops")
        published = []
        for number in range(10):
            published.append(bus.queues.publish("ops", messages(str(number)), {0: f"x{number}"}))
            self.cut("normal")
            published.append(bus.queues.publish("ops", messages(f"{number}'"), {0: f"y{number}"}))
            await bus.queues.flushed()
        assert [dict((await each).duplicates) for each in published] == [{}] * 20
        await listener.until(lambda: len(listener.texts()) == 20)
        assert listener.texts() == [f"{number}{part}" for number in range(10) for part in ("", "'")]

    async def test_what_is_too_old_is_read_over_however_much_of_it_there_is(self) -> None:
        bus, _ = await self.ready(self.valkey_url, history_ttl=3600)
        for _ in range(40):
            published = await bus.queues.publish("ops", [replace(each, time=0) for each in messages("old")])
        await bus.queues.publish("ops", messages("new"))
        span = await bus.history.read("ops", StreamPosition(published.first.epoch, 0), 100)
        assert [message.text for batch in span.batches for message in batch.messages] == ["new"]

    async def test_reading_backwards_ends_at_what_is_too_old(self) -> None:
        bus, _ = await self.ready(self.valkey_url, history_ttl=3600)
        now = messages("new")[0].time
        await bus.queues.publish("ops", [replace(each, time=0) for each in messages("very old")])
        await bus.queues.publish("ops", [replace(each, time=0) for each in messages("old")] + messages("less old"))
        published = await bus.queues.publish("ops", messages("new"))
        batches, more = await bus.history.read_back("ops", published.first.epoch, 4, 0, 100_000)
        assert [[message.text for message in batch.messages] for batch in batches] == [["new"], ["less old"]]
        assert (more, batches[0].messages[0].time >= now) == (False, True)

    async def test_the_last_messages_cost_the_broker_no_more_than_the_backlog_takes(self) -> None:
        server = Server()
        self.addCleanup(server.close)
        server.start()
        knobs: dict[str, Any] = {"history_read_bytes": 16_384, "max_send_buffer": 65_536, "flush_interval": 0}
        bus, _ = await self.ready(server.url, **knobs, redis_ping_interval=1000)
        for number in range(300):
            bus.queues.publish("ops", messages(f"{number:04}" + "x" * 1000))
        await bus.queues.flushed()
        hub = Hub(bus, Logger(), Config(redis_prefix=self.prefix, **knobs), reactor)
        queries, sent = self.cost(server)
        stretch = await hub.read_recent("ops", 1000)
        texts = [message.text[:4] for batch in stretch.batches for message in batch.messages]
        assert stretch.more
        assert texts == [f"{number:04}" for number in range(300 - len(texts), 300)]
        assert len(texts) > 50
        queries_now, sent_now = self.cost(server)
        assert (
            queries_now - queries <= 1 + 5
        )  # where the order stands, then 65,536 bytes in steps of 16,384 and a batch
        assert sent_now - sent <= 65_536 + 4 * 1_200 + 20_000  # what INFO itself says

    def cost(self, server: Server) -> tuple[int, int]:
        """Return how many scripts the broker has run, and how many bytes it has sent."""
        fields = server.ask("INFO", "commandstats").decode() + server.ask("INFO", "stats").decode()
        scripts = re.search(r"cmdstat_evalsha:calls=(\d+)", fields)
        sent = re.search(r"total_net_output_bytes:(\d+)", fields)
        assert scripts and sent
        return int(scripts[1]), int(sent[1])

    async def test_two_buses_share_rooms_and_see_one_order(self) -> None:
        one, one_listener = await self.ready(self.valkey_url, "ops")
        two, two_listener = await self.ready(self.valkey_url, "ops")
        for number in range(100):
            await gatherResults([bus.queues.publish("ops", messages(f"{number}")) for bus in (one, two)])
        for listener in (one_listener, two_listener):
            await listener.until(lambda listener=listener: len(listener.batches) == 200)  # type: ignore[misc]
        assert one_listener.batches == two_listener.batches
        assert one_listener.offsets() == list(range(1, 201))

    async def test_another_prefix_has_other_rooms(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops")
        other, _ = await self.ready(self.valkey_url, "ops", redis_prefix=f"{self.prefix}-other")
        await other.queues.publish("ops", messages("theirs"))
        await bus.queues.publish("ops", messages("ours"))
        await listener.until(lambda: listener.batches)
        assert (listener.texts(), listener.offsets()) == (["ours"], [1])

    async def test_room_names_come_through_as_they_are(self) -> None:
        rooms = ["007", "1_000", "1.50", "å👋", "a:b", "*", "[x]"]
        bus, listener = await self.ready(self.valkey_url, *rooms)
        for room in rooms:
            await bus.queues.publish(room, messages(room))
        await listener.until(lambda: len(listener.batches) == len(rooms))
        assert [listener.texts(room) for room in rooms] == [[room] for room in rooms]

    async def test_what_was_under_way_when_a_room_was_unsubscribed_is_not_heard(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops", "dev")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            heard_by = client.ask("PUBLISH", f"{self.prefix}:room:dev", b"e 1 w 1\n" + encode(messages("late")))
        assert heard_by == 1
        bus.unsubscribe("dev")
        await bus.queues.publish("ops", messages("hello"))
        await listener.until(listener.texts)
        assert listener.texts("dev") == []

    async def test_two_who_subscribe_to_one_room_both_hear_of_it(self) -> None:
        bus, _ = await self.ready(self.valkey_url)
        await gatherResults([bus.subscribe("ops"), bus.subscribe("ops")])
        await bus.subscribe("ops")

    async def test_what_is_no_batch_is_logged_and_takes_nothing_with_it(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("PUBLISH", f"{self.prefix}:room:ops", "\xff no batch")
        await bus.queues.publish("ops", messages("hello"))
        await listener.until(lambda: listener.batches)
        assert listener.texts() == ["hello"]
        [(level, text)] = self.logged()
        assert level == "error"
        assert text.startswith("a batch of room ops is unreadable and lost: ")

    async def test_a_forgotten_script_is_loaded_again(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("SCRIPT", "FLUSH")
        texts = [str(number) for number in range(10)]
        for text in texts:
            bus.queues.publish("ops", messages(text))
        await bus.queues.flushed()
        await listener.until(lambda: len(listener.texts()) == 10)
        assert (listener.texts(), listener.repeated, self.logged()) == (texts, [], [])

    async def test_the_window_closes_and_opens_again(self) -> None:
        bus, listener = await self.ready(self.valkey_url, unconfirmed_publish_bytes=1000)
        seen: list[bool] = []
        for room in "abcdef":
            bus.queues.publish(room, messages("x"))
            seen.append(bus.queues.open)
        assert seen == [True] * 4 + [False] * 2
        assert (bus.away, bus.queues.space < 0) == ("", True)
        await listener.until(lambda: bus.queues.open)
        await bus.queues.flushed()
        assert bus.queues.space == 1000

    async def test_a_batch_the_broker_refuses_for_good_fails_alone(self) -> None:
        bus, _ = await self.ready(self.valkey_url, "ops", "bad")
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("SET", f"{self.prefix}:room:bad", "no hash")
        failed, fine = (
            bus.queues.publish("bad", messages("one")),
            bus.queues.publish("ops", messages("two")),
        )
        with pytest.raises(NotPublished, match="WRONGTYPE") as refusal:
            await failed
        assert not refusal.value.unknown
        assert (await fine).first.offset == 1
        assert bus.queues.open
        assert [level for level, _ in self.logged()] == ["error"]

    async def test_stop_fails_what_waits_and_probes(self) -> None:
        bus, _ = await self.ready(self.valkey_url)
        sent, waiting, probe = (
            bus.queues.publish("ops", messages("1")),
            bus.queues.publish("ops", messages("2")),
            bus.probe(),
        )
        self.stop(bus)
        for done, unknown in ((sent, True), (waiting, False), (probe, False)):
            with pytest.raises(NotPublished, match="the server stopped") as refusal:
                await done
            assert refusal.value.unknown is unknown
        assert self.logged() == []

    # A connection that breaks

    def cut(self, kind: str) -> None:
        """Let the broker drop all connections of a kind."""
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            client.ask("CLIENT", "KILL", "TYPE", kind)

    async def test_rooms_are_heard_again_after_the_subscribing_link_was_cut(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops", "dev")
        self.cut("pubsub")
        await listener.until(lambda: not bus.queues.open)
        await listener.until(lambda: bus.queues.open)
        for room in ("ops", "dev"):
            await bus.queues.publish(room, messages("hello"))
        await listener.until(lambda: listener.texts("ops") and listener.texts("dev"))

    async def test_a_room_subscribed_while_away_is_heard_later(self) -> None:
        bus, listener = await self.ready(self.valkey_url)
        self.cut("pubsub")
        await listener.until(lambda: not bus.queues.open)
        await bus.subscribe("ops")
        await listener.until(lambda: bus.queues.open)
        await bus.queues.publish("ops", messages("hello"))
        await listener.until(listener.texts)

    async def test_a_room_unsubscribed_while_away_is_not_heard_later(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops", "dev")
        self.cut("pubsub")
        await listener.until(lambda: not bus.queues.open)
        bus.unsubscribe("dev")
        await listener.until(lambda: bus.queues.open)
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            assert client.ask("PUBSUB", "NUMSUB", f"{self.prefix}:room:dev")[1] == 0
            assert client.ask("PUBSUB", "NUMSUB", f"{self.prefix}:room:ops")[1] == 1

    def listening(self) -> set[bytes]:
        """Give the connections that subscribe, by their ids."""
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            return {line.split()[0] for line in client.ask("CLIENT", "LIST", "TYPE", "pubsub").splitlines()}

    def drop(self, connections: set[bytes]) -> None:
        """Let the broker drop these connections."""
        with Client(self.valkey_url.removeprefix("unix://")) as client:
            for each in connections:
                client.ask("CLIENT", "KILL", *each.decode().upper().split("="))

    async def test_what_was_said_while_the_link_of_one_was_down_is_filled(self) -> None:
        one, _ = await self.follow(self.valkey_url, "ops", "dev")
        others = self.listening()
        slow = {"redis_reconnect_min_delay": 0.3, "redis_reconnect_max_delay": 0.3}
        two, listener = await self.follow(self.valkey_url, "ops", "dev", **slow)
        texts = [str(number) for number in range(60)]
        for text in texts:
            one.queues.publish("ops", messages(text))
            one.queues.publish("dev", messages(text))
            if text in ("20", "40"):
                self.drop(self.listening() - others)
                await listener.until(lambda: two.away)
            elif text in ("30", "50"):
                await one.queues.flushed()
                assert two.away
                await listener.until(lambda: two.queues.open)
        await one.queues.flushed()
        for room in ("ops", "dev"):
            await listener.until(lambda room=room: len(listener.texts(room)) == 60)  # type: ignore[misc]
            assert (listener.texts(room), listener.offsets(room)) == (texts, list(range(1, 61)))
        assert listener.gaps == []

    async def test_the_last_message_that_was_said_while_a_link_was_down_is_had_when_it_is_back(self) -> None:
        one, _ = await self.ready(self.valkey_url)
        others = self.listening()
        slow = {"redis_reconnect_min_delay": 0.3, "redis_reconnect_max_delay": 0.3, "offset_check_interval": 60}
        two, listener = await self.follow(self.valkey_url, "ops", **slow)
        self.drop(self.listening() - others)
        await listener.until(lambda: two.away)
        await one.queues.publish("ops", messages("the last"))
        assert two.away
        await listener.until(lambda: listener.texts() == ["the last"])

    async def test_a_message_that_was_lost_is_filled_when_the_next_one_comes(self) -> None:
        bus, listener = await self.follow(self.valkey_url, "ops", offset_check_interval=60)
        await bus.queues.publish("ops", messages("one"))
        await listener.until(listener.texts)
        listener.drops = True
        await bus.queues.publish("ops", messages("two", "three"))
        await listener.until(lambda: listener.dropped)
        listener.drops = False
        await bus.queues.publish("ops", messages("four"))
        await listener.until(lambda: len(listener.texts()) == 4)
        assert (listener.texts(), listener.gaps) == (["one", "two", "three", "four"], [])

    async def test_a_last_message_that_was_lost_is_found_when_rooms_are_compared(self) -> None:
        bus, listener = await self.follow(self.valkey_url, "ops", offset_check_interval=0.1)
        listener.drops = True
        await bus.queues.publish("ops", messages("the last"))
        await listener.until(lambda: listener.dropped)
        listener.drops = False
        await listener.until(listener.texts)
        assert (listener.texts(), listener.gaps) == (["the last"], [])

    async def test_what_cannot_be_read_is_told_as_lost_and_all_else_is_heard(self) -> None:
        bus, listener = await self.follow(self.valkey_url, "ops", "dev", offset_check_interval=60)
        first = (await bus.queues.publish("ops", messages("one"))).first
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            room, history = f"{self.prefix}:room:ops", f"{self.prefix}:history:{first.epoch}:ops"
            broker.ask("XADD", history, "3-0", "b", "garbage")
            broker.ask("HSET", room, "top", 3)
            broker.ask("PUBLISH", room, "garbage")
        await bus.queues.publish("dev", messages("elsewhere"))
        await listener.until(lambda: listener.gaps)
        await bus.queues.publish("ops", messages("four"))
        await listener.until(lambda: len(listener.texts()) == 2)
        assert (listener.texts(), listener.gaps) == (["one", "four"], [OffsetGap(first.epoch, 3, 2)])
        await listener.until(lambda: listener.texts("dev") == ["elsewhere"])

    async def test_entries_that_cannot_be_read_are_passed_over_when_history_is_read_backwards(self) -> None:
        bus, _ = await self.follow(self.valkey_url, "ops")
        first = (await bus.queues.publish("ops", messages("one"))).first
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            for offset in (3, 4, 5):
                broker.ask("XADD", f"{self.prefix}:history:{first.epoch}:ops", f"{offset}-0", "b", "garbage" * 100)
        for last in (3, 4, 9):
            batches, more = await bus.history.read_back("ops", first.epoch, last, 0, 500)
            assert ([batch.first for batch in batches], more) == ([1], False), last

    async def test_large_entries_of_which_only_the_head_can_be_read_are_passed_over_backwards(self) -> None:
        bus, _ = await self.follow(self.valkey_url, "ops")
        epoch = (await bus.queues.publish("ops", messages("one"))).first.epoch
        with Client(self.valkey_url.removeprefix("unix://")) as broker:
            for first, last in ((2, 6), (7, 11)):
                data = f"{epoch} {first} w 1\n" + "garbage" * 100
                broker.ask("XADD", f"{self.prefix}:history:{epoch}:ops", f"{last}-0", "b", data)
        for last in (6, 8, 11):
            batches, more = await bus.history.read_back("ops", epoch, last, 0, 500)
            assert ([batch.first for batch in batches], more) == ([1], False), last

    async def test_what_history_has_no_more_is_told_as_lost(self) -> None:
        bus, listener = await self.follow(
            self.valkey_url, "ops", offset_check_interval=60, history_size=3, recent_history_time=0
        )
        listener.drops = True
        for number in range(1, 301):  # the broker trims by the hundred
            first = (await bus.queues.publish("ops", messages(str(number)))).first
        await listener.until(lambda: len(listener.dropped) == 300)
        listener.drops = False
        await bus.queues.publish("ops", messages("301"))
        await listener.until(lambda: listener.texts()[-1:] == ["301"])
        (gap,) = listener.gaps
        assert (gap.epoch, gap.last, 0 < gap.last < 300) == (first.epoch, gap.count, True)
        assert listener.offsets() == list(range(gap.last + 1, 302))

    async def test_without_history_what_was_lost_is_told_when_rooms_are_compared(self) -> None:
        bus, listener = await self.follow(self.valkey_url, "ops", offset_check_interval=0.1, history_size=0)
        listener.drops = True
        first = (await bus.queues.publish("ops", messages("one", "two"))).first
        await listener.until(lambda: listener.dropped)
        listener.drops = False
        await listener.until(lambda: listener.gaps)
        assert (listener.texts(), listener.gaps) == ([], [OffsetGap(first.epoch, 2, 2)])

    async def test_without_history_the_wait_loses_nothing_when_links_are_cut_under_load(self) -> None:
        one, one_listener = await self.ready(self.valkey_url, "ops", history_size=0)
        two, two_listener = await self.ready(self.valkey_url, "ops", history_size=0, redis_settle_delay=0.3)
        published: list[PublishResult] = []
        for number in range(300):
            one.queues.publish("ops", messages(str(number))).addCallback(published.append)
            if number % 100 == 50:
                self.cut("normal")
                self.cut("pubsub")
                await one_listener.until(lambda: not one.queues.open)
                await two_listener.until(lambda: not two.queues.open)
                await gatherResults(
                    [
                        one_listener.until(lambda: one.queues.open),
                        two_listener.until(lambda: two.queues.open),
                    ]
                )
        await one.queues.flushed()
        texts = [str(number) for number in range(300)]
        await one_listener.until(lambda: len(one_listener.texts()) >= 300)
        assert one_listener.texts() == texts
        assert one_listener.offsets() == list(range(1, 301))
        assert len(published) == 300

    async def test_publishes_in_flight_over_a_cut_arrive_once(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops", "last")
        path = self.valkey_url.removeprefix("unix://")
        for round_ in range(5):
            bus.queues.publish("ops", messages(f"{round_}a"))
            with Client(path) as client:
                client.ask("CLIENT", "KILL", "TYPE", "normal")
            bus.queues.publish("ops", messages(f"{round_}b"))
            await bus.queues.flushed()
        await bus.queues.publish("last", messages("the end"))
        await listener.until(lambda: listener.texts("last"))
        assert listener.texts() == [f"{round_}{part}" for round_ in range(5) for part in "ab"]
        assert listener.offsets() == list(range(1, 11))

    async def test_an_outage_and_its_end_are_said_once(self) -> None:
        bus, listener = await self.ready(self.valkey_url)
        self.cut("normal")
        self.cut("pubsub")
        await listener.until(lambda: not bus.queues.open)
        assert bus.away == "connection lost"
        await listener.until(lambda: bus.queues.open)
        (lost, back) = self.logged()
        assert lost == ("warn", f"the broker {self.valkey_url} is unavailable: connection lost")
        assert back[0] == "info"
        assert back[1].startswith(f"the broker {self.valkey_url} is available again after 0.")

    async def test_without_history_it_waits_after_an_outage_for_others_to_be_back(self) -> None:
        bus, listener = await self.ready(self.valkey_url, history_size=0, redis_settle_delay=60)
        self.cut("pubsub")
        await listener.until(lambda: not bus.queues.open)
        await bus.subscribe("ops")
        await deferLater(reactor, 0)  # the link counts at the end of the turn that confirmed its rooms
        assert (bus.queues.open, bus.away) == (False, "waiting for other workers to be back")
        await bus.probe()
        assert not bus.queues.open

    async def test_a_room_that_was_heard_is_subscribed_anew_after_a_cut_before_it_counts(self) -> None:
        bus, listener = await self.ready(self.valkey_url, "ops")
        self.cut("pubsub")
        await listener.until(lambda: not bus.queues.open)
        subscribed = bus.subscribe("ops")
        assert not subscribed.called
        await subscribed

    async def test_a_probe_fails_at_once_while_a_link_is_away(self) -> None:
        bus, listener = await self.ready(self.valkey_url, **PATIENT)
        self.cut("normal")
        await listener.until(lambda: not bus.queues.open)
        with pytest.raises(NotPublished, match="connection lost"):
            await bus.probe()

    async def test_a_probe_under_way_fails_when_a_link_breaks(self) -> None:
        bus, _ = await self.ready(self.valkey_url, **PATIENT)
        probe = bus.probe()
        self.cut("normal")
        with pytest.raises(NotPublished, match="connection lost"):
            await probe


def test_a_start_that_takes_two_ticks_is_said_once(events: Events) -> None:
    clock = MemoryReactorClock()
    bus = Bus(clock, broker_address("unix:///nowhere"), Config(redis_ping_interval=1), "w1")
    bus.listener = BusListener()
    bus.start()
    clock.advance(1)
    assert events.said == []
    for _ in range(3):
        clock.advance(1)
    assert events.said == [("warn", "the broker unix:///nowhere is unavailable: not connected yet")]
    bus.stop()


def test_giving_up_one_subscription_looks_at_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(MemoryReactorClock(), broker_address("unix:///nowhere"), Config(), "w1")
    asked, comparing = [bus.subscribe("ops") for _ in range(100)], Comparing(Deferred, monkeypatch)
    for subscribed in reversed(asked):
        subscribed.addErrback(lambda _: None).cancel()
    assert comparing.count == 0


# What the broker is


def prepared(info: bytes) -> tuple[list[tuple[Any, ...]], str]:
    """Give what a bus asks of a broker that says so of itself, and why it would not have it."""
    clock, wire = MemoryReactorClock(), Wire()
    bus, failed = Bus(clock, broker_address("unix:///nowhere"), Config(), "w1"), list[str]()
    preparing = Deferred.fromCoroutine(bus._prepare_publishing(wire))
    preparing.addErrback(lambda failure: failed.append(failure.getErrorMessage()))
    wire.answer(info)
    return wire.calls, "".join(failed)


@rows("version", ["6.0.16", "5.9", "3.2.1"])
def test_a_broker_that_is_too_old_is_not_used(version: str) -> None:
    calls, why = prepared(f"# Server\r\nredis_version:{version}\r\nrun_id:x\r\n".encode())
    assert (len(calls), why) == (1, f"it is Redis {version}; 6.2 or newer is needed")


@rows("version", ["6.2.0", "6.10.1", "7.2.4", "10.0"])
def test_any_newer_one_is(version: str) -> None:
    calls, why = prepared(f"# Server\r\nredis_version:{version}\r\nrun_id:x\r\n".encode())
    assert (calls[1][0], why) == ("SCRIPT LOAD", "")


class TestLeastRights(BusTestCase):
    """A broker's user that may do no more than the documentation says."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Server()
        self.server.start()
        self.addCleanup(self.server.close)
        listed = re.fullmatch(r"ACL SETUSER chatd on >PASSWORD (resetkeys .+)\n", block("acl").text)
        assert listed is not None
        only = listed[1].replace("chatd:", f"{self.prefix}:").split()
        self.server.ask("ACL", "SETUSER", "chat", "on", ">secret", *only)
        self.address = BrokerAddress(path=self.server.path, user="chat", password="secret")

    async def test_can_run_all_of_chatd(self) -> None:
        bus, listener = await self.ready(self.address, "ops")
        await bus.queues.publish("ops", messages("a"), {0: "an-id"})
        await bus.queues.publish("ops", messages("b"), {0: "another-id"})
        await listener.until(lambda: listener.texts() == ["a", "b"])
        await bus.probe()
        bus._comparison.run()
        await listener.until(lambda: "ops" in listener.tops)
        span = await bus.history.read("ops", None, 1)
        span = await bus.history.read("ops", StreamPosition(span.top.epoch, 0), 1_000_000)
        assert [message.text for batch in span.batches for message in batch.messages] == ["a", "b"]
        batches, _ = await bus.history.read_back("ops", span.top.epoch, 2, 0, 1_000_000)
        assert [message.text for batch in batches for message in batch.messages] == ["b", "a"]
        listener.resume_positions["ops", "s1"] = ResumePosition(span.top, "s1")
        for session in ("s1", "s2"):
            place = await bus.resume_positions.claim("ops", "a-key-of-mine", session)
        assert place == ResumePosition(span.top, "s1")
        bus.resume_positions.save("ops", "a-key-of-mine", "s2", place, left=True)
        await saved(bus)
        await self.use_presence(bus)
        bus.unsubscribe("ops")
        ledger = Ledger()
        await read_histories(reactor, self.address, Config(redis_prefix=self.prefix), ledger)
        assert self.logged() == []

    async def use_presence(self, bus: Bus) -> None:
        """Let members come, change nicks and go, in a room where a worker has died."""
        self.server.ask("HSET", f"{self.prefix}:presence:ops", "dead", 1)
        self.server.ask("HSET", f"{self.prefix}:here:dead:ops", "s0", "1 ann ann")
        self.server.ask("HSET", f"{self.prefix}:nicks:ops", "ann", "s0")
        assert await bus.presence.enter("ops", "s1", Identity("ann")) == "ann"
        assert await bus.presence.enter("ops", "s2", Identity("ann")) == "ann*2"
        before = (await bus.presence.members("ops")).version
        assert await bus.presence.rename("ops", "s2", Identity("bob")) == "bob"
        bus._comparison.run()
        bus.presence.leave("ops", "s1", linger=False)
        await saved(bus)
        members = await bus.presence.members("ops")
        assert [each.nick for each in members.present or ()] == ["bob"]
        (listed,), more = await bus.presence.list_rooms()
        assert (listed.room, listed.count, listed.top.offset, more) == ("ops", 1, 2, False)
        assert members.version == before + 2
        bus.presence.leave("ops", "s2", linger=False)
        await saved(bus)
