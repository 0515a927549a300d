"""The send buffer of one client, on real sockets: TCP over loopback, Twisted's own transports and reactor."""

import gc
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.tcp import Server
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from chatd.clients import send_buffer
from chatd.clients.send_buffer import SendBuffer, measure_backlogs
from chatd.monitoring.metrics import SEND_BUFFER_BYTES
from chatd.runtime.transports import UnixSocket
from tests.depth import depth
from tests.fakes import reactor_by_hand
from tests.waiting import until

BOUND = 200_000
TOTAL = 1 << 30
MARK = 65_536
"""From how many bytes on a transport of Twisted's says that it is too much."""


@pytest.fixture(scope="module")
def reactor() -> Iterator[Any]:
    """Return a reactor of the module that a test runs step by step."""
    with reactor_by_hand() as reactor:
        yield reactor


class Counted(Server):
    """A server's transport that counts what is written the ordinary way."""

    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        FileDescriptor.write(self, data)


class Client(SendBuffer, Protocol):
    """The outflow to a client, with what it tells."""

    max_send_buffer = BOUND
    worker_send_buffers = TOTAL
    reduced_send_buffer = 2 * MARK

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.lost: Failure | None = None

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        self.attach()
        self.open_out()

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802 - Twisted's name
        self.shut_out()
        self.lost = reason

    def became_slow(self) -> None:
        self.told.append("behind")

    def drained(self) -> None:
        self.told.append("drained")

    @property
    def missed(self) -> int:
        """How many deliveries it did not get."""
        return self.told.count("behind")


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
        """Run the reactor once."""
        self.reactor.iterate(0)

    def read(self, most: int = 1 << 30) -> None:
        """Read what is there as the client, at most so many bytes."""
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

    def read_down_to(self, size: int) -> None:
        """Turn and read until no more than so many bytes wait for the client here."""

        def step() -> bool:
            self.turn()
            self.read(10_000)
            return self.client.waiting <= size

        until(step, f"{size} bytes that wait")

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
@settings(max_examples=depth(60))
def test_nothing_is_lost_doubled_or_out_of_order(reactor: Any, bound: int, steps: list[tuple[str, int]]) -> None:
    with connected(reactor, 4096) as line:
        client = line.client
        client.max_send_buffer = bound
        controls = 0
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
                    missed = client.missed
                    client.deliver(data, 1)
                    if client.missed > missed:
                        assert client.waiting + len(data) > bound
                        continue
                expected += data
            assert client.waiting <= max(bound, MARK + 60_005) + controls
        assert line.read_until(len(expected)) == expected
        line.until(lambda: not (client.waiting or client.buffer_full), "all of it to be written")
        client.deliver(b"end", 1)
        assert line.read_until(len(expected) + 3) == expected + b"end"
        assert client.told[-1:] != ["behind"]


# Behind


def deliver_until_behind(line: Line) -> int:
    """Deliver messages until one is not taken; give how many bytes went out before."""
    size, missed = 0, line.client.missed
    while True:
        line.client.deliver(b"x" * 5_000, 1)
        if line.client.missed > missed:
            return size
        size += 5_000


def test_what_waits_is_bounded(line: Line) -> None:
    deliver_until_behind(line)
    for _ in range(1000):
        line.client.deliver(b"x" * 5_000, 1)
    assert BOUND - 5_000 < line.client.waiting <= BOUND


def test_what_is_over_the_bound_is_not_written_and_that_is_said_each_time(line: Line) -> None:
    size = deliver_until_behind(line)
    assert line.client.told == ["behind"]
    line.client.deliver(b"a" * 5_000, 3)
    line.client.deliver(b"b" * 5_000, 4)
    assert line.client.told == ["behind"] * 3
    assert line.read_until(size) == b"x" * size


def test_once_it_has_read_all_it_is_drained_and_gets_what_comes_then(line: Line) -> None:
    size = deliver_until_behind(line)
    line.read_until(size)
    line.until(lambda: len(line.client.told) == 2, "it to be drained")
    assert line.client.told == ["behind", "drained"]
    line.client.deliver(b"new", 1)
    assert line.read_until(size + 3) == b"x" * size + b"new"


def test_it_is_no_more_choked_when_it_is_told_to_be_drained(line: Line) -> None:
    size = deliver_until_behind(line)
    buffer_full: list[bool] = []
    line.client.drained = lambda: buffer_full.append(line.client.buffer_full)  # type: ignore[method-assign]
    assert line.client.buffer_full
    line.read_until(size)
    line.until(lambda: buffer_full, "it to be drained")
    assert buffer_full == [False]


def test_reading_a_part_is_not_being_drained(line: Line) -> None:
    size = deliver_until_behind(line)
    waiting = line.client.waiting
    for _ in range(20):
        line.read(5_000)
        line.turn()
    assert 0 < line.client.waiting < waiting
    assert line.client.told == ["behind"]
    assert line.client.buffer_full
    assert line.read_until(size) == b"x" * size


def test_what_is_replayed_is_written_however_much_waits(line: Line) -> None:
    size = deliver_until_behind(line)
    line.client.replay(b"r" * BOUND, 3)
    assert line.client.told == ["behind"]
    assert line.client.waiting > BOUND
    assert line.read_until(size + BOUND) == b"x" * size + b"r" * BOUND


def test_what_is_replayed_keeps_its_place_between_what_is_delivered(line: Line) -> None:
    line.client.deliver(b"one ", 1)
    line.client.replay(b"two ", 1)
    line.client.deliver(b"three", 1)
    assert line.read_until(13) == b"one two three"


def test_nothing_is_replayed_before_it_is_opened_and_after_it_is_shut(line: Line) -> None:
    line.client.shut_out()
    line.client.replay(b"lost", 1)
    line.client.write(b"close")
    line.client.open_out()
    line.client.replay(b"heard", 1)
    assert line.read_until(10) == b"closeheard"


def test_what_is_no_message_is_written_to_one_that_is_behind(line: Line) -> None:
    size = deliver_until_behind(line)
    line.client.write(b"close")
    assert line.read_until(size + 5) == b"x" * size + b"close"


# What waits for all


@pytest.fixture
def crowd(reactor: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Line]]:
    """Give three clients that do not read, for which no more than 300,000 bytes may wait together; 1 MB for each."""
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", 0)
    lines = [Line(reactor, 4096) for _ in range(3)]
    for line in lines:
        line.client.max_send_buffer, line.client.worker_send_buffers = 1_000_000, 300_000
    yield lines
    for line in lines:
        line.close()
    assert SEND_BUFFER_BYTES.value == 0


def waits_for(lines: list[Line]) -> int:
    return sum(line.client.waiting for line in lines)


def test_what_waits_for_all_is_bounded_and_those_who_do_not_read_fall_behind_in_time(crowd: list[Line]) -> None:
    for _ in range(100):
        for line in crowd:
            line.client.deliver(b"x" * 10_000, 1)
    assert all(line.client.missed > 50 for line in crowd)
    assert 300_000 < waits_for(crowd) <= 300_000 + 3 * (MARK + 10_000)


def test_one_that_reads_gets_all_though_too_much_waits_for_others(reactor: Any, crowd: list[Line]) -> None:
    slow = crowd[0]
    while not slow.client.missed:
        slow.client.deliver(b"x" * 10_000, 1)
    with connected(reactor) as reading:
        reading.client.worker_send_buffers = 300_000
        for number in range(1, 101):
            reading.client.deliver(b"y" * 1_000, 1)
            reading.read_until(number * 1_000)
        assert reading.client.told == []
        reading.client.deliver(b"z" * 60_000, 1)  # what a transport keeps is no backlog
        reading.client.deliver(b"z", 1)
        assert reading.client.told == []


def test_when_some_have_read_what_waited_there_is_room_for_others(crowd: list[Line]) -> None:
    first, second, _ = crowd
    size = 0
    while not first.client.missed:
        first.client.deliver(b"x" * 10_000, 1)
        size += 10_000
    second.client.deliver(b"x" * 400_000, 1)
    second.client.deliver(b"x", 1)
    assert second.client.missed == 1
    first.read_until(size - 10_000)
    first.until(lambda: not first.client.buffer_full, "it to be drained")
    second.read_until(300_000)
    measure_backlogs()
    second.client.deliver(b"x", 1)
    assert second.client.missed == 1


def test_what_was_read_since_is_not_counted_when_it_is_weighed(crowd: list[Line]) -> None:
    for line in crowd:
        line.client.deliver(b"x" * 150_000, 1)
        line.client.deliver(b"x" * 10_000, 1)
    before = SEND_BUFFER_BYTES.value
    crowd[0].read_until(50_000)
    assert SEND_BUFFER_BYTES.value == before
    measure_backlogs()
    assert SEND_BUFFER_BYTES.value == waits_for(crowd) < before


def give_what_is_read(lines: list[Line], give: Callable[[Client, bytes], object]) -> None:
    """Keep about 90 KB waiting for each client all the time, while each reads 400 KB."""
    for line in lines:
        line.client.deliver(b"x" * 95_000, 1)
    for _ in range(40):
        for line in lines:
            line.read_down_to(80_000)
            assert line.client.buffer_full
            give(line.client, b"y" * 10_000)


def test_clients_that_read_all_they_are_given_do_not_fall_behind_however_much_it_is(crowd: list[Line]) -> None:
    give_what_is_read(crowd, lambda client, blob: client.deliver(blob, 1))
    assert [line.client.missed for line in crowd] == [0, 0, 0]
    assert SEND_BUFFER_BYTES.value <= 300_000


def test_answers_are_counted_as_they_wait_too(crowd: list[Line]) -> None:
    give_what_is_read(crowd, lambda client, blob: client.send(blob))
    assert SEND_BUFFER_BYTES.value <= 300_000


def test_one_that_falls_behind_is_counted_as_it_is(crowd: list[Line]) -> None:
    slow, other, _ = crowd
    for line in (slow, other):
        line.client.deliver(b"x" * 180_000, 1)
    slow.read_down_to(90_000)
    slow.client.max_send_buffer = 90_000
    slow.client.deliver(b"y" * 10_000, 1)
    assert slow.client.missed == 1
    other.client.deliver(b"y" * 10_000, 1)
    assert other.client.missed == 0
    assert SEND_BUFFER_BYTES.value == waits_for(crowd) < 300_000


def test_one_that_asks_for_more_while_too_much_waits_for_all_is_told_so_sooner(crowd: list[Line]) -> None:
    asking, other, _ = crowd
    asked: list[bool] = []
    asking.client.stopped_reading = lambda: asked.append(True)  # type: ignore[method-assign]
    asking.client.send(b"x" * 200_000)
    asking.client.send(b"x" * 10)
    assert asked == []
    other.client.deliver(b"x" * 200_000, 1)
    asking.client.send(b"x" * 10)
    assert asked == [True]


def test_a_connection_that_ends_leaves_nothing_counted(crowd: list[Line]) -> None:
    for line, end in zip(
        crowd, (SendBuffer.shut_out, SendBuffer.stopProducing, SendBuffer.resumeProducing), strict=True
    ):
        line.client.deliver(b"x" * 150_000, 1)
        assert SEND_BUFFER_BYTES.value > 0
        end(line.client)
        end(line.client)
        assert SEND_BUFFER_BYTES.value == 0


def test_one_may_fall_behind_again(line: Line) -> None:
    for _ in range(3):
        size = len(line.heard) + deliver_until_behind(line)
        line.read_until(size)
        line.until(lambda: not line.client.buffer_full, "it to be drained")
    assert line.client.told == ["behind", "drained"] * 3


def test_a_message_larger_than_the_bound_reaches_one_that_reads(line: Line) -> None:
    line.client.deliver(b"x" * BOUND * 2, 1)
    assert line.client.told == []
    line.client.deliver(b"behind", 1)
    assert line.client.told == ["behind"]
    assert line.read_until(BOUND * 2) == b"x" * BOUND * 2


def test_one_that_reads_on_never_falls_behind_for_a_message_larger_than_the_bound(line: Line) -> None:
    line.client.deliver(b"x" * 10_000, 1)
    line.client.write(b"ping")  # what is delivered next has to go the ordinary way
    line.client.deliver(b"y" * BOUND * 2, 1)
    assert line.client.told == []
    assert line.read_until(10_004 + BOUND * 2)[-1:] == b"y"


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
    """Reset the connection as the client."""
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


def test_in_a_wrapper_one_that_was_behind_is_drained(wrapped: Line) -> None:
    deliver_until_behind(wrapped)

    def drained() -> bool:
        wrapped.turn()
        wrapped.read()
        return len(wrapped.client.told) == 2

    until(drained, "it to be drained")
    assert wrapped.client.told == ["behind", "drained"]


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
    assert client.told == ["behind"] * 97  # the last one before it was choked counts too
    assert len(transport.value()) <= 100 * 50_000 + BOUND
    client.resumeProducing()
    client.deliver(b"y" * BOUND, 1)
    assert client.told[96:] == ["behind", "drained"]
    assert transport.value().endswith(b"xy" + b"y" * (BOUND - 1))


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


# What has arrived


def all_arrived(line: Line) -> bool:
    written, arrived = line.client.progress()
    return arrived >= written


def test_what_the_client_has_in_its_kernel_has_arrived(line: Line) -> None:
    before, _ = line.client.progress()
    line.client.deliver(b"x" * 100, 1)
    written, _ = line.client.progress()
    assert written == before + 100
    line.until(lambda: all_arrived(line), "the client's kernel to say so")  # nobody has read it
    assert line.client.progress() == (written, written)


def test_what_waits_here_or_in_our_kernel_has_been_written_and_has_not_arrived(line: Line) -> None:
    before, _ = line.client.progress()
    size = line.stall()
    line.client.replay(b"x" * 100_000, 1)
    written, arrived = line.client.progress()
    assert written >= before + size + 100_000
    assert arrived - before <= size
    line.read_until(size + 100_000)
    line.until(lambda: all_arrived(line), "all of it to arrive")
    assert line.client.progress() == (before + size + 100_000,) * 2


def test_through_a_wrapper_the_bytes_on_the_wire_count(wrapped: Line) -> None:
    before, _ = wrapped.client.progress()
    wrapped.client.deliver(b"x" * 100, 1)
    assert wrapped.client.progress()[0] == before + 102
    wrapped.read_until(102)
    wrapped.until(lambda: all_arrived(wrapped), "all of it to arrive")


def test_what_tls_keeps_up_to_the_end_of_the_turn_has_not_arrived(reactor: Any, certificate: Path) -> None:
    options = DefaultOpenSSLContextFactory(str(certificate), str(certificate))
    factory = TLSMemoryBIOFactory(options, False, Factory(), clock=reactor)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    with connected(reactor, wrapper=lambda client: BufferingTLSTransport(factory, client)) as line:
        line.far = trust.wrap_socket(line.far, do_handshake_on_connect=False)

        def shaken() -> bool:
            with suppress(ssl.SSLWantReadError):
                line.far.do_handshake()  # type: ignore[attr-defined]
                return True
            return False

        line.until(shaken, "the handshake")
        line.until(lambda: all_arrived(line), "all of it to arrive")
        line.client.deliver(b"hello", 1)
        assert line.client.progress()[0] == sys.maxsize
        line.turn()
        line.turn()
        written, arrived = line.client.progress()
        assert arrived <= written < sys.maxsize
        line.until(lambda: all_arrived(line), "all of it to arrive")


def test_after_a_reset_what_had_arrived_is_still_known(reactor: Any) -> None:
    line = Line(reactor, 4096)
    line.client.deliver(b"x" * 100, 1)
    line.read_until(100)
    line.until(lambda: all_arrived(line), "all of it to arrive")
    written, _ = line.client.progress()
    seen: list[tuple[int, int]] = []
    line.client.stopProducing = lambda: seen.append(line.client.progress())  # type: ignore[method-assign]
    break_off(line)
    line.until(lambda: line.client.lost, "the connection to be lost")
    assert seen == [(written, written)]


@contextmanager
def through_a_unix_socket(reactor: Any) -> Iterator[tuple[Client, socket.socket]]:
    """Return the send buffer of a client, and the socket of the client."""
    near, far = socket.socketpair(socket.AF_UNIX)
    near.setblocking(False)
    client = Client()
    port: Any = None
    transport = Counted(UnixSocket(fileno=near.detach()), client, ("", 0), port, 0, reactor)
    client.makeConnection(transport)
    yield client, far
    transport.connectionLost(Failure(ConnectionError()))
    far.close()


def test_through_a_unix_socket_what_was_read_has_arrived(reactor: Any) -> None:
    with through_a_unix_socket(reactor) as (client, far):
        assert client.progress() == (0, 0)
        client.deliver(b"x" * 100, 1)
        written, arrived = client.progress()
        assert (written, arrived <= 0) == (100, True)
        assert far.recv(100) == b"x" * 100
        assert client.progress() == (100, 100)
        client.deliver(b"x" * 1_000_000, 1)
        before = client.progress()
        far.recv(100_000)
        assert client.progress()[0] == before[0] == 1_000_100
        assert before[1] < client.progress()[1] <= 100_100


def test_what_the_clients_kernel_takes_only_grows_while_the_client_reads(line: Line) -> None:
    line.stall()
    line.client.replay(b"x" * 200_000, 1)
    seen = [line.client.acknowledged]
    for _ in range(3):
        line.turn()
        assert line.client.acknowledged == seen[-1]
    while line.client.waiting:
        line.read(50_000)
        line.turn()
        seen.append(line.client.acknowledged)
    assert len(set(seen)) > 2
    assert sorted(seen) == seen


def test_through_a_unix_socket_what_was_read_tells_whether_the_client_reads(reactor: Any) -> None:
    with through_a_unix_socket(reactor) as (client, far):
        client.replay(b"x" * 2_000_000, 1)
        reactor.iterate(0)
        seen = [client.acknowledged]
        for _ in range(3):
            far.recv(100_000)
            client.replay(b"x" * 200_000, 1)  # more than it has read
            reactor.iterate(0)
            seen.append(client.acknowledged)
            client.replay(b"x" * 200_000, 1)
            reactor.iterate(0)
            assert client.acknowledged == seen[-1]
    assert len(set(seen)) == 4
    assert sorted(seen) == seen


def test_a_kernel_without_a_count_of_what_was_acknowledged_tells_what_waits(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_buffer, "_BYTES_ACKED", struct.Struct("=1000xQ"))  # beyond the end of what it gives
    line.stall()
    line.client.replay(b"x" * 1_000_000, 1)
    before = line.client.acknowledged
    assert before <= -1_000_000
    assert line.client.progress() == (-before, 0)
    line.read_down_to(900_000)
    assert line.client.acknowledged > before
    assert line.client.unacknowledged == -line.client.acknowledged


def test_a_transport_that_knows_nothing_has_nothing_until_it_has_all() -> None:
    client = Client()
    client.makeConnection(StringTransport())
    assert client.progress() == (0, sys.maxsize)
    client.deliver(b"x", 1)
    assert client.progress()[1] == 0
    client.resumeProducing()
    assert client.progress() == (0, sys.maxsize)
