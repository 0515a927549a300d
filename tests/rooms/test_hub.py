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
from tests.rooms.server import INTERVAL, TURNS, ChatServer, frames, make_server
from tests.rows import rows

SHORT = INTERVAL / 16


def test_a_message_reaches_all_others_in_the_room(server: ChatServer) -> None:
    ann, bob, eve = server.subscriber("ann"), server.subscriber("bob"), server.subscriber("eve")
    server.publish(ann, "hello")
    server.settle()
    assert (ann.blobs, bob.blobs, eve.blobs) == ([], [frames("hello")], [frames("hello")])


def test_nothing_is_delivered_around_the_bus(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.publish(ann, "hello")
    server.end_turn()
    assert bob.blobs == []


def test_a_member_with_echo_hears_its_own_messages(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann", echo=True), server.subscriber("bob")
    server.publish(ann, "hello")
    server.settle()
    assert (ann.blobs, bob.blobs) == ([frames("hello")], [frames("hello")])


@pytest.mark.parametrize("text", ["007", "1_000", "1.50", "👋 Å", "a\nb", "\x1b[2J\0", " "])
def test_text_goes_out_as_it_came_in(server: ChatServer, text: str) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.publish(ann, text)
    server.settle()
    assert bob.blobs == [frames(text)]


def test_a_batch_is_one_blob(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    server.deliver("one", "two", "three", number=1)
    assert bob.blobs == [frames("one", "two", "three")]
    assert bob.count == 3


def test_two_rooms_do_not_mix(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann", "ops"), server.subscriber("bob", "ops")
    eve, dan = server.subscriber("eve", "dev"), server.subscriber("dan", "dev")
    server.publish(ann, "for ops")
    server.hub.publisher.publish("dev", eve, ["for dev"])
    server.settle()
    assert [each.blobs for each in (ann, bob, eve, dan)] == [[], [frames("for ops")], [], [frames("for dev")]]


def test_a_batch_of_a_room_without_members_is_dropped(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    server.deliver("hello", room="nobody", number=1)
    assert bob.blobs == []


def test_a_join_waits_for_the_subscription(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    ann = FakeMember("ann")
    joined = server.hub.join("ops", ann)
    server.deliver("too early", number=1)
    assert not joined.called
    server.bus.confirm("ops")
    assert joined.called
    server.deliver("in time", number=2)
    assert ann.blobs == [frames("in time")]


def test_a_member_hears_what_comes_in_the_turn_its_join_fires(server: ChatServer) -> None:
    ann = FakeMember("ann")
    server.bus.confirm_at_once = False
    server.hub.join("ops", ann).addCallback(lambda _: server.deliver("at once", number=1))
    server.bus.confirm("ops")
    assert ann.blobs == [frames("at once")]


def test_while_writes_are_refused_members_without_a_nick_join_and_one_with_a_nick_waits(server: ChatServer) -> None:
    server.bus.away = server.bus.refusing = "READONLY"
    pipe, program, person = (
        FakeMember("a"),
        FakeMember("b", receives_presence=True),
        FakeMember("c", nick="ann", receives_presence=True),
    )
    joined = [server.hub.join("ops", each) for each in (pipe, program, person)]
    server.end_turn()
    assert [each.called for each in joined] == [True, True, False]
    assert server.hub.why_not_joined() == WRITES_REFUSED
    server.deliver("hello", number=1)
    assert (pipe.blobs, program.blobs, person.blobs) == ([frames("hello")], [frames("hello")], [])
    server.bus.away = server.bus.refusing = ""
    assert server.hub.why_not_joined() == BUS_AWAY


def test_one_that_leaves_while_joining_never_hears_anything(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    bob, ann = FakeMember("bob"), FakeMember("ann")
    server.hub.join("ops", bob)
    joined = server.hub.join("ops", ann)
    server.hub.leave("ops", ann)
    server.bus.confirm("ops")
    server.deliver("hello", number=1)
    assert (joined.called, ann.blobs, bob.blobs) == (False, [], [frames("hello")])


def test_a_room_whose_only_member_leaves_while_joining_is_unsubscribed(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    ann = FakeMember("ann")
    server.hub.join("ops", ann)
    server.hub.leave("ops", ann)
    assert server.bus.rooms == {}


def test_one_that_comes_back_while_its_first_join_was_not_confirmed_joins_once(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    bob, ann = FakeMember("bob"), FakeMember("ann")
    server.hub.join("ops", bob)
    server.hub.join("ops", ann)
    server.hub.leave("ops", ann)
    joined = server.hub.join("ops", ann)
    server.bus.confirm("ops")
    server.deliver("hello", number=1)
    assert (joined.called, ann.blobs) == (True, [frames("hello")])


def test_one_that_left_hears_no_more(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.hub.leave("ops", ann)
    server.deliver("hello", number=1)
    assert (ann.blobs, bob.blobs) == ([], [frames("hello")])


def test_an_empty_room_is_unsubscribed_and_forgotten(server: ChatServer) -> None:
    ann, bob = server.subscriber("ann"), server.subscriber("bob")
    server.hub.leave("ops", ann)
    assert list(server.bus.rooms) == ["ops"]
    server.hub.leave("ops", bob)
    assert server.bus.rooms == {}
    server.deliver("hello", number=1)
    assert (ann.blobs, bob.blobs) == ([], [])


def test_what_came_for_a_room_that_was_forgotten_meanwhile_is_not_for_those_who_made_it_anew(
    server: ChatServer,
) -> None:
    ann = server.subscriber("ann")
    server.receive("for ann", number=1)
    server.hub.leave("ops", ann)
    bob = server.subscriber("bob")
    server.end_turn()
    assert (ann.blobs, bob.blobs) == ([], [])
    server.deliver("hello", number=2)
    assert bob.blobs == [frames("hello")]


def test_a_forgotten_room_can_be_joined_again(server: ChatServer) -> None:
    ann = server.subscriber("ann")
    server.hub.leave("ops", ann)
    bob = server.subscriber("bob")
    server.deliver("hello", number=1)
    assert bob.blobs == [frames("hello")]


def test_leaving_a_room_nobody_is_in_does_nothing(server: ChatServer) -> None:
    server.hub.leave("ops", FakeMember("ann"))
    assert server.bus.rooms == {}


def test_an_idle_hub_delivers_at_the_end_of_the_turn(paced: ChatServer) -> None:
    bob = paced.subscriber("bob")
    for number in range(1, 4):
        paced.receive(f"{number}", number=number)
        assert len(bob.blobs) == number - 1
        paced.end_turn()
        assert bob.blobs[-1] == frames(f"{number}")
        paced.clock.advance(INTERVAL)


def test_under_load_a_member_gets_one_blob_each_interval(paced: ChatServer) -> None:
    bob = paced.subscriber("bob")
    for number in range(48):
        paced.receive(f"{number}", number=number + 1)
        paced.clock.advance(SHORT)
    assert bob.blobs == [
        frames("0"),
        frames(*[f"{number}" for number in range(1, 17)]),
        frames(*[f"{number}" for number in range(17, 33)]),
    ]
    paced.clock.advance(INTERVAL)
    assert bob.blobs[3:] == [frames(*[f"{number}" for number in range(33, 48)])]
    assert bob.count == 48


def test_without_an_interval_each_turn_is_a_blob(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    for number in (1, 3, 5):
        server.receive(f"{number}", number=number)
        server.receive(f"{number + 1}", number=number + 1)
        server.end_turn()
    assert bob.blobs == [frames("1", "2"), frames("3", "4"), frames("5", "6")]


def test_what_came_from_the_bus_can_be_had_at_once(paced: ChatServer) -> None:
    bob = paced.subscriber("bob")
    paced.receive("one", number=1)
    paced.end_turn()
    paced.receive("two", number=2)
    paced.hub.broadcast()
    assert bob.blobs == [frames("one"), frames("two")]
    paced.hub.broadcast()
    assert len(bob.blobs) == 2
    assert paced.clock.getDelayedCalls() == []


def test_saying_and_hearing_do_not_wait_for_each_other(paced: ChatServer) -> None:
    ann, bob = paced.subscriber("ann"), paced.subscriber("bob")
    paced.publish(ann, "one")
    paced.end_turn()
    paced.bus.pump()
    paced.end_turn()
    assert bob.blobs == [frames("one")]


def test_one_that_left_before_the_interval_was_over_hears_no_more(paced: ChatServer) -> None:
    ann, bob = paced.subscriber("ann"), paced.subscriber("bob")
    paced.receive("one", number=1)
    paced.hub.leave("ops", ann)
    paced.end_turn()
    assert (ann.blobs, bob.blobs) == ([], [frames("one")])


class Watching(FakeMember):
    """A member that notes how many batches were published when it heard something."""

    def __init__(self, name: str, server: ChatServer) -> None:
        super().__init__(name)
        self.server = server
        self.published: list[int] = []

    def deliver(self, blob: bytes, count: int) -> bool:
        self.published.append(len(self.server.bus.published))
        return True


def test_what_is_due_is_published_before_what_came_is_delivered(paced: ChatServer) -> None:
    watching, ann = Watching("bob", paced), paced.subscriber("ann")
    paced.hub.join("ops", watching)
    paced.receive("one", number=1)
    paced.publish(ann, "two")
    paced.end_turn()
    assert watching.published == [1]
    assert paced.published == [["two"]]


def test_delivering_publishes_nothing_before_its_time(paced: ChatServer) -> None:
    ann = paced.subscriber("ann")
    paced.publish(ann, "one")
    paced.end_turn()
    paced.publish(ann, "two")
    paced.receive("three", number=1)
    paced.end_turn()
    assert ann.blobs == [frames("three")]
    assert paced.published == [["one"]]
    paced.clock.advance(INTERVAL)
    assert paced.published == [["one"], ["two"]]


def test_batches_of_a_room_are_one_blob_in_their_order(server: ChatServer) -> None:
    bob, eve = server.subscriber("bob"), server.subscriber("eve")
    server.receive("1", "2", number=1, publisher="w1")
    server.receive("3", number=1, publisher="w2")
    server.receive("4", "5", number=2, publisher="w1")
    server.end_turn()
    assert bob.blobs == [frames("1", "2", "3", "4", "5")]
    assert bob.blobs[0] is eve.blobs[0]
    assert (bob.count, eve.count) == (5, 5)


def test_batches_of_several_rooms_in_one_go_stay_apart(server: ChatServer) -> None:
    ops, dev = server.subscriber("in ops", "ops"), server.subscriber("in dev", "dev")
    for number in range(1, 5):
        server.receive(f"ops {number}", number=number, room="ops")
        server.receive(f"dev {number}", number=number, room="dev")
    server.end_turn()
    assert ops.blobs == [frames("ops 1", "ops 2", "ops 3", "ops 4")]
    assert dev.blobs == [frames("dev 1", "dev 2", "dev 3", "dev 4")]


def test_what_was_heard_is_fanned_out_at_once_where_it_gets_large(server: ChatServer) -> None:
    bob = server.subscriber("bob")
    large = Batch("ops", "e0", 1, "w", 1, (Message("w.1.1", 0, "elsewhere", "x"),), size=TURNS.batch_bytes)
    server.hub.deliver(large)
    assert bob.blobs == [frames("x")]


@rows(("members", "times"), [(2, 1), (3, 0)])
def test_a_few_with_a_key_learn_soon_how_far_they_have_come(members: int, times: int) -> None:
    server = make_server(replace(TURNS, resume_position_prompt_subscribers=2), FakeBus())
    keyed = [FakeMember(str(number), key=f"key {number}") for number in range(members)]
    for member in keyed:
        server.hub.join("ops", member)
    server.deliver("a", number=1)
    server.deliver("b", number=2)
    server.clock.advance(TURNS.resume_position_send_delay)
    assert [member.early for member in keyed] == [[StreamPosition("e0", 2)] * times] * members
    server.clock.advance(1)
    assert [len(member.early) for member in keyed] == [times] * members


def test_who_is_refused_for_others_have_its_key_too_is_counted_in_the_log(server: ChatServer, events: Events) -> None:
    server.bus.claim = lambda *_: fail(KeyContested(7))  # type: ignore[method-assign]
    for number in range(3):
        joined = server.hub.join("ops", FakeMember(str(number), key="a-key"))
        assert isinstance(joined.result, Failure)
        joined.addErrback(lambda failure: failure.trap(KeyContested))
    assert server.hub.rooms == set()
    server.clock.advance(TURNS.client_report_interval)
    assert events.said == [("warn", "refused 3 clients because other clients use their resume keys")]


def test_giving_up_one_join_looks_at_no_other(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.bus.confirm_at_once = False
    members = [FakeMember(f"m{number}") for number in range(100)]
    for member in members:
        server.hub.join("ops", member)
    comparing = Comparing(Deferred, monkeypatch)
    for member in reversed(members):
        server.hub.leave("ops", member)
    assert comparing.count == 0
    assert list(server.hub.rooms) == []


def test_a_join_that_is_given_up_while_others_come_in_takes_none_of_them_along(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    members = [FakeMember(f"m{number}") for number in range(4)]
    joined = [server.hub.join("ops", member) for member in members]
    joined[0].addCallback(lambda _: server.hub.leave("ops", members[1]))
    server.bus.confirm("ops")
    server.bus.answer()
    server.deliver("one", number=1)
    assert [member.blobs for member in members] == [[frames("one")], [], [frames("one")], [frames("one")]]


def test_a_room_that_could_not_begin_holds_nothing_back(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reading: Deferred[HistoryRange] = Deferred()
    monkeypatch.setattr(server.bus, "read", lambda *_: reading)
    monkeypatch.setattr(HELD_BYTES, "value", 0)
    failed: list[object] = []
    server.hub.join("ops", FakeMember("ann")).addErrback(failed.append)
    server.deliver("hello", number=1)
    assert HELD_BYTES.value == 100
    reading.errback(ValueError("WRONGTYPE"))
    assert (len(failed), HELD_BYTES.value) == (1, 0)


# What was said before


def texts(batches: Sequence[Batch]) -> list[str]:
    return [message.text for batch in batches for message in batch.messages]


def stretch(server: ChatServer, count: int, before: int | None = None) -> HistoryPage:
    """Return the last messages of a room with somebody in it."""
    found: list[HistoryPage] = []
    server.hub.read_last("ops", count, before).addCallback(found.append)
    return found[0]


def asked(server: ChatServer, count: int, before: int | None = None) -> list[str]:
    """Return their texts."""
    return texts(stretch(server, count, before).batches)


@pytest.fixture
def filled() -> ChatServer:
    """Return a server in whose room 30 batches of 3 messages were said; each has 300 bytes."""
    server = make_server(
        Config(flush_interval=0, history_read_bytes=900, max_send_buffer=3_000, history_size=80), FakeBus()
    )
    server.subscriber("ann")
    for number in range(30):
        server.deliver(*[str(3 * number + at) for at in (1, 2, 3)], number=number + 1)
    return server


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
    filled: ChatServer, count: int, before: int | None, found: tuple[int, int] | tuple[()], more: bool
) -> None:
    expected = [str(number) for number in range(found[0], found[1] + 1)] if found else []
    given = stretch(filled, count, before)
    assert (texts(given.batches), given.more) == (expected, more)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50, 1000])
def test_who_goes_on_while_there_is_more_gets_all_that_history_has(filled: ChatServer, count: int) -> None:
    pages = [stretch(filled, count)]
    while pages[-1].more:
        assert pages[-1].start
        pages.append(stretch(filled, count, pages[-1].start.offset))
    assert [text for page in reversed(pages) for text in texts(page.batches)] == [str(each) for each in range(11, 91)]


def test_no_more_is_read_than_is_given_and_one_batch(filled: ChatServer) -> None:
    assert len(asked(filled, 1000)) == 30
    assert sum(filled.bus.read_bytes) <= 3_000 + 300
    assert len(filled.bus.read_bytes) <= 4
    filled.bus.read_bytes.clear()
    assert asked(filled, 2) == ["89", "90"]
    assert filled.bus.read_bytes == [300]


def test_a_batch_larger_than_the_backlog_is_given_alone(filled: ChatServer) -> None:
    large = Batch("ops", "e0", 91, "w", 31, (Message("w.31.1", 0, "elsewhere", "x"),), size=9_000)
    filled.bus.kept["ops", "e0"].append(large)
    filled.bus._tops["ops"] = StreamPosition("e0", 91)
    found: list[HistoryPage] = []
    filled.hub.read_recent("ops", 50).addCallback(found.append)
    assert (texts(found[0].batches), found[0].more) == (["x"], True)


def test_a_hole_in_history_is_read_over(filled: ChatServer) -> None:
    kept = filled.bus.kept["ops", "e0"]
    kept[:] = [batch for batch in kept if not 70 <= batch.first <= 80]
    assert asked(filled, 25) == [str(number) for number in range(66, 91) if not 70 <= number <= 81]
