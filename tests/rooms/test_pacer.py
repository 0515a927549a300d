"""The pacer, on a clock: at once where it was quiet, no more often than it may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from chatd.rooms.publisher import Pacer

INTERVAL = 0.25


class Work:
    """Work that notes when it was done, and may ask for more or fail."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.clock = Clock()
        self.done: list[float] = []
        self.takes = 0.0
        self.asks_again = 0
        self.fails = False
        self.pacer = Pacer(self.clock, interval, self.work)

    def work(self) -> None:
        self.done.append(self.clock.seconds())
        self.clock.rightNow += self.takes
        if self.asks_again:
            self.asks_again -= 1
            self.pacer.request()
        if self.fails:
            raise ZeroDivisionError


@pytest.fixture
def work() -> Work:
    return Work()


def test_what_is_asked_for_is_done_at_the_end_of_the_turn(work: Work) -> None:
    work.pacer.request()
    assert work.done == []
    work.clock.advance(0)
    assert work.done == [0]


def test_what_is_asked_for_several_times_in_a_turn_is_done_once(work: Work) -> None:
    for _ in range(3):
        work.pacer.request()
    work.clock.advance(INTERVAL * 4)
    assert len(work.done) == 1


def test_nothing_is_done_that_nobody_asked_for(work: Work) -> None:
    work.clock.advance(10)
    assert (work.done, work.clock.getDelayedCalls()) == ([], [])


def test_what_is_asked_for_soon_after_waits_for_the_interval(work: Work) -> None:
    work.pacer.request()
    work.clock.advance(0)
    work.clock.advance(INTERVAL / 4)
    work.pacer.request()
    work.clock.advance(INTERVAL / 2)
    assert work.done == [0]
    work.clock.advance(INTERVAL / 4)
    assert work.done == [0, INTERVAL]


def test_what_is_asked_for_when_the_interval_is_over_does_not_wait(work: Work) -> None:
    work.pacer.request()
    work.clock.advance(0)
    work.clock.advance(INTERVAL)
    work.pacer.request()
    work.clock.advance(0)
    assert work.done == [0, INTERVAL]


def test_the_interval_begins_when_the_work_ends(work: Work) -> None:
    work.takes = INTERVAL * 2
    work.pacer.request()
    work.clock.advance(0)
    work.pacer.request()
    work.clock.advance(INTERVAL / 2)
    assert work.done == [0]
    work.clock.advance(INTERVAL / 2)
    assert work.done == [0, INTERVAL * 3]


def test_what_the_work_itself_asks_for_waits_for_the_interval_too(work: Work) -> None:
    work.asks_again = 2
    work.pacer.request()
    for _ in range(8):
        work.clock.advance(INTERVAL / 4)
    assert work.done == [INTERVAL / 4, INTERVAL * 5 / 4]  # the clock stood there when the first was due
    work.clock.advance(INTERVAL / 4)
    assert len(work.done) == 3


def test_without_an_interval_each_turn_may_have_its_run() -> None:
    work = Work(0)
    for _ in range(3):
        work.pacer.request()
        work.clock.advance(0)
    assert work.done == [0, 0, 0]


def test_run_does_it_now_and_what_was_asked_for_is_done_with_it(work: Work) -> None:
    work.pacer.request()
    work.pacer.run()
    assert work.done == [0]
    work.clock.advance(INTERVAL * 4)
    assert work.done == [0]


def test_run_counts_for_the_interval(work: Work) -> None:
    work.pacer.run()
    work.pacer.request()
    work.clock.advance(INTERVAL / 2)
    assert work.done == [0]
    work.clock.advance(INTERVAL / 2)
    assert work.done == [0, INTERVAL]


def test_work_is_due_once_it_was_asked_for_and_the_interval_is_over(work: Work) -> None:
    assert not work.pacer.due
    work.pacer.request()
    assert work.pacer.due
    work.pacer.run()
    assert not work.pacer.due
    work.pacer.request()
    work.clock.advance(INTERVAL / 2)
    assert not work.pacer.due
    work.clock.rightNow += INTERVAL / 2
    assert work.pacer.due


def test_work_that_fails_can_be_asked_for_again_and_no_sooner(work: Work) -> None:
    work.fails = True
    with pytest.raises(ZeroDivisionError):
        work.pacer.run()
    work.fails = False
    work.pacer.request()
    work.clock.advance(INTERVAL / 2)
    assert len(work.done) == 1
    work.clock.advance(INTERVAL / 2)
    assert len(work.done) == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=60))
def test_runs_are_never_closer_than_the_interval_and_no_asking_is_forgotten(steps: list[tuple[bool, int]]) -> None:
    work = Work()
    asked: list[float] = []
    for asks, eighths in steps:
        if asks:
            work.pacer.request()
            asked.append(work.clock.seconds())
        for _ in range(eighths):
            work.clock.advance(INTERVAL / 8)
    work.clock.advance(0)
    work.clock.advance(INTERVAL)
    work.clock.advance(INTERVAL)
    assert all(later - earlier >= INTERVAL for earlier, later in zip(work.done, work.done[1:], strict=False))
    assert all(any(time <= done for done in work.done) for time in asked)
    assert len(work.done) <= len(asked)
