"""One call of a costly function for all callers that wait at the same time, and for those shortly after."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """A function that is called at most once at a time, and its last result."""

    def __init__(self, clock: Any, function: "Callable[[], Deferred[T]]", seconds: float, *, rest: float = 0.0) -> None:
        """Set the reactor, the function, and for how many seconds a result is used.

        A result is used for at least ``rest`` times the duration of the call, so that a slow call is repeated less
        often.
        """
        self._clock = clock
        self._function = function
        self._seconds = seconds
        self._rest = rest
        self._waiting: dict[Deferred[T], None] | None = None  # during a call
        self._result: T | Failure | None = None
        self._expires = float("-inf")

    def get(self) -> "Deferred[T]":
        """Return the result, or the failure. Cancelling the Deferred does not affect other callers."""
        answer: Deferred[T] = Deferred(self._cancelled)
        now = self._clock.seconds()
        if self._waiting is not None:
            self._waiting[answer] = None
        elif now < self._expires:
            answer.callback(self._result)  # type: ignore[arg-type]
        else:
            self._waiting = {answer: None}
            maybeDeferred(self._function).addBoth(self._finished, now)
        return answer

    def _cancelled(self, answer: "Deferred[T]") -> None:
        if self._waiting is not None:
            self._waiting.pop(answer, None)

    def _finished(self, result: "T | Failure", began: float) -> None:
        now = self._clock.seconds()
        waiting, self._waiting = self._waiting or {}, None
        self._result, self._expires = result, now + max(self._seconds, (now - began) * self._rest)
        for answer in waiting:
            if not answer.called:  # an earlier callback may have cancelled it
                answer.callback(result)
