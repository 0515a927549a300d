"""Timers that no exception ends: work that is done again and again, and a timer wheel.

The wheel has one timer of the reactor for the many that clients need, nearly all of which are cancelled. A timer comes
up to one tick late, never early. Setting and cancelling one cost the same however many there are.
"""

import heapq
import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


class Periodic:
    """Calls a function every few seconds, from ``start`` to ``stop``.

    A call that fails is logged, and the next one comes all the same. If the function returns a Deferred, the next call
    waits for it. A call that is late does not make the following ones come sooner.
    """

    def __init__(self, clock: Any, seconds: float, function: Callable[[], object], work: str) -> None:
        """Take the reactor, the seconds from one call to the next, the function, and words for the log: its work."""
        self._clock = clock
        self._seconds = seconds
        self._function = function
        self._work = work
        self._began = 0.0  # the newest call
        self._coming: Any = None
        self._failing = False
        self.running = False
        """Whether it was started and not stopped since."""

    def start(self, *, now: bool = True) -> None:
        """Call the function from now on: at once, or for the first time when the interval is over."""
        self.running = True
        if now:
            self._call()
        else:
            self._began = self._clock.seconds()
            self._call_later()

    def stop(self) -> None:
        """Call the function no more; a Deferred of the newest call is left alone."""
        self.running = False
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def _call(self) -> None:
        self._coming = None
        self._began = self._clock.seconds()
        maybeDeferred(self._function).addCallbacks(self._succeeded, self._failed).addBoth(lambda _: self._call_later())

    def _call_later(self) -> None:
        if self.running:
            wait = self._began + self._seconds - self._clock.seconds()
            self._coming = self._clock.callLater(max(0.0, wait), self._call)

    def _failed(self, failure: Failure) -> None:
        self._failing = True
        text = "{work} failed and is tried again in {seconds:g} s"
        log.failure(text, failure, work=self._work, seconds=self._seconds, problem=self._work)

    def _succeeded(self, _: object) -> None:
        if self._failing:
            self._failing = False
            log.info("{work} works again", work=self._work, problem=self._work, resolved=True)


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
