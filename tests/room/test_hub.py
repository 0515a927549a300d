"""The hub, on a bus in memory: who hears what, in which order, and who is told what went wrong."""

from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred

from chatd.closing import LOG_AWAY, OUR_FAULT
from chatd.config import Config
from chatd.message import Batch, Message
from chatd.room.chatlog import Entry
from chatd.room.outbox import NotPublished, Position
from tests.fakes import Events, FakeBus, FakeMember
from tests.room.house import NOW, TURNS, Failing, House, batch, frames, make_house


@pytest.fixture
def house() -> House:
    return make_house(TURNS, FakeBus())


# Who hears what


def test_a_message_reaches_all_others_in_the_room(house: House) -> None:
    ann, bob, eve = house.member("ann"), house.member("bob"), house.member("eve")
    house.hub.publish("ops", ann, ["hello"])
    house.go_round()
    assert (ann.blobs, bob.blobs, eve.blobs) == ([], [frames("hello")], [frames("hello")])


def test_nothing_is_delivered_around_the_bus(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publish("ops", ann, ["hello"])
    house.end_turn()
    assert bob.blobs == []


def test_a_member_with_echo_hears_its_own_messages(house: House) -> None:
    ann, bob = house.member("ann", echo=True), house.member("bob")
    house.hub.publish("ops", ann, ["hello"])
    house.go_round()
    assert (ann.blobs, bob.blobs) == ([frames("hello")], [frames("hello")])


@pytest.mark.parametrize("text", ["007", "1_000", "1.50", "👋 Å", "a\nb", "\x1b[2J\0", " "])
def test_text_goes_out_as_it_came_in(house: House, text: str) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publish("ops", ann, [text])
    house.go_round()
    assert bob.blobs == [frames(text)]


def test_a_batch_is_one_blob(house: House) -> None:
    bob = house.member("bob")
    house.hear("one", "two", "three", number=1)
    assert bob.blobs == [frames("one", "two", "three")]
    assert bob.count == 3


def test_all_get_the_same_blob_object(house: House) -> None:
    bob, eve = house.member("bob"), house.member("eve")
    house.hear("one", "two", number=1)
    assert bob.blobs[0] is eve.blobs[0]


def test_of_a_mixed_batch_an_author_hears_the_others_in_order(house: House) -> None:
    ann, bob, eve = house.member("ann"), house.member("bob"), house.member("eve", echo=True)
    for author, text in ((ann, "a1"), (bob, "b1"), (eve, "e1"), (ann, "a2")):
        house.hub.publish("ops", author, [text])
    house.go_round()
    assert ann.blobs == [frames("b1", "e1")]
    assert (ann.count, bob.count, eve.count) == (2, 3, 4)
    assert bob.blobs == [frames("a1", "e1", "a2")]
    assert eve.blobs == [frames("a1", "b1", "e1", "a2")]


def test_two_rooms_do_not_mix(house: House) -> None:
    ann, bob = house.member("ann", "ops"), house.member("bob", "ops")
    eve, dan = house.member("eve", "dev"), house.member("dan", "dev")
    house.hub.publish("ops", ann, ["for ops"])
    house.hub.publish("dev", eve, ["for dev"])
    house.go_round()
    assert [each.blobs for each in (ann, bob, eve, dan)] == [[], [frames("for ops")], [], [frames("for dev")]]


def test_a_batch_of_a_room_without_members_is_dropped(house: House) -> None:
    bob = house.member("bob")
    house.hear("hello", room="nobody", number=1)
    assert bob.blobs == []


def test_one_failing_member_does_not_stop_the_others(house: House, events: Events) -> None:
    bad = Failing("bad")
    house.hub.join("ops", bad)
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]
    assert bad.events == [OUR_FAULT]  # it is not left to miss the rest in silence
    assert events.said == [("critical", "a batch was not delivered to bad")]


def test_a_member_may_leave_while_a_batch_is_delivered(house: House) -> None:
    class Leaving(FakeMember):
        def deliver(self, blob: bytes, count: int) -> None:
            house.hub.leave("ops", self)

    house.hub.join("ops", Leaving("shy"))
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]


def test_one_that_leaves_and_then_fails_does_not_stop_the_others(house: House, events: Events) -> None:
    class Leaving(FakeMember):
        def deliver(self, blob: bytes, count: int) -> None:
            house.hub.leave("ops", self)
            raise RuntimeError("no")

    house.hub.join("ops", Leaving("shy"))
    bob = house.member("bob")
    house.hear("one", number=1)
    assert bob.blobs == [frames("one")]
    assert events.said == [("critical", "a batch was not delivered to shy")]


def test_several_messages_of_one_author_at_a_time_are_one_entry_and_numbered_in_their_order(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publish("ops", ann, ["one", "two", "three"])
    house.hub.publish("ops", bob, ["four"])
    house.go_round()
    assert house.chat.batches == [["one", "two", "three", "four"]]
    assert [len(entry.messages) for entry in house.chat.events[0]["entries"]] == [3, 1]
    [(_, messages)] = house.bus.published
    assert [each.id for each in messages] == ["ann.1", "ann.2", "ann.3", "bob.4"]
    assert (ann.blobs, bob.blobs) == ([frames("four")], [frames("one", "two", "three")])


# Batches that come again


def test_a_batch_that_comes_again_is_dropped(house: House) -> None:
    bob = house.member("bob")
    house.hear("one", number=7)
    house.hear("one", number=7)
    house.hear("two", number=8)
    house.hear("one", number=7)
    assert bob.blobs == [frames("one"), frames("two")]


def test_what_is_published_again_is_only_for_those_who_were_there(house: House) -> None:
    bob = house.member("bob")
    joined = int(NOW * 1000)
    said = [("before", joined - 1, "w"), ("his own", joined, "bob"), ("missed", joined, "w")]
    messages = tuple(Message(f"w.{text}", time, session, text) for text, time, session in said)
    house.hub.deliver(Batch("ops", "f", 1, "w", 1, messages, again=True))
    house.end_turn()
    assert bob.blobs == [frames("missed")]
    assert bob.count == 1


def test_what_is_published_again_and_was_heard_is_known(house: House) -> None:
    bob = house.member("bob")
    messages = (Message("w.1", int(NOW * 1000), "w", "once"),)
    house.hub.deliver(Batch("ops", "e", 1, "w", 1, messages))
    house.hub.deliver(Batch("ops", "f", 1, "w", 1, messages, again=True))
    house.end_turn()
    assert bob.blobs == [frames("once")]


def test_publishers_count_apart(house: House) -> None:
    bob = house.member("bob")
    house.hear("one", number=7, publisher="w1")
    house.hear("two", number=7, publisher="w2")
    assert bob.blobs == [frames("one"), frames("two")]


def test_rooms_count_apart(house: House) -> None:
    bob, eve = house.member("bob", "ops"), house.member("eve", "dev")
    house.hear("one", number=8, room="ops")
    house.hear("two", number=7, room="dev")
    assert (bob.blobs, eve.blobs) == ([frames("one")], [frames("two")])


def test_of_too_many_publishers_the_one_longest_silent_is_forgotten() -> None:
    house = make_house(Config(flush_interval=0, publishers_known=2), FakeBus())
    bob = house.member("bob")
    house.hear("one", number=1, publisher="w1")
    house.hear("two", number=1, publisher="w2")
    house.hear("three", number=2, publisher="w1")
    house.hear("four", number=1, publisher="w3")
    house.hear("again", number=2, publisher="w1")
    assert bob.blobs == [frames("one"), frames("two"), frames("three"), frames("four")]
    house.hear("forgotten", number=1, publisher="w2")
    assert bob.blobs[-1] == frames("forgotten")


# Coming and going


def test_a_join_waits_for_the_subscription(house: House) -> None:
    house.bus.confirm_at_once = False
    ann = FakeMember("ann")
    joined = house.hub.join("ops", ann)
    house.hear("too early", number=1)
    assert not joined.called
    house.bus.confirm("ops")
    assert joined.called
    house.hear("in time", number=2)
    assert ann.blobs == [frames("in time")]


def test_a_member_hears_what_comes_in_the_turn_its_join_fires(house: House) -> None:
    ann = FakeMember("ann")
    house.bus.confirm_at_once = False
    house.hub.join("ops", ann).addCallback(lambda _: house.hear("at once", number=1))
    house.bus.confirm("ops")
    assert ann.blobs == [frames("at once")]


def test_one_that_leaves_while_joining_never_hears_anything(house: House) -> None:
    house.bus.confirm_at_once = False
    bob, ann = FakeMember("bob"), FakeMember("ann")
    house.hub.join("ops", bob)
    joined = house.hub.join("ops", ann)
    house.hub.leave("ops", ann)
    house.bus.confirm("ops")
    house.hear("hello", number=1)
    assert (joined.called, ann.blobs, bob.blobs) == (False, [], [frames("hello")])


def test_a_room_whose_only_member_leaves_while_joining_is_unsubscribed(house: House) -> None:
    house.bus.confirm_at_once = False
    ann = FakeMember("ann")
    house.hub.join("ops", ann)
    house.hub.leave("ops", ann)
    assert house.bus.rooms == {}


def test_one_that_comes_back_while_its_first_join_was_not_confirmed_joins_once(house: House) -> None:
    house.bus.confirm_at_once = False
    bob, ann = FakeMember("bob"), FakeMember("ann")
    house.hub.join("ops", bob)
    house.hub.join("ops", ann)
    house.hub.leave("ops", ann)
    joined = house.hub.join("ops", ann)
    house.bus.confirm("ops")
    house.hear("hello", number=1)
    assert (joined.called, ann.blobs) == (True, [frames("hello")])


def test_one_that_left_hears_no_more(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.leave("ops", ann)
    house.hear("hello", number=1)
    assert (ann.blobs, bob.blobs) == ([], [frames("hello")])


def test_an_empty_room_is_unsubscribed_and_forgotten(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.leave("ops", ann)
    assert list(house.bus.rooms) == ["ops"]
    house.hub.leave("ops", bob)
    assert house.bus.rooms == {}
    house.hear("hello", number=1)
    assert (ann.blobs, bob.blobs) == ([], [])


def test_what_came_for_a_room_that_was_forgotten_meanwhile_is_not_for_those_who_made_it_anew(house: House) -> None:
    ann = house.member("ann")
    house.hub.deliver(batch("for ann", number=1))
    house.hub.leave("ops", ann)
    bob = house.member("bob")
    house.end_turn()
    assert (ann.blobs, bob.blobs) == ([], [])
    house.hear("hello", number=2)
    assert bob.blobs == [frames("hello")]


def test_a_forgotten_room_can_be_joined_again(house: House) -> None:
    ann = house.member("ann")
    house.hub.leave("ops", ann)
    bob = house.member("bob")
    house.hear("hello", number=1)
    assert bob.blobs == [frames("hello")]


def test_leaving_a_room_nobody_is_in_does_nothing(house: House) -> None:
    house.hub.leave("ops", FakeMember("ann"))
    assert house.bus.rooms == {}


# Logged, then published


def test_a_message_is_logged_before_it_is_published(house: House) -> None:
    house.hub.publish("ops", house.member("ann"), ["hello"])
    house.end_turn()
    assert house.chat.batches == [["hello"]]
    assert house.chat.published_before == [0]
    assert len(house.bus.published) == 1


def test_a_message_has_room_address_author_time_and_an_id_of_its_own(house: House) -> None:
    ann = house.member("ann")
    house.hub.publish("ops", ann, ["one"])
    house.hub.publish("ops", ann, ["two"])
    house.end_turn()
    first, second = house.chat.events[0]["entries"]
    assert first == Entry("ops", "192.0.2.1", [Message("ann.1", 1_795_379_625_123, "ann", "one")])
    assert first.messages[0].id != second.messages[0].id
    assert house.bus.published == [("ops", [*first.messages, *second.messages])]


def test_a_turn_is_one_write_to_the_log_and_one_batch_a_room(house: House) -> None:
    ann, eve = house.member("ann", "ops"), house.member("eve", "dev")
    for member, room, text in ((ann, "ops", "1"), (eve, "dev", "2"), (ann, "ops", "3")):
        house.hub.publish(room, member, [text])
    assert len(house.clock.getDelayedCalls()) == 1
    house.end_turn()
    assert house.chat.batches == [["1", "2", "3"]]
    published = [(room, [message.text for message in messages]) for room, messages in house.bus.published]
    assert published == [("ops", ["1", "3"]), ("dev", ["2"])]


def test_each_turn_is_flushed(house: House) -> None:
    ann = house.member("ann")
    for text in ("one", "two"):
        house.hub.publish("ops", ann, [text])
        house.end_turn()
    assert house.chat.batches == [["one"], ["two"]]


def test_an_idle_flush_neither_logs_nor_publishes(house: House) -> None:
    house.hub.flush()
    assert (house.chat.batches, house.bus.published) == ([], [])


def test_what_cannot_be_logged_is_refused_and_not_published(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.chat.broken = True
    house.hub.publish("ops", ann, ["one"])
    house.hub.publish("ops", ann, ["two"])
    house.hub.publish("ops", bob, ["three"])
    house.go_round()
    assert house.bus.published == []
    assert (ann.events, bob.events) == ([LOG_AWAY], [LOG_AWAY])
    assert (ann.blobs, bob.blobs) == ([], [])


def test_the_next_turn_is_taken_when_the_log_is_back(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.chat.broken = True
    house.hub.publish("ops", ann, ["lost"])
    house.end_turn()
    house.chat.broken = False
    house.hub.publish("ops", ann, ["kept"])
    house.go_round()
    assert bob.blobs == [frames("kept")]


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(NotPublished("no"), "refused"), (NotPublished("the server stopped", unknown=True), "unknown")],
)
def test_what_was_not_published_gets_a_second_line_and_is_refused(
    house: House, refusal: NotPublished, outcome: str
) -> None:
    ann = house.member("ann")
    house.bus.refuse = refusal
    house.hub.publish("ops", ann, ["one"])
    house.hub.publish("ops", ann, ["two"])
    house.end_turn()
    taken, second = house.chat.events
    assert second["outcome"] == outcome
    assert second["entries"] == taken["entries"]
    assert second["now"] == 1_795_379_625_123
    assert ann.events == [OUR_FAULT]


def test_only_the_room_that_was_not_published_is_refused() -> None:
    class Choosy(FakeBus):
        def publish(self, room: str, messages: Sequence[Message]) -> "Deferred[Position]":
            self.refuse = NotPublished("no") if room == "dev" else None
            return super().publish(room, messages)

    house = make_house(TURNS, Choosy())
    ann, eve = house.member("ann", "ops"), house.member("eve", "dev")
    house.hub.publish("ops", ann, ["one"])
    house.hub.publish("dev", eve, ["two"])
    house.end_turn()
    assert (ann.events, eve.events) == ([], [OUR_FAULT])
    assert house.chat.batches == [["one", "two"], ["two"]]


def test_a_second_line_that_cannot_be_logged_is_said_and_the_author_told(house: House, events: Events) -> None:
    ann = house.member("ann")
    house.bus.refuse = NotPublished("no")
    house.chat.takes_outcomes = False
    house.hub.publish("ops", ann, ["one"])
    house.end_turn()
    assert ann.events == [OUR_FAULT]
    assert events.said == [("error", "1 messages in the chat log were not published")]


# Waiting


def test_the_hub_is_open_while_the_bus_is(house: House) -> None:
    assert (house.hub.open, house.hub.away) == (True, "")
    house.bus.full = True
    assert (house.hub.open, house.hub.away) == (False, "")
    house.bus.full, house.bus.away = False, "gone"
    assert (house.hub.open, house.hub.away) == (False, "gone")


def test_one_turn_takes_no_more_than_the_window_has_room_for(house: House) -> None:
    ann = house.member("ann")
    house.bus.space = 10
    house.hub.publish("ops", ann, ["12345"])
    assert house.hub.open
    house.hub.publish("ops", ann, ["67890"])
    assert not house.hub.open
    house.end_turn()
    assert house.hub.open


def test_a_member_that_waits_for_a_full_turn_carries_on_once_that_is_published(house: House) -> None:
    published: list[int] = []

    class Waiting(FakeMember):
        def carry_on(self) -> None:
            published.append(len(house.bus.published))

    ann = house.member("ann")
    house.bus.space = 1
    house.hub.publish("ops", ann, ["12345"])
    house.hub.wait(Waiting("bob"))
    assert published == []
    house.end_turn()
    assert published == [1]


def test_those_who_wait_carry_on_in_order_when_the_window_opens(house: House) -> None:
    order: list[str] = []

    class Waiting(FakeMember):
        def carry_on(self) -> None:
            order.append(self.id)

    house.bus.full = True
    for name in ("ann", "bob", "eve"):
        house.hub.wait(Waiting(name))
    house.hub.bus_changed()
    assert order == []
    house.bus.full = False
    house.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]
    house.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]


def test_one_that_fills_the_window_keeps_the_others_waiting_in_their_order(house: House) -> None:
    order: list[str] = []

    class Filling(FakeMember):
        def carry_on(self) -> None:
            order.append(self.id)
            house.bus.full = True

    house.bus.full = True
    for name in ("ann", "bob", "eve"):
        house.hub.wait(Filling(name))
    for _ in range(3):
        house.bus.full = False
        house.hub.bus_changed()
    assert order == ["ann", "bob", "eve"]


def test_one_that_must_wait_again_comes_after_those_who_waited_longer(house: House) -> None:
    order: list[str] = []

    class Greedy(FakeMember):
        def carry_on(self) -> None:
            order.append(self.id)
            house.bus.full = True
            house.hub.wait(self)

    house.bus.full = True
    for name in ("ann", "bob"):
        house.hub.wait(Greedy(name))
    for _ in range(4):
        house.bus.full = False
        house.hub.bus_changed()
    assert order == ["ann", "bob", "ann", "bob"]


def test_those_who_wait_are_told_that_the_bus_is_away_and_go_on_waiting(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.bus.away = "gone"
    house.hub.wait(ann)
    house.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away"], [])
    house.bus.away = ""
    house.hub.bus_changed()
    assert (ann.events, bob.events) == (["bus away", "carry on"], [])


def test_one_that_stops_waiting_is_told_nothing(house: House) -> None:
    ann = house.member("ann")
    house.bus.full = True
    house.hub.wait(ann)
    house.hub.stop_waiting(ann)
    house.hub.stop_waiting(ann)
    house.bus.full = False
    house.hub.bus_changed()
    assert ann.events == []


def test_one_that_another_made_stop_waiting_does_not_carry_on(house: House) -> None:
    bob = house.member("bob")

    class Last(FakeMember):
        def carry_on(self) -> None:
            house.hub.stop_waiting(bob)

    house.bus.full = True
    house.hub.wait(Last("ann"))
    house.hub.wait(bob)
    house.bus.full = False
    house.hub.bus_changed()
    assert bob.events == []


def test_a_hub_on_hold_takes_no_more_but_publishes_what_it_has(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publish("ops", ann, ["last"])
    house.hub.hold()
    house.hub.wait(ann)
    house.hub.bus_changed()
    assert not house.hub.open
    house.go_round()
    assert bob.blobs == [frames("last")]
    assert ann.events == []
