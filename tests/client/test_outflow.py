"""What goes out to one client, on real sockets: TCP over loopback, Twisted's own transports and reactor."""

import gc
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Server
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from chatd.client.outflow import Outflow
from tests.waiting import until

BOUND = 200_000
MARK = 65_536
"""From how many bytes on a transport of Twisted's says that it is too much."""


@pytest.fixture(scope="module")
def reactor() -> Iterator[Any]:
    """Give a reactor of the module's own, that a test turns by hand."""
    reactor: Any = EPollReactor()
    yield reactor
    reactor.removeAll()
    for reader in list(reactor._internalReaders):
        reactor._internalReaders.discard(reader)
        reader.connectionLost(Failure(ConnectionError()))
    reactor._poller.close()


class Counted(Server):
    """A server's transport that counts what is written the ordinary way."""

    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        FileDescriptor.write(self, data)


class Client(Outflow, Protocol):
    """The outflow to a client, with what it tells."""

    max_backlog = BOUND

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.lost: Failure | None = None

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        self.attach()
        self.open_out()

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802 - Twisted's name
        self.shut_out()
        self.lost = reason

    def fell_behind(self) -> None:
        self.told.append("behind")

    def caught_up(self) -> None:
        self.told.append(self.missed)


class Line:
    """Both ends of a connection: ours, with an outflow, and the client's."""

    def __init__(self, reactor: Any, buffer: int | None = None, wrapper: Any = None) -> None:
        self.reactor = reactor
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if buffer is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            self.far = socket.socket()
            if buffer is not None:
                self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self.far.connect(listener.getsockname())
            near, address = listener.accept()
        near.setblocking(False)
        self.far.setblocking(False)
        self.client = Client()
        protocol = wrapper(self.client) if wrapper else self.client
        port: Any = None
        self.transport = Counted(near, protocol, address, port, 0, reactor)
        protocol.makeConnection(self.transport)
        self.transport.startReading()
        self.heard = b""

    def turn(self) -> None:
        """Let the reactor look once at what can be read and written."""
        self.reactor.iterate(0)

    def read(self, most: int = 1 << 30) -> None:
        """Let the client read what is there, at most so many bytes."""
        with suppress(BlockingIOError):
            while most > 0 and (data := self.far.recv(min(most, 1 << 20))):
                self.heard += data
                most -= len(data)

    def read_until(self, size: int) -> bytes:
        """Turn and read until the client has so many bytes; give all it has."""

        def step() -> bool:
            self.turn()
            self.read()
            return len(self.heard) >= size

        until(step, f"{size} bytes")
        return self.heard

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turn until something is so."""

        def step() -> bool:
            self.turn()
            return bool(condition())

        until(step, what)

    def stall(self) -> int:
        """Deliver until the client's buffers are full and something waits; give how many bytes that took."""
        size = 0
        while not self.client.waiting:
            self.client.deliver(b"s" * 10_000, 1)
            size += 10_000
        return size

    def close(self) -> None:
        self.far.close()
        if self.client.lost is None:
            self.transport.abortConnection()
            self.until(lambda: self.client.lost, "the end of the connection")


@contextmanager
def connected(reactor: Any, buffer: int | None = None, wrapper: Any = None) -> Iterator[Line]:
    line = Line(reactor, buffer, wrapper)
    try:
        yield line
    finally:
        line.close()


@pytest.fixture
def line(reactor: Any) -> Iterator[Line]:
    with connected(reactor, 4096) as line:
        yield line


# The direct way


def test_an_idle_client_is_written_to_directly(line: Line) -> None:
    for text in (b"one", b"two", b"three"):
        line.client.deliver(text, 1)
    line.read()  # no turn of the reactor between
    assert line.read_until(11) == b"onetwothree"
    assert line.transport.writes == 0


def test_what_the_socket_does_not_take_is_written_when_it_does(line: Line) -> None:
    blob = bytes(range(256)) * 400
    line.client.deliver(blob, 1)
    assert 0 < line.client.waiting < len(blob)
    assert line.transport.writes == 1
    assert line.read_until(len(blob)) == blob
    line.turn()
    assert line.client.waiting == 0


def test_what_comes_while_something_waits_comes_after_it(line: Line) -> None:
    size = line.stall()
    line.client.deliver(b"one", 1)
    line.client.write(b"two")
    line.client.deliver(b"three", 1)
    assert line.read_until(size + 11) == b"s" * size + b"onetwothree"


def test_what_is_no_message_keeps_its_place(line: Line) -> None:
    line.client.deliver(b"one ", 1)
    line.client.write(b"ping ")
    line.client.deliver(b"two ", 1)
    line.client.write(b"close")
    assert line.read_until(18) == b"one ping two close"


def test_a_client_that_has_read_all_is_written_to_directly_again(line: Line) -> None:
    size = line.stall()
    line.read_until(size)
    line.until(lambda: not line.client.waiting, "nothing to wait")
    writes = line.transport.writes
    line.client.deliver(b"again", 1)
    assert line.transport.writes == writes
    line.read_until(size + 5)


def test_nothing_is_delivered_before_it_is_opened_and_after_it_is_shut(line: Line) -> None:
    line.client.shut_out()
    line.client.deliver(b"lost", 1)
    line.client.write(b"close")
    line.client.open_out()
    line.client.deliver(b"heard", 1)
    line.client.shut_out()
    line.client.deliver(b"lost", 1)
    assert line.read_until(10) == b"closeheard"
    assert (line.client.missed, line.client.told) == (0, [])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.integers(1, 60_000)),
        st.tuples(st.just("write"), st.integers(1, 125)),
        st.tuples(st.just("read"), st.integers(1, 100_000)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("bound", [MARK, 1 << 30])
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_doubled_or_out_of_order(reactor: Any, bound: int, steps: list[tuple[str, int]]) -> None:
    with connected(reactor, 4096) as line:
        client = line.client
        client.max_backlog = bound
        sent = delivered = controls = dropped = 0
        expected = b""
        for number, (step, size) in enumerate(steps):
            if step == "read":
                line.read(size)
            elif step == "turn":
                line.turn()
            else:
                data = b"%05d" % number * (size // 5 + 1)
                if step == "write":
                    client.write(data)
                    controls += len(data)
                else:
                    client.deliver(data, 1)
                    sent += 1
                    if client.behind:
                        dropped += 1
                        continue
                    delivered += 1
                expected += data
            assert client.waiting <= max(bound, MARK + 60_005) + controls
        assert line.read_until(len(expected)) == expected
        line.until(lambda: not (client.waiting or client.choked), "all of it to be written")
        client.deliver(b"end", 1)
        assert line.read_until(len(expected) + 3) == expected + b"end"
        assert not client.behind
        assert sum(told for told in client.told if told != "behind") == dropped
        assert client.told[::2] == ["behind"] * (len(client.told) // 2)
        assert delivered + dropped == sent


# Behind


def deliver_until_behind(line: Line) -> int:
    """Deliver messages until one is missed; give how many bytes went out before."""
    size = 0
    while True:
        line.client.deliver(b"x" * 5_000, 1)
        if line.client.behind:
            return size
        size += 5_000


def test_what_waits_is_bounded(line: Line) -> None:
    deliver_until_behind(line)
    for _ in range(1000):
        line.client.deliver(b"x" * 5_000, 1)
    assert BOUND - 5_000 < line.client.waiting <= BOUND


def test_one_that_is_behind_gets_nothing_more_and_what_it_misses_is_counted(line: Line) -> None:
    size = deliver_until_behind(line)
    assert (line.client.told, line.client.missed) == (["behind"], 1)
    line.client.deliver(b"a" * 10, 3)  # also where it would fit
    line.client.deliver(b"b" * 10, 4)
    assert line.client.missed == 8
    assert line.read_until(size) == b"x" * size


def test_once_it_has_read_all_it_is_caught_up_and_gets_what_comes_then(line: Line) -> None:
    size = deliver_until_behind(line)
    line.client.deliver(b"missed", 2)
    line.read_until(size)
    line.until(lambda: len(line.client.told) == 2, "it to catch up")
    assert line.client.told == ["behind", 3]
    line.client.deliver(b"new", 1)
    assert line.read_until(size + 3) == b"x" * size + b"new"


def test_reading_a_part_is_not_catching_up(line: Line) -> None:
    size = deliver_until_behind(line)
    waiting = line.client.waiting
    for _ in range(20):
        line.read(5_000)
        line.turn()
    assert 0 < line.client.waiting < waiting
    line.client.deliver(b"missed", 1)
    assert line.client.missed == 2
    assert line.read_until(size) == b"x" * size


def test_what_is_no_message_is_written_to_one_that_is_behind(line: Line) -> None:
    size = deliver_until_behind(line)
    line.client.write(b"close")
    line.client.deliver(b"missed", 1)
    assert line.read_until(size + 5) == b"x" * size + b"close"


def test_one_may_fall_behind_again(line: Line) -> None:
    for _ in range(3):
        size = len(line.heard) + deliver_until_behind(line)
        line.read_until(size)
        line.until(lambda: not line.client.behind, "it to catch up")
    assert line.client.told == ["behind", 1] * 3


def test_a_message_larger_than_the_bound_reaches_one_that_reads(line: Line) -> None:
    line.client.deliver(b"x" * BOUND * 2, 1)
    assert line.client.told == []
    line.client.deliver(b"missed", 1)
    assert line.client.told == ["behind"]
    assert line.read_until(BOUND * 2) == b"x" * BOUND * 2


def test_many_that_do_not_read_share_the_bytes_that_wait(reactor: Any) -> None:
    blob = b"x" * 50_000
    lines = [Line(reactor, 4096) for _ in range(3)]
    try:
        for line in lines:
            line.stall()
        for line in lines:
            line.client.deliver(blob, 1)
        held = [line.transport._tempDataBuffer[-1] for line in lines]
        assert all(each is blob for each in held)
    finally:
        for line in lines:
            line.close()


# Broken sockets


def break_off(line: Line) -> None:
    """Let the client reset the connection."""
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.far.close()


def test_a_client_that_reset_its_socket_is_lost_and_nothing_is_raised(line: Line) -> None:
    line.client.deliver(b"hello", 1)
    break_off(line)
    for _ in range(10):
        line.client.deliver(b"hello", 1)
    line.until(lambda: line.client.lost, "the connection to be lost")
    line.client.deliver(b"hello", 1)
    line.client.write(b"hello")


def test_a_client_that_reset_its_socket_while_something_waits_is_lost(line: Line) -> None:
    deliver_until_behind(line)
    break_off(line)
    line.client.deliver(b"hello", 1)
    line.until(lambda: line.client.lost, "the connection to be lost")
    assert line.client.missed == 2


def test_a_client_that_closed_its_socket_is_lost(line: Line) -> None:
    line.client.deliver(b"hello", 1)
    line.far.close()
    line.client.deliver(b"hello", 1)
    line.client.deliver(b"hello", 1)
    line.until(lambda: line.client.lost, "the connection to be lost")


def test_after_the_end_nothing_holds_the_socket(line: Line) -> None:
    line.client.deliver(b"hello", 1)
    near = line.transport.socket
    line.close()
    assert near.fileno() == -1
    del near
    gc.collect()
    line.client.deliver(b"hello", 1)
    assert line.client._idle is None


# Transports that are no plain socket


class Wrapper(ProtocolWrapper):
    """A layer that counts what goes through it and marks it, as TLS would encrypt it."""

    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(b"<" + data + b">")


def wrap(client: Client) -> Wrapper:
    return Wrapper(WrappingFactory(Factory()), client)


@pytest.fixture
def wrapped(reactor: Any) -> Iterator[Line]:
    with connected(reactor, 4096, wrap) as line:
        yield line


def test_in_a_wrapper_everything_goes_through_it(wrapped: Line) -> None:
    for text in (b"one", b"two"):
        wrapped.client.deliver(text, 1)
        wrapped.client.write(b"ping")
    assert wrapped.read_until(22) == b"<one><ping><two><ping>"
    assert wrapped.client._idle is None


def test_in_a_wrapper_what_waits_is_bounded_too(wrapped: Line) -> None:
    deliver_until_behind(wrapped)
    assert wrapped.client.waiting <= BOUND + 100
    assert wrapped.client.waiting > BOUND - 10_000


def test_in_a_wrapper_what_was_read_does_not_count(wrapped: Line) -> None:
    size = 0
    for _ in range(40):  # many times the bound, never more than a little at once
        wrapped.client.deliver(b"x" * 20_000, 1)
        size += 20_002
        wrapped.read_until(size)
    for _ in range(8):
        wrapped.client.deliver(b"x" * 20_000, 1)
    assert wrapped.client.told == []


def test_in_a_wrapper_what_waits_shrinks_as_the_client_reads(wrapped: Line) -> None:
    deliver_until_behind(wrapped)
    before = wrapped.client.waiting
    for _ in range(20):
        wrapped.read(5_000)
        wrapped.turn()
    assert 0 < wrapped.client.waiting < before


def test_in_a_wrapper_one_that_was_behind_catches_up(wrapped: Line) -> None:
    deliver_until_behind(wrapped)

    def caught_up() -> bool:
        wrapped.turn()
        wrapped.read()
        return len(wrapped.client.told) == 2

    until(caught_up, "it to catch up")
    assert wrapped.client.told == ["behind", 1]


def test_a_socket_that_turned_to_tls_is_written_to_in_the_ordinary_way(line: Line) -> None:
    line.transport.TLS = True
    line.client.deliver(b"hello", 1)
    assert (line.transport.writes, line.client._idle) == (1, None)
    line.transport.TLS = False
    line.read_until(5)


def test_a_transport_that_does_not_tell_what_waits_is_bounded_by_what_it_was_given() -> None:
    client, transport = Client(), StringTransport()
    client.makeConnection(transport)
    for _ in range(100):
        client.deliver(b"x" * 50_000, 1)
    assert client.told == []
    client.pauseProducing()
    client.pauseProducing()  # Twisted's sockets say so at every write
    for _ in range(100):
        client.deliver(b"x" * 50_000, 1)
    assert client.told == ["behind"]
    assert len(transport.value()) <= 100 * 50_000 + BOUND
    client.resumeProducing()
    client.deliver(b"x", 1)
    assert client.told[:2] == ["behind", client.missed]
    assert transport.value().endswith(b"xx")


def test_what_waits_gets_less_with_what_the_socket_took(reactor: Any) -> None:
    line = Line(reactor, 4096)
    line.client.deliver(b"x" * 3_000_000, 1)
    seen = [line.client.waiting]
    while line.client.waiting:
        line.read(50_000)
        line.turn()
        seen.append(line.client.waiting)
        assert line.client.waiting + len(line.heard) <= 3_000_000
    line.close()
    assert sorted(seen, reverse=True) == seen
    assert len(set(seen)) > 5


def test_nothing_is_written_once_it_is_shut(reactor: Any) -> None:
    line = Line(reactor)
    line.client.deliver(b"a", 1)
    line.read_until(1)
    line.client.shut_out()
    line.client.deliver(b"b", 1)
    line.turn()
    line.read()
    line.close()
    assert line.heard == b"a"
