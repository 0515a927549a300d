"""What transports and ports do not do by themselves, whatever lies between it and them: TLS, the PROXY protocol."""

import os
import socket
from ipaddress import ip_address
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort, IProtocol
from twisted.protocols.policies import ProtocolWrapper


def hand_over(transport: Any, protocol: IProtocol) -> None:
    """Make another protocol the transport's, and begin it."""
    if isinstance(transport, ProtocolWrapper):
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol
    protocol.makeConnection(transport)


def is_local(descriptor: int) -> bool:
    """Whether only this host can connect to a listening socket: it is a unix socket, or on a loopback address."""
    try:
        listening = socket.socket(fileno=os.dup(descriptor))
    except OSError:  # it is none: who listens finds out
        return False
    with listening:
        if listening.family == socket.AF_UNIX:
            return True
        return ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


class _SharedUnixPort(unix.Port):
    """A unix socket that is not this process's alone, nor is its name.

    Twisted's own (26.10) takes the name for its own: it lets everybody connect, removes it in the end, and shuts the
    socket down for all who have it. And it makes the queue 50 long.
    """

    def startListening(self) -> None:  # noqa: N802 - Twisted's name
        tcp._reservedFD.reserve()
        own: Any = self
        own.socket, own._preexistingSocket = own._preexistingSocket, None
        own.fileno = own.socket.fileno
        own.factory.doStart()
        own.numberAccepts = 100  # at once, see doRead
        own.connected, own._shouldShutdown = True, False
        own.startReading()

    def connectionLost(self, reason: Any) -> None:  # noqa: N802 - Twisted's name
        tcp.Port.connectionLost(self, reason)


def adopt(reactor: Any, descriptor: int, family: int, factory: Any) -> IListeningPort:
    """Listen on a socket that others have as well; the descriptor stays the caller's."""
    if family != socket.AF_UNIX:
        port: IListeningPort = reactor.adoptStreamPort(descriptor, family, factory)
        return port
    shared: IListeningPort = _SharedUnixPort._fromListeningDescriptor(reactor, descriptor, factory)
    shared.startListening()
    return shared


def address_of(transport: Any) -> str:
    """Name the host a connection comes from: an IP address, or ``unix``."""
    return getattr(transport.getPeer(), "host", None) or "unix"
