"""Log events: the fields that may be logged, the key of repeated events, and events counted per interval.

Each event of chatd has an id, ``event``, that never changes: users filter by it. Events of libraries have none.
Numbers may be logged, and words of ours: reasons, paths, addresses of servers. Text and names of clients, and anything
that could be a token, may not.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import LogEvent

from chatd.monitoring.metrics import Number

Field = int | float | str

WORDS = frozenset(("address", "broker", "name", "path", "problem", "reason", "version", "why"))
"""Fields whose value may be text."""
LONGEST = 1000
"""The most characters of such a value."""


def fields_of(event: LogEvent) -> dict[str, Field]:
    """Return the fields of an event that may be logged."""
    found: dict[str, Field] = {}
    if (failure := event.get("log_failure")) is not None:
        found["error"] = failure.type.__name__
    for name, value in event.items():
        if name.startswith(("log_", "_")) or isinstance(value, bool):
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            found[name] = value
        elif name in WORDS and value:
            found[name] = str(value)[:LONGEST].encode("utf-8", "backslashreplace").decode()
    return found


def event_key(event: LogEvent) -> str:
    """Return what repeated events share: the event id, or the text of a library; and the type of a failure."""
    name = event.get("event") or event.get("text") or event.get("log_format") or ""
    failure = event.get("log_failure")
    error = failure.type.__name__ if failure is not None else event.get("fields", {}).get("error", "")
    return f"{str(name)[:LONGEST]} {error}"


class Tally:
    """A log event about many clients at once: counted, and logged once per interval."""

    def __init__(
        self,
        clock: Any,
        seconds: float,
        emit: Callable[..., None],
        metrics: Mapping[str, Number] | None = None,
    ) -> None:
        """Set the reactor, the interval, and the function that logs the event, with the counts by name.

        Metrics are the numbers that are counted up as well, by name.
        """
        self._clock = clock
        self._seconds = seconds
        self._emit = emit
        self._metrics = metrics or {}
        self._counts: dict[str, int] = {}
        self._timer: Any = None

    def add(self, **counts: int) -> None:
        """Add to the counts, by name."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
            if name in self._metrics:
                self._metrics[name].value += count
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self.flush)

    def flush(self) -> None:
        """Log the counts now, if there are any."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        counts, self._counts = self._counts, {}
        if counts:
            self._emit(**counts)
