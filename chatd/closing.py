"""Why we hang up on a client: each reason once, with its close code (RFC 6455, section 7.4).

Autobahn itself closes with 1002, 1007 and, where a frame announces its size, 1009. Every other
code that leaves chatd stands here and is written by ``client.connection.Connection.close``.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Closing:
    """A close code and the reason the client is told (at most 123 bytes of UTF-8)."""

    code: int
    reason: str


STOPPING = Closing(1001, "the server stops")
NOT_TEXT = Closing(1003, "text messages only")
TOO_LARGE = Closing(1009, "the message is too large")
OUR_FAULT = Closing(1011, "an error on our side; it is in our log")
BUS_AWAY = Closing(1013, "the message bus is away; try again later")
LOG_AWAY = Closing(1013, "not sent: the chat log cannot be written; try again later")
TOO_SLOW = Closing(1013, "too far behind in reading; try again later")
