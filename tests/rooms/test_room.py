"""One room: who is live and who behind, from where on they hear, and what those get who can't keep up."""

from typing import Any

import pytest
from twisted.internet.defer import fail

from chatd.broker.resume_positions import TakenOver
from chatd.config.settings import Config
from chatd.protocol.close_codes import TAKEN_OVER
from chatd.protocol.message import OffsetGap, StreamPosition
from tests.fakes import Events, FakeBus, FakeMember
from tests.rooms.house import TURNS, House, frames, make_house
from tests.rows import rows


@pytest.fixture
def house() -> House:
    return make_house(TURNS, FakeBus())


def joined(house: House, member: FakeMember) -> FakeMember:
    """Let a member in, once the broker has answered, and the turn end."""
    at_once, house.bus.answer_at_once = house.bus.answer_at_once, False
    house.hub.join("ops", member)
    if at_once:
        house.bus.answer()
        house.end_turn()
        house.bus.answer()
    house.bus.answer_at_once = at_once
    house.end_turn()
    return member


def told(house: House, count: int, begin: int = 1) -> None:
    """Let another worker say e1, e2, …"""
    for number in range(begin, begin + count):
        house.hear(f"e{number}", number=number)


# From where on


def test_one_that_asks_for_nothing_begins_where_the_room_stands(house: House) -> None:
    told(house, 3)
    ann = joined(house, FakeMember("ann"))
    told(house, 1, 4)
    assert ann.blobs == [frames("e4")]


def test_the_last_messages_come_first_and_once(house: House) -> None:
    told(house, 5)
    ann = joined(house, FakeMember("ann", last=2))
    told(house, 1, 6)
    assert ann.blobs == [frames("e4", "e5"), frames("e6")]


def test_of_the_last_messages_those_there_are_come_and_nothing_is_said_of_the_rest(house: House) -> None:
    told(house, 2)
    ann = joined(house, FakeMember("ann", last=100))
    assert (ann.blobs, ann.events) == ([frames("e1", "e2")], [])


@rows(("kept", "events"), [(3, []), (5, [])])
def test_no_more_than_history_may_hold_is_replayed(kept: int, events: list[OffsetGap]) -> None:
    house = make_house(Config(flush_interval=0, history_size=3), FakeBus(history=kept))
    told(house, 5)
    ann = joined(house, FakeMember("ann", last=100))
    assert (ann.blobs, ann.events) == ([frames("e3", "e4", "e5")], events)


@rows("kept", [3, 5])
def test_one_that_was_away_for_longer_is_told_so(kept: int) -> None:
    house = make_house(Config(flush_interval=0, history_size=3), FakeBus(history=kept))
    told(house, 5)
    ann = joined(house, FakeMember("ann", since=StreamPosition("e0", 1)))
    assert (ann.blobs, ann.events) == ([frames("e3", "e4", "e5")], [OffsetGap("e0", 2, 1)])


def test_one_that_says_where_it_was_gets_what_it_missed(house: House) -> None:
    told(house, 5)
    ann = joined(house, FakeMember("ann", since=StreamPosition("e0", 3)))
    assert (ann.blobs, ann.events) == ([frames("e4", "e5")], [])


def test_one_that_missed_nothing_is_live_at_once(house: House) -> None:
    told(house, 5)
    ann = joined(house, FakeMember("ann", since=StreamPosition("e0", 5)))
    told(house, 1, 6)
    assert ann.blobs == [frames("e6")]


def test_nothing_is_sent_before_one_is_told_that_it_is_in(house: House) -> None:
    told(house, 5)
    ann = FakeMember("ann", last=2)
    at_join: list[list[bytes]] = []
    house.hub.join("ops", ann).addCallback(lambda _: at_join.append(list(ann.blobs)))
    assert at_join == [[]]
    house.end_turn()
    assert ann.blobs == [frames("e4", "e5")]


def test_what_waits_for_the_fan_out_is_not_for_one_that_begins_behind_it(house: House) -> None:
    bob = house.member("bob")
    house.bring("one", number=1)
    ann = house.member("ann")
    assert bob.blobs == [frames("one")]
    house.hear("two", number=2)
    assert (ann.blobs, bob.blobs) == ([frames("two")], [frames("one"), frames("two")])


def test_what_is_said_while_one_reads_history_comes_behind_that(house: House) -> None:
    bob = house.member("bob")
    told(house, 3)
    house.bus.answer_at_once = False
    ann = joined(house, FakeMember("ann", last=2))
    told(house, 1, 4)
    assert (ann.blobs, len(bob.blobs)) == ([], 4)
    house.bus.answer()
    assert b"".join(ann.blobs) == frames("e2", "e3", "e4")


def test_one_that_leaves_while_it_reads_history_gets_nothing(house: House) -> None:
    told(house, 3)
    house.bus.answer_at_once = False
    house.member("bob")
    house.bus.answer()
    ann = joined(house, FakeMember("ann", last=2))
    house.hub.leave("ops", ann)
    house.bus.answer()
    assert (ann.blobs, list(house.bus.rooms)) == ([], ["ops"])


def test_while_the_room_is_not_heard_nobody_comes_in(house: House) -> None:
    house.member("bob")
    house.bus.unhear()
    ann = FakeMember("ann")
    join = house.hub.join("ops", ann)
    assert not join.called
    house.bus.confirm("ops")
    assert join.called


# Who can't keep up


class Slow(FakeMember):
    """One that takes nothing that is delivered until it has drained."""

    def __init__(self, name: str, house: House) -> None:
        super().__init__(name)
        self.house = house
        self.buffer_full = True

    def deliver(self, blob: bytes, count: int) -> bool:
        if self.buffer_full:
            self.house.hub.start_recovery("ops", self)
            return False
        return super().deliver(blob, count)

    def drain(self) -> None:
        self.buffer_full = False
        self.house.hub.drained("ops", self)


def test_one_that_falls_behind_gets_all_it_missed_when_it_has_drained(house: House) -> None:
    slow = Slow("ann", house)
    joined(house, slow)
    told(house, 3)
    assert slow.blobs == []
    slow.drain()
    assert (b"".join(slow.blobs), slow.events) == (frames("e1", "e2", "e3"), [])
    told(house, 1, 4)
    assert slow.blobs[-1] == frames("e4")


def test_nobody_waits_for_it(house: House) -> None:
    bob = house.member("bob")
    joined(house, Slow("ann", house))
    told(house, 2)
    assert bob.blobs == [frames("e1"), frames("e2")]


def test_it_is_not_given_again_what_it_took(house: House) -> None:
    slow = Slow("ann", house)
    joined(house, slow)
    slow.buffer_full = False
    told(house, 2)
    slow.buffer_full = True
    told(house, 2, 3)
    slow.drain()
    assert b"".join(slow.blobs) == frames("e1", "e2", "e3", "e4")


def test_of_several_batches_at_once_it_gets_all(house: House) -> None:
    slow = Slow("ann", house)
    joined(house, slow)
    house.bring("e1", number=1)
    house.bring("e2", number=2)
    house.end_turn()
    slow.drain()
    assert b"".join(slow.blobs) == frames("e1", "e2")


def test_what_it_took_before_a_gap_is_not_given_again(house: House) -> None:
    house.bus.kept_messages = 1
    slow = Slow("ann", house)
    joined(house, slow)
    slow.buffer_full = False
    house.bring("e1", number=1)
    house.say("lost", number=2)
    house.bus.pump(lambda _: True)
    lost = slow.lost

    def choke(gap: OffsetGap) -> None:
        lost(gap)
        slow.buffer_full = True

    slow.lost = choke  # type: ignore[method-assign]
    house.bring("e3", number=3)
    house.end_turn()
    slow.drain()
    assert (b"".join(slow.blobs), slow.events) == (frames("e1", "e3"), [OffsetGap("e0", 2, 1)])


def test_what_history_no_longer_has_is_told_to_it_and_counted(events: Events) -> None:
    house = make_house(Config(flush_interval=0, batch_bytes=200), FakeBus(history=2))
    slow = Slow("ann", house)
    joined(house, slow)
    told(house, 10)
    slow.drain()
    assert (b"".join(slow.blobs), slow.events) == (frames("e9", "e10"), [OffsetGap("e0", 8, 8)])
    house.clock.advance(house.clock.seconds() + 100)
    said = "messages lost for good: 8, by clients: 1"
    assert events.said == [("warn", said)]


def test_without_history_it_is_told_that_it_was_too_slow() -> None:
    house = make_house(Config(flush_interval=0, history_size=0), FakeBus(history=0))
    slow = Slow("ann", house)
    joined(house, slow)
    told(house, 3)
    slow.drain()
    assert slow.events == [("too slow", OffsetGap("e0", 3, 3))]


def test_one_that_is_behind_may_leave(house: House) -> None:
    slow = Slow("ann", house)
    joined(house, slow)
    told(house, 2)
    house.hub.leave("ops", slow)
    assert house.bus.rooms == {}
    slow.drain()
    assert slow.blobs == []


def test_one_that_drains_and_is_not_behind_gets_nothing(house: House) -> None:
    ann = joined(house, FakeMember("ann"))
    house.hub.drained("ops", ann)
    house.hub.drained("ops", FakeMember("bob"))
    house.hub.drained("dev", FakeMember("bob"))
    house.hub.start_recovery("dev", ann)
    assert ann.blobs == []


def test_the_tail_is_kept_only_while_somebody_is_behind(house: House) -> None:
    house.bus.kept_messages = 1
    slow = Slow("ann", house)
    joined(house, slow)
    told(house, 1)
    slow.drain()
    told(house, 3, 2)
    late = joined(house, FakeMember("bob", since=StreamPosition("e0", 1)))
    assert (late.events, late.blobs) == ([OffsetGap("e0", 3, 2)], [frames("e4")])


# Holes


def test_a_hole_is_filled_for_all_in_order(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.say("e1", number=1)
    house.bus.pump(lambda _: True)
    house.hear("e2", number=2)
    assert ann.blobs == bob.blobs == [frames("e1", "e2")]


def test_a_gap_is_told_to_all_where_it_was_and_counted(house: House, events: Events) -> None:
    house.bus.kept_messages = 1
    ann, bob = house.member("ann"), house.member("bob")
    for number in (1, 2):
        house.say(f"e{number}", number=number)
    house.bus.pump(lambda _: True)
    house.hear("e3", number=3)
    assert ann.events == bob.events == [OffsetGap("e0", 2, 2)]
    assert ann.blobs == [frames("e3")]
    house.clock.advance(TURNS.client_report_interval)
    said = "messages lost for good: 4, by clients: 2"
    assert events.said == [("warn", said)]


def test_one_that_fails_at_a_gap_is_hung_up_on_and_the_others_hear_it(house: House, events: Events) -> None:
    class Deaf(FakeMember):
        def lost(self, gap: OffsetGap) -> None:
            raise RuntimeError("no")

    deaf = joined(house, Deaf("deaf"))
    bob = house.member("bob")
    house.bus.restart()
    house.bus.compare()
    house.end_turn()
    assert bob.events == [OffsetGap("e1", 0, None)]
    assert len(deaf.events) == 1
    assert events.said[0] == ("critical", "something was not delivered to deaf")


def test_a_lost_last_message_is_found_by_the_comparison(house: House) -> None:
    ann = house.member("ann")
    house.say("e1", number=1)
    house.bus.pump(lambda _: True)
    house.bus.compare()
    house.end_turn()
    assert ann.blobs == [frames("e1")]


def test_rooms_that_nobody_is_in_are_not_compared(house: House) -> None:
    house.hub.recover("dev", StreamPosition("e0", 9))
    assert house.bus.rooms == {}


# Who comes back with its key


def test_one_that_comes_back_gets_what_it_missed(house: House) -> None:
    house.member("bob")
    first = joined(house, FakeMember("one", key="key"))
    told(house, 2)
    house.hub.leave("ops", first)
    told(house, 2, 3)
    second = joined(house, FakeMember("two", key="key"))
    assert (first.blobs, second.blobs) == ([frames("e1"), frames("e2")], [frames("e3", "e4")])
    assert second.sender_id == "one"


def test_its_own_lines_are_those_of_its_last_connection_too(house: House) -> None:
    bob = house.member("bob")
    first = joined(house, FakeMember("one", key="key"))
    house.hub.leave("ops", first)
    house.say("mine", number=1, sender_id="one")
    house.hear("yours", number=2)
    second = joined(house, FakeMember("two", key="key"))
    house.hub.publisher.publish("ops", second, ["mine too"])
    house.go_round()
    assert b"".join(second.blobs) == frames("yours")
    assert b"".join(bob.blobs) == frames("mine", "yours", "mine too")


def test_the_newer_connection_takes_over_and_the_older_is_hung_up_on(house: House) -> None:
    first = joined(house, FakeMember("one", key="key"))
    second = joined(house, FakeMember("two", key="key"))
    told(house, 1)
    assert (first.events, first.blobs) == ([TAKEN_OVER], [])
    assert second.blobs == [frames("e1")]


def test_one_that_the_broker_forgot_is_taken_over_too(house: House) -> None:
    first = joined(house, FakeMember("one", key="key"))
    house.bus.owners.clear()
    second = joined(house, FakeMember("two", key="key"))
    told(house, 1)
    assert (first.events, first.blobs, second.blobs) == ([TAKEN_OVER], [], [frames("e1")])


def test_one_that_is_taken_over_leaves_nobody_out(house: House) -> None:
    first = joined(house, FakeMember("one", key="key"))
    second = joined(house, FakeMember("two", key="key"))
    house.hub.leave("ops", first)
    told(house, 1)
    assert second.blobs == [frames("e1")]
    house.hub.leave("ops", second)
    assert house.bus.rooms == {}


def test_one_that_is_taken_over_while_it_is_behind_goes_on_from_there(house: House) -> None:
    slow = Slow("one", house)
    slow.key = "key"
    joined(house, slow)
    told(house, 3)
    second = joined(house, FakeMember("two", key="key"))
    assert (slow.events, second.blobs) == ([TAKEN_OVER], [frames("e1", "e2", "e3")])


def test_one_that_is_taken_over_while_it_joins_is_hung_up_on(house: House) -> None:
    house.member("bob")
    house.bus.answer_at_once = False
    first, second = FakeMember("one", key="key"), FakeMember("two", key="key")
    house.bus.owners["ops", "key"] = "one"
    joins = [house.hub.join("ops", each) for each in (first, second)]
    house.hub.disconnect("ops", "one")
    house.bus.answer()
    assert [each.called for each in joins] == [False, True]
    assert (first.events, second.events) == ([TAKEN_OVER], [])


def test_whom_nobody_knows_has_no_place_to_give_up(house: House) -> None:
    house.member("bob")
    assert house.hub.disconnect("dev", "one") is None
    assert house.hub.disconnect("ops", "one") is None
    assert house.hub.disconnect("ops", "bob") is None
    assert list(house.bus.rooms) == ["ops"]


def test_a_room_whose_only_member_is_taken_over_elsewhere_is_forgotten(house: House) -> None:
    first = joined(house, FakeMember("one", key="key"))
    told(house, 2)
    place = house.hub.disconnect("ops", "one")
    assert place is not None
    assert (place.position, place.sender_id, first.events) == (StreamPosition("e0", 2), "one", [TAKEN_OVER])
    assert house.bus.rooms == {}


def test_one_for_whom_another_came_before_it_had_its_place_is_hung_up_on(house: House) -> None:
    house.bus.claim = lambda room, key, session: fail(TakenOver())  # type: ignore[method-assign]
    late = FakeMember("late", key="key")
    joined = house.hub.join("ops", late)
    assert (late.events, joined.called, house.bus.rooms) == ([TAKEN_OVER], False, {})


def test_places_of_many_are_written_a_part_in_each_turn() -> None:
    house = make_house(Config(flush_interval=0, resume_positions_per_write=2), FakeBus())
    house.hub.start()
    for number in range(5):
        joined(house, FakeMember(f"{number}", key=f"key{number}"))
    told(house, 1)
    happened = list[str]()
    call_later = house.clock.callLater

    def end_turn(seconds: float, *call: Any) -> Any:
        happened.extend(["turn"] * (seconds == 0))
        return call_later(seconds, *call)

    house.bus.save = lambda *_, **__: happened.append("save")  # type: ignore[method-assign]
    house.clock.callLater = end_turn  # type: ignore[assignment, method-assign]
    house.clock.advance(1)
    assert happened == ["save", "save", "turn", "save", "save", "turn", "save"]


def test_places_are_written_down_now_and_then(house: House) -> None:
    house.hub.start()
    joined(house, FakeMember("one", key="key"))
    told(house, 2)
    assert house.bus.places["ops", "key"].position == StreamPosition("e0", 0)
    house.clock.advance(TURNS.resume_position_write_interval)
    assert house.bus.places["ops", "key"].position == StreamPosition("e0", 2)
    house.hub.stop()
    assert house.clock.getDelayedCalls() == []


def test_a_place_does_not_count_what_is_not_delivered_yet(house: House) -> None:
    house.hub.start()
    ann = joined(house, FakeMember("one", key="key"))
    told(house, 2)
    house.bring("e3", number=3)
    house.hub.record_position("ops", ann)
    assert ann.got == StreamPosition("e0", 2)
    house.end_turn()
    house.hub.record_position("ops", ann)
    assert ann.got == StreamPosition("e0", 3)


def test_who_is_not_here_is_told_nothing_of_where_it_is(house: House) -> None:
    stranger = FakeMember("one", key="key")
    house.hub.record_position("ops", stranger)
    house.member("bob")
    house.hub.record_position("ops", stranger)
    assert stranger.got is None


def test_a_place_in_history_that_is_gone_is_told(house: House) -> None:
    house.member("bob")
    first = joined(house, FakeMember("one", key="key"))
    house.hub.leave("ops", first)
    place = house.bus.places["ops", "key"]
    house.bus.restart()
    house.bus.places["ops", "key"] = place
    house.hear("e1", number=1)
    second = joined(house, FakeMember("two", key="key"))
    assert (second.events, second.blobs) == ([OffsetGap("e1", 0, None)], [frames("e1")])
