"""What a room's history is asked for, on a wire whose far end is the test."""

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatd.broker.history import HistoryReader, history_key
from chatd.broker.queries import Queries
from chatd.config.settings import Config
from chatd.protocol.message import HistoryRange, Message, StreamPosition, encode
from tests.broker.wire import Wire
from tests.fakes import Events
from tests.rows import rows

NOW = 1_000_000.0
"""Seconds since 1970."""


class Archive:
    """A history and its wire."""

    def __init__(self, **knobs: Any) -> None:
        given = {"redis_prefix": "p", "history_size": 10, "history_ttl": 60, "room_offset_ttl": 90, **knobs}
        config = Config(**given)
        queries = Queries(Clock(), config)
        self.wire = Wire()
        queries.connected(self.wire, b"r1")
        self.history = HistoryReader(queries, config, str.encode, lambda: NOW)

    def read(self, answer: list[Any], after: StreamPosition | None = None) -> HistoryRange:
        """Give what is made of an answer."""
        reading = self.history.read("ops", after, 500)
        self.wire.answer(answer)
        span: HistoryRange = result(reading)
        return span


def result(done: "Deferred[Any]") -> Any:
    seen: list[Any] = []
    done.addCallback(seen.append)
    return seen[0]


def entry(epoch: str, first: int, ages: Sequence[float] = (0,)) -> bytes:
    """Give a batch as it was published, of messages that are so many seconds old."""
    messages = [Message(f"s.{first + at}", int((NOW - age) * 1000), "s", "x") for at, age in enumerate(ages)]
    return f"{epoch} {first} w 1\n".encode() + encode(messages)


def shape(span: HistoryRange) -> list[tuple[str, list[int]]]:
    """Give epoch and offsets of each batch, and that the messages are those of these offsets."""
    for batch in span.batches:
        assert [message.id for message in batch.messages] == [f"s.{at}" for at in range(batch.first, batch.last + 1)]
    return [(batch.epoch, list(range(batch.first, batch.last + 1))) for batch in span.batches]


def test_the_key_of_a_history_has_the_epoch_in_its_middle() -> None:
    assert history_key("p", "a:b") == (b"p:history:", b":a:b")


def test_a_stretch_is_asked_for_with_all_the_script_needs() -> None:
    archive = Archive()
    archive.history.read("ops", StreamPosition("e", 7), 500)
    (call,) = archive.wire.calls
    *before, epoch, memory, after, offset, most = call[2:]
    assert before == [1, b"ops", b"p:history:", b":ops", b"r1"]
    assert (len(epoch), memory, after, offset, most) == (8, 90, "e", 7, 500)


def test_where_the_order_stands_is_asked_for_without_a_position() -> None:
    archive = Archive()
    archive.history.read("ops", None, 500)
    assert archive.wire.calls[0][9:11] == ("", 0)


@rows("off", [{"history_size": 0}, {"history_ttl": 0}])
def test_without_history_none_is_asked_for(off: dict[str, Any]) -> None:
    archive = Archive(**off)
    archive.history.read("ops", StreamPosition("e", 7), 500)
    assert archive.wire.calls[0][9:11] == ("", 0)


def test_an_answer_is_read_to_batches_and_where_the_order_stands() -> None:
    span = Archive().read([b"e", b"9", 1, b"e 7", entry("e", 5, [0, 0]), entry("e", 7)])
    assert (span.top, span.more) == (StreamPosition("e", 9), True)
    assert shape(span) == [("e", [5, 6]), ("e", [7])]
    assert {batch.room for batch in span.batches} == {"ops"}


def test_what_is_too_old_is_left_out_in_any_epoch() -> None:
    for epoch in (b"e", b"f"):
        span = Archive().read([epoch, b"9", 0, b"e 9", entry("e", 5), entry("e", 6, [61, 60.5, 60, 2])])
        assert shape(span) == [("e", [5]), ("e", [8, 9])]


def test_a_batch_of_which_all_is_too_old_is_left_out_whole() -> None:
    span = Archive().read([b"e", b"9", 0, b"e 7", entry("e", 5, [62, 61]), entry("e", 7, [61])])
    assert (shape(span), span.more) == ([], False)


def test_a_step_of_which_all_is_too_old_is_followed_by_the_next_at_once() -> None:
    archive = Archive()
    reading = archive.history.read("ops", StreamPosition("e", 4), 500)
    archive.wire.answer([b"e", b"9", 1, b"e 7", entry("e", 5, [62, 61]), entry("e", 7, [61])])
    assert archive.wire.calls[1][9:] == ("e", 7, 500)
    archive.wire.answer([b"e", b"9", 0, b"e 9", entry("e", 8, [61, 0])])
    assert shape(result(reading)) == [("e", [9])]


GARBAGE = {
    "no head": b"garbage",
    "no messages": b"e 6 w 1\n",
    "messages that are none": b"e 6 w 1\n\xc1",
    "messages of another kind": b"e 6 w 1\n" + b"\x91\x01",
    "an offset that is none": b"e six w 1\n" + encode([]),
    "bytes that are no ASCII": b"\xff 6 w 1\n" + encode([]),
    "another epoch": entry("f", 6),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_an_entry_that_cannot_be_read_costs_only_itself_and_is_logged(data: bytes, events: Events) -> None:
    span = Archive().read([b"e", b"9", 0, b"e 9", entry("e", 5), data, entry("e", 7, [0, 0, 0])])
    assert shape(span) == [("e", [5]), ("e", [7, 8, 9])]
    [(level, text)] = events.said
    assert level == "error"
    assert text.startswith("an entry in the history of room ops is unreadable and lost: ")


def test_a_step_of_which_nothing_can_be_read_is_followed_by_the_next_at_once() -> None:
    archive = Archive()
    reading = archive.history.read("ops", StreamPosition("e", 4), 500)
    archive.wire.answer([b"f", b"9", 1, b"e 6", b"garbage", b"garbage"])
    assert archive.wire.calls[1][9:] == ("e", 6, 500)
    archive.wire.answer([b"f", b"9", 0, b"f 8", entry("f", 8)])
    assert shape(result(reading)) == [("f", [8])]


def test_a_step_backwards_of_which_nothing_can_be_read_is_followed_by_the_next_at_once() -> None:
    archive = Archive()
    reading = archive.history.read_back("ops", "e", 9, 2, 500)
    archive.wire.answer([1, b"6", b"garbage", b"garbage"])
    assert archive.wire.calls[1][-3:] == (6, 2, 500)
    archive.wire.answer([0, b"5", entry("e", 5)])
    batches, more = result(reading)
    assert ([(batch.epoch, batch.first) for batch in batches], more) == ([("e", 5)], False)


def test_each_step_backwards_asks_for_less_whatever_the_broker_answers() -> None:
    archive = Archive()
    archive.history.read_back("ops", "e", 9, 2, 500)
    for last in (8, 7, 6):
        archive.wire.answer([1, b"9", b"garbage"])
        assert archive.wire.calls[-1][-3:] == (last, 2, 500)


def test_an_entry_that_says_it_begins_behind_its_end_is_not_read_backwards(events: Events) -> None:
    archive = Archive()
    reading = archive.history.read_back("ops", "e", 9, 2, 500)
    archive.wire.answer([1, b"5", entry("e", 20), entry("e", 6)])
    batches, more = result(reading)
    assert ([batch.first for batch in batches], more) == ([6], True)
    assert len(events.said) == 1


def test_an_entry_that_cannot_be_read_is_logged_once_as_far_as_is_remembered(events: Events) -> None:
    archive = Archive(logged_unreadable_entries=2)
    for name in ("a", "b", "a", "b", "c", "a"):
        archive.read([b"e", b"9", 0, b"e 9", name.encode()])
    assert len(events.said) == 4


def test_tops_are_asked_for_all_at_once_and_given_in_their_order() -> None:
    archive = Archive()
    tops = archive.history.tops(["a", "b", "c"])
    (call,) = archive.wire.calls
    assert call[2:] == (3, b"a", b"b", b"c", b"r1", 90)
    archive.wire.answer([b"e", b"5", b"", b"0", b"f", b"12"])
    assert result(tops) == [StreamPosition("e", 5), StreamPosition("", 0), StreamPosition("f", 12)]
