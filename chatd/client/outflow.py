"""What goes out to one client: straight to its socket while it keeps up, to a bounded backlog where it does not.

A client with more than ``max_backlog`` unread is behind: it gets no more messages, those it misses are counted, and
it is told once it has read all that waited for it. Nobody else notices. Of WebSockets it knows nothing.
"""

from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection as Socket
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import implementer


@implementer(IPushProducer)
class Outflow:
    """The outgoing half of a connection, open from ``open_out`` to ``shut_out``.

    To its transport it is a push producer, which hears at ``pauseProducing`` that more than 64 KiB wait.
    """

    # One message a client means one walk over all clients: what each of them costs is mostly the memory it touches.
    __slots__ = ("_backlog", "_idle", "behind", "choked", "missed", "opened")

    transport: Any
    max_backlog: int
    """The most bytes that may wait for a client."""

    def attach(self) -> None:
        """Take the transport that we were given."""
        self.opened = False
        self.choked = False
        """Whether the transport has more to write than it likes to keep."""
        self.behind = False
        """Whether the client gets no messages until it has read what waits for it."""
        self.missed = 0
        """Messages dropped since the client fell behind."""
        self._backlog = 0
        self._idle: Any = None  # the socket, while it may be written to directly
        self.transport.registerProducer(self, True)

    def open_out(self) -> None:
        """Send what is delivered from now on."""
        self.opened = True

    def shut_out(self) -> None:
        """Deliver no more messages."""
        self.opened = False
        self._idle = None

    def write(self, data: bytes) -> None:
        """Write what is no message, and so is never dropped, after all that waits."""
        self._idle = None
        self.transport.write(data)

    def deliver(self, blob: bytes, count: int) -> None:
        """Write frames that are count messages; none of them where the client does not read."""
        socket = self._idle
        if socket is None:
            self._deliver_in_order(blob, count)
            return
        # What the transport would do a turn later, with two changes of the reactor's epoll set: half of the cost.
        try:
            sent = socket.send(blob)
        except OSError:  # it is full, or broken: the transport finds out which
            sent = 0
        if sent < len(blob):
            self.write(blob[sent:])

    def _deliver_in_order(self, blob: bytes, count: int) -> None:
        """Write behind what waits for the client; a plain socket for which nothing waits is idle from now on."""
        if not self.opened:
            return
        transport = self.transport
        if self.plain and not transport.dataBuffer and not transport._tempDataLen:
            self._idle = transport.getHandle()
            self.deliver(blob, count)
        elif self.behind:
            self.missed += count
        elif self.choked and self.waiting + len(blob) > self.max_backlog:
            self.behind, self.missed = True, count
            self.fell_behind()
        else:
            self._backlog = self._backlog + len(blob) if self.choked else len(blob)
            transport.write(blob)

    @property
    def plain(self) -> bool:
        """Whether the transport is a socket and nothing else: no TLS, no PROXY protocol."""
        return isinstance(self.transport, Socket) and not self.transport.TLS

    @property
    def waiting(self) -> int:
        """How many bytes wait for the client; where the transport does not tell, all since it had too many."""
        transport = self.transport
        while isinstance(transport, ProtocolWrapper):  # TLS, the PROXY protocol: they keep next to nothing themselves
            transport = transport.transport
        if not isinstance(transport, Socket):
            return self._backlog
        waiting: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
        return waiting

    def fell_behind(self) -> None:
        """Learn that the client gets nothing more for now."""

    def caught_up(self) -> None:
        """Learn that a client that was behind has read all that waited for it; ``missed`` says what it did not get."""

    # The transport calls

    def pauseProducing(self) -> None:
        """Note that the client does not keep up in reading. Twisted's sockets say so again at every write."""
        self.choked = True

    def resumeProducing(self) -> None:
        """Note that it has read everything."""
        self.choked, self._backlog = False, 0
        if self.behind:
            self.caught_up()
            self.behind = False

    def stopProducing(self) -> None:
        """Note that the socket is gone; connectionLost says so too."""
