"""The sharing of time between connections that send more small frames than fit in one reactor turn.

A frame costs the same however small it is, so 64 KiB of pings would stop all others for half a second. A connection has
a limited number of frames handled at once. The rest waits, unread, and gets slices of that size, in turns with other
connections. Frames other than messages get a share of the time only: after each slice there is a pause.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

log = Logger()


class Turns:
    """The slices of one worker."""

    def __init__(self, clock: Any, rest: float) -> None:
        """Store the reactor, and for how many times as long as a slice took there is rest after it."""
        self._clock = clock
        self._rest = rest
        self._waiting: deque[Callable[[], bool]] = deque()
        self._coming: Any = None

    def wait(self, handle_slice: Callable[[], bool]) -> None:
        """Call a function in its turn. It handles a slice, waits again for the rest, and returns if it had messages."""
        self._waiting.append(handle_slice)
        if self._coming is None:
            self._coming = self._clock.callLater(0, self._next)

    def _next(self) -> None:
        self._coming = None
        before, messages = self._clock.seconds(), True
        handle_slice = self._waiting.popleft()
        try:
            messages = handle_slice()
        except Exception:  # noqa: BLE001 - the others have their turns all the same
            log.failure("handling frames of a client failed", event="frames_failed")
        if self._coming is not None:  # it waits again: not before the rest is over
            self._coming.cancel()
            self._coming = None
        if self._waiting:
            rest = 0.0 if messages else (self._clock.seconds() - before) * self._rest
            self._coming = self._clock.callLater(rest, self._next)
