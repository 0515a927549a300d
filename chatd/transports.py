"""What a transport does not do by itself, whatever lies between it and the socket: TLS, the PROXY protocol."""

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


def address_of(transport: Any) -> str:
    """Name the host a connection comes from: an IP address, or ``unix``."""
    return getattr(transport.getPeer(), "host", None) or "unix"
