"""Timers on a clock: periodic work that no exception ends, and the wheel: never early, at most a tick late."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, TimeoutError, fail
from twisted.internet.task import Clock

import chatd
from chatd.runtime.timers import Periodic, Timer, TimerWheel
from tests.fakes import Events

TICK = 0.25


class Watch:
    """A clock with a wheel on it, and when what came."""

    def __init__(self, start: float = 0.0) -> None:
        self.clock = Clock()
        self.clock.advance(start)
        self.wheel = TimerWheel(self.clock, TICK)
        self.came: list[tuple[Any, float]] = []

    def set(self, delay: float, name: Any = None) -> Timer:
        return self.wheel.callLater(delay, self.come, name)

    def come(self, name: Any) -> None:
        self.came.append((name, self.clock.seconds()))

    @property
    def names(self) -> list[Any]:
        return [name for name, _ in self.came]

    @property
    def waiting(self) -> int:
        """How many timers of the reactor are set."""
        return len(self.clock.getDelayedCalls())


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_timer_comes_with_its_arguments_when_its_time_is_over(watch: Watch) -> None:
    watch.set(1, "one")
    watch.clock.advance(0.75)
    assert watch.came == []
    watch.clock.advance(0.25)
    assert watch.came == [("one", 1)]
    watch.clock.advance(10)
    assert watch.names == ["one"]


@pytest.mark.parametrize("delay", [0.01, 0.24, 0.25, 0.26, 1.1])
def test_a_timer_between_two_ticks_comes_with_the_second(watch: Watch, delay: float) -> None:
    watch.set(delay)
    for _ in range(500):
        watch.clock.advance(1 / 64)
    [(_, time)] = watch.came
    assert delay <= time < delay + TICK
    assert time % TICK == 0


def test_a_timer_of_no_time_comes_in_a_later_turn(watch: Watch) -> None:
    watch.set(0, "now")
    assert watch.came == []
    watch.clock.advance(0)
    assert watch.names == ["now"]


@given(st.floats(0, 1e6), st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_no_timer_is_early_and_none_more_than_a_tick_late(start: float, delays: list[float]) -> None:
    watch = Watch(start)
    due = {watch.set(delay, place): watch.clock.seconds() + delay for place, delay in enumerate(delays)}
    times = list(due.values())
    while watch.waiting:  # as a reactor does: it wakes when it was asked to
        watch.clock.advance(max(0.0, watch.clock.getDelayedCalls()[0].getTime() - watch.clock.seconds()))
    assert sorted(watch.names) == list(range(len(delays)))
    for place, time in watch.came:
        assert times[place] - TICK / 500 <= time <= times[place] + TICK * 1.01


def test_timers_come_in_the_order_of_their_ticks_and_within_one_as_they_were_set(watch: Watch) -> None:
    for delay, name in ((3, "c"), (1, "a1"), (2, "b"), (1, "a2")):
        watch.set(delay, name)
    watch.clock.pump([0.25] * 16)
    assert watch.names == ["a1", "a2", "b", "c"]


def test_what_was_late_comes_in_order_too(watch: Watch) -> None:
    for delay in (3, 1, 2):
        watch.set(delay, delay)
    watch.clock.advance(10)
    assert watch.came == [(1, 10), (2, 10), (3, 10)]


def test_many_timers_take_one_of_the_reactor(watch: Watch) -> None:
    for number in range(1000):
        watch.set(number / 100)
    assert watch.waiting == 1


def test_an_earlier_timer_moves_the_one_of_the_reactor(watch: Watch) -> None:
    watch.set(10, "late")
    watch.set(1, "early")
    assert watch.waiting == 1
    watch.clock.advance(1)
    assert watch.names == ["early"]
    watch.clock.advance(9)
    assert watch.names == ["early", "late"]


def test_a_wheel_without_timers_leaves_the_clock_alone(watch: Watch) -> None:
    assert watch.waiting == 0
    watch.set(1)
    watch.clock.advance(1)
    assert watch.waiting == 0


# Cancelled


def test_a_cancelled_timer_does_not_come(watch: Watch) -> None:
    watch.set(1, "one")
    watch.set(1, "two").cancel()
    watch.clock.advance(2)
    assert watch.names == ["one"]


def test_when_the_last_one_is_cancelled_the_clock_is_left_alone(watch: Watch) -> None:
    timers = [watch.set(number) for number in range(5)]
    for timer in timers:
        timer.cancel()
    assert watch.waiting == 0
    watch.set(1, "new")
    watch.clock.advance(1)
    assert watch.names == ["new"]


def test_a_timer_is_active_until_it_came_or_was_cancelled(watch: Watch) -> None:
    comes, cancelled = watch.set(1), watch.set(1)
    assert comes.active() and cancelled.active()
    cancelled.cancel()
    assert not cancelled.active()
    watch.clock.advance(1)
    assert not comes.active()


def test_cancelling_again_or_too_late_changes_nothing(watch: Watch) -> None:
    came, cancelled, other = watch.set(1), watch.set(3), watch.set(3, "other")
    watch.clock.advance(1)
    for _ in range(3):
        came.cancel()
        cancelled.cancel()
    assert other.active()
    watch.clock.advance(2)
    assert watch.names == [None, "other"]
    assert watch.waiting == 0


def cancel(timers: list[Timer]) -> None:
    for each in timers:
        each.cancel()


def test_one_may_cancel_another_of_the_same_tick(watch: Watch) -> None:
    timers: list[Timer] = []
    watch.wheel.callLater(1, cancel, timers)
    timers.append(watch.set(1, "cancelled"))
    watch.set(1, "kept")
    watch.clock.advance(1)
    assert watch.names == ["kept"]


def test_one_may_cancel_itself_while_it_comes(watch: Watch) -> None:
    timers: list[Timer] = []
    timers.append(watch.wheel.callLater(1, cancel, timers))
    other = watch.set(2, "other")
    watch.clock.advance(1)
    assert other.active()
    watch.clock.advance(1)
    assert watch.names == ["other"]


# Set and failing while others come


def test_one_that_comes_may_set_another(watch: Watch) -> None:
    watch.wheel.callLater(1, watch.set, 1, "later")
    watch.clock.advance(1)
    assert watch.waiting == 1
    watch.clock.advance(1)
    assert watch.came == [("later", 2)]


def test_one_set_for_now_by_one_that_comes_waits_for_the_next_turn(watch: Watch) -> None:
    turns: list[int] = []

    def again() -> None:
        turns.append(watch.waiting)
        if len(turns) < 3:
            watch.wheel.callLater(0, again)

    again()
    for _ in range(3):
        watch.clock.advance(0)
    assert len(turns) == 3
    assert watch.waiting == 0


def test_one_that_comes_may_set_an_earlier_one_than_those_that_wait(watch: Watch) -> None:
    watch.set(9, "last")
    watch.wheel.callLater(1, watch.set, 1, "between")
    watch.clock.pump([1] * 9)
    assert watch.names == ["between", "last"]


def test_one_that_fails_is_logged_and_the_others_come(watch: Watch, events: Events) -> None:
    watch.wheel.callLater(1, lambda: 1 // 0)
    watch.set(1, "other")
    watch.set(2, "later")
    watch.clock.pump([1, 1])
    assert watch.names == ["other", "later"]
    assert events.said == [("critical", "a timer failed")]


# A clock that is not exact


def test_a_reactor_that_wakes_a_hair_too_soon_is_soon_enough() -> None:
    watch = Watch(1000.7)
    watch.set(1, "one")
    due = watch.clock.getDelayedCalls()[0].getTime()
    watch.clock.advance(math.nextafter(due, 0) - watch.clock.seconds())
    watch.clock.pump([TICK / 1000] * 3)
    assert watch.names == ["one"]


def test_it_serves_a_deferred_as_its_clock(watch: Watch) -> None:
    late: Deferred[None] = Deferred()
    failed: list[Any] = []
    late.addTimeout(1, watch.wheel).addErrback(failed.append)  # type: ignore[arg-type]
    in_time: Deferred[None] = Deferred()
    in_time.addTimeout(1, watch.wheel)  # type: ignore[arg-type]
    in_time.callback(None)
    watch.clock.advance(1)
    assert failed[0].check(TimeoutError)
    assert watch.waiting == 0


@given(st.integers(0, 2**32))
def test_whatever_is_set_and_cancelled_the_rest_comes_once(seed: int) -> None:
    chance, watch = random.Random(seed), Watch()
    kept: dict[int, Timer] = {}
    cancelled: set[int] = set()
    for number in range(chance.randrange(60)):
        kept[number] = watch.set(chance.choice([0, 0.1, 1, 1, 2.5, 7]), number)
        if chance.random() < 0.4:
            victim = chance.choice(list(kept))
            if kept[victim].active():
                cancelled.add(victim)
            kept[victim].cancel()
        watch.clock.advance(chance.choice([0, 0, 0.05, 0.3, 1]))
        assert watch.waiting <= 1
    watch.clock.pump([0.25] * 32)
    assert sorted(watch.names) == sorted(kept.keys() - cancelled)
    assert watch.waiting == 0


# Periodic work


class Work:
    """Work that is done each second, and what came of it."""

    def __init__(self, *results: Any) -> None:
        self.clock = Clock()
        self.results = list(results)
        self.done: list[float] = []
        self.periodic = Periodic(self.clock, 1.0, self.do, "counting sheep")

    def do(self) -> Any:
        self.done.append(self.clock.seconds())
        result = self.results.pop(0) if self.results else None
        if isinstance(result, Exception):
            raise result
        return result


def test_periodic_work_is_done_at_once_and_each_second() -> None:
    work = Work()
    work.periodic.start()
    work.clock.pump([1.0, 1.0])
    assert work.done == [0, 1, 2]
    assert work.periodic.running


def test_periodic_work_may_be_done_for_the_first_time_after_a_second() -> None:
    work = Work()
    work.periodic.start(now=False)
    assert work.done == []
    work.clock.advance(1.0)
    assert work.done == [1]


def test_stopped_periodic_work_is_done_no_more_and_leaves_no_timer() -> None:
    work = Work()
    work.periodic.start()
    work.periodic.stop()
    work.clock.advance(5)
    assert (work.done, work.periodic.running, work.clock.getDelayedCalls()) == ([0], False, [])


def test_periodic_work_may_stop_itself() -> None:
    clock, done = Clock(), []

    def once() -> None:
        done.append(clock.seconds())
        periodic.stop()

    periodic = Periodic(clock, 1.0, once, "counting sheep")
    periodic.start()
    clock.advance(5)
    assert (done, clock.getDelayedCalls()) == ([0], [])


def test_stopping_what_was_never_started_changes_nothing() -> None:
    work = Work()
    work.periodic.stop()
    assert not work.periodic.running


@pytest.mark.parametrize("failure", [RuntimeError("no"), "a Deferred"])
def test_periodic_work_that_fails_is_logged_and_done_again(failure: Any, events: Events) -> None:
    work = Work(fail(RuntimeError("no")) if failure == "a Deferred" else failure)
    work.periodic.start()
    work.clock.pump([1.0, 1.0])
    assert work.done == [0, 1, 2]
    assert events.said == [
        ("critical", "counting sheep failed; retrying in 1 s"),
        ("info", "counting sheep works again"),
    ]


def test_a_failure_and_its_end_are_one_trouble_for_the_log(events: Events) -> None:
    work = Work(RuntimeError("no"))
    work.periodic.start()
    work.clock.advance(1.0)
    assert [(event["problem"], event.get("resolved", False)) for event in events.events] == [
        ("counting sheep", False),
        ("counting sheep", True),
    ]


def test_periodic_work_waits_for_its_deferred() -> None:
    doing: Deferred[None] = Deferred()
    work = Work(doing)
    work.periodic.start()
    work.clock.advance(5)
    assert work.done == [0]
    doing.callback(None)
    work.clock.advance(0)
    assert work.done == [0, 5]


def test_a_deferred_that_fires_after_the_stop_begins_nothing() -> None:
    doing: Deferred[None] = Deferred()
    work = Work(doing)
    work.periodic.start()
    work.periodic.stop()
    doing.callback(None)
    work.clock.advance(5)
    assert (work.done, work.clock.getDelayedCalls()) == ([0], [])


def test_a_late_call_does_not_make_the_next_ones_come_sooner() -> None:
    work = Work()
    work.periodic.start()
    work.clock.advance(3.5)
    work.clock.advance(0.5)
    assert work.done == [0, 3.5]
    work.clock.advance(0.5)
    assert work.done == [0, 3.5, 4.5]


def test_nothing_in_chatd_repeats_work_in_another_way() -> None:
    users = [str(path) for path in Path(chatd.__file__).parent.rglob("*.py") if "LoopingCall" in path.read_text()]
    assert users == []
