"""The connection of a client that follows a room over HTTP: a response without end.

Once the room is joined, the connection is taken from twisted.web, which would write each message several times as
slowly. Frames are written as to a WebSocket. Whatever the client still sends is discarded.
"""

import socket
from secrets import SystemRandom
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from chatd.access.tokens import refused_by
from chatd.clients.factory import ConnectionFactory
from chatd.clients.pipe_session import answer_to
from chatd.clients.send_buffer import SendBuffer
from chatd.clients.stream_session import StreamSession
from chatd.config.settings import Config
from chatd.protocol.close_codes import OUR_FAULT, RESTARTING, CloseCode, come_back_after, too_slow
from chatd.protocol.http_head import Refused
from chatd.protocol.http_stream import Stream
from chatd.runtime.timers import Timer
from chatd.runtime.transports import hand_over, innermost
from chatd.web.responses import refuse

log = Logger()
uniform = SystemRandom().uniform


class StreamingResponse(SendBuffer, Protocol):
    """One client's answer, from its request to the end of its socket."""

    transport: Any
    session: StreamSession

    def __init__(self, request: Request, connections: ConnectionFactory, stream: Stream, heartbeat: float) -> None:
        """Store the request, which is not answered yet, and the encoding of the stream.

        Heartbeat is the number of seconds between two heartbeats; 0: there are none.
        """
        self._request: Any = request
        """Until it is answered."""
        self._connections = connections
        self._config = connections.config
        self._stream = stream
        self._beat_seconds = heartbeat
        self._heartbeat: Timer | None = None
        self._watch: Timer | None = None
        self._drop: Timer | None = None
        self.max_send_buffer = self._config.max_send_buffer
        self.worker_send_buffers = self._config.worker_send_buffers
        self.reduced_send_buffer = self._config.reduced_send_buffer
        self.transport = self._request.channel.transport  # to ask how much was written; it is not ours yet
        self.prepare()

    # From the request to the answer

    def begin(self, session: StreamSession) -> None:
        """Enter the room; the answer begins when it is heard, for the client misses nothing from then on."""
        self.session = session
        self._connections.add(self)
        self._request.notifyFinish().addErrback(self._left)
        timers: Any = self._connections.timers
        joined = maybeDeferred(session.join)
        if not joined.called:
            joined.addTimeout(self._config.subscribe_timeout, timers)
        joined.addCallbacks(self._open, self._not_joined).addErrback(self._failed)

    def _open(self, _: object) -> None:
        if self._request is None:
            return
        if self._connections.close_code not in (None, RESTARTING):  # all connections are being closed
            self.close(self._connections.close_code)
            return
        channel = self._request.channel
        channel.leave()
        hand_over(channel.transport, self)

    def connectionMade(self) -> None:
        """Send the head of the response."""
        head, self._request = _head(self._request, self._stream), None
        self.attach()
        _keep_alive(self.transport, self._config)
        self.write(head + self._stream.beginning(uniform(1, self._config.retry_after)))
        self.open_out()
        if self._beat_seconds:
            self._beat_later()
        self._look_later()
        self.session.opened()
        if self._connections.close_code is not None:
            self.close(self._connections.close_code)

    def _left(self, _: Failure) -> None:
        """Leave the room: the client disconnected before it was answered."""
        if self._request is not None:
            self._request = None
            self._gone()

    def _not_joined(self, failure: Failure) -> None:
        self._refuse(answer_to(failure, self.session.id, self.session.why_not_joined()))

    def _refuse(self, refused: Refused) -> None:
        if self._request is None:
            return
        request, self._request = self._request, None
        request.write(refuse(request, refused))
        request.finish()
        self._gone()

    def _failed(self, failure: Failure) -> None:
        log.failure("streaming to client {client} failed", failure, client=self.session.id, event="stream_failed")
        self.close(OUR_FAULT)

    # While it lasts

    def _beat_later(self) -> None:
        self._heartbeat = self._connections.timers.callLater(self._beat_seconds, self._beat)

    def _beat(self) -> None:
        """Send a heartbeat to the client and to proxies on the way."""
        self._beat_later()
        if not self.buffer_full:
            self.send(self._stream.heartbeat)

    def _look_later(self) -> None:
        self._watch = self._connections.timers.callLater(self._config.tcp_keepalive_time, self._look_for_life)

    def _look_for_life(self) -> None:
        """Drop a client that vanished while data was on its way to it; the kernel takes a quarter of an hour."""
        self._look_later()
        if self.is_unheard(self._config.vanished_seconds, self._config.tcp_keepalive_probes):
            self.transport.abortConnection()

    def became_slow(self) -> None:
        """Serve the client from history until it has caught up."""
        self._connections.slow.add(clients=1)
        self.session.became_slow()

    def stopped_reading(self) -> None:
        """Close the connection of a client that does not read."""
        self.close(too_slow(None))

    def drained(self) -> None:
        """Continue from history."""
        self.session.drained()

    def dataReceived(self, data: bytes) -> None:
        """Discard the data."""

    def pause(self) -> None:
        """Do nothing: nothing is read."""

    def resume(self) -> None:
        """Do nothing, as above."""

    # The end

    def close(self, close_code: CloseCode) -> None:
        """End the response with a reason."""
        if self._request is not None and close_code != RESTARTING:  # else it is closed once it is open
            self._refuse(refused_by(close_code))
        elif self.opened:
            again = come_back_after(close_code, self._config.retry_after, uniform)
            self.write(self._stream.close_code(close_code, again) + self._stream.end)
            self._shut()
            self._drop = self.hang_up(self._connections.timers, self._config.close_timeout)

    def _shut(self) -> None:
        """Stop delivering, and record how far the client has come."""
        self.session.record_positions()
        self.shut_out()
        for timer in (self._heartbeat, self._watch):
            if timer is not None:
                timer.cancel()

    def stopProducing(self) -> None:
        """Record what has arrived: the socket is about to be closed."""
        self._shut()
        self.session.record_arrival()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the room: the socket is gone."""
        self._shut()
        if self._drop is not None:
            self._drop.cancel()
        self._gone()

    def _gone(self) -> None:
        self._connections.remove(self)
        with log.failuresHandled(
            "removing client {client} from its rooms failed", client=self.session.id, event="leave_failed"
        ):
            self.session.closed()
        self._connections.connection_gone()


def describe(request: Request, stream: Stream) -> None:
    """Set the headers of a stream, which also tell proxies not to buffer it."""
    request.setHeader(b"content-type", stream.content_type.encode("ascii"))
    request.setHeader(b"cache-control", b"no-store, no-transform")  # what compresses would wait for more
    request.setHeader(b"x-accel-buffering", b"no")  # nginx and others like it


def _head(request: Request, stream: Stream) -> bytes:
    """Return the head of the response, with the headers that the request was given already."""
    describe(request, stream)
    request.setHeader(b"connection", b"close")
    if stream.end:
        request.setHeader(b"transfer-encoding", b"chunked")
    lines = [b"HTTP/1.1 200 OK"]
    lines += [name + b": " + value for name, values in request.responseHeaders.getAllRawHeaders() for value in values]
    return b"\r\n".join([*lines, b"", b""])


def _keep_alive(transport: Any, config: Config) -> None:
    """Set the kernel's keepalive, which detects a client that vanished while no data was on its way to it."""
    options = (
        (socket.TCP_KEEPIDLE, config.tcp_keepalive_time),
        (socket.TCP_KEEPINTVL, config.tcp_keepalive_interval),
        (socket.TCP_KEEPCNT, config.tcp_keepalive_probes),
    )
    try:
        handle = innermost(transport).getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in options:
            handle.setsockopt(socket.IPPROTO_TCP, option, value)
    except (AttributeError, OSError):
        pass  # no TCP
