"""The hub, on a bus in memory: who hears what from when on, how often, and what goes together."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from chatd.broker.resume_positions import KeyContested
from chatd.config.settings import Config
from chatd.monitoring.metrics import HELD_BYTES
from chatd.protocol.close_codes import BUS_AWAY, WRITES_REFUSED
from chatd.protocol.message import Batch, HistoryPage, HistoryRange, Message, StreamPosition
from tests.fakes import Comparing, Events, FakeBus, FakeMember
from tests.rooms.house import INTERVAL, PACED, TURNS, House, frames, make_house
from tests.rows import rows

SHORT = INTERVAL / 16


@pytest.fixture
def house() -> House:
    return make_house(TURNS, FakeBus())


@pytest.fixture
def paced() -> House:
    return make_house(PACED, FakeBus())


def test_a_message_reaches_all_others_in_the_room(house: House) -> None:
    ann, bob, eve = house.member("ann"), house.member("bob"), house.member("eve")
    house.hub.publisher.publish("ops", ann, ["hello"])
    house.go_round()
    assert (ann.blobs, bob.blobs, eve.blobs) == ([], [frames("hello")], [frames("hello")])


def test_nothing_is_delivered_around_the_bus(house: House) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publisher.publish("ops", ann, ["hello"])
    house.end_turn()
    assert bob.blobs == []


def test_a_member_with_echo_hears_its_own_messages(house: House) -> None:
    ann, bob = house.member("ann", echo=True), house.member("bob")
    house.hub.publisher.publish("ops", ann, ["hello"])
    house.go_round()
    assert (ann.blobs, bob.blobs) == ([frames("hello")], [frames("hello")])


@pytest.mark.parametrize("text", ["007", "1_000", "1.50", "👋 Å", "a\nb", "\x1b[2J\0", " "])
def test_text_goes_out_as_it_came_in(house: House, text: str) -> None:
    ann, bob = house.member("ann"), house.member("bob")
    house.hub.publisher.publish("ops", ann, [text])
    house.go_round()
    assert bob.blobs == [frames(text)]


def test_a_batch_is_one_blob(house: House) -> None:
    bob = house.member("bob")
    house.hear("one", "two", "three", number=1)
    assert bob.blobs == [frames("one", "two", "three")]
    assert bob.count == 3


def test_two_rooms_do_not_mix(house: House) -> None:
    ann, bob = house.member("ann", "ops"), house.member("bob", "ops")
    eve, dan = house.member("eve", "dev"), house.member("dan", "dev")
    house.hub.publisher.publish("ops", ann, ["for ops"])
    house.hub.publisher.publish("dev", eve, ["for dev"])
    house.go_round()
    assert [each.blobs for each in (ann, bob, eve, dan)] == [[], [frames("for ops")], [], [frames("for dev")]]


def test_a_batch_of_a_room_without_members_is_dropped(house: House) -> None:
    bob = house.member("bob")
    house.hear("hello", room="nobody", number=1)
    assert bob.blobs == []


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


def test_while_writes_are_refused_members_without_a_nick_join_and_one_with_a_nick_waits(house: House) -> None:
    house.bus.away = house.bus.refusing = "READONLY"
    pipe, program, person = (
        FakeMember("a"),
        FakeMember("b", receives_presence=True),
        FakeMember("c", nick="ann", receives_presence=True),
    )
    joined = [house.hub.join("ops", each) for each in (pipe, program, person)]
    house.end_turn()
    assert [each.called for each in joined] == [True, True, False]
    assert house.hub.why_not_joined() == WRITES_REFUSED
    house.hear("hello", number=1)
    assert (pipe.blobs, program.blobs, person.blobs) == ([frames("hello")], [frames("hello")], [])
    house.bus.away = house.bus.refusing = ""
    assert house.hub.why_not_joined() == BUS_AWAY


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
    house.bring("for ann", number=1)
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


def test_an_idle_hub_delivers_at_the_end_of_the_turn(paced: House) -> None:
    bob = paced.member("bob")
    for number in range(1, 4):
        paced.bring(f"{number}", number=number)
        assert len(bob.blobs) == number - 1
        paced.end_turn()
        assert bob.blobs[-1] == frames(f"{number}")
        paced.clock.advance(INTERVAL)


def test_under_load_a_member_gets_one_blob_each_interval(paced: House) -> None:
    bob = paced.member("bob")
    for number in range(48):
        paced.bring(f"{number}", number=number + 1)
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
        house.bring(f"{number}", number=number)
        house.bring(f"{number + 1}", number=number + 1)
        house.end_turn()
    assert bob.blobs == [frames("1", "2"), frames("3", "4"), frames("5", "6")]


def test_what_came_from_the_bus_can_be_had_at_once(paced: House) -> None:
    bob = paced.member("bob")
    paced.bring("one", number=1)
    paced.end_turn()
    paced.bring("two", number=2)
    paced.hub.broadcast()
    assert bob.blobs == [frames("one"), frames("two")]
    paced.hub.broadcast()
    assert len(bob.blobs) == 2
    assert paced.clock.getDelayedCalls() == []


def test_saying_and_hearing_do_not_wait_for_each_other(paced: House) -> None:
    ann, bob = paced.member("ann"), paced.member("bob")
    paced.hub.publisher.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.bus.pump()
    paced.end_turn()
    assert bob.blobs == [frames("one")]


def test_one_that_left_before_the_interval_was_over_hears_no_more(paced: House) -> None:
    ann, bob = paced.member("ann"), paced.member("bob")
    paced.bring("one", number=1)
    paced.hub.leave("ops", ann)
    paced.end_turn()
    assert (ann.blobs, bob.blobs) == ([], [frames("one")])


class Watching(FakeMember):
    """A member that notes how many batches were published when it heard something."""

    def __init__(self, name: str, house: House) -> None:
        super().__init__(name)
        self.house = house
        self.published: list[int] = []

    def deliver(self, blob: bytes, count: int) -> bool:
        self.published.append(len(self.house.bus.published))
        return True


def test_what_is_due_is_published_before_what_came_is_delivered(paced: House) -> None:
    watching, ann = Watching("bob", paced), paced.member("ann")
    paced.hub.join("ops", watching)
    paced.bring("one", number=1)
    paced.hub.publisher.publish("ops", ann, ["two"])
    paced.end_turn()
    assert watching.published == [1]
    assert paced.published == [["two"]]


def test_delivering_publishes_nothing_before_its_time(paced: House) -> None:
    ann = paced.member("ann")
    paced.hub.publisher.publish("ops", ann, ["one"])
    paced.end_turn()
    paced.hub.publisher.publish("ops", ann, ["two"])
    paced.bring("three", number=1)
    paced.end_turn()
    assert ann.blobs == [frames("three")]
    assert paced.published == [["one"]]
    paced.clock.advance(INTERVAL)
    assert paced.published == [["one"], ["two"]]


def test_batches_of_a_room_are_one_blob_in_their_order(house: House) -> None:
    bob, eve = house.member("bob"), house.member("eve")
    house.bring("1", "2", number=1, publisher="w1")
    house.bring("3", number=1, publisher="w2")
    house.bring("4", "5", number=2, publisher="w1")
    house.end_turn()
    assert bob.blobs == [frames("1", "2", "3", "4", "5")]
    assert bob.blobs[0] is eve.blobs[0]
    assert (bob.count, eve.count) == (5, 5)


def test_batches_of_several_rooms_in_one_go_stay_apart(house: House) -> None:
    ops, dev = house.member("in ops", "ops"), house.member("in dev", "dev")
    for number in range(1, 5):
        house.bring(f"ops {number}", number=number, room="ops")
        house.bring(f"dev {number}", number=number, room="dev")
    house.end_turn()
    assert ops.blobs == [frames("ops 1", "ops 2", "ops 3", "ops 4")]
    assert dev.blobs == [frames("dev 1", "dev 2", "dev 3", "dev 4")]


def test_what_was_heard_is_fanned_out_at_once_where_it_gets_large(house: House) -> None:
    bob = house.member("bob")
    large = Batch("ops", "e0", 1, "w", 1, (Message("w.1.1", 0, "elsewhere", "x"),), size=TURNS.batch_bytes)
    house.hub.deliver(large)
    assert bob.blobs == [frames("x")]


@rows(("members", "times"), [(2, 1), (3, 0)])
def test_a_few_with_a_key_learn_soon_how_far_they_have_come(members: int, times: int) -> None:
    house = make_house(replace(TURNS, resume_position_prompt_subscribers=2), FakeBus())
    keyed = [FakeMember(str(number), key=f"key {number}") for number in range(members)]
    for member in keyed:
        house.hub.join("ops", member)
    house.hear("a", number=1)
    house.hear("b", number=2)
    house.clock.advance(TURNS.resume_position_send_delay)
    assert [member.early for member in keyed] == [[StreamPosition("e0", 2)] * times] * members
    house.clock.advance(1)
    assert [len(member.early) for member in keyed] == [times] * members


def test_who_is_refused_for_others_have_its_key_too_is_counted_in_the_log(house: House, events: Events) -> None:
    house.bus.claim = lambda *_: fail(KeyContested(7))  # type: ignore[method-assign]
    for number in range(3):
        joined = house.hub.join("ops", FakeMember(str(number), key="a-key"))
        assert isinstance(joined.result, Failure)
        joined.addErrback(lambda failure: failure.trap(KeyContested))
    assert house.hub.rooms == set()
    house.clock.advance(TURNS.client_report_interval)
    assert events.said == [("warn", "clients that were refused because others use their resume keys too: 3")]


def test_giving_up_one_join_looks_at_no_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.bus.confirm_at_once = False
    members = [FakeMember(f"m{number}") for number in range(100)]
    for member in members:
        house.hub.join("ops", member)
    comparing = Comparing(Deferred, monkeypatch)
    for member in reversed(members):
        house.hub.leave("ops", member)
    assert comparing.count == 0
    assert list(house.hub.rooms) == []


def test_a_join_that_is_given_up_while_others_come_in_takes_none_of_them_along(house: House) -> None:
    house.bus.confirm_at_once = False
    members = [FakeMember(f"m{number}") for number in range(4)]
    joined = [house.hub.join("ops", member) for member in members]
    joined[0].addCallback(lambda _: house.hub.leave("ops", members[1]))
    house.bus.confirm("ops")
    house.bus.answer()
    house.hear("one", number=1)
    assert [member.blobs for member in members] == [[frames("one")], [], [frames("one")], [frames("one")]]


def test_a_room_that_could_not_begin_holds_nothing_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    reading: Deferred[HistoryRange] = Deferred()
    monkeypatch.setattr(house.bus, "read", lambda *_: reading)
    monkeypatch.setattr(HELD_BYTES, "value", 0)
    failed: list[object] = []
    house.hub.join("ops", FakeMember("ann")).addErrback(failed.append)
    house.hear("hello", number=1)
    assert HELD_BYTES.value == 100
    reading.errback(ValueError("WRONGTYPE"))
    assert (len(failed), HELD_BYTES.value) == (1, 0)


# What was said before


def texts(batches: Sequence[Batch]) -> list[str]:
    return [message.text for batch in batches for message in batch.messages]


def stretch(house: House, count: int, before: int | None = None) -> HistoryPage:
    """Return the last messages of a room with somebody in it."""
    found: list[HistoryPage] = []
    house.hub.read_last("ops", count, before).addCallback(found.append)
    return found[0]


def asked(house: House, count: int, before: int | None = None) -> list[str]:
    """Return their texts."""
    return texts(stretch(house, count, before).batches)


@pytest.fixture
def filled() -> House:
    """Return a house in whose room 30 batches of 3 messages were said; each has 300 bytes."""
    house = make_house(
        Config(flush_interval=0, history_read_bytes=900, max_send_buffer=3_000, history_size=80), FakeBus()
    )
    house.member("ann")
    for number in range(30):
        house.hear(*[str(3 * number + at) for at in (1, 2, 3)], number=number + 1)
    return house


@pytest.mark.parametrize(
    ("count", "before", "found", "more"),
    [
        *((0, None, (), False), (1, None, (90, 90), True), (3, None, (88, 90), True), (4, None, (87, 90), True)),
        *((4, 90, (86, 89), True), (4, 89, (85, 88), True), (4, 12, (11, 11), False), (4, 11, (), False)),
        *((4, 15, (11, 14), False), (4, 16, (12, 15), True), (1000, None, (61, 90), True), (1000, 41, (13, 40), True)),
        *((1000, 40, (11, 39), False), (20, 41, (21, 40), True), (1000, 1000, (61, 90), True)),
    ],
)
def test_the_last_messages_are_read_as_far_as_the_backlog_and_history_go(
    filled: House, count: int, before: int | None, found: tuple[int, int] | tuple[()], more: bool
) -> None:
    expected = [str(number) for number in range(found[0], found[1] + 1)] if found else []
    given = stretch(filled, count, before)
    assert (texts(given.batches), given.more) == (expected, more)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50, 1000])
def test_who_goes_on_while_there_is_more_gets_all_that_history_has(filled: House, count: int) -> None:
    pages = [stretch(filled, count)]
    while pages[-1].more:
        assert pages[-1].start
        pages.append(stretch(filled, count, pages[-1].start.offset))
    assert [text for page in reversed(pages) for text in texts(page.batches)] == [str(each) for each in range(11, 91)]


def test_no_more_is_read_than_is_given_and_one_batch(filled: House) -> None:
    assert len(asked(filled, 1000)) == 30
    assert sum(filled.bus.read_bytes) <= 3_000 + 300
    assert len(filled.bus.read_bytes) <= 4
    filled.bus.read_bytes.clear()
    assert asked(filled, 2) == ["89", "90"]
    assert filled.bus.read_bytes == [300]


def test_a_batch_larger_than_the_backlog_is_given_alone(filled: House) -> None:
    large = Batch("ops", "e0", 91, "w", 31, (Message("w.31.1", 0, "elsewhere", "x"),), size=9_000)
    filled.bus.kept["ops", "e0"].append(large)
    filled.bus._tops["ops"] = StreamPosition("e0", 91)
    found: list[HistoryPage] = []
    filled.hub.read_recent("ops", 50).addCallback(found.append)
    assert (texts(found[0].batches), found[0].more) == (["x"], True)


def test_a_hole_in_history_is_read_over(filled: House) -> None:
    kept = filled.bus.kept["ops", "e0"]
    kept[:] = [batch for batch in kept if not 70 <= batch.first <= 80]
    assert asked(filled, 25) == [str(number) for number in range(66, 91) if not 70 <= number <= 81]
