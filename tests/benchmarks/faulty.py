"""A chat that does wrong what it is told to, to WebSockets and to who follows by server-sent events.

For seeing that the load generator notices.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Self

from tests.frames import ACCEPT, CLOSE, PING, PONG, TEXT, frame

Say = Callable[[bytes], bytes]
"""Frames a message for those who hear it."""
Relay = Callable[[Say, int, bytes], Iterable[bytes]]
"""Gives what the others are sent for the message with that number, from 1, counted over all senders."""

EVENTS = b"text/event-stream"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % EVENTS

text: Say = partial(frame, mask=b"")
"""Say it to WebSockets."""


def chunk(data: bytes) -> bytes:
    """Make it a chunk of an answer."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(payload: bytes, kind: bytes = b"message") -> bytes:
    """Say it to followers, with as much about it as the generator looks at."""
    return chunk(b'id: e-1\nevent: %b\ndata: {"type":"message","text":"%b"}\n\n' % (kind, payload))


def as_it_is(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Relay a message unchanged."""
    yield say(payload)


class Chat:
    """The chat, on a port of its own, from ``with`` to the end of it: a thread for each client."""

    def __init__(
        self,
        relay: Relay = as_it_is,
        say: Say = text,
        *,
        echo: bool = False,
        answer: bytes = b"",
        reading: threading.Event | None = None,
    ) -> None:
        """Take how to relay and say it, whether to senders too, another answer to requests, what to read after."""
        self._relay = partial(relay, say)
        self._echo = echo
        accepted = f"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n".encode()
        self._answers = (answer or accepted, answer or STREAM)
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

    def __exit__(self, *error: object) -> None:
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
            follows = False
            while line := stream.readline().strip():
                follows |= EVENTS in line
            with self._lock:
                self._members.append(client)
            client.sendall(self._answers[follows])
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


def twice(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Relay it twice."""
    yield say(payload) * (2 if number == 5 else 1)


def never(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Drop it."""
    if number != 5:
        yield say(payload)


def never_again(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Drop it and all that come after."""
    if number < 5:
        yield say(payload)


def altered(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Change its last character."""
    yield say(payload[:-1] + b"!" if number == 5 else payload)


def shortened(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Leave its last character out."""
    yield say(payload[:-1] if number == 5 else payload)


def binary(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Send it as a binary message."""
    yield frame(payload, 2 if number == 5 else TEXT, mask=b"")


def hung_up(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Send a Close frame in its place."""
    yield frame(b"\x03\xf5", CLOSE, mask=b"") if number == 5 else say(payload)


def renamed(kind: bytes) -> Relay:
    """Make a relay that calls it something else in a stream of events."""

    def relay(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
        yield event(payload, kind) if number == 5 else say(payload)

    return relay


def lost(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Say in a stream of events that it is lost."""
    yield chunk(b'event: gap\ndata: {"type":"gap"}\n\n') if number == 5 else say(payload)


def ended(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """End the stream in its place."""
    yield b"0\r\n\r\n" if number == 5 else say(payload)


def later(behind: int) -> Relay:
    """Make a relay that sends it after so many others."""
    held: list[bytes] = []

    def relay(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
        if number == 5:
            held.append(payload)
        else:
            yield say(payload)
        if number == 5 + behind:
            yield say(held.pop())

    return relay


# What is unusual, but right


def with_ping(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Send a ping before each message."""
    yield frame(b"%d" % number, PING, mask=b"") + say(payload)


def long_lengths(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Write each length with 64 bits."""
    yield b"\x81\x7f" + len(payload).to_bytes(8) + payload


def byte_by_byte(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Send each byte alone."""
    whole = say(payload)
    yield from (whole[place : place + 1] for place in range(len(whole)))


def ten_at_once() -> Relay:
    """Make a relay that sends ten messages in one write."""
    held: list[bytes] = []

    def relay(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
        held.append(say(payload))
        if number % 10 == 0:
            yield b"".join(held)
            held.clear()

    return relay


def with_comments(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Send what an event stream may hold beside, before each message."""
    yield chunk(b":\n\n") + chunk(b"retry: 1000\n\n") + chunk(b'event: presence\ndata: {"type":"presence"}\n\n')
    yield say(payload)


def in_small_chunks(say: Say, number: int, payload: bytes) -> Iterable[bytes]:
    """Cut each event into chunks of 13 bytes, with extensions."""
    whole = say(payload).partition(b"\r\n")[2].removesuffix(b"\r\n")
    pieces = (whole[place : place + 13] for place in range(0, len(whole), 13))
    yield b"".join(b"%X;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
