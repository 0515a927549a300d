"""What goes out to one client: straight to its socket while it keeps up, to a bounded backlog where it does not.

A client with more than ``max_backlog`` unread is written to no more, and said to fall behind: what it was not given it
gets later, when it has read what waits for it. Nobody else notices. Of WebSockets it knows nothing.

``SEND_BUFFER_BYTES`` counts the bytes that wait for all clients of the process, those of HTTP included (``web/site``).
The send buffer of a slow consumer is counted at each write to it, and once a second. While the sum is more than
``max_backlog_total`` such a client falls behind at once.
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
    """What writes to a client, and counts in ``SEND_BUFFER_BYTES`` what waits for it while it is in CHOKED."""

    __slots__ = ()

    transport: Any
    _backlog: int

    @property
    def waiting(self) -> int:
        """How many bytes wait for the client; where the transport does not tell, all since it had too many."""
        unwritten = _unwritten(self.transport)
        return self._backlog if unwritten is None else unwritten

    @property
    def unacknowledged(self) -> int:
        """How many bytes the client's kernel has not said that it has; what waits here is among them."""
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
        """How many bytes more the client's kernel takes (RFC 9293, section 3.8.6); None if it does not say.

        It gets smaller by what comes, and larger by what the client reads of it.
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
        self._backlog = size  # type: ignore[misc]  # its slot is that of who inherits

    def _forget_backlog(self) -> None:
        if self in SLOW_CLIENTS:
            SLOW_CLIENTS.discard(self)
            SEND_BUFFER_BYTES.value -= self._backlog


@implementer(IPushProducer)
class SendBuffer(CountedBacklog):
    """The outgoing half of a connection, open from ``open_out`` to ``shut_out``.

    To its transport it is a push producer, which hears at ``pauseProducing`` that more than 64 KiB wait.
    """

    # One message a client means one walk over all clients: what each of them costs is mostly the memory it touches.
    __slots__ = ("_backlog", "_idle", "buffer_full", "opened")

    max_backlog: int
    """The most bytes that may wait for a client."""
    max_backlog_total: int
    """The most bytes that may wait for all clients, beside the 64 KiB that a transport keeps for each."""
    crowded_backlog: int
    """The most bytes of answers that may wait for a client while more than that waits for all."""

    def prepare(self) -> None:
        """Be shut, on a transport that may still be somebody else's."""
        self.opened = False
        self.buffer_full = False
        """Whether the transport has more to write than it likes to keep."""
        self._backlog = 0  # bytes that wait, as far as they are counted, once it is choked; before, its last write
        self._idle: Any = None  # the socket, while it may be written to directly

    def attach(self) -> None:
        """Take the transport that we were given."""
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
        """Write frames that are count messages; if the client does not read, say so and write none of them.

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
        """Write behind what waits for the client; a plain socket for which nothing waits is idle from now on."""
        if not self.opened:
            return False
        transport = self.transport
        if self.plain and not transport.dataBuffer and not transport._tempDataLen:
            self._idle = transport.getHandle()
            return self.deliver(blob, count)
        if self.buffer_full:
            self.measure()  # it may have read since: without that the sum would grow by all that it is given
            if SEND_BUFFER_BYTES.value > self.max_backlog_total or self._backlog + len(blob) > self.max_backlog:
                self.became_slow()
                return False
        return self.replay(blob, count)

    def send(self, blob: bytes) -> None:
        """Write frames that are for this client alone; where it does not read, say so."""
        if self.opened and blob:
            crowded = SEND_BUFFER_BYTES.value > self.max_backlog_total
            if self.buffer_full and self.waiting > (self.crowded_backlog if crowded else self.max_backlog):
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

        What the client still sends is to be read until then. Left unread it would make TCP reset the connection, and a
        reset may overtake what was written last.
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
        """How many bytes were written, and how many of them the client's kernel has; both counted from anywhere.

        What knows no such numbers has either everything or nothing. What was written may be less than it says.
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
        """Learn that the client does not get what was just delivered."""

    def stopped_reading(self) -> None:
        """Learn that the client asks for more than it reads."""

    def drained(self) -> None:
        """Learn that the client has read all that waited for it."""

    # The transport calls

    def pauseProducing(self) -> None:
        """Note that the client does not keep up in reading. Twisted's sockets say so again at every write."""
        if self.buffer_full:
            return
        self.buffer_full = True
        self._begin_backlog()

    def resumeProducing(self) -> None:
        """Note that it has read everything."""
        self.buffer_full = False
        self._forget_backlog()
        self._backlog = 0
        self.drained()

    def stopProducing(self) -> None:
        """Note that the socket is gone; connectionLost says so too."""
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
    """Whether TLS keeps something that was written, as it does up to the end of the turn; its length is not known."""
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
    """Give how many bytes the other side of a socket has acknowledged, where it tells, and how many it has yet to.

    Behind a unix socket is no second kernel: acknowledged is what was read, or somewhat less, because the kernel gives
    the memory that the rest takes.
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
    """Give a field of what Linux knows of a TCP connection; None if it is no such, or the kernel has no such field."""
    try:
        info = innermost(transport).getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, field.size)
        found: int = field.unpack(info)[0]
        return found
    except (AttributeError, OSError, struct.error):
        return None
