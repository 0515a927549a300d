"""The outgoing data of one client: written to its socket directly, or to a bounded send buffer if it is slow.

A client with more than ``max_send_buffer`` unread bytes gets no further messages. It receives them later from history,
once it has read the waiting data; other clients are not affected. This module knows nothing of WebSockets.

``SEND_BUFFER_BYTES`` is the amount that waits for all clients of the process, HTTP clients included (``web/site``). The
share of a slow client is counted at each write to it, and once a second. While the sum exceeds ``worker_send_buffers``,
slow clients get no further messages at once.
"""

import fcntl
import socket
import struct
import sys
import termios
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection as Socket
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport
from zope.interface import implementer

from chatd.monitoring.metrics import SEND_BUFFER_BYTES, SEND_BUFFER_CLIENTS
from chatd.runtime.timers import Timer, TimerWheel
from chatd.runtime.transports import UnixSocket, innermost

SLOW_CLIENTS: "set[CountedBacklog]" = set()
"""Those that have more to write than their transport likes to keep."""


class CountedBacklog:
    """A client's outgoing data, counted in ``SEND_BUFFER_BYTES`` while the client is in SLOW_CLIENTS."""

    __slots__ = ()

    transport: Any
    _backlog: int

    @property
    def waiting(self) -> int:
        """How many bytes wait for the client; if the transport does not tell, all since its buffer was full."""
        unwritten = _unwritten(self.transport)
        return self._backlog if unwritten is None else unwritten

    @property
    def unacknowledged(self) -> int:
        """How many bytes the client's kernel has not acknowledged, those that wait here included."""
        return self.waiting + _ask_kernel(self.transport)[1]

    @property
    def acknowledged(self) -> int:
        """How many bytes the client's kernel has; counted from anywhere.

        Without such a count it is how many it has not, below zero: a number that grows too while nothing is written.
        """
        acknowledged, sent = _ask_kernel(self.transport)
        return -(self.waiting + sent) if acknowledged is None else acknowledged

    @property
    def window(self) -> int | None:
        """How many more bytes the client's kernel accepts (RFC 9293, section 3.8.6); None if unknown.

        It shrinks with what arrives, and grows with what the client reads.
        """
        return _ask_tcp(self.transport, _WINDOW)

    def measure(self) -> None:
        """Count what waits for it as it is now: it may have read a part."""
        self._count_backlog(self.waiting)

    def _begin_backlog(self) -> None:
        SLOW_CLIENTS.add(self)
        SEND_BUFFER_BYTES.value += self._backlog
        self.measure()

    def _count_backlog(self, size: int) -> None:
        SEND_BUFFER_BYTES.value += size - self._backlog
        self._backlog = size  # type: ignore[misc]  # its slot belongs to the subclasses

    def _forget_backlog(self) -> None:
        if self in SLOW_CLIENTS:
            SLOW_CLIENTS.discard(self)
            SEND_BUFFER_BYTES.value -= self._backlog


@implementer(IPushProducer)
class SendBuffer(CountedBacklog):
    """The outgoing half of a connection, open from ``open_out`` to ``shut_out``.

    To its transport it is a push producer: ``pauseProducing`` means that more than 64 KiB wait.
    """

    # One message a client means one walk over all clients: what each of them costs is mostly the memory it touches.
    __slots__ = ("_backlog", "_idle", "buffer_full", "opened")

    max_send_buffer: int
    """The most bytes that may wait for a client."""
    worker_send_buffers: int
    """The most bytes that may wait for all clients, beside the 64 KiB that a transport keeps for each."""
    reduced_send_buffer: int
    """The most bytes of answers that may wait for a client while more than that waits for all."""

    def prepare(self) -> None:
        """Initialize the closed state, on a transport that another protocol may still use."""
        self.opened = False
        self.buffer_full = False
        """Whether the transport has more to write than it likes to keep."""
        self._backlog = 0  # bytes that wait, as far as they are counted, once it is choked; before, its last write
        self._idle: Any = None  # the socket, while it may be written to directly

    def attach(self) -> None:
        """Register as the producer of the transport."""
        self.prepare()
        self.transport.registerProducer(self, True)

    def open_out(self) -> None:
        """Send what is delivered from now on."""
        self.opened = True

    def shut_out(self) -> None:
        """Deliver no more messages."""
        self.opened = False
        self._idle = None
        self._forget_backlog()

    def write(self, data: bytes) -> None:
        """Write what is no message, and so is never dropped, after all that waits."""
        self._idle = None
        self.transport.write(data)

    def deliver(self, blob: bytes, count: int) -> bool:
        """Write frames that are count messages, unless the client is too slow.

        Return whether they were written.
        """
        socket = self._idle
        if socket is None:
            return self._deliver_in_order(blob, count)
        # What the transport would do a turn later, with two changes of the reactor's epoll set: half of the cost.
        try:
            sent = socket.send(blob)
        except OSError:  # it is full, or broken: the transport finds out which
            sent = 0
        if sent < len(blob):
            self.write(blob[sent:])
        return True

    def _deliver_in_order(self, blob: bytes, count: int) -> bool:
        """Write after the waiting data. A plain socket without waiting data is written to directly from now on."""
        if not self.opened:
            return False
        transport = self.transport
        if self.plain and not transport.dataBuffer and not transport._tempDataLen:
            self._idle = transport.getHandle()
            return self.deliver(blob, count)
        if self.buffer_full:
            self.measure()  # it may have read since: without that the sum would grow by all that it is given
            if SEND_BUFFER_BYTES.value > self.worker_send_buffers or self._backlog + len(blob) > self.max_send_buffer:
                self.became_slow()
                return False
        return self.replay(blob, count)

    def send(self, blob: bytes) -> None:
        """Write frames that are for this client alone, unless it is too slow."""
        if self.opened and blob:
            crowded = SEND_BUFFER_BYTES.value > self.worker_send_buffers
            if self.buffer_full and self.waiting > (self.reduced_send_buffer if crowded else self.max_send_buffer):
                self.stopped_reading()
            else:
                self.replay(blob, 0)

    def replay(self, blob: bytes, count: int) -> bool:
        """Write frames that are count messages, however much waits; return whether they were written."""
        if self.opened:
            if self in SLOW_CLIENTS:
                self._count_backlog(self.waiting + len(blob))
            else:
                self._backlog = len(blob)
            self.write(blob)
        return self.opened

    def hang_up(self, timers: TimerWheel, seconds: float) -> Timer:
        """Close our half of the connection once all is written, or all of it where it has no halves; drop it in time.

        The caller reads what the client sends until then. Unread data would make TCP reset the connection, and a reset
        may overtake what was written last.
        """
        if self.plain:
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()
        return timers.callLater(seconds, self.transport.abortConnection)

    @property
    def plain(self) -> bool:
        """Whether the transport is a socket and nothing else: no TLS, no PROXY protocol."""
        return isinstance(self.transport, Socket) and not self.transport.TLS

    def progress(self) -> tuple[int, int]:
        """Return how many bytes were written, and how many the client's kernel has; both counted from anywhere.

        Without such numbers, either everything or nothing has arrived. Less may have been written than is returned.
        """
        acknowledged, sent = _ask_kernel(self.transport)
        ahead = self.waiting + sent
        if acknowledged is None:
            return (ahead, 0) if ahead else (0, sys.maxsize)
        return sys.maxsize if _is_held_back(self.transport) else acknowledged + ahead, acknowledged

    def is_unheard(self, seconds: float, probes: int) -> bool:
        """Return whether the client's kernel has been silent for so long, and did not answer what was sent again.

        That is data, sent again at least once, or so many probes of a full receive window. False if it is not known.
        """
        try:
            handle = innermost(self.transport).getHandle()
            info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
        except (AttributeError, OSError):
            return False
        sent_again, probed, silent = _ACKNOWLEDGED.unpack(info)
        return bool(silent >= seconds * 1000 and (sent_again > 0 or probed >= probes))

    def became_slow(self) -> None:
        """Handle that messages were not written, because too much data waits for the client."""

    def stopped_reading(self) -> None:
        """Handle that the client asks for more than it reads."""

    def drained(self) -> None:
        """Handle that the client has read all waiting data."""

    # The transport calls

    def pauseProducing(self) -> None:
        """Count the client as slow. Twisted's sockets call this at every write."""
        if self.buffer_full:
            return
        self.buffer_full = True
        self._begin_backlog()

    def resumeProducing(self) -> None:
        """Count the client as fast again: it has read everything."""
        self.buffer_full = False
        self._forget_backlog()
        self._backlog = 0
        self.drained()

    def stopProducing(self) -> None:
        """Stop counting: the socket is gone. connectionLost follows."""
        self._forget_backlog()


def measure_backlogs() -> None:
    """Gauge what waits for all of them."""
    SEND_BUFFER_CLIENTS.value = len(SLOW_CLIENTS)
    for client in SLOW_CLIENTS:
        client.measure()


def _unwritten(transport: Any) -> int | None:
    """Return how many bytes a socket has yet to write; None for what is no socket."""
    socket = innermost(transport)
    if not isinstance(socket, Socket):
        return None
    unwritten: int = len(socket.dataBuffer) - socket.offset + socket._tempDataLen
    return unwritten


def _is_held_back(transport: Any) -> bool:
    """Return whether TLS buffers written data, as it does up to the end of the turn; its length is not known."""
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, BufferingTLSTransport):  # Twisted 26.10 has no public way to ask
            aggregated: Any = getattr(transport._aggregator, "_buffer", None)
            return bool(aggregated or transport._appSendBuffer)
        transport = transport.transport
    return False


_BYTES_ACKED = struct.Struct("=120xQ")
"""Of Linux's ``struct tcp_info``: ``tcpi_bytes_acked`` (since 4.1)."""

_WINDOW = struct.Struct("=228xI")
"""Also: ``tcpi_snd_wnd`` (since 5.4)."""

_ACKNOWLEDGED = struct.Struct("=2xBB52xI")
"""Also: ``tcpi_retransmits``, ``tcpi_probes``, and ``tcpi_last_ack_recv`` in milliseconds."""


def _ask_kernel(transport: Any) -> tuple[int | None, int]:
    """Return how many bytes the peer's kernel has acknowledged, None if unknown, and how many it has not.

    A unix socket has no second kernel: acknowledged is what was read, or somewhat less, because the kernel reports the
    memory that the rest takes.
    """
    try:
        handle = innermost(transport).getHandle()
        unsent = int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (AttributeError, OSError):
        return None, 0
    if isinstance(handle, UnixSocket):
        return handle.sent - unsent, unsent
    return _ask_tcp(transport, _BYTES_ACKED), unsent


def _ask_tcp(transport: Any, field: struct.Struct) -> int | None:
    """Return a field of Linux's ``struct tcp_info``; None for another socket, or a kernel without that field."""
    try:
        info = innermost(transport).getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, field.size)
        found: int = field.unpack(info)[0]
        return found
    except (AttributeError, OSError, struct.error):
        return None
