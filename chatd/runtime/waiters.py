"""Callers that wait for the same event."""

from collections import OrderedDict

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Waiters:
    """Deferreds that fire together, in order. A callback of one may cancel another."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[Deferred[None], None] = OrderedDict()

    def wait(self) -> "Deferred[None]":
        """Return a Deferred that fires at the next ``fire``, and may be cancelled."""
        waiter: Deferred[None] = Deferred(self._waiting.pop)
        self._waiting[waiter] = None
        return waiter

    def fire(self, failure: Failure | None = None) -> None:
        """Fire all Deferreds, or let them fail."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            waiter.callback(None if failure is None else failure)  # type: ignore[arg-type]
