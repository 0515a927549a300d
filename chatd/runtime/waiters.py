"""Callers that wait for the same event."""

from collections import OrderedDict

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Waiters:
    """Deferreds that fire together, in order. A callback of one may cancel another."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[Deferred[None], None] = OrderedDict()

    def __bool__(self) -> bool:
        """Return whether anyone waits."""
        return bool(self._waiting)

    def wait(self) -> "Deferred[None]":
        """Return a Deferred that fires at the next ``fire``, and may be cancelled."""
        waiter: Deferred[None] = Deferred(self._waiting.pop)
        self._waiting[waiter] = None
        return waiter

    def fire(self, failure: Failure | None = None) -> None:
        """Fire all Deferreds, or let them fail. A callback that waits again waits for the next event."""
        waiting, self._waiting = self._waiting, OrderedDict()
        while waiting:
            waiter, _ = waiting.popitem(last=False)
            if failure is None:
                waiter.callback(None)
            else:
                waiter.errback(failure)
