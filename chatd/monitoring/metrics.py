"""All metrics of chatd, under their Prometheus names, as plain numbers of this process.

Code counts by adding to a number: ``JOINS.value += 1``, or once per batch. All rooms, hubs and buses of a process use
the same numbers, and ``prometheus`` adds up the processes. Labels have only the values listed here, never names or text
of clients.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple


class Number:
    """The value of a counter, which only grows, or of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """The number of observed values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Set the bounds in ascending order; a last bucket counts all greater values."""
        self.bounds = [*bounds, float("inf")]
        self.counts = [0] * len(self.bounds)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


Kind = Literal["counter", "gauge", "histogram"]


class Sample(NamedTuple):
    """One number as Prometheus reads it."""

    kind: Kind
    family: str
    """The name of the metric; of a counter without ``_total``."""
    name: str
    labels: Mapping[str, str]
    text: str
    """The description of the metric."""
    read: Callable[[], float]


SAMPLES: list[Sample] = []
"""All numbers of all metrics."""


def _number(kind: Kind, name: str, text: str, **labels: str) -> Number:
    number = Number()
    SAMPLES.append(Sample(kind, name.removesuffix("_total"), name, labels, text, lambda: number.value))
    return number


class LabelledNumbers(dict[str, Number]):
    """The numbers of one metric by its label; a word without a number counts as ``other``."""

    def __missing__(self, word: str) -> Number:
        return self["other"]


def _numbers(kind: Kind, name: str, text: str, label: str, words: Sequence[str]) -> LabelledNumbers:
    return LabelledNumbers((word, _number(kind, name, text, **{label: word})) for word in words)


def _histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
    histogram = Histogram(bounds)
    for bucket, bound in enumerate(histogram.bounds):  # not cumulative, because the buckets of processes are added up
        labels = {"le": "+Inf" if bound == float("inf") else repr(float(bound))}
        SAMPLES.append(
            Sample("histogram", name, f"{name}_bucket", labels, text, partial(histogram.counts.__getitem__, bucket))
        )
    SAMPLES.append(Sample("histogram", name, f"{name}_sum", {}, text, lambda: histogram.total))
    return histogram


_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SHORT_SECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1)
_MESSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

# Clients

CLIENTS = _numbers(
    "gauge",
    "chatd_clients",
    "Connected clients, by protocol.",
    "protocol",
    ("pipe", "text", "json", "http"),
)
ROOMS = _number("gauge", "chatd_rooms", "Rooms with subscribers, counted once per worker.")
JOINS = _number("counter", "chatd_joins_total", "Subscribers that joined a room.")
REFUSED = _numbers(
    "counter",
    "chatd_refused_total",
    "Refused handshakes and requests, by reason.",
    "reason",
    [
        *("bad_request", "bad_room", "banned", "crowded", "forbidden", "full", "internal", "late", "not_found"),
        *("rate_limited", "too_large", "unauthorized", "unavailable", "unread", "untrusted", "other"),
    ],
)

# Messages

RECEIVED_MESSAGES = _number("counter", "chatd_received_messages_total", "Messages accepted from clients.")
RECEIVED_BYTES = _number("counter", "chatd_received_bytes_total", "Text of accepted messages, in bytes of UTF-8.")
REFUSED_MESSAGES = _numbers(
    "counter",
    "chatd_refused_messages_total",
    "Messages from clients that were not published, or whose publication is uncertain, by reason.",
    "reason",
    ("bus_away", "chat_log", "forbidden", "rate_limited", "refused", "too_large", "unknown"),
)
SLOWED = _number("counter", "chatd_slowed_total", "Pauses in reading from a pipe client that exceeded its rate limit.")
SENT_MESSAGES = _numbers(
    "counter",
    "chatd_sent_messages_total",
    "Messages sent, counted once per client, live or from history.",
    "from",
    ("live", "history"),
)
SENT_BYTES = _numbers(
    "counter",
    "chatd_sent_bytes_total",
    "Bytes of frames with messages and presence events, live or from history.",
    "from",
    ("live", "history"),
)
BATCH_MESSAGES = _histogram("chatd_batch_messages", "Messages per published batch.", _MESSAGES)
DELIVERY_SECONDS = _histogram(
    "chatd_delivery_seconds",
    "Time from accepting the first message of a batch to broadcasting the batch on the same worker.",
    _SECONDS,
)
LOG_WRITE_SECONDS = _histogram("chatd_log_write_seconds", "Time to append a batch to the chat log.", _SHORT_SECONDS)

# The message bus

BUSES = _number(
    "gauge", "chatd_buses", "Connections of workers to brokers that there should be, one per worker and broker."
)
BUSES_LIVE = _number(
    "gauge", "chatd_buses_live", "Connections of workers to brokers through which messages can be published."
)
BUS_ROUND_TRIP_SECONDS = _histogram(
    "chatd_bus_round_trip_seconds", "Time from publishing a probe to receiving it.", _SECONDS
)
GAPS_FILLED = _number("counter", "chatd_gaps_filled_total", "Gaps in a room that were filled from history.")
HELD_BYTES = _number(
    "gauge", "chatd_held_bytes", "Bytes of messages that are held back until the gap before them is filled."
)

# Slow consumers

SEND_BUFFER_BYTES = _number("gauge", "chatd_send_buffer_bytes", "Bytes in the send buffers with more than 64 KiB.")
SEND_BUFFER_CLIENTS = _number("gauge", "chatd_send_buffer_clients", "Clients with such a send buffer.")
SLOW_CONSUMERS = _number("counter", "chatd_slow_consumers_total", "Times that a client became a slow consumer.")
LOST_MESSAGES = _number(
    "counter",
    "chatd_lost_messages_total",
    "Messages that a client missed and history no longer had, counted once per client.",
)
MAYBE_LOST = _number(
    "counter",
    "chatd_maybe_lost_total",
    "Times that a client may have missed messages because the broker lost its data.",
)

# The processes

EVENT_LOOP_LAG_SECONDS = _histogram(
    "chatd_event_loop_lag_seconds", "Delay of a timer that runs once a second in each worker.", _SECONDS
)
CPU_SECONDS = _number("counter", "chatd_cpu_seconds_total", "Processor time of the workers, in seconds.")
WORKERS = _number("gauge", "chatd_workers", "Configured workers.")
WORKERS_READY = _number("gauge", "chatd_workers_ready", "Ready workers.")
WORKER_RESTARTS = _number("counter", "chatd_worker_restarts_total", "Workers that ended unexpectedly.")
BROKER_RESTARTS = _number("counter", "chatd_broker_restarts_total", "Times that the private broker ended unexpectedly.")
BROKER_MEMORY = _number("gauge", "chatd_broker_memory_bytes", "Memory used by the private broker.")
BROKER_MEMORY_LIMIT = _number("gauge", "chatd_broker_memory_limit_bytes", "Memory limit of the private broker.")
HISTORIES_DROPPED = _number(
    "counter",
    "chatd_histories_dropped_total",
    "Histories that were dropped or halved to save memory in the private broker.",
)
START_TIME = _number("gauge", "chatd_start_time_seconds", "Time of the start of chatd, in seconds since 1970.")
