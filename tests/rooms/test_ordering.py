"""A room's order on one worker: what follows, what was missed, what is told as lost."""

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from chatd.config.settings import Config
from chatd.monitoring.metrics import GAPS_FILLED, HELD_BYTES, Number
from chatd.protocol.message import Batch, HistoryRange, Message, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms.ordering import Item, Ordering
from tests.fakes import Events
from tests.rows import rows


def batch(first: int, count: int = 1, epoch: str = "e", sequence: int = 0, publisher: str = "") -> Batch:
    messages = tuple(Message(f"{epoch}{first + number}", 0, "w", "hello") for number in range(count))
    return Batch("ops", epoch, first, publisher or f"p{epoch}{first}", sequence or 1, messages, size=count)


def span(top: StreamPosition, *batches: Batch, more: bool = False) -> HistoryRange:
    return HistoryRange(batches, top, more)


TOP = StreamPosition("e", 4)
JOINED = [PresenceEvent("join", sender_id, "", "") for sender_id in "abc"]


class Line:
    """A timeline, what it has asked, and what it gave out."""

    def __init__(self, config: Config, top: StreamPosition | None = TOP) -> None:
        self.asked: list[tuple[StreamPosition | None, Deferred[HistoryRange]]] = []
        self.out: list[str | OffsetGap | PresenceEvent] = []
        self.wholes: list[Batch] = []
        self.bytes_at_once = config.history_read_bytes
        self.ordering = Ordering(config, self.read, self.give)
        self.begun = self.ordering.start()
        if top is not None:
            self.answer(span(top))

    def read(self, after: StreamPosition | None, most: int) -> "Deferred[HistoryRange]":
        assert most == self.bytes_at_once
        done: Deferred[HistoryRange] = Deferred()
        self.asked.append((after, done))
        return done

    def give(self, item: Item, whole: Batch | None) -> None:
        if not isinstance(item, Batch):
            assert whole is None
            self.out.append(item)
        else:
            assert whole is not None
            self.out += [each.id for each in item.messages]
            self.wholes.append(whole)

    def answer(self, answer: HistoryRange) -> StreamPosition | None:
        """Answer what was asked first; give after which position that was."""
        after, done = self.asked.pop(0)
        done.callback(answer)
        return after


@pytest.fixture
def line() -> Line:
    return Line(Config())


@pytest.fixture
def bare() -> Line:
    """One without history."""
    return Line(Config(history_size=0))


# How it begins


def test_it_begins_where_the_order_stands() -> None:
    line = Line(Config(), None)
    assert not line.begun.called
    assert line.answer(span(StreamPosition("e", 4))) is None
    assert line.begun.called
    assert (line.ordering.position, line.out) == (StreamPosition("e", 4), [])


def test_what_came_before_it_knew_where_it_stands_is_given_where_it_follows() -> None:
    line = Line(Config(), None)
    for each in (batch(3), batch(4), batch(5), batch(6)):
        line.ordering.receive(each)
    line.answer(span(StreamPosition("e", 5)))
    assert line.out == ["e6"]


def test_a_start_that_fails_says_so() -> None:
    line = Line(Config(), None)
    line.asked[0][1].errback(ValueError("no"))
    failures: list[object] = []
    line.begun.addErrback(failures.append)
    assert len(failures) == 1


def test_one_that_stops_does_not_wait_for_an_answer(line: Line, events: Events) -> None:
    line.ordering.receive(batch(9))
    line.ordering.stop()
    assert line.asked[0][1].called
    assert (line.out, events.said) == ([], [])


def test_one_that_asks_nothing_stops_too(line: Line) -> None:
    line.ordering.stop()
    assert line.asked == []


# What follows


def test_what_follows_is_given_out_at_once(line: Line) -> None:
    line.ordering.receive(batch(5, 2))
    line.ordering.receive(batch(7))
    assert (line.out, line.asked, line.ordering.position) == (["e5", "e6", "e7"], [], StreamPosition("e", 7))


def test_what_comes_once_more_is_dropped(line: Line) -> None:
    for each in (batch(5, 2), batch(5, 2), batch(4), batch(7), batch(5, 2)):
        line.ordering.receive(each)
    assert (line.out, line.asked) == (["e5", "e6", "e7"], [])


# What is missing


def test_a_hole_is_filled_from_history_before_what_came_behind_it(line: Line) -> None:
    line.ordering.receive(batch(7))
    assert line.out == []
    assert line.answer(span(StreamPosition("e", 7), batch(5), batch(6), batch(7))) == StreamPosition("e", 4)
    line.ordering.receive(batch(8))
    assert (line.out, line.asked) == (["e5", "e6", "e7", "e8"], [])


def test_meanwhile_it_asks_no_more_and_holds_even_what_follows(line: Line) -> None:
    for each in (batch(7), batch(8), batch(9), batch(5)):
        line.ordering.receive(each)
    assert (len(line.asked), line.out) == (1, [])


def test_what_came_behind_what_history_gave_is_given_then(line: Line) -> None:
    for each in (batch(7), batch(8), batch(9)):
        line.ordering.receive(each)
    line.answer(span(StreamPosition("e", 7), batch(5), batch(6), batch(7)))
    assert (line.out, line.asked) == (["e5", "e6", "e7", "e8", "e9"], [])


def test_a_hole_behind_what_history_gave_is_filled_next(line: Line) -> None:
    line.ordering.receive(batch(7))
    line.ordering.receive(batch(9))
    line.answer(span(StreamPosition("e", 7), batch(5), batch(6), batch(7)))
    assert line.out == ["e5", "e6", "e7"]
    assert line.answer(span(StreamPosition("e", 9), batch(8), batch(9))) == StreamPosition("e", 7)
    assert (line.out[3:], line.asked) == (["e8", "e9"], [])


def test_a_long_hole_is_read_in_steps(line: Line) -> None:
    line.ordering.receive(batch(9))
    assert line.answer(span(StreamPosition("e", 9), batch(5), batch(6), more=True)) == StreamPosition("e", 4)
    assert line.answer(span(StreamPosition("e", 9), batch(7), batch(8), batch(9))) == StreamPosition("e", 6)
    assert line.out == ["e5", "e6", "e7", "e8", "e9"]


def test_what_history_no_longer_has_is_told(line: Line) -> None:
    line.ordering.receive(batch(9))
    line.answer(span(StreamPosition("e", 9), batch(8), batch(9)))
    assert line.out == [OffsetGap("e", 7, 3), "e8", "e9"]


def test_answers_of_history_that_fill_something_are_counted(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GAPS_FILLED, "value", 3)
    line.ordering.receive(batch(9))
    line.answer(span(StreamPosition("e", 9), batch(5), batch(6), more=True))
    assert GAPS_FILLED.value == 4
    line.answer(span(StreamPosition("e", 9)))
    assert GAPS_FILLED.value == 4


def test_where_history_has_nothing_all_up_to_the_top_is_told(line: Line) -> None:
    line.ordering.receive(batch(9))
    line.answer(span(StreamPosition("e", 9)))
    assert line.out == [OffsetGap("e", 8, 4), "e9"]


def test_history_that_can_not_be_read_is_told_as_a_gap_and_said(line: Line, events: Events) -> None:
    line.ordering.receive(batch(7))
    line.ordering.receive_presence(StreamPosition("e", 7), JOINED)
    line.asked.pop()[1].errback(ValueError("WRONGTYPE"))
    assert line.out == [OffsetGap("e", 6, 2), "e7", *JOINED]
    assert events.said == [("error", "cannot read the history of a room: WRONGTYPE")]
    line.ordering.receive(batch(8))
    assert line.out[5:] == ["e8"]


def test_what_is_held_is_bounded_and_the_rest_is_read() -> None:
    line = Line(Config(gap_buffer_bytes_per_room=2))
    for first in (7, 8, 9, 10):
        line.ordering.receive(batch(first))
    line.answer(span(StreamPosition("e", 7), batch(5), batch(6), batch(7)))
    assert line.out == ["e5", "e6", "e7", "e8"]
    assert line.answer(span(StreamPosition("e", 10), batch(9), batch(10))) == StreamPosition("e", 8)
    assert (line.out[4:], line.asked) == (["e9", "e10"], [])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Number:
    """Return what all rooms hold; this test begins with nothing."""
    monkeypatch.setattr(HELD_BYTES, "value", 0)
    return HELD_BYTES


def test_what_all_rooms_hold_together_is_bounded_and_the_rest_is_read(held: Number) -> None:
    config = Config(gap_buffer_bytes=3)
    one, two = Line(config), Line(config)
    for first in (7, 8):
        one.ordering.receive(batch(first))
    for first in (7, 8, 9):
        two.ordering.receive(batch(first))
    assert held.value == 3
    for line, missing in ((one, ()), (two, (8, 9))):
        line.answer(span(StreamPosition("e", 7), batch(5), batch(6), batch(7)))
        if missing:
            assert line.answer(span(StreamPosition("e", 9), *map(batch, missing))) == StreamPosition("e", 7)
    assert one.out == ["e5", "e6", "e7", "e8"]
    assert two.out == ["e5", "e6", "e7", "e8", "e9"]
    assert (held.value, one.asked, two.asked) == (0, [], [])


def test_a_room_that_stops_or_cannot_read_holds_nothing(held: Number, events: Events) -> None:
    stopped, unlucky = Line(Config()), Line(Config())
    for line in (stopped, unlucky):
        line.ordering.receive(batch(9))
    assert held.value == 2
    stopped.ordering.stop()
    assert held.value == 1
    unlucky.asked.pop()[1].errback(ValueError("WRONGTYPE"))
    assert held.value == 0


# Presence


@rows(
    ("after", "waits"),
    [
        (StreamPosition("e", 3), False),
        (StreamPosition("e", 4), False),
        (StreamPosition("e", 5), True),
        (StreamPosition("f", 5), False),
    ],
)
def test_presence_waits_for_the_message_before_it(after: StreamPosition, waits: bool) -> None:
    line = Line(Config())
    line.ordering.receive_presence(after, JOINED[:1])
    line.ordering.receive_presence(after, JOINED[1:])
    assert line.out == ([] if waits else JOINED)
    line.ordering.receive(batch(5))
    assert line.out == (["e5", *JOINED] if waits else [*JOINED, "e5"])


def test_presence_waits_while_history_is_read(line: Line) -> None:
    line.ordering.receive(batch(6))
    line.ordering.receive_presence(TOP, JOINED)
    assert line.out == []
    line.answer(span(StreamPosition("e", 6), batch(5), batch(6)))
    assert line.out == ["e5", "e6", *JOINED]


def test_of_too_many_presence_events_the_first_do_not_wait() -> None:
    line = Line(Config(held_presence_events=2))
    line.ordering.receive_presence(StreamPosition("e", 5), JOINED)
    assert line.out == JOINED[:1]


# What a comparison finds


@pytest.mark.parametrize("top", [StreamPosition("e", 4), StreamPosition("e", 3), StreamPosition("e", 0)])
def test_one_that_has_all_asks_nothing(line: Line, top: StreamPosition) -> None:
    line.ordering.recover(top)
    assert line.asked == []


def test_a_lost_last_message_is_read(line: Line) -> None:
    line.ordering.recover(StreamPosition("e", 5))
    line.answer(span(StreamPosition("e", 5), batch(5)))
    assert line.out == ["e5"]


def test_one_that_has_not_begun_is_not_compared() -> None:
    line = Line(Config(), None)
    line.ordering.recover(StreamPosition("e", 5))
    assert len(line.asked) == 1


# Another epoch


def test_another_epoch_is_told_as_a_gap_of_unknown_size(line: Line) -> None:
    line.ordering.receive(batch(1, 1, "f"))
    line.answer(span(StreamPosition("f", 1), batch(1, 1, "f")))
    assert line.out == [OffsetGap("f", 0, None), "f1"]


def test_what_history_still_has_of_the_epoch_that_is_over_comes_first(line: Line) -> None:
    line.ordering.receive(batch(1, 1, "f"))
    line.answer(span(StreamPosition("f", 1), batch(5), more=True))
    assert line.answer(span(StreamPosition("f", 1), batch(1, 1, "f"))) == StreamPosition("e", 5)
    assert line.out == ["e5", OffsetGap("f", 0, None), "f1"]


def test_what_was_heard_of_the_epoch_that_is_over_comes_before_the_gap(line: Line) -> None:
    line.ordering.receive(batch(6))
    line.ordering.receive(batch(1, 1, "f"))
    line.answer(span(StreamPosition("f", 1)))
    assert line.out == [OffsetGap("e", 5, 1), "e6", OffsetGap("f", 0, None), "f1"]


def test_it_does_not_go_back_to_an_epoch_that_is_over(line: Line) -> None:
    line.ordering.recover(StreamPosition("f", 0))
    line.answer(span(StreamPosition("f", 0)))
    line.ordering.receive(batch(5))
    line.answer(span(StreamPosition("f", 0)))
    assert (line.out, line.ordering.position, line.asked) == ([OffsetGap("f", 0, None)], StreamPosition("f", 0), [])


def test_what_came_since_the_epoch_was_asked_for_makes_it_ask_again(line: Line) -> None:
    line.ordering.receive(batch(6))
    line.ordering.receive(batch(1, 1, "f"))
    line.answer(span(StreamPosition("e", 6), batch(5), batch(6)))
    assert line.out == ["e5", "e6"]
    line.answer(span(StreamPosition("f", 1), batch(1, 1, "f")))
    assert line.out[2:] == [OffsetGap("f", 0, None), "f1"]


def test_where_the_room_is_not_known_any_more_the_order_is_asked_for(line: Line) -> None:
    line.ordering.recover(StreamPosition("", 0))
    line.answer(span(StreamPosition("f", 0)))
    assert line.out == [OffsetGap("f", 0, None)]


# What comes again in another epoch


def test_what_its_publisher_knows_to_come_again_is_given_to_nobody_but_whole_to_those_behind(line: Line) -> None:
    line.ordering.receive(batch(5, 2, sequence=9, publisher="w"))
    again = replace(batch(1, 3, "f", 8, "w"), before=StreamPosition("e", 4))
    line.ordering.receive(again)
    line.answer(span(StreamPosition("f", 3), again))
    assert line.out == ["e5", "e6", OffsetGap("f", 0, None)]
    assert line.wholes[-1] == again
    assert line.ordering.position == StreamPosition("f", 3)


def test_what_its_publisher_does_not_know_to_come_again_is_known_by_its_number(line: Line) -> None:
    line.ordering.receive(batch(5, 2, sequence=9, publisher="w"))
    again = batch(1, 2, "f", 9, "w")
    line.ordering.receive(again)
    line.answer(span(StreamPosition("f", 2), again))
    assert line.out == ["e5", "e6", OffsetGap("f", 0, None)]
    assert line.wholes[-1] == replace(again, before=StreamPosition("e", 5))


def test_it_knows_whether_it_came_as_far_as_another_before(line: Line) -> None:
    line.ordering.recover(StreamPosition("f", 0))
    line.answer(span(StreamPosition("f", 0)))
    assert line.ordering.before == (StreamPosition("e", 4),)
    e4, e5, d9, x1 = StreamPosition("e", 4), StreamPosition("e", 5), StreamPosition("d", 9), StreamPosition("x", 1)
    befores = [(), (e4,), (e5,), (d9,), (d9, e4), (d9, e5), (e4, x1)]  # x was over before we knew that it had begun
    assert [line.ordering.knows(each) for each in befores] == [True, True, False, True, True, False, False]


# Without history


def test_without_history_a_hole_is_told_at_once(bare: Line) -> None:
    bare.ordering.receive(batch(7))
    assert (bare.out, bare.asked) == ([OffsetGap("e", 6, 2), "e7"], [])


def test_without_history_a_lost_last_message_is_told_at_once(bare: Line) -> None:
    bare.ordering.receive_presence(StreamPosition("e", 6), JOINED)
    bare.ordering.recover(StreamPosition("e", 6))
    assert (bare.out, bare.asked) == ([OffsetGap("e", 6, 2), *JOINED], [])


def test_without_history_what_may_still_be_on_its_way_is_not_told_as_lost(bare: Line) -> None:
    bare.ordering.recover(StreamPosition("f", 0))
    bare.answer(span(StreamPosition("f", 3)))
    bare.ordering.receive(batch(1, 1, "f"))
    bare.ordering.receive(batch(2, 2, "f"))
    assert bare.out == [OffsetGap("f", 0, None), "f1", "f2", "f3"]


def test_without_history_it_does_not_go_back_to_an_epoch_that_is_over(bare: Line) -> None:
    for top in (StreamPosition("f", 0), StreamPosition("e", 4)):
        bare.ordering.recover(top)
        bare.answer(span(StreamPosition("f", 0)))
    bare.ordering.receive(batch(5))
    bare.answer(span(StreamPosition("f", 0)))
    assert (bare.out, bare.ordering.position) == ([OffsetGap("f", 0, None)], StreamPosition("f", 0))


def test_without_history_a_comparison_waits_for_an_answer_that_is_on_its_way(bare: Line) -> None:
    bare.ordering.receive(batch(1, 1, "f"))
    bare.ordering.recover(StreamPosition("e", 9))
    assert bare.out == []
