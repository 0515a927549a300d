"""A position that moves on: each message once, in order, or told as lost."""

from collections.abc import Sequence

from chatd.protocol.message import UNBEGUN, Batch, Message, OffsetGap, StreamPosition
from chatd.rooms.ordering import EPOCHS_KNOWN, Cursor
from tests.rows import rows


def batch(first: int, count: int = 1, epoch: str = "e", before: StreamPosition | None = None) -> Batch:
    messages = tuple(Message(f"w.{first + number}", 0, "w", "hello") for number in range(count))
    return Batch("ops", epoch, first, "w", 1, messages, before)


def take(cursor: Cursor, each: Batch) -> list[tuple[int, int] | OffsetGap]:
    """Handle a batch; return the first and last offset of the result, and the gaps."""
    return [item if isinstance(item, OffsetGap) else (item.first, item.last) for item in cursor.advance(each)]


def test_what_follows_is_given_whole() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    whole = batch(5, 3)
    assert list(cursor.advance(whole)) == [whole]
    assert cursor.position == StreamPosition("e", 7)


def test_what_lies_behind_is_not_given() -> None:
    cursor = Cursor(StreamPosition("e", 7))
    assert take(cursor, batch(5, 3)) == []
    assert cursor.position == StreamPosition("e", 7)


def test_of_a_batch_that_it_stands_in_the_rest_is_given() -> None:
    cursor = Cursor(StreamPosition("e", 5))
    [rest] = cursor.advance(batch(5, 3))
    assert isinstance(rest, Batch)
    assert (rest.first, [each.id for each in rest.messages]) == (6, ["w.6", "w.7"])


def test_a_hole_is_told_with_its_size() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    assert take(cursor, batch(8, 2)) == [OffsetGap("e", 7, 3), (8, 9)]
    assert cursor.position == StreamPosition("e", 9)


def test_where_a_gap_is_told_the_position_stands_behind_it() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    steps = [cursor.position for _ in cursor.advance(batch(8, 2))]
    assert steps == [StreamPosition("e", 7), StreamPosition("e", 9)]


def test_another_epoch_is_told_as_a_gap_of_unknown_size() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    assert take(cursor, batch(1, 2, "f")) == [OffsetGap("f", 0, None), (1, 2)]


def test_of_an_epoch_that_had_not_begun_nothing_can_be_lost() -> None:
    cursor = Cursor(StreamPosition(UNBEGUN, 0))
    assert take(cursor, batch(1)) == [(1, 1)]
    assert take(Cursor(StreamPosition(UNBEGUN, 0)), batch(3)) == [OffsetGap("e", 2, 2), (3, 3)]
    assert list(Cursor(StreamPosition(UNBEGUN, 0)).skip_to(StreamPosition("e", 0))) == []
    assert list(Cursor(StreamPosition(UNBEGUN, 0)).skip_to(StreamPosition("e", 2))) == [OffsetGap("e", 2, 2)]
    assert cursor.before == ()


def test_a_hole_at_the_begin_of_another_epoch_is_told_too() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    assert take(cursor, batch(3, 1, "f")) == [OffsetGap("f", 0, None), OffsetGap("f", 2, 2), (3, 3)]


@rows(
    ("top", "gaps"),
    [
        (StreamPosition("e", 4), []),
        (StreamPosition("e", 3), []),
        (StreamPosition("e", 6), [OffsetGap("e", 6, 2)]),
        (StreamPosition("f", 6), [OffsetGap("f", 6, None)]),
        (StreamPosition("f", 0), [OffsetGap("f", 0, None)]),
    ],
)
def test_what_is_skipped_is_told(top: StreamPosition, gaps: list[OffsetGap]) -> None:
    cursor = Cursor(StreamPosition("e", 4))
    assert list(cursor.skip_to(top)) == gaps
    assert cursor.position == (top if gaps else StreamPosition("e", 4))


def test_a_position_that_nobody_can_have_had_is_given_up_and_counts_for_nothing_later() -> None:
    cursor = Cursor(StreamPosition("e", 99))
    assert cursor.reset(StreamPosition("e", 4)) == OffsetGap("e", 4, None)
    assert cursor.position == StreamPosition("e", 4)
    assert cursor.before == ()


def test_it_knows_what_follows_and_what_it_has() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    assert [cursor.follows(each) for each in (batch(4), batch(5), batch(6), batch(5, 1, "f"))] == [0, 1, 0, 0]
    assert [cursor.has(each) for each in (batch(3, 2), batch(4, 2), batch(5), batch(1, 1, "f"))] == [1, 0, 0, 0]


# What comes again, in another epoch


@rows(
    ("before", "given"),
    [
        (StreamPosition("e", 2), []),  # 2, 3, 4: had all of them
        (StreamPosition("e", 3), [3]),
        (StreamPosition("e", 4), [2, 3]),
        (StreamPosition("e", 5), [1, 2, 3]),
        (StreamPosition("d", 2), [1, 2, 3]),  # of an epoch that it was not in
    ],
)
def test_of_what_comes_again_only_what_was_not_given_before_is_given(
    before: StreamPosition, given: Sequence[int]
) -> None:
    cursor = Cursor(StreamPosition("e", 4))
    gap, rest = cursor.advance(batch(1, 3, "f", before))
    assert gap == OffsetGap("f", 0, None)
    assert isinstance(rest, Batch)
    assert [each.id for each in rest.messages] == [f"w.{each}" for each in given]
    assert (rest.last, cursor.position) == (3, StreamPosition("f", 3))


def test_what_comes_again_later_in_an_epoch_is_known_too() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    list(cursor.advance(batch(1, 2, "f")))
    [rest] = cursor.advance(batch(3, 1, "f", StreamPosition("e", 4)))
    assert isinstance(rest, Batch)
    assert rest.messages == ()


def test_what_comes_again_in_one_more_epoch_is_known_too() -> None:
    cursor = Cursor(StreamPosition("e", 4))
    list(cursor.skip_to(StreamPosition("f", 0)))
    _, rest = cursor.advance(batch(1, 1, "g", StreamPosition("e", 4)))
    assert isinstance(rest, Batch)
    assert rest.messages == ()


def test_only_the_last_epochs_are_remembered() -> None:
    cursor = Cursor(StreamPosition("0", 4))
    for epoch in range(1, EPOCHS_KNOWN + 2):
        list(cursor.skip_to(StreamPosition(f"{epoch}", 0)))
    assert [each.epoch for each in cursor.before] == [f"{epoch}" for epoch in range(1, EPOCHS_KNOWN + 1)]


def test_it_may_be_told_where_the_epochs_before_ended() -> None:
    cursor = Cursor(StreamPosition("f", 0), (StreamPosition("e", 4),))
    [rest] = cursor.advance(batch(1, 2, "f", StreamPosition("e", 4)))
    assert isinstance(rest, Batch)
    assert (rest.first, len(rest.messages)) == (2, 1)
