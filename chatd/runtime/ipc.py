"""The pipe between the parent and a worker: one JSON value a line, in both directions.

The parent's first line is an Assignment; later ones are orders. A worker's lines are Ready, Pulse, Held and Log.
The end of the pipe means that the other side is gone: a worker then stops by itself, so that a parent
that was killed leaves nobody behind.
"""

from typing import Final

import msgspec

from chatd.config.settings import Config

LISTEN: Final = "listen"
"""Order: take connections."""
DRAIN: Final = "drain"
"""Order: take no more connections; let clients come back elsewhere, spread over the drain time, then end."""
HOLD: Final = "hold"
"""Order: take no more messages, publish what was taken, then say Held."""
STOP: Final = "stop"
"""Order: deliver what has been published, close the clients and end."""


class ListeningSocket(msgspec.Struct, frozen=True):
    """A listening socket that a worker inherits."""

    endpoint: str
    """An endpoint string to parse for what is put around the socket: TLS, the PROXY protocol."""
    descriptor: int
    """Its number in the worker."""


class Assignment(msgspec.Struct, frozen=True):
    """What a worker is to be."""

    config: Config
    brokers: tuple[str, ...]
    """The URLs of the brokers; the private one's too."""
    listeners: tuple[ListeningSocket, ...]
    run: str = ""
    """The lineage of the private broker's data; empty: what counts is the broker's own run id."""
    metrics: str = ""
    """The path of its share of the metrics; empty: there are none."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A probe came back through the bus: the worker can serve, once it is to listen."""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """How a worker is, each ``pulse_seconds``: where none comes, it is frozen."""

    clients: int = 0
    rooms: int = 0
    """Rooms that have members here."""
    messages: int = 0
    """Messages that it has taken, ever."""
    away: str = ""
    """Why nothing can be published now; empty while it can."""


class PublishingStopped(msgspec.Struct, frozen=True, tag="held"):
    """The worker takes no more messages, and all it took have been published or refused."""


class LogRecord(msgspec.Struct, frozen=True, tag="log"):
    """An event for the server's own log."""

    level: str
    """``info``, ``warn``, ``error`` or ``critical``."""
    text: str
    problem: str = ""
    """What all workers share, where this is about that: the bus, the chat log. It is said once, not once a worker."""
    resolved: bool = False
    """Whether this trouble has ended for the worker."""
    namespace: str = ""
    """Which part of the worker says it."""
    key: str = ""
    """What it tells, whatever stands in it: one that comes again and again is said once in a while."""
    fields: dict[str, int | float | str] = {}
    """Numbers and reasons in it."""


Report = Ready | Heartbeat | PublishingStopped | LogRecord

_encoder = msgspec.json.Encoder()
_assignments = msgspec.json.Decoder(Assignment)
_orders = msgspec.json.Decoder(str)
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encode(value: Assignment | Report | str) -> bytes:
    """Give a value as a line, newline included."""
    return _encoder.encode(value) + b"\n"


def read_assignment(line: bytes) -> Assignment:
    """Read the parent's first line. Raises ValueError (msgspec.ValidationError) for anything else."""
    return _assignments.decode(line)


def read_order(line: bytes) -> str:
    """Read one of the parent's later lines: LISTEN, DRAIN, HOLD or STOP."""
    return _orders.decode(line)


def read_report(line: bytes) -> Report:
    """Read a worker's line. Raises ValueError (msgspec.ValidationError, msgspec.DecodeError) for anything else."""
    return _reports.decode(line)
