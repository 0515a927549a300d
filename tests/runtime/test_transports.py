"""A connection goes from one protocol to another, whatever lies between it and the socket."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from chatd.runtime.transports import address_of, adopt, hand_over, is_local
from tests.rows import rows
from tests.waiting import until


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


AS_ANOTHER = """
import os, socket, sys
path, uid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups[1:]])
os.setgid(int(groups[0]))
os.setuid(int(uid))
client = socket.socket(socket.AF_UNIX)
client.connect(path)
sys.stdin.read()
"""
"""Connect to a unix socket as a user with a group, and further groups."""
NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("who", "owner", "address"),
    [
        ((0, 0), (1234, 1234), "unix proxy"),
        ((NOBODY, NOBODY), (NOBODY, 0), "unix proxy"),
        ((NOBODY, NOBODY), (0, NOBODY), "unix proxy"),
        ((NOBODY, 1, 2, 1234), (0, 1234), "unix proxy"),
        ((NOBODY, NOBODY, 1, 2), (0, 1234), "unix"),
        ((NOBODY, NOBODY), (0, 0), "unix"),
    ],
)
def test_the_other_end_of_a_unix_socket_may_be_a_proxy_by_its_user_and_groups(
    who: tuple[int, ...], owner: tuple[int, int], address: str
) -> None:
    accepted: list[Any] = []

    class Noting(Protocol):
        def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
            accepted.append(address_of(self.transport))

    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        Path(folder).chmod(0o755)
        path = f"{folder}/socket"
        listening.bind(path)
        listening.setblocking(False)
        os.chmod(path, 0o666)
        os.chown(path, *owner)
        listening.listen()
        port: Any = adopt(reactor, listening.fileno(), Factory.forProtocol(Noting))
        command = [sys.executable, "-c", AS_ANOTHER, path, *map(str, who)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as client:
            try:
                until(lambda: port.doRead() or accepted, "the connection")
            finally:
                client.kill()
                port.connectionLost(Failure(ConnectionDone()))
    assert accepted == [address]


@rows(
    ("family", "address", "local"),
    [
        *((socket.AF_INET, "127.0.0.1", True), (socket.AF_INET, "127.0.0.2", True)),
        *((socket.AF_INET, "0.0.0.0", False), (socket.AF_INET6, "::1", True), (socket.AF_INET6, "::", False)),
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
