"""The hub's batches, both ways: how often, what goes together, who gets which part of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.message import Batch, Message
from chatd.wire.text import Dress
from tests.fakes import Events, FakeBus, FakeMember
from tests.room.house import INTERVAL, NOW, PACED, TURNS, Failing, House, batch, frames, make_house

SHORT = INTERVAL / 16


@pytest.fixture
def house() -> House:
    return make_house(TURNS, FakeBus())


@pytest.fixture
def paced() -> House:
    return make_house(PACED, FakeBus())


# How often: what members say


def published(house: House) -> list[list[str]]:
    """Give the texts of each batch that went to the bus."""
    return [[each.text for each in messages] for _, messages in house.bus.published]


def test_an_idle_hub_publishes_at_the_end_of_the_turn(paced: House) -> None:
    ann = paced.member("ann")
    for _ in range(3):
        paced.hub.publish("ops", ann, ["hello"])
        assert len(paced.bus.published) == len(paced.chat.events)
        paced.end_turn()
        assert published(paced)[-1] == ["hello"]
        paced.clock.advance(INTERVAL)
    assert len(published(paced)) == 3


def test_under_load_there_is_one_batch_each_interval(paced: House) -> None:
    ann = paced.member("ann")
    for number in range(48):
        paced.hub.publish("ops", ann, [f"{number}"])
        paced.clock.advance(SHORT)
    sizes = [len(each) for each in published(paced)]
    assert sizes == [1, 16, 16]
    assert [len(each) for each in paced.chat.batches] == sizes
    paced.clock.advance(INTERVAL)
    assert [text for texts in published(paced) for text in texts] == [f"{number}" for number in range(48)]


def test_the_interval_begins_when_a_batch_is_published(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.clock.advance(SHORT)
    paced.hub.publish("ops", ann, ["two"])
    paced.clock.advance(INTERVAL - 2 * SHORT)
    assert published(paced) == [["one"]]
    paced.clock.advance(SHORT)
    assert published(paced) == [["one"], ["two"]]


def test_without_an_interval_each_turn_is_a_batch(house: House) -> None:
    ann = house.member("ann")
    for number in range(3):
        house.hub.publish("ops", ann, [f"{number}"])
        house.hub.publish("ops", ann, [f"{number}'"])
        house.end_turn()
    assert published(house) == [["0", "0'"], ["1", "1'"], ["2", "2'"]]


def test_a_flush_does_not_wait_and_counts_as_a_batch(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.hub.publish("ops", ann, ["two"])
    paced.hub.flush()
    assert published(paced) == [["one"], ["two"]]
    paced.hub.publish("ops", ann, ["three"])
    paced.clock.advance(INTERVAL - SHORT)
    assert len(published(paced)) == 2
    paced.clock.advance(SHORT)
    assert published(paced)[2:] == [["three"]]
    assert paced.clock.getDelayedCalls() == []


def test_all_rooms_of_a_batch_are_published_at_once(paced: House) -> None:
    members = {room: paced.member(f"in {room}", room) for room in ("a", "b", "c")}
    for text in ("1", "2"):
        for room, member in members.items():
            paced.hub.publish(room, member, [f"{room}{text}"])
    paced.end_turn()
    assert published(paced) == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]
    assert len(paced.chat.events) == 1


def test_the_window_counts_what_waits_for_the_interval(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publish("ops", ann, ["first"])
    paced.end_turn()
    paced.bus.space = 10
    paced.hub.publish("ops", ann, ["12345", "67890"])
    paced.clock.advance(SHORT)
    assert not paced.hub.open
    paced.clock.advance(INTERVAL)
    assert paced.hub.open


# How often: what members hear


def test_an_idle_hub_delivers_at_the_end_of_the_turn(paced: House) -> None:
    bob = paced.member("bob")
    for number in range(1, 4):
        paced.hub.deliver(batch(f"{number}", number=number))
        assert len(bob.blobs) == number - 1
        paced.end_turn()
        assert bob.blobs[-1] == frames(f"{number}")
        paced.clock.advance(INTERVAL)


def test_under_load_a_member_gets_one_blob_each_interval(paced: House) -> None:
    bob = paced.member("bob")
    for number in range(48):
        paced.hub.deliver(batch(f"{number}", number=number + 1))
        paced.clock.advance(SHORT)
    assert bob.blobs == [
        frames("0"),
        frames(*[f"{number}" for number in range(1, 17)]),
        frames(*[f"{number}" for number in range(17, 33)]),
    ]
    paced.clock.advance(INTERVAL)
    assert bob.blobs[3:] == [frames(*[f"{number}" for number in range(33, 48)])]
    assert bob.count == 48


def test_without_an_interval_each_turn_is_a_blob(house: House) -> None:
    bob = house.member("bob")
    for number in (1, 3, 5):
        house.hub.deliver(batch(f"{number}", number=number))
        house.hub.deliver(batch(f"{number + 1}", number=number + 1))
        house.end_turn()
    assert bob.blobs == [frames("1", "2"), frames("3", "4"), frames("5", "6")]


def test_what_came_from_the_bus_can_be_had_at_once(paced: House) -> None:
    bob = paced.member("bob")
    paced.hub.deliver(batch("one", number=1))
    paced.end_turn()
    paced.hub.deliver(batch("two", number=2))
    paced.hub.fan_out()
    assert bob.blobs == [frames("one"), frames("two")]
    paced.hub.fan_out()
    assert len(bob.blobs) == 2
    assert paced.clock.getDelayedCalls() == []


def test_saying_and_hearing_do_not_wait_for_each_other(paced: House) -> None:
    ann, bob = paced.member("ann"), paced.member("bob")
    paced.hub.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.bus.pump()
    paced.end_turn()
    assert bob.blobs == [frames("one")]


def test_one_that_left_before_the_interval_was_over_hears_no_more(paced: House) -> None:
    ann, bob = paced.member("ann"), paced.member("bob")
    paced.hub.deliver(batch("one", number=1))
    paced.hub.leave("ops", ann)
    paced.end_turn()
    assert (ann.blobs, bob.blobs) == ([], [frames("one")])


def test_a_batch_that_comes_twice_in_an_interval_is_heard_once(paced: House) -> None:
    bob = paced.member("bob")
    for number in (1, 1, 2, 1, 2):
        paced.hub.deliver(batch(f"{number}", number=number))
    paced.end_turn()
    assert bob.blobs == [frames("1", "2")]


class Watching(FakeMember):
    """A member that notes how many batches were published when it heard something."""

    def __init__(self, name: str, house: House) -> None:
        super().__init__(name)
        self.house = house
        self.published: list[int] = []

    def deliver(self, blob: bytes, count: int) -> None:
        self.published.append(len(self.house.bus.published))


def test_what_is_due_is_published_before_what_came_is_delivered(paced: House) -> None:
    watching = Watching("bob", paced)
    paced.hub.join("ops", watching)
    paced.hub.deliver(batch("one", number=1))
    paced.hub.publish("ops", paced.member("ann"), ["two"])
    paced.end_turn()
    assert watching.published == [1]
    assert published(paced) == [["two"]]


def test_delivering_publishes_nothing_before_its_time(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.hub.publish("ops", ann, ["two"])
    paced.hub.deliver(batch("three", number=1))
    paced.end_turn()
    assert ann.blobs == [frames("three")]
    assert published(paced) == [["one"]]
    paced.clock.advance(INTERVAL)
    assert published(paced) == [["one"], ["two"]]


# What goes together


def test_batches_of_a_room_are_one_blob_in_their_order(house: House) -> None:
    bob, eve = house.member("bob"), house.member("eve")
    house.hub.deliver(batch("1", "2", number=1, publisher="w1"))
    house.hub.deliver(batch("3", number=1, publisher="w2"))
    house.hub.deliver(batch("4", "5", number=2, publisher="w1"))
    house.end_turn()
    assert bob.blobs == [frames("1", "2", "3", "4", "5")]
    assert bob.blobs[0] is eve.blobs[0]
    assert (bob.count, eve.count) == (5, 5)


def test_batches_of_several_rooms_in_one_go_stay_apart(house: House) -> None:
    ops, dev = house.member("in ops", "ops"), house.member("in dev", "dev")
    for number in range(1, 5):
        house.hub.deliver(batch(f"ops {number}", number=number, room="ops"))
        house.hub.deliver(batch(f"dev {number}", number=number, room="dev"))
    house.end_turn()
    assert ops.blobs == [frames("ops 1", "ops 2", "ops 3", "ops 4")]
    assert dev.blobs == [frames("dev 1", "dev 2", "dev 3", "dev 4")]


def test_own_lines_are_cut_out_where_several_authors_are_in_several_batches(house: House) -> None:
    ann, bob, eve, dan = house.member("ann"), house.member("bob"), house.member("eve", echo=True), house.member("dan")
    said = [("ann", ["a1", "a2"]), ("bob", ["b1"]), ("eve", ["e1"]), ("ann", ["a3"]), ("bob", ["b2", "b3"])]
    for number, (author, texts) in enumerate(said, 1):
        house.hub.deliver(batch(*texts, number=number, author=author))
    house.end_turn()
    assert ann.blobs == [frames("b1", "e1", "b2", "b3")]
    assert bob.blobs == [frames("a1", "a2", "e1", "a3")]
    assert eve.blobs == dan.blobs == [frames("a1", "a2", "b1", "e1", "a3", "b2", "b3")]
    assert [each.count for each in (ann, bob, eve, dan)] == [4, 4, 7, 7]


def test_one_that_said_all_of_it_gets_nothing(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.deliver(batch("1", number=1, author="ann"))
    house.hub.deliver(batch("2", "3", number=2, author="ann"))
    house.end_turn()
    assert (ann.blobs, ann.count) == ([], 0)
    assert bob.blobs == [frames("1", "2", "3")]


def again(*messages: Message, number: int) -> Batch:
    return Batch("ops", "f", 1, "w", number, messages, again=True)


def said_at(seconds: float, text: str, author: str = "elsewhere") -> Message:
    return Message(f"{author}.{text}", int((NOW + seconds) * 1000), author, text)


def test_what_comes_again_keeps_its_place_between_what_is_new(house: House) -> None:
    bob = house.member("bob")
    house.hub.deliver(batch("1", number=1))
    house.hub.deliver(batch("2", number=2))
    house.hub.deliver(again(said_at(-5, "before bob"), said_at(1, "3"), said_at(1, "bob's", "bob"), number=3))
    house.hub.deliver(batch("4", number=4))
    house.hub.deliver(again(said_at(2, "5"), number=5))
    house.hub.deliver(again(said_at(2, "6"), number=6))
    house.end_turn()
    assert b"".join(bob.blobs) == frames("1", "2", "3", "4", "5", "6")
    assert bob.count == 6


def test_what_comes_again_is_for_those_who_were_there_and_the_rest_for_all(house: House) -> None:
    early = house.member("early")
    house.hub._now = lambda: NOW + 10
    late, loud = house.member("late"), house.member("loud", echo=True)
    house.hub.deliver(batch("new", number=1))
    house.hub.deliver(again(said_at(5, "old"), said_at(11, "loud's", "loud"), number=2))
    house.end_turn()
    assert b"".join(early.blobs) == frames("new", "old", "loud's")
    assert b"".join(late.blobs) == b"".join(loud.blobs) == frames("new", "loud's")


def test_nothing_comes_again_for_one_that_was_not_there(house: House) -> None:
    bob = house.member("bob")
    house.hub.deliver(again(said_at(-1, "old"), number=1))
    house.end_turn()
    assert bob.blobs == []


def test_one_that_fails_at_what_comes_again_does_not_stop_the_others(house: House, events: Events) -> None:
    bad = Failing("bad")
    house.hub.join("ops", bad)
    bob = house.member("bob")
    house.hub.deliver(again(said_at(1, "one"), number=1))
    house.end_turn()
    assert (bob.blobs, len(bad.events)) == ([frames("one")], 1)
    assert events.said == [("critical", "a batch was not delivered to bad")]


# Dresses


class Counting(Dress):
    """A dress that counts how often it is asked."""

    def __init__(self, sign: str) -> None:
        super().__init__(lambda message: f"{sign}{message.text}", lambda payload: payload + b"\n")
        self.framed: list[int] = []

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        self.framed.append(len(messages))
        return super().frames(messages)


def dressed(house: House, name: str, dress: Dress, **options: Any) -> FakeMember:
    member = FakeMember(name, dress=dress, **options)
    house.hub.join("ops", member)
    return member


def test_each_member_gets_messages_in_its_dress(house: House) -> None:
    plus, minus = Counting("+"), Counting("-")
    members = [dressed(house, f"{number}", dress) for number, dress in enumerate((plus, minus, plus, minus))]
    bob = house.member("bob")
    house.hub.deliver(batch("one", "two", number=1))
    house.end_turn()
    assert [each.blobs for each in members] == [[b"+one\n+two\n"], [b"-one\n-two\n"]] * 2
    assert bob.blobs == [frames("one", "two")]


def test_a_batch_is_framed_once_a_dress_also_where_authors_are_in_it(house: House) -> None:
    plus, minus = Counting("+"), Counting("-")
    for number in range(10):
        dressed(house, f"p{number}", plus)
        dressed(house, f"m{number}", minus)
    author = dressed(house, "author", plus)
    house.hub.deliver(batch("mine", number=1, author="author"))
    house.hub.deliver(batch("one", "two", number=2))
    house.end_turn()
    assert (plus.framed, minus.framed) == ([3], [3])
    assert author.blobs == [b"+one\n+two\n"]


def test_a_dress_that_nobody_wears_any_more_is_not_asked(house: House) -> None:
    plus = Counting("+")
    ann = dressed(house, "ann", plus)
    house.member("bob")
    house.hear("one", number=1)
    house.hub.leave("ops", ann)
    house.hear("two", number=2)
    assert plus.framed == [1]


def test_those_who_come_later_are_delivered_to_as_well(house: House) -> None:
    plus = Counting("+")
    ann = dressed(house, "ann", plus)
    house.hear("one", number=1)
    bob, eve = dressed(house, "bob", plus), house.member("eve")
    house.hear("two", number=2)
    assert ann.blobs == [b"+one\n", b"+two\n"]
    assert (bob.blobs, eve.blobs) == ([b"+two\n"], [frames("two")])


# Any of it

NAMES = ["ann", "bob", "eve", "dan", "elsewhere"]
SAID = st.tuples(st.sampled_from(NAMES), st.integers(-1, 1))
HEARD = st.lists(
    st.tuples(st.sampled_from(["ops", "dev"]), st.lists(SAID, max_size=4), st.booleans(), st.booleans()), max_size=12
)
MEMBERS = st.dictionaries(
    st.sampled_from(NAMES[:-1]), st.tuples(st.sampled_from(["ops", "dev"]), st.booleans()), max_size=4
)


@given(MEMBERS, HEARD, st.sampled_from([TURNS, PACED]))
@settings(max_examples=150)
def test_everybody_hears_what_is_for_them_once_and_in_order(
    members: dict[str, tuple[str, bool]],
    heard: list[tuple[str, list[tuple[str, int]], bool, bool]],
    config: Any,
) -> None:
    house = make_house(replace(config), FakeBus())
    joined = {name: house.member(name, room, echo=echo) for name, (room, echo) in members.items()}
    expected: dict[str, list[str]] = {name: [] for name in joined}
    for number, (room, said, is_again, turn_ends) in enumerate(heard, 1):
        messages = tuple(said_at(when, f"{number}.{place}", who) for place, (who, when) in enumerate(said))
        house.hub.deliver(Batch(room, "e", 1, "w", number, messages, again=is_again))
        for name, (where, echo) in members.items():
            expected[name] += [
                message.text
                for message, (who, when) in zip(messages, said, strict=True)
                if where == room and (who != name or echo) and (not is_again or when >= 0)
            ]
        if turn_ends:
            house.clock.advance(SHORT)
    house.clock.advance(INTERVAL)
    assert {name: b"".join(member.blobs) for name, member in joined.items()} == {
        name: frames(*texts) for name, texts in expected.items()
    }
    assert {name: member.count for name, member in joined.items()} == {
        name: len(texts) for name, texts in expected.items()
    }
    assert house.clock.getDelayedCalls() == []


def test_what_was_heard_is_fanned_out_at_once_where_it_gets_large(house: House) -> None:
    bob = house.member("bob")
    large = Batch("ops", "e", 1, "w", 1, (Message("w.1.1", 0, "elsewhere", "x"),), size=TURNS.batch_bytes)
    house.hub.deliver(large)
    assert bob.blobs == [frames("x")]
