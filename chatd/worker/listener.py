"""Accepted connections until their first request is read: bounded in size and time, and checked.

A connection reads up to the end of the headers and refuses what neither side should parse. Then a WebSocket or
twisted.web becomes the protocol of its transport, and gets the bytes.
"""

from typing import Any

from twisted.internet.interfaces import IAddress, IProtocol, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.access.rate_limits import ConnectionsByAddress
from chatd.clients.factory import ConnectionFactory
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED
from chatd.protocol.http_head import (
    CONTROL,
    EMPTY_LINE,
    HEAD_END,
    Refused,
    bad_request,
    head_too_large,
    read_head,
    server_full,
    too_late,
)
from chatd.runtime.transports import address_of, hand_over, peer_of
from chatd.web.responses import Refusal, spread_retry
from chatd.web.site import Site

log = Logger()


class IncomingConnection(Protocol):
    """One connection, until it is known what it wants."""

    factory: "ListenerFactory"
    transport: Any

    def __init__(self) -> None:
        self._head = bytearray()
        self._late: Any = None
        self._shut = False
        self.exposed = False
        """Whether others than this host can connect where this connection did: limits hold there."""
        self.loopback = False
        """Whether it came to a TCP port on a loopback address, without a PROXY header."""
        self.metrics = False
        """Whether only metrics and health checks are served where this connection came to."""
        self.proxied = False
        """Whether it begins with a PROXY header; the client's address is not known before."""

    def connectionMade(self) -> None:
        """Start the clock; one connection far too many, or of no proxy where one is expected, is dropped at once."""
        if self.proxied and not self.factory.accepts_proxy_header(peer_of(self.transport)):
            self._drop("untrusted")
            return
        peer = "" if self.proxied else address_of(self.transport)
        if self.factory.connections.bans.has(peer):
            self._drop("banned")
            return
        if self.factory.is_overloaded(self, peer):
            self._drop("crowded")
            return
        self._late = self.factory.connections.timers.callLater(
            self.factory.config.client_header_timeout, self._refuse, too_late()
        )

    def dataReceived(self, data: bytes) -> None:
        """Gather the head; decide when it is whole, or can't become so."""
        if self._shut:
            return
        if self.proxied and not address_of(self.transport):  # by now the PROXY header was read
            self._drop("untrusted")
            return
        searched = max(0, len(self._head) - len(HEAD_END) + 1)
        self._head += data
        end = self._head.find(HEAD_END, searched)
        limit = self.factory.config.client_header_size
        if end < 0 and CONTROL.search(data):
            self._refuse(bad_request("not HTTP: a control character"))
        elif end + len(HEAD_END) > limit or (end < 0 and len(self._head) > limit):
            self._refuse(head_too_large(limit))
        elif end >= 0:
            head, rest = self._head[: end + len(HEAD_END)], self._head[end + len(HEAD_END) :]
            self._decide(bytes(head).removeprefix(EMPTY_LINE), bytes(rest))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it."""
        self._stop_clock()
        self.factory.waiting.discard(self)

    def _decide(self, head: bytes, rest: bytes) -> None:
        factory, charged, request = self.factory, False, None
        try:
            request, peer = read_head(head), address_of(self.transport)
            if request.upgrades and not self.metrics:
                charged = True  # by ``let_in``
                if factory.full:
                    raise server_full()
                connection = factory.connections.accept(request, peer, exposed=self.exposed, loopback=self.loopback)
                self._hand_over(connection, rest)
            else:
                channel = factory.site.buildProtocol(self.transport.getPeer())
                channel.exposed, channel.loopback, channel.metrics = self.exposed, self.loopback, self.metrics
                channel.admit(request, peer)
                self._hand_over(channel, head + rest)
        except Refused as refused:
            self._refuse(spread_retry(request, refused, factory.config) if request else refused, charged=charged)

    def _hand_over(self, protocol: IProtocol, data: bytes) -> None:
        """Leave the connection to another protocol, with what was read that is for it."""
        self._stop_clock()
        self.factory.waiting.discard(self)
        hand_over(self.transport, protocol)
        if data:
            protocol.dataReceived(data)

    def _refuse(self, refused: Refused, *, charged: bool = False) -> None:
        """Answer and hang up. Charge the address for the request, unless it was charged already."""
        factory = self.factory
        if not charged:
            peer = factory.connections.proxies.counted(address_of(self.transport))
            factory.connections.limits.charge(peer, 1, exposed=self.exposed)
        timers, seconds = factory.connections.timers, factory.config.close_timeout
        self._hand_over(Refusal(refused, timers, seconds, factory.waiting), b"")

    def evict(self) -> None:
        """Drop the connection: too many others have come since, and this one has sent no request yet."""
        self._drop("crowded")

    def _drop(self, reason: str) -> None:
        """Drop the connection without an answer."""
        REFUSED[reason].value += 1
        self._shut = True
        self._stop_clock()
        self.factory.waiting.discard(self)
        self.transport.abortConnection()

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()


class ListenerFactory(Factory):
    """The accepted connections of all listeners of this worker, and the number of all connections."""

    noisy = False
    protocol: type[IncomingConnection] = IncomingConnection  # type: ignore[assignment]

    def __init__(
        self,
        reactor: Any,
        connections: ConnectionFactory,
        site: Site,
        config: Config,
        most: int,
    ) -> None:
        """Store the receivers of WebSockets and of other requests; most is how many connections there may be."""
        self.reactor = reactor
        self.connections = connections
        self.site = site
        self.config = config
        self.waiting: ConnectionsByAddress[IncomingConnection | Refusal] = ConnectionsByAddress(connections.limits)
        self._most = most
        self._full_at = 0  # how many there were when it was logged
        site.full = lambda: self.full

    def port(self, *, exposed: bool, proxied: bool = False, unix: bool = False, metrics: bool = False) -> Factory:
        """Return the factory of a port.

        Exposed: other hosts can connect; proxied: connections begin with a PROXY header; unix: a unix socket; metrics:
        only metrics and health checks are served.
        """
        return _Port(self, exposed=exposed, proxied=proxied, loopback=not (exposed or proxied or unix), metrics=metrics)

    @property
    def full(self) -> bool:
        """Whether there are too many connections, the current one included; logged when it begins and when it ends."""
        full = self.count > self._most
        if full and not self._full_at:
            self._full_at = self.count
            log.warn(
                "the limit of {most} connections is reached; new connections are answered with 503",
                most=self._most,
                event="connection_limit_reached",
            )
        elif self._full_at and self.count < self._full_at * 0.9:
            self._full_at = 0
            log.info("new connections are accepted again", resolved=True, event="connection_limit_cleared")
        return full

    def accepts_proxy_header(self, peer: str) -> bool:
        """Return whether a peer may send PROXY headers. One that may not is logged."""
        may = self.connections.proxies.may_announce(peer)
        if not may:
            log.warn(
                "closed a connection from {peer} to a haproxy: port; --trusted-proxy does not name that address",
                peer=peer,
                problem="untrusted proxy",
                event="proxy_untrusted",
            )
        return may

    def is_overloaded(self, connection: IncomingConnection, peer: str) -> bool:
        """Register a connection from a peer, unless there are too many even to answer it; return whether there are."""
        if self.count >= self._most + self.config.rejected_connections_margin:
            return True
        counted = self.connections.proxies.counted(peer)
        if connection.exposed and counted and self.connections.limits.crowded(counted):
            return True
        self.waiting.add(connection, counted)
        if len(self.waiting) > max(
            self.config.unidentified_connections_min, self._most * self.config.unidentified_connections_share
        ):
            oldest = next(iter(self.waiting))
            if isinstance(oldest, IncomingConnection):
                oldest.evict()
        return False

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self.waiting) + len(self.connections.connections) + len(self.site.channels)


@implementer(IProtocolNegotiationFactory)
class _Port(Factory):
    """The doors of one port."""

    noisy = False

    def __init__(
        self, listener: ListenerFactory, *, exposed: bool, proxied: bool, loopback: bool, metrics: bool
    ) -> None:
        self._listener = listener
        self._exposed = exposed
        self._proxied = proxied
        self._loopback = loopback
        self._metrics = metrics

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return a connection of this listener."""
        connection = IncomingConnection()
        connection.factory, connection.exposed, connection.proxied = self._listener, self._exposed, self._proxied
        connection.loopback, connection.metrics = self._loopback, self._metrics
        return connection

    def acceptableProtocols(self) -> list[bytes]:
        """Speak HTTP/1.1 to a TLS client that asks (RFC 7301): without an answer the handshake would fail."""
        return [b"http/1.1"]
