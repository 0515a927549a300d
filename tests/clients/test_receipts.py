"""The position up to which a client has received everything, by what its kernel acknowledges."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from chatd.clients.receipts import Receipts
from chatd.protocol.message import StreamPosition
from tests.fakes import FakeLine


def at(offset: int) -> StreamPosition:
    return StreamPosition("e", offset)


class Given:
    """Receipts of a line in memory."""

    def __init__(self, most: int = 64) -> None:
        self.line = FakeLine()
        self.receipts = Receipts(self.line.progress, most)

    def record(self, offset: int, *, written: int, arrived: int) -> StreamPosition | None:
        self.line.bytes_written_and_arrived = (written, arrived)
        return self.receipts.record(at(offset))


def test_nothing_is_known_before_anything_has_arrived() -> None:
    assert Given().record(1, written=10, arrived=9) is None


def test_what_was_written_has_arrived_with_its_last_byte() -> None:
    client = Given()
    client.record(1, written=10, arrived=0)
    assert client.record(2, written=20, arrived=9) is None
    assert client.record(2, written=20, arrived=10) == at(1)
    assert client.record(2, written=20, arrived=19) == at(1)
    assert client.record(2, written=20, arrived=20) == at(2)


def test_a_position_behind_which_nothing_was_written_has_arrived_at_once() -> None:
    assert Given().record(7, written=0, arrived=0) == at(7)


def test_the_newest_that_has_arrived_counts() -> None:
    client = Given()
    for offset in range(1, 6):
        client.record(offset, written=10 * offset, arrived=0)
    assert client.record(6, written=60, arrived=35) == at(3)


def test_a_position_that_stays_has_arrived_with_the_bytes_that_were_written_when_it_was_first_given() -> None:
    client = Given()
    client.record(1, written=10, arrived=5)
    assert client.record(1, written=99, arrived=10) == at(1)  # a ping was written since


def test_a_count_that_was_too_high_when_it_was_asked_for_is_mended_the_next_time() -> None:
    client = Given()
    client.record(1, written=15, arrived=10)  # what arrived between the two questions was counted twice
    assert client.record(1, written=10, arrived=10) == at(1)


def test_a_count_that_nobody_knew_is_mended_by_the_next_position() -> None:
    client = Given()
    client.record(1, written=10, arrived=0)
    client.record(2, written=sys.maxsize, arrived=10)
    assert client.record(3, written=30, arrived=20) == at(1)
    assert client.record(3, written=30, arrived=30) == at(3)


def test_between_two_times_a_position_is_noted_where_it_has_got_all_before() -> None:
    client = Given()
    client.line.bytes_written_and_arrived = (10, 10)
    client.receipts.record_early(at(1))
    client.line.bytes_written_and_arrived = (20, 10)
    client.receipts.record_early(at(2))
    client.line.bytes_written_and_arrived = (30, 20)
    assert client.receipts.record(at(3)) == at(2)


def test_while_something_is_on_its_way_there_is_no_other_position_between_two_times() -> None:
    client = Given(most=2)
    client.record(1, written=10, arrived=0)
    for offset in range(2, 5):
        client.line.bytes_written_and_arrived = (10 * offset, 0)
        client.receipts.record_early(at(offset))
    assert client.record(5, written=50, arrived=40) == at(1)


def test_a_position_that_is_known_is_asked_of_nobody() -> None:
    client = Given()
    client.record(1, written=10, arrived=10)
    client.record(2, written=20, arrived=10)
    client.receipts._progress = None  # type: ignore[assignment]
    client.receipts.record_early(at(2))


def test_another_epoch_is_another_position() -> None:
    client = Given()
    client.record(5, written=10, arrived=10)
    client.line.bytes_written_and_arrived = (20, 15)
    assert client.receipts.record(StreamPosition("f", 1)) == at(5)
    client.line.bytes_written_and_arrived = (20, 20)
    assert client.receipts.record(StreamPosition("f", 1)) == StreamPosition("f", 1)


def test_more_positions_than_are_remembered_make_less_known_and_nothing_wrong() -> None:
    client = Given(most=3)
    for offset in range(1, 11):
        client.record(offset, written=10 * offset, arrived=0)
    assert client.record(10, written=100, arrived=85) == at(1)  # of 1, 9 and 10 it is known
    assert client.record(10, written=100, arrived=90) == at(9)


def test_of_one_that_is_always_far_behind_it_is_known_that_it_moves_on() -> None:
    client, lag = Given(most=8), 50
    got = [client.record(offset, written=offset, arrived=offset - lag) for offset in range(1, 500)]
    known = [position.offset for position in got[lag + 20 :] if position is not None]
    assert len(set(known)) > 5
    assert all(known[step] < known[step + 150] for step in range(len(known) - 150))


def test_once_sealed_no_position_is_noted_and_what_was_written_may_still_arrive() -> None:
    client = Given()
    client.record(1, written=10, arrived=0)
    client.receipts.seal()
    assert client.record(2, written=10, arrived=9) is None
    assert client.record(3, written=15, arrived=15) == at(1)


def test_once_closed_what_had_arrived_by_then_stays() -> None:
    client = Given()
    client.record(1, written=10, arrived=0)
    client.record(2, written=20, arrived=0)
    client.line.bytes_written_and_arrived = (20, 10)
    client.receipts.close()
    assert client.record(3, written=20, arrived=20) == at(1)
    client.receipts.close()
    assert client.record(3, written=20, arrived=20) == at(1)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60), st.booleans()), max_size=80))
def test_what_it_says_has_arrived_and_never_goes_back(steps: list[tuple[int, int, bool]]) -> None:
    client, written, arrived, offset = Given(most=5), 0, 0, 0
    ends = {0: 0}
    before = 0
    for size, acknowledged, moves in steps:
        written += size
        arrived = min(written, arrived + acknowledged)
        if moves or size:
            offset += 1
            ends[offset] = written
        got = client.record(offset, written=written, arrived=arrived)
        if got is not None:
            assert ends[got.offset] <= arrived
            assert got.offset >= before
            before = got.offset
    if written == arrived:
        assert client.record(offset, written=written, arrived=arrived) == at(offset)
