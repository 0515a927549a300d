"""One room: where subscribers begin, what slow consumers recover, gaps, and takeovers with a resume key."""

from typing import Any

from twisted.internet.defer import fail

from chatd.broker.resume_positions import TakenOver
from chatd.config.settings import Config
from chatd.protocol.close_codes import TAKEN_OVER
from chatd.protocol.message import OffsetGap, StreamPosition
from tests.fakes import Events, FakeBus, FakeMember
from tests.rooms.server import TURNS, ChatServer, frames, make_server
from tests.rows import rows


def joined(server: ChatServer, subscriber: FakeMember) -> FakeMember:
    """Join, until the broker has answered and the turn ends."""
    at_once, server.bus.answer_at_once = server.bus.answer_at_once, False
    server.hub.join("ops", subscriber)
    if at_once:
        server.bus.answer()
        server.end_turn()
        server.bus.answer()
    server.bus.answer_at_once = at_once
    server.end_turn()
    return subscriber


def receive(server: ChatServer, count: int, begin: int = 1) -> None:
    """Receive e1, e2, … from another worker, in batches of their own."""
    for number in range(begin, begin + count):
        server.deliver(f"e{number}", number=number)


# Where a subscriber begins


@rows(
    "position, begins",
    [
        ({}, []),
        ({"last": 2}, ["e4", "e5"]),
        ({"last": 100}, ["e1", "e2", "e3", "e4", "e5"]),
        ({"since": StreamPosition("e0", 3)}, ["e4", "e5"]),
        ({"since": StreamPosition("e0", 5)}, []),
    ],
)
def test_a_subscriber_begins_with_the_last_messages_or_those_it_missed(
    position: dict[str, Any], begins: list[str]
) -> None:
    server = make_server(TURNS, FakeBus())
    receive(server, 5)
    ann = joined(server, FakeMember("ann", **position))
    receive(server, 1, 6)
    assert (ann.blobs, ann.events) == ([*([frames(*begins)] if begins else []), frames("e6")], [])


@rows("kept", [3, 5])
@rows("position, gaps", [({"last": 100}, []), ({"since": StreamPosition("e0", 1)}, [OffsetGap("e0", 2, 1)])])
def test_no_more_than_history_may_hold_is_replayed(kept: int, position: dict[str, Any], gaps: list[OffsetGap]) -> None:
    server = make_server(Config(flush_interval=0, history_size=3), FakeBus(history=kept))
    receive(server, 5)
    ann = joined(server, FakeMember("ann", **position))
    assert (ann.blobs, ann.events) == ([frames("e3", "e4", "e5")], gaps)


def test_nothing_is_sent_before_one_is_told_that_it_is_in(server: ChatServer) -> None:
    receive(server, 5)
    ann = FakeMember("ann", last=2)
    at_join: list[list[bytes]] = []
    server.hub.join("ops", ann).addCallback(lambda _: at_join.append(list(ann.blobs)))
    assert at_join == [[]]
    server.end_turn()
    assert ann.blobs == [frames("e4", "e5")]


def test_a_batch_before_the_broadcast_is_not_for_a_later_subscriber(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    server.receive("one", number=1)
    ann = server.subscriber("ann")
    assert bob.blobs == [frames("one")]
    server.deliver("two", number=2)
    assert (ann.blobs, bob.blobs) == ([frames("two")], [frames("one"), frames("two")])


def test_messages_received_while_history_is_read_come_after_it(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    receive(server, 3)
    server.bus.answer_at_once = False
    ann = joined(server, FakeMember("ann", last=2))
    receive(server, 1, 4)
    assert (ann.blobs, len(bob.blobs)) == ([], 4)
    server.bus.answer()
    assert b"".join(ann.blobs) == frames("e2", "e3", "e4")


def test_a_subscriber_that_leaves_while_it_reads_history_gets_nothing(server: ChatServer) -> None:
    receive(server, 3)
    server.bus.answer_at_once = False
    server.subscriber("bob")
    server.bus.answer()
    ann = joined(server, FakeMember("ann", last=2))
    server.hub.leave("ops", ann)
    server.bus.answer()
    assert (ann.blobs, list(server.bus.rooms)) == ([], ["ops"])


def test_nobody_joins_while_the_room_is_not_subscribed(server: ChatServer) -> None:
    server.subscriber("bob")
    server.bus.unhear()
    ann = FakeMember("ann")
    join = server.hub.join("ops", ann)
    assert not join.called
    server.bus.confirm("ops")
    assert join.called


# Slow consumers


class Slow(FakeMember):
    """A slow consumer, which accepts nothing until it has drained."""

    def __init__(self, name: str, server: ChatServer) -> None:
        super().__init__(name)
        self.server = server
        self.buffer_full = True

    def deliver(self, blob: bytes, count: int) -> bool:
        if self.buffer_full:
            self.server.hub.start_recovery("ops", self)
            return False
        return super().deliver(blob, count)

    def drain(self) -> None:
        self.buffer_full = False
        self.server.hub.drained("ops", self)


def test_a_slow_consumer_gets_all_messages_when_it_has_drained_and_nobody_waits_for_it(server: ChatServer) -> None:
    bob, slow = server.subscriber("bob"), Slow("ann", server)
    joined(server, slow)
    receive(server, 3)
    assert (slow.blobs, bob.blobs) == ([], [frames("e1"), frames("e2"), frames("e3")])
    slow.drain()
    assert (b"".join(slow.blobs), slow.events) == (frames("e1", "e2", "e3"), [])
    receive(server, 1, 4)
    assert slow.blobs[-1] == frames("e4")


def test_a_slow_consumer_gets_no_message_twice(server: ChatServer) -> None:
    slow = Slow("ann", server)
    joined(server, slow)
    slow.buffer_full = False
    receive(server, 2)
    slow.buffer_full = True
    receive(server, 2, 3)
    slow.drain()
    assert b"".join(slow.blobs) == frames("e1", "e2", "e3", "e4")


def test_a_slow_consumer_gets_all_of_several_batches(server: ChatServer) -> None:
    slow = Slow("ann", server)
    joined(server, slow)
    server.receive("e1", number=1)
    server.receive("e2", number=2)
    server.end_turn()
    slow.drain()
    assert b"".join(slow.blobs) == frames("e1", "e2")


def test_messages_before_a_gap_are_not_sent_twice(server: ChatServer) -> None:
    server.bus.kept_messages = 1
    slow = Slow("ann", server)
    joined(server, slow)
    slow.buffer_full = False
    server.receive("e1", number=1)
    server.send("lost", number=2)
    server.bus.pump(lambda _: True)
    report_gap = slow.report_gap

    def choke(gap: OffsetGap, **_: bool) -> None:
        report_gap(gap)
        slow.buffer_full = True

    slow.report_gap = choke  # type: ignore[method-assign]
    server.receive("e3", number=3)
    server.end_turn()
    slow.drain()
    assert (b"".join(slow.blobs), slow.events) == (frames("e1", "e3"), [OffsetGap("e0", 2, 1)])


def test_messages_that_history_has_dropped_are_a_gap_and_counted(events: Events) -> None:
    server = make_server(Config(flush_interval=0, batch_bytes=200), FakeBus(history=2))
    slow = Slow("ann", server)
    joined(server, slow)
    receive(server, 10)
    slow.drain()
    assert (b"".join(slow.blobs), slow.events) == (frames("e9", "e10"), [OffsetGap("e0", 8, 8)])
    server.clock.advance(server.clock.seconds() + 100)
    said = "1 clients missed 8 messages that were no longer in the history"
    assert events.said == [("warn", said)]


def test_without_history_a_slow_consumer_is_too_slow() -> None:
    server = make_server(Config(flush_interval=0, history_size=0), FakeBus(history=0))
    slow = Slow("ann", server)
    joined(server, slow)
    receive(server, 3)
    slow.drain()
    assert slow.events == [("too slow", OffsetGap("e0", 3, 3))]


def test_a_slow_consumer_may_leave(server: ChatServer) -> None:
    slow = Slow("ann", server)
    joined(server, slow)
    receive(server, 2)
    server.hub.leave("ops", slow)
    assert server.bus.rooms == {}
    slow.drain()
    assert slow.blobs == []


def test_a_drained_subscriber_that_is_not_behind_gets_nothing(server: ChatServer) -> None:
    ann = joined(server, FakeMember("ann"))
    server.hub.drained("ops", ann)
    server.hub.drained("ops", FakeMember("bob"))
    server.hub.drained("dev", FakeMember("bob"))
    server.hub.start_recovery("dev", ann)
    assert ann.blobs == []


def test_recent_batches_are_kept_only_while_a_subscriber_is_behind(server: ChatServer) -> None:
    server.bus.kept_messages = 1
    slow = Slow("ann", server)
    joined(server, slow)
    receive(server, 1)
    slow.drain()
    receive(server, 3, 2)
    late = joined(server, FakeMember("bob", since=StreamPosition("e0", 1)))
    assert (late.events, late.blobs) == ([OffsetGap("e0", 3, 2)], [frames("e4")])


# Gaps


def test_a_gap_is_filled_for_all_in_order(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.send("e1", number=1)
    server.bus.pump(lambda _: True)
    server.deliver("e2", number=2)
    assert ann.blobs == bob.blobs == [frames("e1", "e2")]


def test_a_gap_that_history_cannot_fill_is_told_to_all_and_counted(server: ChatServer, events: Events) -> None:
    server.bus.kept_messages = 1
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    for number in (1, 2):
        server.send(f"e{number}", number=number)
    server.bus.pump(lambda _: True)
    server.deliver("e3", number=3)
    assert ann.events == bob.events == [OffsetGap("e0", 2, 2)]
    assert ann.blobs == [frames("e3")]
    server.clock.advance(TURNS.client_report_interval)
    said = "2 clients missed 4 messages that were no longer in the history"
    assert events.said == [("warn", said)]


def test_a_subscriber_that_fails_at_a_gap_does_not_affect_others(server: ChatServer, events: Events) -> None:
    class Deaf(FakeMember):
        def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
            raise RuntimeError("no")

    deaf = joined(server, Deaf("deaf"))
    bob = server.subscriber("bob")
    server.bus.restart()
    server.bus.compare()
    server.end_turn()
    assert bob.events == [OffsetGap("e1", 0, None)]
    assert len(deaf.events) == 1
    assert events.said[0] == ("critical", "delivering to client deaf failed")


def test_a_lost_last_message_is_found_by_the_comparison(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.send("e1", number=1)
    server.bus.pump(lambda _: True)
    server.bus.compare()
    server.end_turn()
    assert ann.blobs == [frames("e1")]


def test_rooms_without_subscribers_are_not_recovered(server: ChatServer) -> None:
    server.hub.recover("dev", StreamPosition("e0", 9))
    assert server.bus.rooms == {}


# Resume keys


def test_a_subscriber_that_comes_back_gets_what_it_missed(server: ChatServer) -> None:
    server.subscriber("bob")
    first = joined(server, FakeMember("one", key="key"))
    receive(server, 2)
    server.hub.leave("ops", first)
    receive(server, 2, 3)
    second = joined(server, FakeMember("two", key="key"))
    assert (first.blobs, second.blobs) == ([frames("e1"), frames("e2")], [frames("e3", "e4")])
    assert second.sender_id == "one"


def test_messages_of_its_last_connection_are_its_own(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    first = joined(server, FakeMember("one", key="key"))
    server.hub.leave("ops", first)
    server.send("mine", number=1, sender_id="one")
    server.deliver("yours", number=2)
    second = joined(server, FakeMember("two", key="key"))
    server.publish(second, "mine too")
    server.settle()
    assert b"".join(second.blobs) == frames("yours")
    assert b"".join(bob.blobs) == frames("mine", "yours", "mine too")


def test_the_newer_connection_takes_over(server: ChatServer) -> None:
    first = joined(server, FakeMember("one", key="key"))
    second = joined(server, FakeMember("two", key="key"))
    receive(server, 1)
    assert (first.events, first.blobs) == ([TAKEN_OVER], [])
    assert second.blobs == [frames("e1")]


def test_a_connection_that_the_broker_forgot_is_taken_over_too(server: ChatServer) -> None:
    first = joined(server, FakeMember("one", key="key"))
    server.bus.owners.clear()
    second = joined(server, FakeMember("two", key="key"))
    receive(server, 1)
    assert (first.events, first.blobs, second.blobs) == ([TAKEN_OVER], [], [frames("e1")])


def test_the_connection_that_took_over_stays_when_the_other_leaves(server: ChatServer) -> None:
    first = joined(server, FakeMember("one", key="key"))
    second = joined(server, FakeMember("two", key="key"))
    server.hub.leave("ops", first)
    receive(server, 1)
    assert second.blobs == [frames("e1")]
    server.hub.leave("ops", second)
    assert server.bus.rooms == {}


def test_a_takeover_of_a_slow_consumer_continues_where_it_was(server: ChatServer) -> None:
    slow = Slow("one", server)
    slow.key = "key"
    joined(server, slow)
    receive(server, 3)
    second = joined(server, FakeMember("two", key="key"))
    assert (slow.events, second.blobs) == ([TAKEN_OVER], [frames("e1", "e2", "e3")])


def test_a_connection_may_be_taken_over_while_it_joins(server: ChatServer) -> None:
    server.subscriber("bob")
    server.bus.answer_at_once = False
    first, second = FakeMember("one", key="key"), FakeMember("two", key="key")
    server.bus.owners["ops", "key"] = "one"
    joins = [server.hub.join("ops", each) for each in (first, second)]
    server.hub.disconnect("ops", "one")
    server.bus.answer()
    assert [each.called for each in joins] == [False, True]
    assert (first.events, second.events) == ([TAKEN_OVER], [])


def test_an_unknown_connection_has_no_resume_position(server: ChatServer) -> None:
    server.subscriber("bob")
    assert server.hub.disconnect("dev", "one") is None
    assert server.hub.disconnect("ops", "one") is None
    assert server.hub.disconnect("ops", "bob") is None
    assert list(server.bus.rooms) == ["ops"]


def test_a_room_whose_only_subscriber_is_taken_over_is_forgotten(server: ChatServer) -> None:
    first = joined(server, FakeMember("one", key="key"))
    receive(server, 2)
    place = server.hub.disconnect("ops", "one")
    assert place is not None
    assert (place.position, place.sender_id, first.events) == (StreamPosition("e0", 2), "one", [TAKEN_OVER])
    assert server.bus.rooms == {}


def test_one_for_whom_another_came_before_it_had_its_place_is_hung_up_on(server: ChatServer) -> None:
    server.bus.claim = lambda room, key, session: fail(TakenOver())  # type: ignore[method-assign]
    late = FakeMember("late", key="key")
    joined = server.hub.join("ops", late)
    assert (late.events, joined.called, server.bus.rooms) == ([TAKEN_OVER], False, {})


def test_resume_positions_are_written_in_several_turns() -> None:
    server = make_server(Config(flush_interval=0, resume_positions_per_write=2), FakeBus())
    server.hub.start()
    for number in range(5):
        joined(server, FakeMember(f"{number}", key=f"key{number}"))
    receive(server, 1)
    happened = list[str]()
    call_later = server.clock.callLater

    def end_turn(seconds: float, *call: Any) -> Any:
        happened.extend(["turn"] * (seconds == 0))
        return call_later(seconds, *call)

    server.bus.save = lambda *_, **__: happened.append("save")  # type: ignore[method-assign]
    server.clock.callLater = end_turn  # type: ignore[assignment, method-assign]
    server.clock.advance(1)
    assert happened == ["save", "save", "turn", "save", "save", "turn", "save"]


def test_resume_positions_are_written_periodically(server: ChatServer) -> None:
    server.hub.start()
    joined(server, FakeMember("one", key="key"))
    receive(server, 2)
    assert server.bus.places["ops", "key"].position == StreamPosition("e0", 0)
    server.clock.advance(TURNS.resume_position_write_interval)
    assert server.bus.places["ops", "key"].position == StreamPosition("e0", 2)
    server.hub.stop()
    assert server.clock.getDelayedCalls() == []


def test_a_resume_position_is_before_messages_not_delivered_yet(server: ChatServer) -> None:
    server.hub.start()
    ann = joined(server, FakeMember("one", key="key"))
    receive(server, 2)
    server.receive("e3", number=3)
    server.hub.record_position("ops", ann)
    assert ann.got == StreamPosition("e0", 2)
    server.end_turn()
    server.hub.record_position("ops", ann)
    assert ann.got == StreamPosition("e0", 3)


def test_who_is_not_here_is_told_nothing_of_where_it_is(server: ChatServer) -> None:
    stranger = FakeMember("one", key="key")
    server.hub.record_position("ops", stranger)
    server.subscriber("bob")
    server.hub.record_position("ops", stranger)
    assert stranger.got is None


def test_a_resume_position_of_a_lost_epoch_is_a_gap(server: ChatServer) -> None:
    server.subscriber("bob")
    first = joined(server, FakeMember("one", key="key"))
    server.hub.leave("ops", first)
    place = server.bus.places["ops", "key"]
    server.bus.restart()
    server.bus.places["ops", "key"] = place
    server.deliver("e1", number=1)
    second = joined(server, FakeMember("two", key="key"))
    assert (second.events, second.blobs) == ([OffsetGap("e1", 0, None)], [frames("e1")])
