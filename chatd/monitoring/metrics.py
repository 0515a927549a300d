"""What is counted: every metric of chatd once, under its name for Prometheus, as plain numbers of this process.

Counting is an addition to one of these numbers, ``JOINS.value += 1``, a batch at a time where there are batches.
However many rooms, hubs and buses a process has, they count into the same numbers. ``exposition`` adds up those of
all processes. Nothing here says who, where or what: labels are the few words that stand below.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple


class Number:
    """One number: of a counter, which only grows, or of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """How many of the values observed were up to each bound, and what they come to together."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Take the bounds, rising; what is above the last one is counted too."""
        self.bounds = [*bounds, float("inf")]
        self.counts = [0] * len(self.bounds)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


Kind = Literal["counter", "gauge", "histogram"]


class Sample(NamedTuple):
    """One number, as it is told."""

    kind: Kind
    family: str
    """The metric's name; a counter's without ``_total``."""
    name: str
    labels: Mapping[str, str]
    text: str
    """What the metric is."""
    read: Callable[[], float]


SAMPLES: list[Sample] = []
"""All of them."""


def _one(kind: Kind, name: str, text: str, **labels: str) -> Number:
    number = Number()
    SAMPLES.append(Sample(kind, name.removesuffix("_total"), name, labels, text, lambda: number.value))
    return number


class LabelledNumbers(dict[str, Number]):
    """The numbers of one metric, by the one label that it has; what has no number of its own is ``other``."""

    def __missing__(self, word: str) -> Number:
        return self["other"]


def _each(kind: Kind, name: str, text: str, label: str, words: Sequence[str]) -> LabelledNumbers:
    return LabelledNumbers((word, _one(kind, name, text, **{label: word})) for word in words)


def _histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
    made = Histogram(bounds)
    for place, bound in enumerate(made.bounds):  # each bucket by itself: who adds up processes adds up buckets
        labels = {"le": "+Inf" if bound == float("inf") else repr(float(bound))}
        SAMPLES.append(
            Sample("histogram", name, f"{name}_bucket", labels, text, partial(made.counts.__getitem__, place))
        )
    SAMPLES.append(Sample("histogram", name, f"{name}_sum", {}, text, lambda: made.total))
    return made


def names() -> Iterator[str]:
    """Give the names by which all that is exposed can be asked for."""
    for sample in SAMPLES:
        yield sample.name
        if sample.name.endswith("_sum"):
            yield f"{sample.family}_count"


_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SHORT_SECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1)
_MESSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

# Who is there

CLIENTS = _each(
    "gauge",
    "chatd_clients",
    "Connected clients, by protocol.",
    "protocol",
    ("pipe", "text", "json", "http"),
)
ROOMS = _one("gauge", "chatd_rooms", "Rooms in which somebody is, counted once for each worker with somebody in it.")
JOINS = _one("counter", "chatd_joins_total", "Members that came into a room.")
REFUSED = _each(
    "counter",
    "chatd_refused_total",
    "Handshakes and requests that were answered with an error, or not at all, by reason.",
    "reason",
    [
        *("bad_request", "bad_room", "banned", "crowded", "forbidden", "full", "internal", "late", "not_found"),
        *("rate_limited", "too_large", "unauthorized", "unavailable", "unread", "untrusted", "other"),
    ],
)

# What is said

RECEIVED_MESSAGES = _one("counter", "chatd_received_messages_total", "Messages that were taken from clients.")
RECEIVED_BYTES = _one("counter", "chatd_received_bytes_total", "Their text, in bytes of UTF-8.")
REFUSED_MESSAGES = _each(
    "counter",
    "chatd_refused_messages_total",
    "Messages that clients sent and that were not published, or of which it is not known, by reason.",
    "reason",
    ("bus_away", "chat_log", "forbidden", "rate_limited", "refused", "too_large", "unknown"),
)
SLOWED = _one("counter", "chatd_slowed_total", "Times that a bare client was not read for a while: it was too fast.")
SENT_MESSAGES = _each(
    "counter",
    "chatd_sent_messages_total",
    "Messages that were given to clients, each once a client, live or from history.",
    "from",
    ("live", "history"),
)
SENT_BYTES = _each(
    "counter", "chatd_sent_bytes_total", "The frames of messages and of who came and went.", "from", ("live", "history")
)
BATCH_MESSAGES = _histogram("chatd_batch_messages", "Messages that were published at once.", _MESSAGES)
DELIVERY_SECONDS = _histogram(
    "chatd_delivery_seconds",
    "From taking the first message of a batch to giving it to the clients of the same worker.",
    _SECONDS,
)
LOG_WRITE_SECONDS = _histogram("chatd_log_write_seconds", "Writing a batch to the chat log.", _SHORT_SECONDS)

# The bus

BUSES = _one("gauge", "chatd_buses", "Ends of message buses: one a worker and broker.")
BUSES_LIVE = _one("gauge", "chatd_buses_live", "Those through which messages can be published now.")
BUS_ROUND_TRIP_SECONDS = _histogram(
    "chatd_bus_round_trip_seconds", "From publishing a probe to its coming back.", _SECONDS
)
HOLES_FILLED = _one(
    "counter", "chatd_holes_filled_total", "Times that messages were missed and had from history after all."
)
HELD_BYTES = _one("gauge", "chatd_held_bytes", "Messages that wait until those missing before them are read.")

# Who does not keep up

BACKLOG_BYTES = _one("gauge", "chatd_backlog_bytes", "What waits for clients for which more than 64 KiB wait.")
BACKLOG_CLIENTS = _one("gauge", "chatd_backlog_clients", "Clients for which more than 64 KiB wait.")
SLOW_READERS = _one("counter", "chatd_slow_readers_total", "Times that a client read too slowly and fell behind.")
LOST_MESSAGES = _one(
    "counter", "chatd_lost_messages_total", "Messages that a client should have had and that history did not have."
)
MAYBE_LOST = _one(
    "counter", "chatd_maybe_lost_total", "Times that a client may have lost messages, for the broker lost what it had."
)

# The processes

EVENT_LOOP_LAG_SECONDS = _histogram(
    "chatd_event_loop_lag_seconds", "How late a worker's timer came, looked at once a second.", _SECONDS
)
CPU_SECONDS = _one("counter", "chatd_cpu_seconds_total", "Processor time of the workers.")
WORKERS = _one("gauge", "chatd_workers", "Workers that there should be.")
WORKERS_READY = _one("gauge", "chatd_workers_ready", "Workers that are ready.")
WORKER_RESTARTS = _one("counter", "chatd_worker_restarts_total", "Workers that ended and were to be replaced.")
BROKER_RESTARTS = _one("counter", "chatd_broker_restarts_total", "Private brokers that ended and were to be replaced.")
BROKER_MEMORY = _one("gauge", "chatd_broker_memory_bytes", "Memory that the private broker uses.")
BROKER_MEMORY_LIMIT = _one("gauge", "chatd_broker_memory_limit_bytes", "Memory that the private broker may use.")
HISTORIES_DROPPED = _one(
    "counter",
    "chatd_histories_dropped_total",
    "Histories that the private broker dropped or cut in half to save memory.",
)
START_TIME = _one("gauge", "chatd_start_time_seconds", "When chatd was started, in seconds since 1970.")
