"""What of an event goes into the server's own log beside its text, and which events say the same again.

Numbers may stand there, and words of ours: reasons, paths, addresses of servers. What clients say or are called,
and what could be a token, may not.
"""

import math
from collections.abc import Mapping
from typing import Any

from twisted.logger import LogEvent, Logger

from chatd.monitoring.metrics import Number

Field = int | float | str

WORDS = frozenset(("address", "broker", "name", "path", "problem", "reason", "version", "why"))
"""Fields whose words may stand there."""
LONGEST = 1000
"""Characters of such a word."""


def fields_of(event: LogEvent) -> dict[str, Field]:
    """Give the fields of an event that may be told."""
    found: dict[str, Field] = {}
    for name, value in event.items():
        if name.startswith(("log_", "_")):
            continue
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            found[name] = value
        elif name in WORDS and value:
            found[name] = str(value)[:LONGEST].encode("utf-8", "backslashreplace").decode()
    return found


def event_key(event: LogEvent) -> str:
    """Return what makes events the same: their ``kind`` if they name one, else their format and the kind of failure."""
    if kind := event.get("key"):
        return str(kind)
    failure = event.get("log_failure")
    of = f" ({failure.type.__name__})" if failure is not None else ""
    return f"{event.get('log_namespace', '')}: {str(event.get('log_format') or '')[:LONGEST]}{of}"


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
