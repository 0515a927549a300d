"""One answer for all who ask at the same time, and for those who ask a moment later."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """A question that is asked at most once at a time."""

    def __init__(self, clock: Any, ask: "Callable[[], Deferred[T]]", kept: float, *, rest: float = 0.0) -> None:
        """Set the reactor, the question, and for how many seconds an answer is good.

        An answer is also good for rest times as long as it took: a dear question is asked more rarely.
        """
        self._clock = clock
        self._ask = ask
        self._kept = kept
        self._rest = rest
        self._waiting: dict[Deferred[T], None] | None = None  # while the question is on its way
        self._answer: T | Failure | None = None
        self._good_until = float("-inf")

    def get(self) -> "Deferred[T]":
        """Return the answer, or the failure; the Deferred may be cancelled without the others losing theirs."""
        answer: Deferred[T] = Deferred(self._give_up)
        now = self._clock.seconds()
        if self._waiting is not None:
            self._waiting[answer] = None
        elif now < self._good_until:
            answer.callback(self._answer)  # type: ignore[arg-type]
        else:
            self._waiting = {answer: None}
            maybeDeferred(self._ask).addBoth(self._answered, now)
        return answer

    def _give_up(self, answer: "Deferred[T]") -> None:
        if self._waiting is not None:
            self._waiting.pop(answer, None)

    def _answered(self, result: "T | Failure", asked: float) -> None:
        now = self._clock.seconds()
        waiting, self._waiting = self._waiting or {}, None
        self._answer, self._good_until = result, now + max(self._kept, (now - asked) * self._rest)
        for answer in waiting:
            if not answer.called:  # one before it may have cancelled it
                answer.callback(result)
