"""The only txredisapi import: a connection to the broker, dialled again for ever.

One link publishes, another one subscribes: a connection that subscribes can do nothing else. txredisapi brings
the protocol; its own reconnecting factories are not used: they stop for good where a password is refused or
the broker is full, and queue without bound what is sent meanwhile (txredisapi 1.6.0).
"""

import re
from collections.abc import Awaitable, Callable
from secrets import SystemRandom
from typing import Any

import hiredis
import txredisapi
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.credentials import password_of
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config

log = Logger()
uniform = SystemRandom().uniform

ReplyError = txredisapi.ResponseError
"""The broker's answer to a command that it did not carry out; the text starts with a code (``OOM``, ``NOSCRIPT``)."""

AWAY_CODES = frozenset(
    ("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "NOAUTH", "NOPERM")
)
"""Answers by which a broker says that it can't do it now."""

_FOR_NOW = re.compile(rf"(?:^|-)(?:{'|'.join(AWAY_CODES)})\b|ACL failure|user executing the script can't")
"""Redis 6.2 puts what went wrong in a script into words of its own: ``ERR Error running script …: -OOM …``."""

LinkLost = txredisapi.ConnectionError
"""The link went away before the answer came: whether the command was carried out is unknown."""


def for_now(failure: Failure) -> bool:
    """Whether a broker says that it can't do something now, be it until its rules are mended: try again."""
    return _FOR_NOW.search(failure.getErrorMessage().strip()) is not None


class ConnectionUnusable(Exception):
    """A link that can't be used; its text says why."""


class _Alive:
    """Counts the ticks since the broker was last heard, and remembers why the connection went."""

    silent_ticks = 0
    lost = ""
    """What was wrong, where the connection did not simply end: a certificate, say."""

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        self.silent_ticks = 0
        super().dataReceived(data, unpause)  # type: ignore[misc]

    def connectionLost(self, why: Failure) -> None:
        if not why.check(ConnectionClosed):
            self.lost = why.getErrorMessage()
        super().connectionLost(why)  # type: ignore[misc]


class PublishConnection(_Alive, txredisapi.RedisProtocol):
    """A connection that sends commands."""

    def _build_command(self, *args: Any, **options: object) -> bytes:
        """Put a command into bytes: txredisapi's own way took a tenth of what a message costs (1.6.0)."""
        command: bytes = hiredis.pack_command(args)
        return command


class SubscribeConnection(_Alive, txredisapi.SubscriberProtocol):
    """A connection that hears channels."""

    def messageReceived(self, pattern: None, channel: bytes, message: bytes) -> None:
        """Hand a message on. An exception that got out of here would corrupt txredisapi's parser."""
        try:
            self.factory.heard(channel, message)
        except Exception:  # noqa: BLE001 - nothing a message does may take the link down
            log.failure("a message from the bus could not be handled")


class BrokerConnection(Factory):
    """Keeps one connection of a kind to the broker, from ``start`` to ``stop``."""

    noisy = False
    isLazy = False  # asked for by txredisapi

    def __init__(
        self,
        kind: type[Any],
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        address: BrokerAddress,
        config: Config,
        *,
        prepare: Callable[[Any], Awaitable[None]],
        changed: Callable[[], None],
        heard: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        """Take what to do on each new connection before it counts, and whom to tell that it came or went."""
        self._kind = kind
        self._reactor = reactor
        self._endpoint = endpoint
        self._address = address
        self._config = config
        self._prepare = prepare
        self._changed = changed
        self.heard = heard
        self.protocol: Any = None
        """The connection, while it can be used."""
        self.trouble = "not connected yet"
        """Why there is none."""
        self._refusal = ""
        self._stopping = False
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to dial."""
        self._running = Deferred.fromCoroutine(self._keep())

    def stop(self) -> None:
        """Hang up and dial no more."""
        self._stopping = True
        if self._running is not None:
            self._running.cancel()

    def tick(self) -> None:
        """Count a tick, with which the broker is asked for a sign of life; drop a link that is silent for too long."""
        self.protocol.silent_ticks += 1
        if self.protocol.silent_ticks > self._config.bus_silent_ticks:
            self.trouble = f"silent for {self._config.bus_silent_ticks * self._config.bus_tick_seconds:g} s"
            self.protocol.transport.abortConnection()

    def rest(self) -> None:
        """Begin to count anew: the broker is not asked, for the other link is down."""
        if self.protocol is not None:
            self.protocol.silent_ticks = 0

    async def _keep(self) -> None:
        attempt = 0
        while not self._stopping:
            try:
                dialling: Deferred[Any] = self._endpoint.connect(self)
                protocol = await dialling.addTimeout(self._config.bus_connect_seconds, self._reactor)
                try:
                    await self._until_ready(protocol)
                    attempt = 0
                    await self._until_lost(protocol)
                finally:
                    protocol.transport.abortConnection()
            except TimeoutError:
                self.trouble = f"no answer within {self._config.bus_connect_seconds:g} s"
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the broker, it is tried again
                self.trouble = str(error) or type(error).__name__
            if not self._stopping:
                attempt += 1
                self._tell()
            if not self._stopping:
                await deferLater(self._reactor, self._delay(attempt)).addErrback(
                    lambda failure: failure.trap(CancelledError)
                )

    async def _until_ready(self, protocol: Any) -> None:
        """Log in and prepare. Raises whatever keeps the connection from being used."""
        self._refusal = ""
        preparing = Deferred.fromCoroutine(self._get_ready(protocol))
        preparing.addTimeout(self._config.bus_connect_seconds, self._reactor)
        protocol.whenDisconnected().addCallback(lambda _: preparing.cancel())
        try:
            await preparing
        except (CancelledError, txredisapi.ConnectionError):
            raise ConnectionUnusable(self._refusal or protocol.lost or "connection lost while logging in") from None

    async def _get_ready(self, protocol: Any) -> None:
        await protocol.whenConnected()
        await self._prepare(protocol)

    async def _until_lost(self, protocol: Any) -> None:
        self.trouble = "connection lost"
        self.protocol = protocol
        try:
            self._tell()
            if not self._stopping:
                await protocol.whenDisconnected()
        finally:
            self.protocol = None

    def _tell(self) -> None:
        """Say that the link came or went. Whoever hears it may stop the link."""
        try:
            self._changed()
        except Exception:  # noqa: BLE001 - whoever listens, the link goes on
            log.failure("a change of a link to the message bus was not handled")

    def _delay(self, attempt: int) -> float:
        config = self._config
        delay = min(config.bus_retry_first_seconds * 1.5 ** min(attempt - 1, 50), config.bus_retry_most_seconds)
        return delay * uniform(0.9, 1.1)  # workers do not dial in step

    # What txredisapi asks of a factory

    def buildProtocol(self, addr: object) -> Any:
        """Make a protocol that leaves replies as they are: a line ``007`` stays one. Raises BadValue."""
        address = self._address
        protocol = self._kind(
            charset=None,
            convertNumbers=False,
            username=address.user,
            password=password_of(address, self._config),
            dbid=address.database,
        )
        protocol.factory = self
        return protocol

    def stopTrying(self) -> None:
        """Do not stop: what the broker refuses now it may take later."""

    def connectionError(self, why: str) -> None:
        """Remember why logging in failed."""
        self._refusal = why.removeprefix("Redis error: ")
