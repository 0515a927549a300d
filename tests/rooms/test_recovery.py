"""A member that is behind: what it gets from history and from the room's tail, what it is told, when it is live."""

from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed

from chatd.config.settings import Config
from chatd.monitoring.metrics import SEND_BUFFER_BYTES
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.message import Batch, HistoryRange, Message, OffsetGap, StreamPosition
from chatd.rooms.ordering import Cursor, Ordering
from chatd.rooms.recovery import Recovery, Tail, first_bytes
from tests.fakes import Events, FakeMember
from tests.rooms.server import frames
from tests.rows import rows


def batch(first: int, count: int = 1, epoch: str = "e", **others: Any) -> Batch:
    messages = tuple(Message(f"w.{first + number}", 0, "w", f"{epoch}{first + number}") for number in range(count))
    return replace(Batch("ops", epoch, first, f"p{epoch}{first}", 1, messages, size=count), **others)


class Reading(FakeMember):
    """A member that is choked once it was given so many messages."""

    room = 1_000_000

    def replay(self, blob: bytes, count: int) -> bool:
        super().replay(blob, count)
        self.events += blob.decode("latin-1").replace("\x81\x02", " ").replace("\x81\x03", " ").split()
        self.buffer_full = self.count >= self.room
        return True


class Walk:
    """One that is behind a room whose order stands at e 10."""

    def __init__(self, offset: int = 4, epoch: str = "e", config: Config | None = None, **options: Any) -> None:
        self.config = config or Config()
        self.member = Reading("ann")
        self.asked: list[tuple[StreamPosition | None, int, Deferred[HistoryRange]]] = []
        self.live = 0
        self.losses: list[tuple[OffsetGap, int]] = []
        self.tail = Tail(5)
        self.top = StreamPosition("e", 10)
        """The answer to a query of the room."""
        self.ordering = Ordering(self.config, lambda *_: succeed(HistoryRange((), self.top)), lambda *_: None)
        self.ordering.start()
        self.catch_up = Recovery(
            self.member,
            StreamPosition(epoch, offset),
            self.config,
            read=self.read,
            tail=self.tail,
            ordering=self.ordering,
            live=self.go_live,
            losses=lambda gap, members: self.losses.append((gap, members)),
            **options,
        )

    def go_live(self) -> None:
        self.live += 1

    def read(self, after: StreamPosition | None, most: int) -> "Deferred[HistoryRange]":
        done: Deferred[HistoryRange] = Deferred()
        self.asked.append((after, most, done))
        return done

    def step(self) -> None:
        self.catch_up.step()

    def answer(self, *batches: Batch, top: int = 10, epoch: str = "e", more: bool = False) -> StreamPosition | None:
        after, _, done = self.asked.pop(0)
        done.callback(HistoryRange(batches, StreamPosition(epoch, top), more))
        return after

    def hear(self, each: Batch) -> None:
        """Advance the room."""
        self.tail.add(each)
        self.ordering.receive(each)

    def end_epoch(self) -> None:
        """Begin another epoch."""
        self.top = StreamPosition("f", 0)
        self.ordering.recover(self.top)

    def drain(self) -> None:
        """Drain the send buffer of the subscriber."""
        self.member.room += self.member.room
        self.member.buffer_full = False
        self.step()


# From history to live


def test_it_reads_history_from_its_position_and_is_live_at_the_top() -> None:
    walk = Walk()
    walk.step()
    assert walk.answer(batch(5, 2), batch(7, 4)) == StreamPosition("e", 4)
    assert walk.member.blobs == [frames("e5", "e6", "e7", "e8", "e9", "e10")]
    assert (walk.live, walk.asked) == (1, [])


def test_one_at_the_top_is_live_at_once() -> None:
    walk = Walk(10)
    walk.step()
    assert (walk.live, walk.asked, walk.member.events) == (1, [], [])


def test_once_live_it_does_nothing_any_more() -> None:
    walk = Walk(10)
    walk.step()
    walk.hear(batch(11))
    walk.step()
    assert (walk.live, walk.asked, walk.member.events) == (1, [], [])


def test_it_asks_once_at_a_time() -> None:
    walk = Walk()
    walk.step()
    walk.step()
    assert len(walk.asked) == 1


def test_a_long_way_goes_in_steps_from_where_the_last_one_ended() -> None:
    walk = Walk()
    walk.step()
    assert walk.answer(batch(5, 2), more=True) == StreamPosition("e", 4)
    assert walk.answer(batch(7, 4)) == StreamPosition("e", 6)
    assert walk.live == 1


def test_of_a_batch_that_it_stands_in_it_gets_the_rest() -> None:
    walk = Walk(5)
    walk.step()
    walk.answer(batch(4, 7))
    assert walk.member.blobs == [frames("e6", "e7", "e8", "e9", "e10")]


@rows(("history", "backlog", "most"), [(300, 200, 200), (300, 400, 300)])
def test_a_step_is_no_longer_than_the_backlog(history: int, backlog: int, most: int) -> None:
    walk = Walk(config=Config(history_read_bytes=history, max_send_buffer=backlog))
    walk.step()
    assert walk.asked[0][1] == most


def test_a_step_is_short_while_too_much_waits_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(config=Config(worker_send_buffers=1000, reduced_recovery_bytes=70))
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", 1001)
    walk.step()
    assert walk.asked[0][1] == 70
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", 1000)
    walk.answer(batch(5, 2), more=True)
    assert walk.asked[0][1] == walk.config.history_read_bytes


def test_what_an_answer_has_beyond_a_step_is_asked_for_again() -> None:
    walk = Walk(config=Config(history_read_bytes=4))
    walk.step()
    walk.answer(batch(5, 6))
    assert walk.member.events == ["e5", "e6"]
    assert walk.answer(batch(5, 6)) == StreamPosition("e", 6)
    assert walk.member.events == ["e5", "e6", "e7", "e8"]


def test_it_waits_while_its_member_has_enough_to_read() -> None:
    walk = Walk()
    walk.member.room = 2
    walk.step()
    walk.answer(batch(5, 2), more=True)
    walk.step()
    assert walk.asked == []
    walk.drain()
    assert walk.answer(batch(7, 4)) == StreamPosition("e", 6)


def test_its_own_are_left_out() -> None:
    walk = Walk()
    walk.member.sender_id = "w"
    walk.step()
    walk.answer(batch(5, 6))
    assert (walk.member.blobs, walk.live) == ([], 1)


def test_with_echo_its_own_are_not_left_out() -> None:
    walk = Walk()
    walk.member.sender_id, walk.member.echo = "w", True
    walk.step()
    walk.answer(batch(5, 6))
    assert walk.member.count == 6


# The tail


def test_what_came_meanwhile_is_given_from_the_tail() -> None:
    walk = Walk()
    walk.step()
    walk.hear(batch(11, 2))
    walk.answer(batch(5, 6))
    assert walk.member.blobs == [frames("e5", "e6", "e7", "e8", "e9", "e10"), frames("e11", "e12")]
    assert (walk.live, walk.asked) == (1, [])


def test_what_the_answer_had_already_is_not_given_twice() -> None:
    walk = Walk()
    walk.step()
    walk.hear(batch(11, 3))
    walk.answer(batch(5, 6), batch(11, 2), top=12)
    assert walk.member.events[-3:] == ["e11", "e12", "e13"]
    assert walk.live == 1


def test_a_tail_that_does_not_reach_back_so_far_is_no_use() -> None:
    walk = Walk()
    walk.step()
    walk.hear(batch(11, 3))
    walk.hear(batch(14, 4))
    walk.answer(batch(5, 6))
    assert walk.answer(batch(11, 3), batch(14, 4), top=17) == StreamPosition("e", 10)
    assert walk.live == 1


def test_from_the_tail_too_it_gets_no_more_than_its_backlog_at_once_be_it_of_one_batch() -> None:
    walk = Walk(10, config=Config(max_send_buffer=3))
    walk.member.buffer_full = True
    walk.hear(batch(11, 2))
    walk.member.buffer_full, walk.member.room = False, 1
    walk.step()
    assert walk.member.events == ["e11"]
    walk.drain()
    assert (walk.member.events, walk.live) == (["e11", "e12"], 0)
    walk.drain()
    assert walk.live == 1


def test_the_tail_is_bounded_but_has_the_newest_batch() -> None:
    tail = Tail(5)
    for each in (batch(1, 2), batch(3, 3), batch(6), batch(7, 9)):
        tail.add(each)
    cursors = [Cursor(StreamPosition("e", offset)) for offset in (2, 5, 6, 8, 15)]
    assert [[each.first for each in tail.after(cursor)] for cursor in cursors] == [[], [], [7], [7], []]


def test_the_tail_is_of_use_within_its_epoch_only() -> None:
    tail = Tail(100)
    tail.add(batch(1, 2, "f"))
    assert tail.after(Cursor(StreamPosition("e", 0))) == []


# What is lost


def test_what_history_no_longer_has_is_told_where_it_was_and_counted() -> None:
    walk = Walk()
    walk.step()
    walk.answer(batch(6), batch(9, 2))
    assert walk.member.events == [OffsetGap("e", 5, 1), "e6", OffsetGap("e", 8, 2), "e9", "e10"]
    assert walk.losses == [(OffsetGap("e", 5, 1), 1), (OffsetGap("e", 8, 2), 1)]


def test_where_history_ends_before_the_top_the_rest_is_told() -> None:
    walk = Walk()
    walk.step()
    walk.answer(batch(5))
    assert walk.member.events == ["e5", OffsetGap("e", 10, 5)]
    assert walk.live == 1


def test_it_does_not_get_what_lies_before_its_floor() -> None:
    walk = Walk(floor=StreamPosition("e", 7))
    walk.step()
    assert walk.member.events == [OffsetGap("e", 7, 3)]
    assert walk.answer(batch(5, 6)) == StreamPosition("e", 7)
    assert walk.member.events[1:] == ["e8", "e9", "e10"]


def test_one_that_left_is_told_nothing_more() -> None:
    walk = Walk(floor=StreamPosition("e", 7))
    walk.catch_up.stop()
    walk.step()
    assert (walk.member.events, walk.asked, walk.live) == ([], [], 0)


def test_one_that_leaves_while_it_reads_gets_nothing_more(events: Events) -> None:
    walk = Walk()
    walk.step()
    walk.catch_up.stop()
    assert walk.asked[0][2].called
    assert (walk.member.events, walk.live, events.said) == ([], 0, [])


def test_another_epoch_is_told_as_a_gap_of_unknown_size() -> None:
    walk = Walk(4, "d")
    walk.step()
    walk.answer(batch(1, 10))
    assert walk.member.events[0] == OffsetGap("e", 0, None)
    assert (walk.member.count, walk.live) == (10, 1)


def test_what_history_has_of_the_epoch_that_is_over_comes_first() -> None:
    walk = Walk(4, "d")
    walk.step()
    walk.answer(batch(5, 1, "d"), more=True)
    assert walk.answer(batch(1, 10)) == StreamPosition("d", 5)
    assert walk.member.events[:2] == ["d5", OffsetGap("e", 0, None)]


def test_history_that_can_not_be_read_is_told_as_a_gap_and_said(events: Events) -> None:
    walk = Walk()
    walk.step()
    walk.asked.pop()[2].errback(ValueError("WRONGTYPE"))
    assert walk.member.events == [OffsetGap("e", 10, 6)]
    assert walk.live == 1
    assert events.said == [("error", "cannot read the history of a room: WRONGTYPE")]


def test_one_that_is_ahead_does_not_ask_again_what_can_not_be_read(events: Events) -> None:
    walk = Walk(12)
    walk.step()
    walk.asked.pop()[2].errback(ValueError("WRONGTYPE"))
    walk.step()
    assert (walk.asked, walk.live, walk.member.events) == ([], 0, [])
    walk.hear(batch(11, 2))
    walk.step()
    assert walk.live == 1


def test_one_that_fails_is_hung_up_on(events: Events) -> None:
    class Failing(FakeMember):
        def replay(self, blob: bytes, count: int) -> bool:
            raise RuntimeError("no")

    walk = Walk()
    walk.catch_up.subscriber = member = Failing("ann")
    walk.step()
    walk.answer(batch(5, 6))
    assert (member.events, walk.live, walk.asked) == ([OUR_FAULT], 0, [])
    assert events.said == [("critical", "the recovery of client ann failed")]


def test_one_that_fails_at_the_tail_is_hung_up_on(events: Events) -> None:
    class Failing(FakeMember):
        def replay(self, blob: bytes, count: int) -> bool:
            raise RuntimeError("no")

    walk = Walk(10)
    walk.catch_up.subscriber = member = Failing("ann")
    walk.hear(batch(11))
    walk.step()
    assert (member.events, walk.live) == ([OUR_FAULT], 0)
    assert len(events.said) == 1


# Who asked for more than history has


def test_what_history_does_not_have_of_what_was_asked_for_is_not_told() -> None:
    walk = Walk(4, lenient=10)
    walk.step()
    walk.answer(batch(7, 4))
    assert (walk.member.events, walk.losses) == (["e7", "e8", "e9", "e10"], [])


def test_what_is_lost_behind_its_first_message_is_told() -> None:
    walk = Walk(4, lenient=10)
    walk.step()
    walk.answer(batch(7), batch(9, 2))
    assert walk.member.events == ["e7", OffsetGap("e", 8, 1), "e9", "e10"]


def test_what_is_lost_since_it_came_is_told() -> None:
    walk = Walk(4, lenient=10)
    walk.step()
    walk.hear(batch(11, 3))
    walk.hear(batch(14, 4))
    walk.answer(batch(14, 4), top=17)
    assert walk.member.events == [OffsetGap("e", 13, 3), "e14", "e15", "e16", "e17"]


def test_that_it_came_from_another_epoch_is_told() -> None:
    walk = Walk(4, "d", lenient=10)
    walk.step()
    walk.answer(batch(1, 10))
    assert walk.member.events[0] == OffsetGap("e", 0, None)


# Who is ahead


def test_a_position_that_nobody_can_have_had_is_told_as_a_gap_and_begins_at_the_top() -> None:
    walk = Walk(99)
    walk.step()
    walk.answer()
    assert (walk.member.events, walk.live) == ([OffsetGap("e", 10, None)], 1)


@rows("config", [Config(), Config(history_size=0)])
def test_one_that_has_what_the_bus_has_yet_to_bring_waits_for_it_and_asks_once(config: Config) -> None:
    walk = Walk(12, config=config)
    walk.step()
    walk.answer(top=12)
    walk.step()
    walk.hear(batch(11))
    walk.step()
    assert (walk.member.events, walk.asked, walk.live) == ([], [], 0)
    walk.hear(batch(12, 2))
    walk.step()
    assert (walk.member.events, walk.asked, walk.live) == (["e13"], [], 1)


@rows("config", [Config(), Config(history_size=0)])
def test_one_in_an_epoch_that_the_bus_has_yet_to_bring_waits_for_it_and_asks_once(config: Config) -> None:
    walk = Walk(2, "f", config=config)
    walk.step()
    walk.answer(top=2, epoch="f")
    walk.step()
    assert (walk.member.events, walk.asked, walk.live) == ([], [], 0)


# What comes again in another epoch


def test_of_what_comes_again_only_what_it_had_not_before_is_given() -> None:
    walk = Walk(0, "f", before=(StreamPosition("e", 9),))
    walk.step()
    walk.answer(batch(1, 3, "f", before=StreamPosition("e", 9)), batch(4, 1, "f"), top=4, epoch="f")
    assert walk.member.events == ["f2", "f3", "f4"]


def test_what_was_read_before_is_known_when_it_comes_again_without_saying_so() -> None:
    walk = Walk(4, "d")
    walk.step()
    walk.answer(batch(5, 2, "d", publisher="w", sequence=9), more=True)
    walk.answer(batch(1, 1), batch(2, 2, publisher="w", sequence=9), batch(4, 7))
    assert walk.member.events[:5] == ["d5", "d6", OffsetGap("e", 0, None), "e1", "e4"]


def test_what_the_room_has_seen_before_is_known_when_it_comes_again_without_saying_so() -> None:
    walk = Walk(11)
    walk.ordering.receive(batch(11, 1, publisher="w", sequence=9))
    walk.end_epoch()
    walk.step()
    walk.answer(batch(1, 1, "f", publisher="w", sequence=9), batch(2, 1, "f"), top=2, epoch="f")
    assert walk.member.events == [OffsetGap("f", 0, None), "f2"]


def test_one_that_had_more_of_the_last_epoch_than_the_room_is_not_live_but_goes_on_with_the_tail() -> None:
    walk = Walk(12)
    walk.end_epoch()
    walk.step()
    walk.answer(top=0, epoch="f")
    assert walk.live == 0
    walk.hear(batch(1, 3, "f", before=StreamPosition("e", 11)))
    walk.step()
    assert (walk.member.events, walk.asked, walk.live) == ([OffsetGap("f", 0, None), "f3"], [], 0)


# Without history


@pytest.fixture
def bare() -> Config:
    return Config(history_size=0)


def test_without_history_what_was_missed_is_told_without_asking(bare: Config) -> None:
    walk = Walk(config=bare)
    walk.step()
    assert (walk.member.events, walk.asked, walk.live) == ([OffsetGap("e", 10, 6)], [], 1)


def test_without_history_one_that_was_too_slow_is_told_so(bare: Config) -> None:
    walk = Walk(config=bare, slow=True)
    walk.step()
    assert walk.member.events == [("too slow", OffsetGap("e", 10, 6))]
    assert walk.losses == [(OffsetGap("e", 10, 6), 1)]


def test_without_history_the_tail_is_given_where_it_reaches_back(bare: Config) -> None:
    walk = Walk(10, config=bare, slow=True)
    walk.hear(batch(11, 2))
    walk.step()
    assert (walk.member.events, walk.live) == (["e11", "e12"], 1)


# How much at once


@rows(
    ("most", "firsts"),
    [(1, [(5, 1)]), (4, [(5, 2)]), (5, [(5, 3)]), (6, [(5, 3)]), (7, [(5, 3), (8, 1)]), (12, [(5, 3), (8, 3)])],
)
def test_so_many_bytes_are_whole_messages_and_at_least_one(most: int, firsts: list[tuple[int, int]]) -> None:
    some = first_bytes([batch(5, 3), batch(8, 3)], Cursor(StreamPosition("e", 4)), most)
    assert [(each.first, len(each.messages)) for each in some] == firsts


def test_what_lies_behind_does_not_count() -> None:
    some = first_bytes([batch(5, 3), batch(8, 3)], Cursor(StreamPosition("e", 6)), 4)
    assert [(each.first, len(each.messages)) for each in some] == [(5, 3), (8, 1)]


def test_bytes_are_those_of_utf8() -> None:
    long = replace(batch(5), messages=(Message("w.1", 0, "w", "Å" * 5), Message("w.2", 0, "w", "b")))
    assert [len(each.messages) for each in first_bytes([long], Cursor(StreamPosition("e", 4)), 10)] == [1]
