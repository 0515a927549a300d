"""Callers that wait for the same event."""

from functools import partial

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from chatd.runtime.waiters import Waiters


def test_they_fire_together_in_order() -> None:
    waiters = Waiters()
    fired: list[int] = []
    for number in range(3):
        waiters.wait().addCallback(partial(lambda number, _: fired.append(number), number))
    assert (bool(waiters), fired) == (True, [])
    waiters.fire()
    waiters.fire()
    assert (bool(waiters), fired) == (False, [0, 1, 2])


def test_one_that_is_cancelled_does_not_fire_even_by_the_callback_of_another() -> None:
    waiters = Waiters()
    seen: list[object] = []
    first, second = waiters.wait(), waiters.wait()
    first.addCallback(lambda _: second.cancel())
    second.addBoth(lambda result: seen.append(isinstance(result, Failure) and result.type))
    waiters.fire()
    assert seen == [CancelledError]


def test_one_that_waits_again_waits_for_the_next_event() -> None:
    waiters = Waiters()
    seen: list[None] = []
    waiters.wait().addCallback(lambda _: waiters.wait().addCallback(seen.append))
    waiters.fire()
    assert seen == []
    waiters.fire()
    assert seen == [None]


def test_they_fail_together() -> None:
    waiters = Waiters()
    failure = Failure(RuntimeError("no"))
    seen: list[object] = []
    for waiter in (waiters.wait(), waiters.wait()):
        waiter.addErrback(seen.append)
    waiters.fire(failure)
    assert seen == [failure, failure]
