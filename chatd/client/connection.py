"""The only Autobahn import: one client's WebSocket, from the end of its handshake to the end of its socket.

A thin adapter: bytes, back-pressure and closing are here, what a client may do is its session's. All of RFC 6455
is Autobahn's; where it leaves something unbounded, the bound is put here. Names in camelCase are Autobahn's
and Twisted's, who call them.
"""

from collections.abc import Callable
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny
from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.client.session import Session
from chatd.closing import BUS_AWAY, NOT_TEXT, OUR_FAULT, TOO_LARGE, TOO_SLOW, Closing
from chatd.config import Config
from chatd.room.hub import Hub
from chatd.wire.handshake import Place, Refused

log = Logger()

LINE_END = 2  # bytes that a message may be over the limit: they are dropped


_REFUSALS: dict[int, tuple[Any, ...]] = {
    405: ("bad_request", ("Allow", "GET")),
    426: ("bad_request", ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
    500: ("internal",),
    503: ("unavailable", ("Retry-After", "5")),
}
"""What a refused handshake is called, and its headers, by status; any other is a bad_request."""


class _Quiet:
    """Autobahn's own log, said to nobody: all it tells is a client's fault, and told to the client."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return self._drop

    def _drop(self, *args: object, **fields: object) -> None:
        """Say nothing."""


class _Timers:
    """Autobahn's timers, on the reactor that we are given and to the point: its own, on the global one, come early."""

    def __init__(self, reactor: Any) -> None:
        self.call_later = reactor.callLater


@implementer(IPushProducer)
class Connection(WebSocketServerProtocol):
    """One client's connection. Its options stand on a subclass that ``ConnectionFactory`` makes once."""

    log = _Quiet()
    session: Session
    failedByMe: bool

    _choked = False  # the transport's buffer is over its mark
    _backlog = 0  # bytes written since then
    _paused = False  # not reading
    _fragments = 0
    _drop: Any = None

    # Autobahn calls: the handshake

    def connectionMade(self) -> None:
        """Begin, on a transport that the door hands over."""
        super().connectionMade()
        self.factory.connections.add(self)
        self.transport.registerProducer(self, True)

    def onConnect(self, request: object) -> "Deferred[None]":
        """Enter the room before the handshake is answered: a client that reads 101 misses nothing from then on."""
        joined = maybeDeferred(self.session.join)
        joined.addTimeout(self.factory.config.join_seconds, self.factory.reactor)
        if not joined.called:
            self.pause()  # what comes meanwhile would pile up here, and be searched for a second handshake
            joined.addBoth(self._read_on)
        return joined.addErrback(self._not_joined)

    def _read_on(self, result: Any) -> Any:
        self.resume()
        return result

    def _not_joined(self, failure: Failure) -> None:
        if failure.check(TimeoutError):
            raise ConnectionDeny(503, BUS_AWAY.reason)
        log.failure("{session} could not join", failure, session=self.session.id)
        raise ConnectionDeny(500, OUR_FAULT.reason)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: object = None) -> None:
        """Refuse the handshake, as the door would. Autobahn's version puts reason into the status line."""
        if self.state == self.STATE_CLOSED:
            return
        if "not supported" in reason and code == 400:  # the version: RFC 6455, section 4.4
            code = 426
        name, *headers = _REFUSALS.get(code, ("bad_request",))
        self.wasNotCleanReason = reason
        self.sendData(Refused(code, name, reason, tuple(headers)).response())
        self.dropConnection(abort=False)
        self.session.gone()  # or the room, confirmed meanwhile, would open what is closed

    def onOpen(self) -> None:
        """Begin, unless everybody is being closed: this one came in meanwhile."""
        if self.factory.closing is not None:
            self.close(self.factory.closing)

    # Autobahn calls: messages

    def onMessageBegin(self, isBinary: bool) -> None:
        """Start to count a message's frames."""
        self._fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """Bound the frames of a message: empty ones are bounded by no size."""
        self._fragments += 1
        super().onMessageFrameBegin(length)
        if self._fragments > self.factory.config.fragments and not self.failedByMe:
            self.failedByMe = True
            self.close(TOO_LARGE)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Hand a message to the session, unless we are closing already. Autobahn would drop the socket if it failed."""
        if self.state != self.STATE_OPEN:
            return
        if isBinary:
            self.close(NOT_TEXT)
            return
        try:
            self.session.received(payload)
        except Exception:  # noqa: BLE001 - whatever went wrong, it is ours
            log.failure("a message of {session} could not be handled", session=self.session.id)
            self.close(OUR_FAULT)

    def onPing(self, payload: bytes) -> None:
        """Answer, if the client reads its answers (RFC 6455, section 5.5.3, allows to leave some out)."""
        if not self._choked:
            super().onPing(payload)

    def onAutoPingTimeout(self) -> None:
        """Hang up on a client that did not answer, unless it is we who do not read."""
        if self._paused:
            self.autoPingTimeoutCall = self.factory.reactor.callLater(self.autoPingTimeout, self.onAutoPingTimeout)
        else:
            super().onAutoPingTimeout()

    # Autobahn calls: the end

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Send a Close frame, ours or Autobahn's own, and read on: for the answer."""
        self.resume()
        super().sendCloseFrame(code, reasonUtf8, isReply)

    def _closeConnection(self, abort: bool = False) -> None:
        """Close the socket; where the client does not read what is left to be written, drop it after a while."""
        super()._closeConnection(abort)
        if not abort and self._drop is None:
            self._drop = self.factory.reactor.callLater(
                self.factory.config.close_seconds, self.transport.abortConnection
            )

    def connectionLost(self, reason: Failure) -> None:
        """End: the socket is gone."""
        if self._drop is not None and self._drop.active():
            self._drop.cancel()
        self.factory.connections.discard(self)
        self.session.gone()
        super().connectionLost(reason)
        self.factory.connection_gone()

    # The session and the hub call

    def deliver(self, blob: bytes) -> None:
        """Send frames, unless we are closing. What a client does not read piles up to a bound, then it is closed."""
        if self.state != self.STATE_OPEN:
            return
        if self._choked:
            self._backlog += len(blob)
            if self._waiting() > self.factory.config.backlog_bytes:
                self.close(TOO_SLOW)
                return
        self.transport.write(blob)

    def _waiting(self) -> int:
        """Count the bytes that wait for the client; where the transport does not tell, all since it last had none."""
        transport = self.transport
        if isinstance(transport, ProtocolWrapper) or not hasattr(transport, "dataBuffer"):
            return self._backlog
        waiting: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
        return waiting

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def close(self, closing: Closing) -> None:
        """Send a Close frame; the socket follows when the client answers it, or after ``close_seconds``."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=closing.code, reasonUtf8=closing.reason.encode(), isReply=False)
        elif self.state == self.STATE_CONNECTING:
            self.failHandshake(closing.reason, 503)

    # The transport calls, as to a push producer: of what we write

    def pauseProducing(self) -> None:
        """Note that the client does not keep up in reading. Twisted's sockets say so again at every write."""
        if not self._choked:
            self._choked = True
            self._backlog = 0

    def resumeProducing(self) -> None:
        """Note that it has caught up."""
        self._choked = False

    def stopProducing(self) -> None:
        """Note that the socket is gone; connectionLost says so too."""


class ConnectionFactory(WebSocketServerFactory):
    """Makes connections for the door, and knows them all."""

    noisy = False

    def __init__(self, reactor: Any, hub: Hub, config: Config, worker: str) -> None:
        """Take the hub that its clients talk to, and this worker's unique name, with which session ids begin."""
        super().__init__(server="", reactor=reactor)
        self._batched_timer = _Timers(reactor)  # private to Autobahn; 26.10.2 has no other way in
        self.config = config
        self.connections: set[Connection] = set()
        self.closing: Closing | None = None
        """Why everybody is being closed, once they are."""
        self._hub = hub
        self._worker = worker
        self._sessions = 0
        self._emptied: Deferred[None] | None = None
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            failByDrop=False,
            maxFramePayloadSize=config.max_message + LINE_END,
            maxMessagePayloadSize=config.max_message + LINE_END,
            openHandshakeTimeout=0,  # the door has waited for the headers, onConnect waits for the room
            closeHandshakeTimeout=config.close_seconds,
            autoPingInterval=config.ping_seconds,
            autoPingTimeout=config.pong_seconds,
            allowNullOrigin=True,
        )
        options = {name: getattr(self, name) for name in Connection.CONFIG_ATTRS}
        options["perMessageCompressionAccept"] = staticmethod(options["perMessageCompressionAccept"])
        # Options on a class need no copying into each connection, and no pretty-printing on the way.
        self.protocol = type("Connection", (Connection,), {**options, "CONFIG_ATTRS": ()})

    def make(self, place: Place, address: str) -> Connection:
        """Make the connection of a client whose URL names place, and that comes from address."""
        connection: Connection = self.protocol()
        connection.factory = self
        self._sessions += 1
        connection.session = Session(
            self._hub,
            self.config,
            self.reactor,
            connection,
            id=f"{self._worker}.{self._sessions}",
            place=place,
            address=address,
        )
        return connection

    def close_all(self, closing: Closing) -> "Deferred[None]":
        """Close every connection; fires when the last one is gone."""
        self.closing = closing
        emptied = self._emptied = Deferred()
        for connection in list(self.connections):
            connection.close(closing)
        self.connection_gone()
        return emptied

    def connection_gone(self) -> None:
        """Look whether it was the last one."""
        if self._emptied is not None and not self.connections:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
