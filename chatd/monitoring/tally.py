"""Counts what befalls many at once, to be said in the log in one line a second and not in a thousand."""

from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from chatd.monitoring.metrics import Number


class Tally:
    """One kind of thing that is worth a warning."""

    def __init__(
        self, clock: Any, seconds: float, log: Logger, text: str, metrics: Mapping[str, Number] | None = None
    ) -> None:
        """Take the reactor, how long to count, whose log, and what to say: a format with the names that are counted.

        Metrics are those that count the same, by name.
        """
        self._clock = clock
        self._seconds = seconds
        self._log = log
        self._text = text
        self._metrics = metrics or {}
        self._counts: dict[str, int] = {}
        self._coming: Any = None

    def add(self, **counts: int) -> None:
        """Count, by name."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
            if name in self._metrics:
                self._metrics[name].value += count
        if self._coming is None:
            self._coming = self._clock.callLater(self._seconds, self.say)

    def say(self) -> None:
        """Say at once what was counted, if anything was."""
        if self._coming is not None and self._coming.active():
            self._coming.cancel()
        self._coming = None
        counts, self._counts = self._counts, {}
        if counts:
            self._log.warn(self._text, **counts)
