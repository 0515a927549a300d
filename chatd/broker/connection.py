"""Connections to the broker, with reconnects. The only module that imports txredisapi.

One connection publishes and runs scripts, the other one subscribes. txredisapi provides the protocol. Its reconnecting
factories are not used: they stop for good if a password is refused or the broker is full, and queue without bound what
is sent meanwhile (txredisapi 1.6.0).
"""

import re
from collections.abc import Awaitable, Callable
from secrets import SystemRandom
from typing import Any

import hiredis
import txredisapi
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.broker.credentials import password_of, tls_options
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from chatd.config.values import BadValue

log = Logger()
uniform = SystemRandom().uniform

ReplyError = txredisapi.ResponseError
"""A command failed; the text is the broker's and starts with a code (``OOM``, ``NOSCRIPT``)."""

AWAY_CODES = frozenset(
    ("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "NOAUTH", "NOPERM")
)
"""Error codes of a broker that cannot execute a command for now."""

_FOR_NOW = re.compile(rf"(?:^|-)(?:{'|'.join(AWAY_CODES)})\b|ACL failure|user executing the script can't")
"""Redis 6.2 wraps errors of scripts: ``ERR Error running script …: -OOM …``."""

LinkLost = txredisapi.ConnectionError
"""The connection broke before the answer arrived: nobody knows whether the command was executed."""


def for_now(failure: Failure) -> bool:
    """Return whether a broker refuses a command for now, so that it may be sent again."""
    return _FOR_NOW.search(failure.getErrorMessage().strip()) is not None


class ConnectionUnusable(Exception):
    """A connection cannot be used; the text says why."""


class _Monitored:
    """Counts the ticks since data arrived, and stores why the connection broke."""

    silent_ticks = 0
    lost = ""
    """The reason if the connection did not just end: a certificate, for example."""

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        self.silent_ticks = 0
        super().dataReceived(data, unpause)  # type: ignore[misc]

    def connectionLost(self, why: Failure) -> None:
        if not why.check(ConnectionClosed):
            self.lost = why.getErrorMessage()
        super().connectionLost(why)  # type: ignore[misc]


class PublishConnection(_Monitored, txredisapi.RedisProtocol):
    """A connection that publishes and runs scripts."""

    def _build_command(self, *args: Any, **options: object) -> bytes:
        """Return the bytes of a command. txredisapi's own function took a tenth of the time of a message (1.6.0)."""
        command: bytes = hiredis.pack_command(args)
        return command


class SubscribeConnection(_Monitored, txredisapi.SubscriberProtocol):
    """A connection that subscribes to channels."""

    def messageReceived(self, pattern: None, channel: bytes, message: bytes) -> None:
        """Pass a message on. An exception would corrupt txredisapi's parser."""
        try:
            self.factory.received(channel, message)
        except Exception:  # noqa: BLE001 - no message may break the connection
            log.failure("handling a message from the broker failed", event="broker_message_failed")


class BrokerConnection(Factory):
    """One connection of a kind to the broker, kept from ``start`` to ``stop``."""

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
        received: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        """Prepare for a broker. Each new connection is passed to ``prepare`` before it is used.

        ``changed`` is called when the connection is ready and when it has broken.
        """
        self._kind = kind
        self._reactor = reactor
        self._endpoint = endpoint
        self._address = address
        self._config = config
        self._prepare = prepare
        self._changed = changed
        self.received = received
        self.protocol: Any = None
        """The connection, or None while there is none."""
        self.trouble = "not connected yet"
        """The reason why there is no connection."""
        self._refusal = ""
        self._stopping = False
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Start to connect."""
        self._running = Deferred.fromCoroutine(self._keep())

    def stop(self) -> None:
        """Close the connection and stop connecting."""
        self._stopping = True
        if self._running is not None:
            self._running.cancel()

    def tick(self) -> None:
        """Count a tick, at which a probe is sent. Drop a connection that was silent for too many."""
        self.protocol.silent_ticks += 1
        if self.protocol.silent_ticks > self._config.redis_missed_pings:
            self.trouble = f"silent for {self._config.redis_missed_pings * self._config.redis_ping_interval:g} s"
            self.protocol.transport.abortConnection()

    def reset_silence(self) -> None:
        """Start to count again: no probe is sent, because the other connection is down."""
        if self.protocol is not None:
            self.protocol.silent_ticks = 0

    async def _keep(self) -> None:
        attempt = 0
        while not self._stopping:
            try:
                dialling: Deferred[Any] = self._endpoint.connect(self)
                protocol = await dialling.addTimeout(self._config.redis_connect_timeout, self._reactor)
                try:
                    await self._prepare_connection(protocol)
                    attempt = 0
                    await self._until_lost(protocol)
                finally:
                    protocol.transport.abortConnection()
            except TimeoutError:
                self.trouble = f"no answer within {self._config.redis_connect_timeout:g} s"
            except Exception as error:  # noqa: BLE001 - whatever is wrong, connect again
                self.trouble = str(error) or type(error).__name__
            if not self._stopping:
                attempt += 1
                self._report_change()
            if not self._stopping:
                await deferLater(self._reactor, self._delay(attempt)).addErrback(
                    lambda failure: failure.trap(CancelledError)
                )

    async def _prepare_connection(self, protocol: Any) -> None:
        """Log in and prepare. Raise what keeps the connection from being used."""
        self._refusal = ""
        preparing = Deferred.fromCoroutine(self._get_ready(protocol))
        preparing.addTimeout(self._config.redis_connect_timeout, self._reactor)
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
            self._report_change()
            if not self._stopping:
                await protocol.whenDisconnected()
        finally:
            self.protocol = None

    def _report_change(self) -> None:
        """Call ``changed``, which may stop this connection."""
        try:
            self._changed()
        except Exception:  # noqa: BLE001 - the connection goes on
            log.failure("handling a change of a broker connection failed", event="broker_connection_change_failed")

    def _delay(self, attempt: int) -> float:
        config = self._config
        delay = min(config.redis_reconnect_min_delay * 1.5 ** min(attempt - 1, 50), config.redis_reconnect_max_delay)
        return delay * uniform(0.9, 1.1)  # workers do not connect in step

    # Methods that txredisapi calls

    def buildProtocol(self, addr: object) -> Any:
        """Return a protocol that does not convert replies: ``007`` stays a string. Raise BadValue."""
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
        """Do nothing: the broker may accept later what it refuses now."""

    def connectionError(self, why: str) -> None:
        """Store why the login failed."""
        self._refusal = why.removeprefix("Redis error: ")


def broker_endpoint(reactor: Any, address: BrokerAddress, config: Config) -> IStreamClientEndpoint:
    """Return the endpoint of an address. With TLS it checks the server's certificate and name."""
    if address.path:
        return UNIXClientEndpoint(reactor, address.path, timeout=config.redis_connect_timeout)
    return host_endpoint(reactor, address.host, address.port, tls=address.tls, config=config)


def host_endpoint(reactor: Any, host: str, port: int, *, tls: bool, config: Config) -> IStreamClientEndpoint:
    """Return the endpoint of a host and a port."""
    kind: Any = HostnameEndpoint  # tries several addresses, and needs 0.3 s to see that there are no more (26.10.0)
    if isIPAddress(host):
        kind = TCP4ClientEndpoint
    elif isIPv6Address(host):
        kind = TCP6ClientEndpoint
    endpoint = kind(reactor, host, port, timeout=config.redis_connect_timeout)
    return TlsEndpoint(endpoint, host, config) if tls else endpoint


@implementer(IStreamClientEndpoint)
class TlsEndpoint:
    """An endpoint that reads the certificates from their files at each connect."""

    def __init__(self, endpoint: IStreamClientEndpoint, host: str, config: Config) -> None:
        """Wrap a plain endpoint. ``host`` is the name that the server's certificate must have."""
        self._endpoint = endpoint
        self._host = host
        self._config = config

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect. The Deferred fails with BadValue if a file cannot be used."""
        try:
            options = tls_options(self._host, self._config)
        except BadValue:
            return fail()
        return wrapClientTLS(options, self._endpoint).connect(protocolFactory)
