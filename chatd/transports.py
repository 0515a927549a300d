"""What a transport does not do by itself, whatever lies between it and the socket: TLS, the PROXY protocol."""

import os
import socket
from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import IProtocol
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


def address_of(transport: Any) -> str:
    """Name the host a connection comes from: an IP address, or ``unix``."""
    return getattr(transport.getPeer(), "host", None) or "unix"
