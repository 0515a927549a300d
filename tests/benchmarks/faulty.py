"""A WebSocket chat that does wrong what it is told to: for seeing that the load generator notices."""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.frames import ACCEPT, CLOSE, PING, PONG, TEXT, frame

Relay = Callable[[int, bytes], Iterable[bytes]]
"""Gives what the others are sent for the message with that number, from 1, counted over all senders."""


def as_it_is(number: int, payload: bytes) -> Iterable[bytes]:
    """Relay a message unchanged."""
    yield frame(payload, mask=b"")


class Chat:
    """The chat, on a port of its own, from ``with`` to the end of it: a thread for each client."""

    def __init__(
        self,
        relay: Relay = as_it_is,
        *,
        echo: bool = False,
        answer: bytes = b"",
        reading: threading.Event | None = None,
    ) -> None:
        """Take how to relay, whether to senders too, another answer to handshakes, what to wait for before reading."""
        self._relay = relay
        self._echo = echo
        accepted = f"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n".encode()
        self._answer = answer or accepted
        self._reading = reading
        self._members: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.targets: list[str] = []
        self.taken = 0
        """Messages that came in."""
        self.pongs: list[bytes] = []

    def __enter__(self) -> Self:
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(64)
        self.port: int = self._listening.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reading:
            self._reading.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        for thread in self._threads:
            thread.join(10)
        self._listening.close()

    def hang_up(self) -> None:
        """End the connections of all clients."""
        with self._lock:
            for member in self._members:
                with suppress(OSError):
                    member.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream, suppress(OSError, EOFError):
            self.targets.append(stream.readline().split()[1].decode())
            while stream.readline().strip():
                pass
            with self._lock:
                self._members.append(client)
            client.sendall(self._answer)
            if self._reading:
                self._reading.wait(20)
            while True:
                first = _exactly(stream.read, 2)
                size = first[1] & 127
                size = int.from_bytes(_exactly(stream.read, 2)) if size == 126 else size
                mask = _exactly(stream.read, 4)
                masked = _exactly(stream.read, size)
                repeated = (mask * (size // 4 + 1))[:size]
                payload = (int.from_bytes(masked) ^ int.from_bytes(repeated)).to_bytes(size)
                self._take(client, first[0] & 15, payload)
        with self._lock, suppress(ValueError):
            self._members.remove(client)

    def _take(self, client: socket.socket, opcode: int, payload: bytes) -> None:
        with self._lock:
            if opcode == PONG:
                self.pongs.append(payload)
            if opcode != TEXT:
                return
            self.taken += 1
            for bytes_ in self._relay(self.taken, payload):
                for member in self._members:
                    if self._echo or member is not client:
                        member.sendall(bytes_)


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    got = read(size)
    if len(got) < size:
        raise EOFError
    return got


# What can go wrong with the fifth message of a run


def twice(number: int, payload: bytes) -> Iterable[bytes]:
    """Relay it twice."""
    yield frame(payload, mask=b"") * (2 if number == 5 else 1)


def never(number: int, payload: bytes) -> Iterable[bytes]:
    """Drop it."""
    if number != 5:
        yield frame(payload, mask=b"")


def never_again(number: int, payload: bytes) -> Iterable[bytes]:
    """Drop it and all that come after."""
    if number < 5:
        yield frame(payload, mask=b"")


def altered(number: int, payload: bytes) -> Iterable[bytes]:
    """Change its last character."""
    yield frame(payload[:-1] + b"!" if number == 5 else payload, mask=b"")


def shortened(number: int, payload: bytes) -> Iterable[bytes]:
    """Leave its last character out."""
    yield frame(payload[:-1] if number == 5 else payload, mask=b"")


def binary(number: int, payload: bytes) -> Iterable[bytes]:
    """Send it as a binary message."""
    yield frame(payload, 2 if number == 5 else TEXT, mask=b"")


def hung_up(number: int, payload: bytes) -> Iterable[bytes]:
    """Send a Close frame in its place."""
    yield frame(b"\x03\xf5", CLOSE, mask=b"") if number == 5 else frame(payload, mask=b"")


def later(behind: int) -> Relay:
    """Make a relay that sends it after so many others."""
    held: list[bytes] = []

    def relay(number: int, payload: bytes) -> Iterable[bytes]:
        if number == 5:
            held.append(payload)
        else:
            yield frame(payload, mask=b"")
        if number == 5 + behind:
            yield frame(held.pop(), mask=b"")

    return relay


# What is unusual, but right


def with_ping(number: int, payload: bytes) -> Iterable[bytes]:
    """Send a ping before each message."""
    yield frame(b"%d" % number, PING, mask=b"") + frame(payload, mask=b"")


def long_lengths(number: int, payload: bytes) -> Iterable[bytes]:
    """Write each length with 64 bits."""
    yield b"\x81\x7f" + len(payload).to_bytes(8) + payload


def byte_by_byte(number: int, payload: bytes) -> Iterable[bytes]:
    """Send each byte alone."""
    whole = frame(payload, mask=b"")
    yield from (whole[place : place + 1] for place in range(len(whole)))


def ten_at_once() -> Relay:
    """Make a relay that sends ten messages in one write."""
    held: list[bytes] = []

    def relay(number: int, payload: bytes) -> Iterable[bytes]:
        held.append(frame(payload, mask=b""))
        if number % 10 == 0:
            yield b"".join(held)
            held.clear()

    return relay
