"""The factory of a worker's client connections: it applies all limits, makes connections, and closes them.

It extends Autobahn's factory, which holds the options of the protocol once for all connections.
"""

import socket
import time
from collections.abc import Callable
from functools import partial
from secrets import SystemRandom
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.protocol import TrafficStats
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatd.access.bans import BanList
from chatd.access.client_address import TrustedProxies
from chatd.access.origins import Hosts, Origins
from chatd.access.rate_limits import ConnectionsByAddress, RateLimits
from chatd.access.tokens import TokenVerifier, check_readable, scope_resume_key
from chatd.clients.deflate import longest_deflated
from chatd.clients.json_session import JsonSession
from chatd.clients.lean import Timers
from chatd.clients.pipe_session import Session
from chatd.clients.stream_session import StreamSession
from chatd.clients.text_session import TextSession
from chatd.clients.token_lifetime import UNLIMITED, TokenLifetime
from chatd.clients.turns import Turns
from chatd.clients.websocket import LINE_END, Connection
from chatd.config.settings import Config
from chatd.monitoring.log_events import Tally
from chatd.monitoring.metrics import CLIENTS, SLOW_CONSUMERS
from chatd.protocol.close_codes import BANNED, TOKEN_REVOKED, CloseCode
from chatd.protocol.http_head import (
    PROTOCOL,
    RequestHead,
    RoomTarget,
    Upgrade,
    read_upgrade,
    read_upgrade_target,
    unavailable,
)
from chatd.protocol.json_v1 import longest_json
from chatd.rooms.hub import Hub
from chatd.runtime.timers import TimerWheel

log = Logger()
uniform = SystemRandom().uniform


class Closable(Protocol):
    """A connection with a session."""

    @property
    def session(self) -> Session | JsonSession:
        """The session of the client."""

    def close(self, close_code: CloseCode) -> None:
        """Close the connection with this close code."""


class ConnectionFactory(WebSocketServerFactory):
    """The factory of a worker's client connections. It also holds their limits, and the set of all open ones."""

    noisy = False

    def __init__(
        self,
        reactor: Any,
        hub_of: Callable[[str], Hub],
        config: Config,
        worker: str,
        *,
        token_verifier: TokenVerifier | None = None,
        now: Callable[[], float] = time.time,
        most: int | None = None,
    ) -> None:
        """Store what returns the hub of a room, and the unique name of this worker, which is the prefix of connection
        ids.

        Now returns the time of day, in seconds since 1970. Most is how many connections the worker may have, if that
        differs from the configuration.
        """
        super().__init__(server="", reactor=reactor)
        self.timers = TimerWheel(reactor, config.client_timer_resolution)
        self.turns = Turns(reactor, config.frame_rest_factor)
        self._batched_timer = Timers(self.timers)  # private to Autobahn; 26.10.2 has no other way in
        self.config = config
        self.origins = Origins(config.allowed_origin, _log_refused_page, config.logged_origins)
        self.hosts = Hosts(config.allowed_host, machine=socket.gethostname(), proxied=bool(config.trusted_proxy))
        self.proxies = TrustedProxies(config.trusted_proxy)
        self.limits = RateLimits(config, reactor.seconds)
        self.bans = BanList(config.ban_list)
        self.traffic = TrafficStats()
        self.connections: ConnectionsByAddress[Closable] = ConnectionsByAddress(self.limits)
        """Also those of HTTP clients that follow a room."""
        self.close_code: CloseCode | None = None
        """The close code for all connections, once the worker closes them."""
        self._hub_of = hub_of
        self._enter_exposed = partial(self.enter, exposed=True)  # one for all programs
        self._enter_local = partial(self.enter, exposed=False)
        self._followers_most = int((most or config.worker_connections) * config.stream_connections_share)
        self._token_verifier = token_verifier
        self._now, self._worker, self._sessions = now, worker, 0
        self._emptied: Deferred[None] | None = None
        self.slow = Tally(
            self.timers,
            config.client_report_interval,
            partial(log.warn, "slow consumers: {clients}", event="slow_consumers_detected"),
            {"clients": SLOW_CONSUMERS},
        )
        self._set_protocol_options()

    def _set_protocol_options(self) -> None:
        """Make the two classes of connections: for messages, and for JSON requests, which are longer."""
        config = self.config
        self.setProtocolOptions(
            failByDrop=False,
            openHandshakeTimeout=0,  # the listener has waited for the headers, the connection waits for the room
            closeHandshakeTimeout=config.close_timeout,
            autoPingInterval=0,  # the connection pings by itself: Autobahn sets two timers anew for each message
        )
        options = {name: getattr(self, name) for name in Connection.CONFIG_ATTRS}
        options["perMessageCompressionAccept"] = staticmethod(options["perMessageCompressionAccept"])
        # Options on a class need no copying into each connection, and no pretty-printing on the way.
        options |= {"CONFIG_ATTRS": (), "__slots__": ()}
        options |= {
            name: getattr(config, name) for name in ("max_send_buffer", "worker_send_buffers", "reduced_send_buffer")
        }
        self.protocol = _limited(options, config, config.max_message_size + LINE_END)
        self._json_protocol = _limited(options, config, longest_json(config.max_message_size))

    def accept(self, request: RequestHead, peer: str, *, exposed: bool = False, loopback: bool = False) -> Connection:
        """Return the connection of a client that asks for a WebSocket. Raise Refused.

        Peer is the address of the other end. Exposed: other hosts can connect to that listener. Loopback: it is a TCP
        port on a loopback address.
        """
        headers = request.headers
        address = self.proxies.client(peer, headers.get("x-forwarded-for"))
        self.limits.charge(address, 1, exposed=exposed)
        upgrade = read_upgrade(request)
        self.hosts.check(headers.get("host"), loopback=loopback)
        self.origins.check(request)
        self._admit(address, peer, exposed=exposed)
        target = read_upgrade_target(request)
        if target.last or target.resume:  # it is charged already; a client that comes back may owe
            self.limits.request(address, exposed=exposed, count=0, recovers=bool(target.resume))
        token_lifetime = self.token_lifetime(request)
        check_readable(token_lifetime.permissions, target.room)
        self.enter(address, target.room, exposed=exposed)
        return self.make(
            upgrade, scope_resume_key(token_lifetime.permissions, target), address, token_lifetime, exposed=exposed
        )

    def admit(self, request: RequestHead, peer: str, *, exposed: bool) -> str:
        """Check the limits for a connection that begins with this request; return its client address.

        Raise Refused: 403, 429, 503.
        """
        address = self.proxies.client(peer, request.headers.get("x-forwarded-for"))
        self._admit(address, peer, exposed=exposed)
        return address

    def _admit(self, address: str, peer: str, *, exposed: bool) -> None:
        self.bans.check(address)
        self.limits.admit(address, exposed=exposed, counted=not self.proxies.trusts(peer))

    def enter(self, address: str, room: str, *, exposed: bool) -> None:
        """Check that an address may use a room, which may be new. Raise Refused (429) if it creates too many."""
        if self.limits.minds_rooms(exposed=exposed) and room not in self._hub_of(room).rooms:
            self.limits.enter(address, room, exposed=exposed)

    def stay(self, address: str, peer: str, *, exposed: bool) -> None:
        """Check the limits for a response without end, also on a connection of a proxy that brought other requests.

        Raise Refused: 429 for the address, 503 while too many clients of the worker follow rooms.
        """
        if CLIENTS[StreamSession.protocol].value >= self._followers_most:
            raise unavailable("too many clients follow rooms over HTTP; try again later")
        self.limits.stay(address, exposed=exposed, counted=not self.proxies.trusts(peer))

    def close_banned(self) -> None:
        """Close the connections of addresses that are on the ban list now."""
        self._close_some(BANNED, lambda session: self.bans.has(session.address))

    def close_revoked(self) -> None:
        """Close the connections whose token was revoked, or whose key is not configured any more."""
        if token_verifier := self._token_verifier:
            self._close_some(
                TOKEN_REVOKED, lambda session: not token_verifier.still_takes(session.token_lifetime.permissions)
            )

    def _close_some(self, close_code: CloseCode, applies: Callable[[Session | JsonSession], bool]) -> None:
        for connection in list(self.connections):
            with log.failuresHandled(
                "closing client {client} failed", client=connection.session.id, event="client_close_failed"
            ):
                if applies(connection.session):
                    connection.close(close_code)

    def token_lifetime(self, request: RequestHead) -> TokenLifetime:
        """Return what the sender of a request may do. Raise Refused: 401 where it needs a token, 400 for several."""
        if self._token_verifier is None:
            return UNLIMITED
        return TokenLifetime(
            self._token_verifier.authenticate(request, self._now()),
            self._token_verifier,
            self.timers,
            self.config,
            self._now,
        )

    def make(
        self,
        upgrade: Upgrade,
        target: RoomTarget,
        address: str,
        token_lifetime: TokenLifetime = UNLIMITED,
        *,
        exposed: bool = False,
    ) -> Connection:
        """Return the connection of a client that asks to upgrade: its room and parameters, and its address."""
        client: dict[str, Any] = {
            "id": self.new_id(),
            "address": address,
            "token_lifetime": token_lifetime,
            "rate": self.limits.client_rate(address, exposed=exposed),
        }
        connection: Connection = (self._json_protocol if upgrade.protocol else self.protocol)(upgrade)
        connection.factory = self
        connection.session = self.new_session(connection, target, upgrade.protocol, exposed=exposed, **client)
        return connection

    def new_id(self) -> str:
        """Return the id of a connection: no other has it, or ever had it."""
        self._sessions += 1
        return f"{self._worker}.{self._sessions}"

    def new_session(
        self, connection: Connection, target: RoomTarget, protocol: str, *, exposed: bool = False, **client: Any
    ) -> Session | JsonSession:
        """Return the session that a connection carries. Client has the options that all sessions share."""
        if protocol == PROTOCOL:
            enter = self._enter_exposed if exposed else self._enter_local
            return JsonSession(self._hub_of, self.config, self.timers, connection, target=target, enter=enter, **client)
        kind: type[Session] = TextSession if target.nick else Session
        return kind(self._hub_of(target.room), self.config, self.timers, connection, target=target, **client)

    def add(self, connection: Closable) -> None:
        """Register a connection; call ``remove`` when it has ended."""
        self.connections.add(connection, connection.session.address)
        CLIENTS[connection.session.protocol].value += 1

    def remove(self, connection: Closable) -> None:
        """Forget a connection."""
        if connection in self.connections:
            self.connections.discard(connection)
            CLIENTS[connection.session.protocol].value -= 1

    def close_all(self, close_code: CloseCode) -> "Deferred[None]":
        """Close all connections; fires when the last one has ended."""
        self.close_code = close_code
        emptied = self._emptied = Deferred()
        self._close_some(close_code, lambda session: True)
        self.connection_gone()
        return emptied

    def close_gradually(self, close_code: CloseCode, seconds: float) -> None:
        """Close every connection that there is now, each at a moment of its own within that time."""
        for connection in self.connections:
            self.timers.callLater(uniform(0, seconds), connection.close, close_code)

    def connection_gone(self) -> None:
        """Report if the last connection has ended."""
        if self._emptied is not None and not self.connections:
            emptied, self._emptied = self._emptied, None
            self.slow.flush()  # the end of the worker would be sooner
            emptied.callback(None)


def _log_refused_page(page: str, option: str) -> None:
    log.warn(
        "refused {page}; to allow it, use --allowed-origin {option}",
        page=page,
        option=option,
        always=True,  # each origin is logged once
        event="page_refused",
    )


def _limited(options: dict[str, Any], config: Config, longest: int) -> type[Connection]:
    """Return the class of connections on which a message is no longer than that, in bytes."""
    most = longest_deflated(longest) if config.compress else longest
    limits = {"longest": longest, "maxFramePayloadSize": most, "maxMessagePayloadSize": most}
    return type("Connection", (Connection,), options | limits)
