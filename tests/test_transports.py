"""A connection goes from one protocol to another, whatever lies between it and the socket."""

import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from chatd.transports import address_of, hand_over, is_local


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


@pytest.mark.parametrize(
    ("family", "address", "local"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.0.0.2", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::", False),
    ],
)
def test_whom_a_listening_socket_is_for(family: socket.AddressFamily, address: str, local: bool) -> None:
    with socket.socket(family) as listening:
        listening.bind((address, 0))  # nobody can connect: it does not listen
        assert is_local(listening.fileno()) is local


def test_a_unix_socket_is_for_this_host(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert is_local(listening.fileno())


def test_what_is_no_socket_is_not_taken_for_one_of_this_host() -> None:
    with open("/dev/null") as file:
        assert not is_local(file.fileno())
