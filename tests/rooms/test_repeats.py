"""Batches that came again, though their publisher does not know it."""

from chatd.protocol.message import Batch, Message, StreamPosition
from chatd.rooms.ordering import Repeats


def batch(epoch: str, first: int, sequence: int, publisher: str = "w", before: StreamPosition | None = None) -> Batch:
    return Batch("ops", epoch, first, publisher, sequence, (Message("w.1", 0, "w", "hello"),), before)


def test_what_comes_for_the_first_time_stays_as_it_is() -> None:
    repeats = Repeats(4)
    for each in (batch("e", 1, 1), batch("e", 2, 2), batch("f", 1, 3), batch("f", 2, 1, "v")):
        assert repeats.mark(each) is each
    assert repeats.look(batch("g", 1, 2)).before is None, "it was not its publisher's newest"


def test_the_newest_batch_that_comes_again_says_where_it_stood() -> None:
    repeats = Repeats(4)
    repeats.mark(batch("e", 1, 1))
    repeats.mark(batch("e", 7, 2))
    assert repeats.mark(batch("f", 1, 2)).before == StreamPosition("e", 7)
    assert repeats.mark(batch("g", 3, 2)).before == StreamPosition("f", 1)


def test_it_says_so_however_often_it_is_asked_and_when_others_came_since() -> None:
    repeats = Repeats(4)
    for each in (batch("e", 7, 2), batch("f", 1, 2), batch("f", 2, 3)):
        repeats.mark(each)
    assert repeats.look(batch("f", 1, 2)).before == StreamPosition("e", 7)
    assert repeats.mark(batch("f", 1, 2)).before == StreamPosition("e", 7)


def test_one_that_comes_twice_in_an_epoch_is_none() -> None:
    repeats = Repeats(4)
    repeats.mark(batch("e", 7, 2))
    assert repeats.mark(batch("e", 7, 2)).before is None


def test_where_it_stood_in_the_epoch_before_itself_is_not_said() -> None:
    repeats = Repeats(4)
    repeats.mark(batch("e", 7, 2))
    repeats.mark(batch("f", 1, 2))
    assert repeats.look(batch("e", 7, 2)).before is None


def test_who_only_looks_leaves_no_trace() -> None:
    repeats = Repeats(4)
    repeats.look(batch("e", 7, 2))
    assert repeats.mark(batch("f", 1, 2)).before is None


def test_what_was_seen_counts_more_than_what_the_publisher_says() -> None:
    repeats = Repeats(4)
    repeats.mark(batch("f", 3, 2, before=StreamPosition("e", 7)))
    assert repeats.mark(batch("g", 1, 2, before=StreamPosition("e", 7))).before == StreamPosition("f", 3)


def test_publishers_count_apart() -> None:
    repeats = Repeats(4)
    repeats.mark(batch("e", 7, 2))
    assert repeats.mark(batch("f", 1, 2, "v")).before is None


def test_each_of_several_that_came_again_is_known() -> None:
    repeats = Repeats(4)
    for each in (batch("e", 7, 2), batch("f", 1, 2), batch("f", 2, 3), batch("g", 1, 3)):
        repeats.mark(each)
    assert repeats.look(batch("f", 1, 2)).before == StreamPosition("e", 7)
    assert repeats.look(batch("g", 1, 3)).before == StreamPosition("f", 2)


def test_of_too_many_that_came_again_the_oldest_is_forgotten() -> None:
    repeats = Repeats(1)
    for each in (batch("e", 7, 2), batch("f", 1, 2), batch("f", 2, 3), batch("g", 1, 3), batch("g", 2, 4)):
        repeats.mark(each)
    assert [repeats.look(batch("h", 1, sequence)).before for sequence in (2, 3)] == [None, StreamPosition("f", 2)]


def test_of_too_many_publishers_the_one_longest_silent_is_forgotten() -> None:
    repeats = Repeats(2)
    for each in (batch("e", 1, 1, "u"), batch("e", 2, 1, "v"), batch("e", 3, 2, "u"), batch("e", 4, 1, "w")):
        repeats.mark(each)
    found = [repeats.look(batch("f", 1, sequence, name)).before for name, sequence in (("u", 2), ("v", 1), ("w", 1))]
    assert found == [StreamPosition("e", 3), None, StreamPosition("e", 4)]
