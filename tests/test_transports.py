"""A connection goes from one protocol to another, whatever lies between it and the socket."""

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from chatd.transports import address_of, hand_over


class Receiver(Protocol):
    def __init__(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        self.heard += data


def test_a_socket_gets_another_protocol() -> None:
    transport: Any = StringTransport()
    receiver = Receiver()
    hand_over(transport, receiver)
    assert transport.protocol is receiver
    assert receiver.transport is transport
    assert receiver.connected


def test_a_wrapped_one_stays_wrapped() -> None:
    wrapper: Any = ProtocolWrapper(WrappingFactory(Factory.forProtocol(Receiver)), Receiver())
    socket: Any = StringTransport()
    wrapper.makeConnection(socket)
    receiver = Receiver()
    hand_over(wrapper, receiver)
    wrapper.dataReceived(b"hello")
    assert receiver.heard == b"hello"
    assert receiver.transport is wrapper


def test_an_address_is_the_peers() -> None:
    assert address_of(StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.7", 1))) == "192.0.2.7"


def test_a_unix_socket_has_the_address_unix() -> None:
    assert address_of(StringTransport(peerAddress=UNIXAddress("/run/x"))) == "unix"
