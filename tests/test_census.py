from hypothesis import given
from hypothesis import strategies as st

from chatd.census import count, sample

ROOMS = st.sets(st.text(max_size=8), max_size=40)


@given(st.lists(ROOMS, max_size=4))
def test_few_rooms_are_counted_exactly(workers: list[set[str]]) -> None:
    every = set().union(*workers)
    seen = {each for rooms in workers for each in sample(rooms, 40)}
    if len(seen) == len(every):  # no two of them have the same hash
        assert count([(len(rooms), sample(rooms, 40)) for rooms in workers]) == len(every)


def test_many_rooms_are_counted_about_right() -> None:
    names = [f"room {number}" for number in range(20_000)]
    workers = [names[:12_000], names[8_000:], names[:100], []]
    found = count([(len(rooms), sample(rooms, 256)) for rooms in workers])
    assert abs(found - 20_000) < 4_000


def test_where_all_have_the_same_rooms_they_count_once() -> None:
    names = [f"room {number}" for number in range(5_000)]
    found = count([(len(names), sample(names, 256))] * 8)
    assert 5_000 <= found < 6_000


def test_no_workers_have_no_rooms() -> None:
    assert count([]) == count([(0, ())]) == 0


def test_a_sample_is_no_longer_than_asked_for() -> None:
    assert len(sample((str(number) for number in range(1000)), 256)) == 256
    assert sample(["ops"], 256) == sample(["ops", "ops"], 256)
