"""One answer for all who ask at the same time."""

import weakref

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chatd.runtime.single_flight import SingleFlight


class Broker:
    """Answers what it is asked when the test says so."""

    def __init__(self, kept: float = 1.0, rest: float = 0.0) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[str]] = []
        self.flight = SingleFlight(self.clock, self._ask, kept, rest=rest)

    def _ask(self) -> "Deferred[str]":
        self.asked.append(Deferred())
        return self.asked[-1]


def results(answer: "Deferred[str]") -> list[str]:
    told: list[str] = []
    answer.addCallbacks(told.append, lambda failure: told.append(failure.getErrorMessage()))
    return told


def test_those_who_ask_at_the_same_time_share_one_answer() -> None:
    broker = Broker()
    told = [results(broker.flight.get()) for _ in range(3)]
    assert len(broker.asked) == 1
    broker.asked[0].callback("yes")
    assert told == [["yes"]] * 3


def test_an_answer_is_good_for_a_while() -> None:
    broker = Broker(kept=1.0)
    results(broker.flight.get())
    broker.asked[0].callback("yes")
    broker.clock.advance(0.9)
    assert results(broker.flight.get()) == ["yes"]
    broker.clock.advance(0.1)
    assert results(broker.flight.get()) == []
    assert len(broker.asked) == 2


def test_a_question_that_took_long_is_asked_more_rarely() -> None:
    broker = Broker(kept=1.0, rest=20.0)
    results(broker.flight.get())
    broker.clock.advance(0.5)
    broker.asked[0].callback("yes")
    broker.clock.advance(9.9)
    assert results(broker.flight.get()) == ["yes"]
    broker.clock.advance(0.1)
    assert results(broker.flight.get()) == []


def test_a_failure_is_shared_too() -> None:
    broker = Broker()
    told = [results(broker.flight.get()) for _ in range(2)]
    broker.asked[0].errback(Failure(RuntimeError("it is away")))
    assert told == [["it is away"]] * 2


def test_one_who_gives_up_costs_the_others_nothing() -> None:
    broker = Broker()
    one, other = broker.flight.get(), broker.flight.get()
    one.addErrback(lambda _: None).cancel()
    told = results(other)
    broker.asked[0].callback("yes")
    assert told == ["yes"]


def test_a_question_that_cannot_be_asked_is_a_failure_and_is_asked_again() -> None:
    asked = 0

    def ask() -> "Deferred[str]":
        nonlocal asked
        asked += 1
        raise RuntimeError("it is broken")

    flight = SingleFlight(Clock(), ask, 0.0)
    assert results(flight.get()) == ["it is broken"]
    assert results(flight.get()) == ["it is broken"]
    assert asked == 2


def test_one_who_gave_up_is_kept_no_more() -> None:
    broker = Broker()
    told = results(broker.flight.get())
    gone = broker.flight.get()
    kept = weakref.ref(gone)
    gone.addErrback(lambda _: None).cancel()
    del gone
    assert kept() is None
    broker.asked[0].callback("yes")
    assert told == ["yes"]


def test_one_answer_may_let_another_asker_give_up() -> None:
    broker = Broker()
    one, other = broker.flight.get(), broker.flight.get()
    told = results(other)
    one.addCallback(lambda _: other.cancel())
    broker.asked[0].callback("yes")
    assert len(told) == 1
    assert told != ["yes"]
