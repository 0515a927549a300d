"""The client's half of a WebSocket, for tests: a handshake, masked frames, and what came back taken apart."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, section 1.3, with the answer to it
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def handshake(target: str = "/", **headers: str) -> bytes:
    """Return a WebSocket handshake. A header replaces the usual one (``_`` is ``-``), an empty one leaves it out."""
    lines = {
        "Host": "localhost:3000",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    lines = {name: given.pop(name.lower(), value) for name, value in lines.items()} | given
    head = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items() if value)]
    return "\r\n".join([*head, "", ""]).encode()


def header(opcode: int, length: int, *, fin: bool = True, masked: bool = True) -> bytes:
    """Begin a frame: all that stands before the mask."""
    first, bit = (0x80 if fin else 0) | opcode, 0x80 if masked else 0
    if length < 126:
        return bytes((first, bit | length))
    if length < 65536:
        return bytes((first, bit | 126)) + length.to_bytes(2)
    return bytes((first, bit | 127)) + length.to_bytes(8)


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """Make a masked frame; an empty mask leaves it bare, as only servers may."""
    if mask:
        masked = bytes(each ^ mask[place % 4] for place, each in enumerate(payload))
        return header(opcode, len(payload), fin=fin) + mask + masked
    return header(opcode, len(payload), fin=fin, masked=False) + payload


def close_frame(code: int = 1000, reason: bytes = b"") -> bytes:
    """Make a client's Close frame."""
    return frame(code.to_bytes(2) + reason, CLOSE)


@dataclass
class Heard:
    """The answer of a server, with its frames."""

    status: int = 0
    """Of the handshake; 0 where there is no answer yet."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    """The data after the headers if the status is not 101."""
    frames: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [payload.decode() for opcode, payload in self.frames if opcode == TEXT]

    @property
    def close_code(self) -> int:
        """Return the code of the Close frame, which is the last one; 0 if there is none."""
        opcode, payload = self.frames[-1] if self.frames else (0, b"")
        return int.from_bytes(payload[:2]) if opcode == CLOSE else 0


def heard(data: bytes) -> Heard:
    """Parse all that a server has sent: whole frames only, none of them masked or fragmented."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        assert not data
        return Heard()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    answer = Heard(int(first.split(" ")[1]), headers)
    if answer.status != 101:
        answer.body = rest
    else:
        answer.frames = frames(rest)
    return answer


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Parse frames of a server into opcodes and payloads."""
    found = []
    while data:
        assert data[0] & 0xF0 == 0x80
        assert data[1] < 0x80
        start, size = 2, data[1]
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start])
        assert len(data) >= start + size
        found.append((data[0] & 0x0F, data[start : start + size]))
        data = data[start + size :]
    return found


@contextmanager
def websocket_over_tls(address: tuple[str, int], trust: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Connect to localhost: from one thread, for a TLS connection of Python 3.11 is not for two at a time."""
    with (
        socket.create_connection(address, timeout=20) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(handshake())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += secure.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        yield secure
