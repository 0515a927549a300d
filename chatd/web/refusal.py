"""The end of a connection whose request is too large or too slow: the client is told why, and no more of it taken."""

from secrets import SystemRandom
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.access.rate_limits import ConnectionsByAddress
from chatd.clients.send_buffer import SendBuffer
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED
from chatd.protocol.http_head import Refused, RequestHead
from chatd.protocol.http_stream import refused_to
from chatd.runtime.timers import Timer, TimerWheel

uniform = SystemRandom().uniform


def for_now(head: RequestHead, refused: Refused, config: Config) -> Refused:
    """Return how the sender of a request is refused; who comes back by itself does so at a time of its own."""
    return refused_to(head, refused, lambda: uniform(0, config.retry_seconds))


@implementer(IHalfCloseableProtocol)
class Refusal(SendBuffer, Protocol):
    """Answers, closes our half, and waits a moment for the client to close its own."""

    transport: Any

    def __init__(self, refused: Refused, timers: TimerWheel, seconds: float, among: ConnectionsByAddress[Any]) -> None:
        """Take what to say, how long to wait, and the connections among which it counts until it is over.

        In a full house it closes as soon as all is said, whatever the client has still to say.
        """
        self._refused = refused
        self._timers = timers
        self._seconds = seconds
        self._among = among
        self._drop: Timer | None = None

    def connectionMade(self) -> None:
        """Say it."""
        REFUSED[self._refused.reason].value += 1
        self._among.add(self, "")
        self.attach()
        self.write(self._refused.response())
        if self._refused.reason != "full":
            self._drop = self.hang_up(self._timers, self._seconds)
        else:
            self.transport.loseConnection()
            self._drop = self._timers.callLater(self._seconds, self.transport.abortConnection)

    def dataReceived(self, data: bytes) -> None:
        """Let what still comes be for nobody."""

    def readConnectionLost(self) -> None:
        """Close once all is said: the client has closed its own half."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Nothing: our half is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: the socket is gone."""
        self._among.discard(self)
        if self._drop is not None:
            self._drop.cancel()
