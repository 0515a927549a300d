"""Timers that no exception stops: periodic calls, and a timer wheel.

The wheel has one timer of the reactor for the many timers of clients, nearly all of which are cancelled. A timer is up
to one tick late, and never early. Setting and cancelling a timer take the same time however many there are.
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
    """Calls a function periodically, from ``start`` to ``stop``.

    A failed call is logged, and the function is called again. If the function returns a Deferred, the next call waits
    for it. The interval is at least that long after a late call, too.
    """

    def __init__(self, clock: Any, seconds: float, function: Callable[[], object], work: str) -> None:
        """Set the reactor, the interval in seconds, the function, and its work in words for the log."""
        self._clock = clock
        self._seconds = seconds
        self._function = function
        self._work = work
        self._began = 0.0  # the last call
        self._timer: Any = None
        self._failing = False
        self.running = False
        """Whether it is between ``start`` and ``stop``."""

    def start(self, *, now: bool = True) -> None:
        """Start the calls: now, or after the first interval."""
        self.running = True
        if now:
            self._call()
        else:
            self._began = self._clock.seconds()
            self._call_later()

    def stop(self) -> None:
        """Stop the calls. A call in progress is not cancelled."""
        self.running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call(self) -> None:
        self._timer = None
        self._began = self._clock.seconds()
        maybeDeferred(self._function).addCallbacks(self._succeeded, self._failed).addBoth(lambda _: self._call_later())

    def _call_later(self) -> None:
        if self.running:
            wait = self._began + self._seconds - self._clock.seconds()
            self._timer = self._clock.callLater(max(0.0, wait), self._call)

    def _failed(self, failure: Failure) -> None:
        self._failing = True
        log.failure(
            "{work} failed; retrying in {seconds:g} s",
            failure,
            work=self._work,
            seconds=self._seconds,
            problem=self._work,
            event="task_failed",
        )

    def _succeeded(self, _: object) -> None:
        if self._failing:
            self._failing = False
            log.info("{work} works again", work=self._work, problem=self._work, resolved=True, event="task_recovered")


class Timer:
    """A scheduled call: an IDelayedCall with ``active`` and ``cancel`` only."""

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
        """Return whether the call is still scheduled."""
        return self in self._slot

    def cancel(self) -> None:
        """Cancel the call. Do nothing if it was made or cancelled before."""
        if self in self._slot:
            del self._slot[self]
            self._wheel.removed()

    def run(self) -> None:
        """Make the call, and log its failure."""
        self.cancel()
        try:
            self._function(*self._args)
        except Exception:  # noqa: BLE001 - the other timers of the tick must run
            log.failure("a timer failed", event="timer_failed")


class TimerWheel:
    """Timers by the tick in which they are due, on one timer of the reactor."""

    def __init__(self, clock: Any, tick: float) -> None:
        """Set the reactor and the length of a tick in seconds."""
        self._clock = clock
        self._tick = tick
        self._slots: dict[int, dict[Timer, None]] = {}
        self._ticks: list[int] = []
        """The ticks that have a slot, as a heap."""
        self._count = 0
        self._wakeup: Any = None
        self._next = 0

    def callLater(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        """Schedule a call in delay seconds, or up to one tick later."""
        tick = math.ceil((self._clock.seconds() + delay) / self._tick)
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            heapq.heappush(self._ticks, tick)
            if self._wakeup is None or tick < self._next:
                self._wind()
        self._count += 1
        return Timer(self, slot, function, args)

    def removed(self) -> None:
        """Count a removed timer. Cancel the timer of the reactor if it was the last one."""
        self._count -= 1
        if not self._count:
            self._slots.clear()
            self._ticks.clear()
            self._wind()

    def _wind(self) -> None:
        """Set the timer of the reactor to the next tick with a slot."""
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        if self._ticks:
            self._next = self._ticks[0]
            wait = self._next * self._tick - self._clock.seconds()
            self._wakeup = self._clock.callLater(max(0.0, wait), self._turn)

    def _turn(self) -> None:
        self._wakeup = None
        now = self._clock.seconds() / self._tick + 0.001  # the reactor may call slightly early
        due: list[dict[Timer, None]] = []
        while self._ticks and self._ticks[0] <= now:
            due.append(self._slots.pop(heapq.heappop(self._ticks)))
        for slot in due:
            while slot:
                next(iter(slot)).run()
        if self._wakeup is None:
            self._wind()
