"""When to do what piles up: at once where it was quiet, in batches under load.

Work that was asked for is done at the end of the reactor's turn, so that what one turn brought is done together;
but not before an interval after the last time: under load batches get bigger, not queues longer.
"""

from collections.abc import Callable
from typing import Any


class Pacer:
    """Runs one piece of work, as often as it is asked for and no more often than it may."""

    def __init__(self, clock: Any, interval: float, work: Callable[[], None]) -> None:
        """Take the reactor, the shortest time in seconds from the end of one run to the next, and the work."""
        self._clock = clock
        self._interval = interval
        self._work = work
        self._due = 0.0
        self._coming: Any = None

    def ask(self) -> None:
        """Have the work done: at the end of this turn, or when the interval is over."""
        if self._coming is None:
            wait = self._due - self._clock.seconds()
            self._coming = self._clock.callLater(max(0.0, wait), self.run)

    @property
    def due(self) -> bool:
        """Whether the work was asked for and need not wait any more."""
        return self._coming is not None and self._clock.seconds() >= self._due

    def run(self) -> None:
        """Do it now; what was asked for before is done with it."""
        if self._coming is not None and self._coming.active():
            self._coming.cancel()
        self._coming = None
        self._due = self._clock.seconds() + self._interval  # for what the work itself asks for
        try:
            self._work()
        finally:
            self._due = self._clock.seconds() + self._interval
