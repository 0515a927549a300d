"""An HTTP connection on twisted.web's: the bounds of its requests, and of responses that are not read."""

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request as WebRequest
from zope.interface import implementer

from chatd.clients.send_buffer import SLOW_CLIENTS, CountedBacklog
from chatd.monitoring.metrics import REFUSED
from chatd.protocol.http_api import check_coding, media_type
from chatd.protocol.http_head import (
    Refused,
    RequestHead,
    bad_request,
    check_framing,
    head_too_large,
    match_line,
    quote_target,
    room_name,
    server_full,
    split_target,
    too_late,
)
from chatd.protocol.json_v1 import longest_json
from chatd.runtime.timers import Timer
from chatd.runtime.transports import address_of, hand_over
from chatd.web.responses import Refusal, client_address, head_of, header, spread_retry

PROBES = (b"/-/healthz", b"/-/readyz")
"""Asked for by an address, whatever the server is called; there is nothing in the answer for a page to read."""
METRICS = b"/-/metrics"


def is_probe(target: bytes) -> bool:
    """Return whether a request target is that of a health check."""
    try:
        return split_target(target)[0] in PROBES
    except Refused:
        return False


class Request(WebRequest):
    """A request whose body is bounded in size and time, and which is refused by its headers if they suffice."""

    channel: Any

    charged = False
    """Whether the client's address was charged for it."""
    _most = 0
    _taken = 0
    _refused = False
    _late: Timer | None = None

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is too large or of a wrong type before it is read; None: chunked, or no body."""
        super().gotLength(0)  # it is kept in memory: a file would be made for a longer one
        channel, site = self.channel, self.channel.site
        # Twisted says so when the body is there.
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self._most = longest_json(site.config.max_message_size)
        try:
            check_framing(head_of(self))
            self._check_size(length or 0)
            if self.method == b"POST" and is_room(self.uri):
                media_type(header(self, "content-type"))
                check_coding(header(self, "content-encoding"))
        except Refused as refused:
            self._refuse(refused)
            return
        if length or self.requestHeaders.hasHeader(b"transfer-encoding"):
            late = site.config.client_body_timeout
            self._late = site.connections.timers.callLater(late, self._refuse, too_late())

    def handleContentChunk(self, data: bytes) -> None:
        """Read a piece of the body; keep it if a resource may want it."""
        self._taken += len(data)
        try:
            self._check_size(self._taken)
        except Refused as refused:
            self._refuse(refused)
            return
        if self.method == b"POST":
            super().handleContentChunk(data)

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise Refused(413, "too_large", f"the body is longer than {self._most} bytes")

    def _refuse(self, refused: Refused) -> None:
        if not self._refused:
            self._refused = True
            self._stop_clock()
            self.requestHeaders.removeHeader(b"expect")  # it is not to continue
            self.channel.refuse(refused)

    def process(self) -> None:
        """Answer. Twisted answers a request that concerns the whole server, which is OPTIONS only."""
        self._stop_clock()
        if self.path == b"*" and self.method != b"OPTIONS":
            self._refuse(Refused(405, "bad_request", "only OPTIONS", (("Allow", "OPTIONS"),)))
        if not self._refused:
            super().process()

    def connectionLost(self, reason: Failure) -> None:
        """Stop the timer: the client is gone."""
        self._stop_clock()
        super().connectionLost(reason)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()


def is_room(target: bytes) -> bool:
    """Return whether a request target names a room."""
    try:
        room_name(split_target(target)[0][1:])
    except Refused:
        return False
    return True


@implementer(IHalfCloseableProtocol)
class Channel(CountedBacklog, HTTPChannel):
    """One HTTP connection, counted: it may stay open between requests.

    It answers one request after the other, a few in a turn, and none while the client does not read earlier answers.
    Unread answers count in the backlog of the worker. The head of each request has the same bounds of size and time as
    the first one of a connection.
    """

    site: Any
    """The ``Site`` that made it."""
    metrics = False
    """Whether only metrics and health checks are served where it came to."""
    exposed = False
    """Whether others than this host can connect where this connection did."""
    loopback = False
    """Whether the listener is a TCP port on a loopback address."""
    admitted = False
    """Whether a request other than a probe has come, so that the connection counts like any other."""
    _head_size = 0
    _late: Timer | None = None
    """The end of the time that the request's head has."""
    _unread: Timer | None = None
    """When to look whether the client still reads."""
    _slice = 0
    """How many more requests are answered before others have a turn."""
    _queued = False
    _backlog = 0
    _ended = False
    """Whether the client has closed its half: it asks for nothing more, and waits for the answers."""

    def connectionMade(self) -> None:
        """Register the connection, on the transport that the listener hands over."""
        super().connectionMade()
        self.MAX_LENGTH = self.site.config.client_header_size  # of a line
        peer = address_of(self.transport)
        self.site.channels.add(self, self.site.connections.proxies.counted(peer))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop all timers: the socket is gone."""
        self._stop_waiting()
        self._end_backlog()
        self.site.channels.discard(self)
        super().connectionLost(reason)

    def _stop_waiting(self) -> None:
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        self._late = self._unread = None
        self._queued = False

    # The head of a request

    def dataReceived(self, data: bytes) -> None:
        """Handle data; a head that has begun must end in time."""
        if not self._busyReceiving:
            self._slice = self.site.config.http_requests_per_turn
        super().dataReceived(data)
        begun = self.line_mode and not self.paused and (self._head_size or self._buffer)
        if begun and self._late is None:
            seconds = self.site.config.client_header_timeout
            self._late = self.site.connections.timers.callLater(seconds, self.refuse, too_late())

    def lineReceived(self, line: bytes) -> None:
        """Handle a line of a head, as strictly as the listener parses the first head of a connection."""
        first = not self._head_size
        self._head_size += len(line) + len(self.delimiter)
        try:
            if self._head_size > self.site.config.client_header_size:
                raise head_too_large(self.site.config.client_header_size)
            if line:
                match_line(line, first=first)
                line = quote_target(line) if first else line
        except Refused as refused:
            self.refuse(refused)
            return
        if not line:
            self._slice -= self._head_size // self.site.config.http_bytes_per_step
            self._head_size = 0
            if self._late is not None:
                self._late.cancel()
                self._late = None
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that is longer than a head may be."""
        self.refuse(head_too_large(self.site.config.client_header_size))

    def allHeadersReceived(self) -> None:
        """Start to read the body. Refuse trailers: Twisted parses them in another way than a proxy may."""
        decoder: Any = self._transferDecoder
        if self.length is None:  # it comes in chunks
            decoder._maxTrailerHeadersSize = len(self.delimiter)  # Twisted 26.10 has no public way
        super().allHeadersReceived()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse what Twisted can't read."""
        self.refuse(bad_request("the request can't be read"))

    # One request after the other

    def requestDone(self, request: Any) -> None:
        """Continue with the next request, once the client has read the waiting answers and other connections had a
        turn.
        """
        full = self._waitingForTransport
        self._slice -= 1
        stops = self.paused = full or self._slice <= 0  # then what has been read of the next ones stays unanswered
        super().requestDone(request)
        if not self.persistent:
            return
        if full:
            self._networkProducer.pauseProducing()
            self._savedTimeOut = self.setTimeout(None)
            self._watch()
        elif stops and self._buffer:
            self._wait_for_turn()
        elif stops:
            self.paused = False
        self._close_if_done()

    def rawDataReceived(self, data: bytes) -> None:
        """Handle a piece of the body.

        A chunked body is handled in slices, because a chunk costs the same however small.
        """
        chunked = self.length is None and not self._handlingRequest
        size = self.site.config.http_bytes_per_step if chunked else len(data)
        super().rawDataReceived(data[:size])
        if len(data) > size:
            self._buffer += data[size:]
            self._slice -= 1
            if self._slice <= 0 and not (self.paused or self._handlingRequest):
                self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self.paused = self._queued = True
        self._networkProducer.pauseProducing()
        self.site.connections.turns.wait(self.handle_slice)

    def handle_slice(self) -> bool:
        """Continue after other connections had a turn; return False, because requests are no chat messages."""
        if self._queued:
            self._queued = False
            if not self._waitingForTransport:
                self._networkProducer.resumeProducing()
            self._go_on()
        return False

    def pauseProducing(self) -> None:
        """Count what waits for the client: it does not keep up in reading."""
        if self in SLOW_CLIENTS:
            self.measure()
        else:
            self._begin_backlog()
        super().pauseProducing()

    def _end_backlog(self) -> None:
        self._forget_backlog()
        self._backlog = 0

    def resumeProducing(self) -> None:
        """Continue: all waiting data is on its way."""
        self._end_backlog()
        super().resumeProducing()
        if self._queued:
            self._networkProducer.pauseProducing()
        elif self.paused:
            self._stop_waiting()
            self.setTimeout(self._savedTimeOut)
            self._go_on()

    def _go_on(self) -> None:
        self.paused = False
        self.dataReceived(b"")
        self._close_if_done()

    # A client that closes its half

    def readConnectionLost(self) -> None:
        """Answer the requests that were read, then close. A stream is not sent on half a connection."""
        self._ended = True
        self._close_if_done()

    def writeConnectionLost(self) -> None:
        """Do nothing: we close both halves at once."""

    def _close_if_done(self) -> None:
        """Close the connection if no request of a client that has closed its half is left to be answered."""
        if self._ended and not (self.paused or self._handlingRequest):
            self.loseConnection()

    # A client that asks or reads nothing

    def timeoutConnection(self) -> None:
        """Close the connection: no request came for a while."""
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close the connection once the client has read all answers."""
        self._watch()
        super().loseConnection()

    def _watch(self) -> None:
        """Drop the connection if the client reads nothing more of the waiting data."""
        if self._unread is not None:
            self._unread.cancel()
        self._look_later(self.acknowledged, self.site.reactor.seconds())

    def _look_later(self, before: int, since: float) -> None:
        """Check later whether the client has read something; since then it has read nothing."""
        config = self.site.config
        wait = min(config.http_send_check_interval, since + config.http_send_timeout - self.site.reactor.seconds())
        self._unread = self.site.connections.timers.callLater(wait, self._look, before, since)

    def _look(self, before: int, since: float) -> None:
        now, has = self.site.reactor.seconds(), self.acknowledged
        if has > before:
            self._look_later(has, now)
        elif now < since + self.site.config.http_send_timeout:
            self._look_later(before, since)
        else:
            REFUSED["unread"].value += self.paused
            transport: Any = self.transport
            transport.abortConnection()

    # Others that take over the connection

    def leave(self) -> None:
        """Hand the connection over to another protocol."""
        self.setTimeout(None)
        self._stop_waiting()
        self._end_backlog()
        self.site.channels.discard(self)
        self.paused = True  # data after the request is discarded
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.resumeProducing()

    def admit(self, head: RequestHead, peer: str = "") -> None:
        """Count the connection from its first request that is no probe. Raise Refused: 403, 429, 503.

        A full worker still answers probes, and metrics, but closes the connection of the latter.
        """
        if is_probe(head.target) and not head.upgrades:
            return
        passes = head.target == METRICS
        if not passes and self.site.full():
            raise server_full()
        if not head.upgrades:  # a WebSocket is let in by itself
            self.site.connections.admit(head, peer or address_of(self.transport), exposed=self.exposed)
            self.admitted = not passes

    def upgrade(self, head: RequestHead) -> None:
        """Hand the connection over to a WebSocket: proxies reuse connections for it. Raise Refused."""
        where = {"exposed": self.exposed, "loopback": self.loopback}
        connection = self.site.connections.accept(head, address_of(self.transport), **where)
        rest = self.clearLineBuffer()
        self.leave()
        hand_over(self.transport, connection)
        if rest:
            connection.dataReceived(rest)

    def charge(self, request: Request | None = None) -> None:
        """Charge an address for a request that is refused, unless it was charged; without one for half a head."""
        if request is not None and request.charged:
            return
        peer = self.site.connections.proxies.counted(address_of(self.transport))
        address = client_address(request) if request is not None else peer
        self.site.connections.limits.charge(address, 1, exposed=self.exposed)

    def refuse(self, refused: Refused, head: RequestHead | None = None) -> None:
        """Send an error and close the connection. The head is that of a request that could be parsed."""
        if self not in self.site.channels:  # one that is refused already may turn out to be worse
            return
        self.charge(self.requests[-1] if self.requests else None)
        self.leave()
        site = self.site
        if head is not None:
            refused = spread_retry(head, refused, site.config)
        refusal = Refusal(refused, site.connections.timers, site.config.close_timeout, site.channels)
        hand_over(self.transport, refusal)
