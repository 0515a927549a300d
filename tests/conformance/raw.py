"""A client that is nothing but a socket: it says any bytes, right or wrong, and is exact about what comes back."""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from tests.frames import CLOSE, PING, PONG, close_frame, frame, handshake
from tests.waiting import PATIENCE

Chop = Callable[[bytes], Iterator[bytes]]
"""How to cut what is sent into writes."""


def at_once(data: bytes) -> Iterator[bytes]:
    """Send all in one write."""
    yield data


def in_pieces(data: bytes) -> Iterator[bytes]:
    """Send each byte in a write of its own; of long data only the first hundred, and the rest in odd pieces."""
    for place in range(min(len(data), 100)):
        yield data[place : place + 1]
    for place in range(100, len(data), 7919):
        yield data[place : place + 7919]


BOTH_WAYS: tuple[Chop, ...] = (at_once, in_pieces)


class RawClient:
    """A WebSocket that is open, from ``with`` to the end of it."""

    def __init__(self, address: tuple[str, int], target: str = "/", **headers: str) -> None:
        """Open a WebSocket with these headers."""
        self._socket = socket.create_connection(address, timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self._socket.sendall(handshake(target, **headers))
        while b"\r\n\r\n" not in self._data:
            self._data += self._receive()
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def send(self, data: bytes, chop: Chop = at_once) -> None:
        for each in chop(data):
            self._socket.sendall(each)

    def end(self) -> None:
        """Close this side of the socket; the other may still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        assert data, f"the socket was closed after {self._data!r}"
        return data

    def _take(self, size: int) -> bytes:
        parts, have = [self._data], len(self._data)
        while have < size:
            parts.append(self._receive())
            have += len(parts[-1])
        data = b"".join(parts)
        self._data = data[size:]
        return data[:size]

    def raw_frame(self) -> tuple[int, bytes]:
        """Read a frame: its first byte, and its payload. Fails where it is masked or its length not minimal."""
        first, length = self._take(2)
        assert length < 128, "a server does not mask (RFC 6455, section 5.1)"
        if length == 126:
            length = int.from_bytes(self._take(2))
            assert length >= 126, "the minimal number of bytes must be used (section 5.2)"
        elif length == 127:
            length = int.from_bytes(self._take(8))
            assert 65_536 <= length < 2**63, "the minimal number of bytes must be used (section 5.2)"
        return first, self._take(length)

    def frame(self) -> tuple[int, bytes]:
        """Read a whole message or control frame, without extensions: opcode and payload."""
        first, payload = self.raw_frame()
        assert first & 0xF0 == 0x80, "FIN and no reserved bits"
        return first & 0x0F, payload

    def expect(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """See that exactly these frames come next."""
        for opcode, payload in frames:
            got = self.frame()
            if got != (opcode, payload):
                shown = f"({got[0]}, {len(got[1])} bytes: {got[1][:60]!r})"
                raise AssertionError(f"{shown} came in place of ({opcode}, {len(payload)} bytes: {payload[:60]!r})")

    def expect_alive(self) -> None:
        """See that nothing more came, and that the connection is still good."""
        self.send(frame(b"alive?", PING))
        self.expect([(PONG, b"alive?")])

    def expect_end(self) -> None:
        """See that the socket ends here, in order: with FIN, where a reset would raise."""
        assert self._data == b""
        assert self._socket.recv(1) == b""

    def expect_failure(self, code: int) -> None:
        """See that the server fails the connection: it says so, and closes its side, before we say Close."""
        opcode, payload = self.frame()
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, code)
        assert payload[2:].decode().isprintable()
        self.expect_end()
        self.send(close_frame(code))  # into a socket of which the other side is still open: no reset follows
        self.end()

    def expect_closing(self, code: int) -> None:
        """See that the server begins to close; answer, and see that it closes the socket."""
        opcode, payload = self.frame()
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, code)
        self.send(close_frame(code))
        self.expect_end()
