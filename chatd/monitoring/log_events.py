"""What of an event goes into the server's own log beside its text, and which events say the same again.

Numbers may stand there, and words of ours: reasons, paths, addresses of servers. What clients say or are called,
and what could be a token, may not.
"""

import math

from twisted.logger import LogEvent

Field = int | float | str

WORDS = frozenset(("address", "broker", "name", "path", "reason", "trouble", "version", "why"))
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


def kind_of(event: LogEvent) -> str:
    """Return what makes events the same: their ``kind`` if they name one, else their format and the kind of failure."""
    if kind := event.get("kind"):
        return str(kind)
    failure = event.get("log_failure")
    of = f" ({failure.type.__name__})" if failure is not None else ""
    return f"{event.get('log_namespace', '')}: {str(event.get('log_format') or '')[:LONGEST]}{of}"
