"""Trouble that comes again and again is said at once, then once in a while, with how often it came.

One kind of event is one format of text, whoever says it and whatever stands in it. Where trouble begins and ends in
turn, the newest of both is what is said in the end. Events below a warning always pass.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

from chatd.monitoring.log_events import kind_of


@dataclass(slots=True)
class _Kind:
    said_at: float
    times: int = 0
    """How often it came since then."""
    event: LogEvent | None = None
    """The newest of those, or the end of that trouble."""


@implementer(ILogObserver)
class LogRepetition:
    """Passes events on. ``look`` is to be called every second or so."""

    def __init__(
        self, observer: Callable[[LogEvent], Any], seconds: float, most: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take who gets the events, how often one kind is said at most (0: always), how many kinds are known."""
        self.seconds = seconds
        self._observer = observer
        self._most = most
        self._now = now
        self._kinds: dict[str, _Kind] = {}  # the one that was said the longest ago first

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on, or count it."""
        trouble, over = event.get("trouble", ""), event.get("over", False)
        name = trouble or kind_of(event)
        kind = self._kinds.get(name)
        if over and kind is not None and kind.times:
            kind.event = event
        elif over or event.get("log_level", LogLevel.info) < LogLevel.warn or not self.seconds or event.get("always"):
            self._observer(event)
        elif kind is None:
            if len(self._kinds) >= self._most:
                self._say(self._kinds.pop(next(iter(self._kinds))))
            self._kinds[name] = _Kind(self._now())
            self._observer(event)
        else:
            kind.times += 1
            kind.event = event

    def look(self) -> None:
        """Say what was counted for long enough, forget what came no more."""
        now = self._now()
        for name, kind in list(self._kinds.items()):
            if now - kind.said_at < self.seconds:
                break
            del self._kinds[name]
            if kind.times:
                self._kinds[name] = _Kind(now)  # behind those that were said before
                self._say(kind)

    def say_all(self) -> None:
        """Say at once what was counted."""
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._say(kind)

    def _say(self, kind: _Kind) -> None:
        if kind.event is None:
            return
        passed = round(self._now() - kind.said_at)
        text = f"{formatEvent(kind.event)} ({kind.times} more in {passed} s)"
        event = {name: value for name, value in kind.event.items() if name != "log_failure"}
        self._observer({**event, "log_format": "{said}", "said": text, "times": kind.times})
