"""Transports and ports below TLS and the PROXY protocol, and the addresses of clients.

An address comes from the socket, or from a PROXY header if the port expects one. No header can make a TCP connection
count as one through a unix socket.
"""

import os
import socket
import stat
import struct
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_address
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IListeningPort, IProtocol
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

UNIX = "unix"
"""The address of a client on a unix socket."""
UNIX_PROXY = "unix proxy"
"""The address of a peer on a unix socket that may be a proxy, because of its user or groups."""

_SO_PEERGROUPS = 59  # socket(7), Linux 4.13; Python 3.11 has no name for it
_SHORT_UNKNOWN = b"PROXY UNKNOWN\r\n"
_GROUPS_BYTES = 1024  # as much as Python's getsockopt reads: 256 groups


def hand_over(transport: Any, protocol: IProtocol) -> None:
    """Replace the protocol of a transport, and connect the new one."""
    if isinstance(transport, ProtocolWrapper):
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol
    protocol.makeConnection(transport)


def innermost(transport: Any) -> Any:
    """Return the transport below TLS and the PROXY protocol, usually a socket."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def family_of(descriptor: int) -> int:
    """Return the family of a socket's addresses (AF_INET, AF_INET6, AF_UNIX), or AF_UNSPEC if it is not a socket."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as one:
            return one.family
    except OSError:  # listening on it will fail
        return socket.AF_UNSPEC


def is_local(descriptor: int) -> bool:
    """Return whether only this host can connect to a socket, because it is a unix socket or on a loopback address."""
    family = family_of(descriptor)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return family == socket.AF_UNIX
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        return ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


class UnixSocket(socket.socket):
    """A connected unix socket that counts the bytes it sends; for TCP the kernel counts them."""

    sent = 0
    """Bytes that the kernel has accepted."""

    def send(self, *what: Any) -> int:
        """Send bytes and count them."""
        sent = super().send(*what)
        self.sent += sent
        return sent


class _UnixServer(unix.Server):
    """A connection on a unix socket, and whether its peer may be a proxy."""

    def __init__(self, sock: socket.socket, *about: Any) -> None:
        super().__init__(UnixSocket(fileno=sock.detach()), *about)

    @cached_property
    def may_be_proxy(self) -> bool:
        """Return whether the peer is root, chatd's own user, the owner of the socket's file, or in the file's group.

        These decide who may connect at all, unless the file's mode lets everybody do so.
        """
        _, uid, gid = struct.unpack("3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in (0, os.geteuid()):
            return True
        with suppress(OSError):  # the file was removed
            file = os.stat(self.socket.getsockname())
            return stat.S_ISSOCK(file.st_mode) and (uid == file.st_uid or file.st_gid in (gid, *self._groups()))
        return False

    def _groups(self) -> tuple[int, ...]:
        with suppress(OSError):  # an older kernel, or more groups than can be read
            groups = self.socket.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
            return struct.unpack(f"{len(groups) // 4}I", groups)
        return ()


class _SharedUnixPort(unix.Port):
    """A unix socket that several processes share.

    Twisted's own (26.10) takes the name for its own: it lets everybody connect, removes it in the end, and shuts the
    socket down for all who have it. And it makes the queue 50 long.
    """

    transport = _UnixServer

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


@implementer(IHalfCloseableProtocol)
class _ProxyProtocol(HAProxyProtocolWrapper):
    """A connection that begins with a PROXY header. An invalid header closes it.

    Twisted's own (26.10) lets some errors of its parser through: a port that is no number, bytes that are no text.
    And it does not know the short form of a header that names nobody, which HAProxy sends with its health checks.
    """

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        if self._proxyInfo is None and data.startswith(_SHORT_UNKNOWN):
            data = data.replace(b"\r\n", b" \r\n", 1)
        try:
            super().dataReceived(data)
        except ValueError:
            if self._proxyInfo is not None:  # the header was read: the error is not its
                raise
            self.abortConnection()

    def readConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        """Pass it to the wrapped protocol if that supports half-closed connections; else close the connection."""
        protocol = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if protocol is not None:
            protocol.readConnectionLost()
        else:
            transport: Any = self.transport
            transport.connectionLost(Failure(ConnectionDone()))

    def writeConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        """Do nothing: no protocol of chatd closes only its own half through a proxy."""


def adopt(reactor: Any, descriptor: int, factory: Any) -> IListeningPort:
    """Listen on a socket that other processes share. The caller keeps the descriptor."""
    family = family_of(descriptor)
    if family != socket.AF_UNIX:
        port: IListeningPort = reactor.adoptStreamPort(descriptor, family, factory)
        return port
    shared: IListeningPort = _SharedUnixPort._fromListeningDescriptor(reactor, descriptor, factory)
    shared.startListening()
    return shared


def check_proxy_headers(factory: Any) -> Any:
    """Return the factory of an endpoint; if it reads PROXY headers, it reads them strictly."""
    if isinstance(factory, HAProxyWrappingFactory):
        factory.protocol = _ProxyProtocol  # type: ignore[assignment]
    return factory


def address_of(transport: Any) -> str:
    """Return the address of the client: an IP address, UNIX or UNIX_PROXY. Empty if a PROXY header has none.

    With a PROXY header it is what that says, or the proxy's own where it says that nobody is behind it.
    """
    proxy = innermost(transport)
    peer = transport.getPeer() if proxy is not transport else None
    if peer is None or peer == proxy.getPeer():
        return peer_of(proxy)
    return UNIX if isinstance(peer, UNIXAddress) else peer.host if _is_address(peer.host) else ""


def peer_of(transport: Any) -> str:
    """Return the address of the socket's peer, whatever a PROXY header says."""
    transport = innermost(transport)
    peer = transport.getPeer()
    if isinstance(peer, UNIXAddress):
        return UNIX_PROXY if getattr(transport, "may_be_proxy", False) else UNIX
    return str(peer.host)


def _is_address(host: str) -> bool:
    """Return whether a host is an IP address without a scope, because a scope may be any text."""
    with suppress(ValueError):
        return "%" not in host and bool(ip_address(host))
    return False
