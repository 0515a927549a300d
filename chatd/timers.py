"""A timer wheel: one timer of the reactor for the many that clients need, nearly all of which are cancelled.

A timer comes up to one tick late, never early. Setting and cancelling one cost the same however many there are.
"""

import heapq
import math
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

log = Logger()


class Timer:
    """One call to come; an IDelayedCall as far as ``active`` and ``cancel`` go."""

    __slots__ = ("_args", "_function", "_slot", "_wheel")

    def __init__(
        self,
        wheel: "TimerWheel",
        slot: "dict[Timer, None]",
        function: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self._wheel = wheel
        self._slot = slot
        self._function = function
        self._args = args
        slot[self] = None

    def active(self) -> bool:
        """Whether it is still to come."""
        return self in self._slot

    def cancel(self) -> None:
        """Let it not come. Where it came, or was cancelled already, nothing changes."""
        if self in self._slot:
            del self._slot[self]
            self._wheel.forget()

    def run(self) -> None:
        """Make the call. What goes wrong is logged."""
        self.cancel()
        try:
            self._function(*self._args)
        except Exception:  # noqa: BLE001 - the other timers of the tick come all the same
            log.failure("a timer failed")


class TimerWheel:
    """Timers on a clock, by the tick at which they come."""

    def __init__(self, clock: Any, tick: float) -> None:
        """Take the reactor, or another IReactorTime, and the length of a tick in seconds."""
        self._clock = clock
        self._tick = tick
        self._slots: dict[int, dict[Timer, None]] = {}
        self._ticks: list[int] = []
        """Those that have a slot; a heap."""
        self._count = 0
        self._wakeup: Any = None
        self._next = 0

    def callLater(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        """Call function with args in delay seconds, or up to one tick later."""
        tick = math.ceil((self._clock.seconds() + delay) / self._tick)
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            heapq.heappush(self._ticks, tick)
            if self._wakeup is None or tick < self._next:
                self._wind()
        self._count += 1
        return Timer(self, slot, function, args)

    def forget(self) -> None:
        """Count one timer less; when the last one is gone the clock is left alone."""
        self._count -= 1
        if not self._count:
            self._slots.clear()
            self._ticks.clear()
            self._wind()

    def _wind(self) -> None:
        """Set the clock to the next tick that has a slot."""
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        if self._ticks:
            self._next = self._ticks[0]
            wait = self._next * self._tick - self._clock.seconds()
            self._wakeup = self._clock.callLater(max(0.0, wait), self._turn)

    def _turn(self) -> None:
        self._wakeup = None
        now = self._clock.seconds() / self._tick + 0.001  # a clock that was set to a tick may come a hair before it
        due: list[dict[Timer, None]] = []
        while self._ticks and self._ticks[0] <= now:
            due.append(self._slots.pop(heapq.heappop(self._ticks)))
        for slot in due:
            while slot:
                next(iter(slot)).run()
        if self._wakeup is None:
            self._wind()
