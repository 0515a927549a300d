"""The pipes between the supervisor and a worker: one JSON value per line, in both directions.

The first line of the supervisor is an Assignment, and later ones are orders. A worker sends reports. When the pipe is
closed, the worker stops by itself, so that no worker survives a supervisor that was killed.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from chatd.config.settings import Config

LISTEN: Final = "listen"
"""Order: accept connections."""
DRAIN: Final = "drain"
"""Order: accept no connections, close those that are open over the drain time, then end."""
HOLD: Final = "hold"
"""Order: accept no messages, publish those that were accepted, then send PublishingStopped."""
STOP: Final = "stop"
"""Order: deliver what has been published, close the clients, then end."""


class ListeningSocket(msgspec.Struct, frozen=True):
    """A listening socket that a worker inherits."""

    endpoint: str
    """An endpoint string for its wrappers: TLS, the PROXY protocol."""
    descriptor: int
    """Its descriptor in the worker."""
    metrics: bool = False
    """Whether it serves metrics and health checks only."""


class Assignment(msgspec.Struct, frozen=True):
    """The data that a worker needs to start."""

    config: Config
    brokers: tuple[str, ...]
    """The URLs of the brokers, the private one included."""
    listeners: tuple[ListeningSocket, ...]
    lineage: str = ""
    """The lineage of the private broker's data; empty: the broker's own run id names its data."""
    metrics: str = ""
    """The path of its metrics files; empty: metrics are unavailable."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A probe came back through the broker: the worker can serve."""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The state of a worker, every ``worker_heartbeat_interval``. A worker that sends none is frozen."""

    clients: int = 0
    rooms: int = 0
    """Rooms with subscribers on this worker."""
    messages: int = 0
    """Messages that it has accepted since its start."""
    away: str = ""
    """Why it cannot publish; empty while it can."""


class PublishingStopped(msgspec.Struct, frozen=True, tag="held"):
    """The worker accepts no messages any more, and all it accepted have been published or refused."""


class LogRecord(msgspec.Struct, frozen=True, tag="log"):
    """A log event, for the server log."""

    level: str
    """``info``, ``warn``, ``error`` or ``critical``."""
    text: str
    problem: str = ""
    """The name of a problem that workers share, such as the broker or the chat log; logged once for all of them."""
    resolved: bool = False
    """Whether the worker has the problem no longer."""
    namespace: str = ""
    """The namespace of the worker's logger."""
    event: str = ""
    """Its id; empty for an event of a library."""
    fields: dict[str, int | float | str] = {}
    """Its numbers and reasons (``log_events.fields_of``)."""


Report = Ready | Heartbeat | PublishingStopped | LogRecord

_encoder = msgspec.json.Encoder()


def encode(value: Assignment | Report | str) -> bytes:
    """Return a value as a line, newline included."""
    return _encoder.encode(value) + b"\n"


read_assignment = msgspec.json.Decoder(Assignment).decode
"""Parse the first line of the supervisor. Raise ValueError (msgspec.ValidationError, msgspec.DecodeError)."""
read_order = msgspec.json.Decoder(str).decode
"""Parse a later line of the supervisor: LISTEN, DRAIN, HOLD or STOP. Raise ValueError."""
read_report: Callable[[bytes], Report] = msgspec.json.Decoder(Report).decode
"""Parse a line of a worker. Raise ValueError (msgspec.ValidationError, msgspec.DecodeError)."""
