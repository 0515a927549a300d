"""Bad input, spoken through a raw socket: each kind has its answer, and none reaches anybody else or the log."""

import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.system.daemon import Daemon
from tests.waiting import until

MASK = b"\x01\x02\x03\x04"
TEXT, BINARY, CLOSE = 0x81, 0x82, 0x88


@contextmanager
def dial(daemon: Daemon) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as raw:
        yield raw


@contextmanager
def websocket(daemon: Daemon, room: str = "") -> Iterator[socket.socket]:
    with dial(daemon) as raw:
        raw.sendall(handshake(f"/{room}"))
        assert read_head(raw).startswith("HTTP/1.1 101 ")
        yield raw


def handshake(target: str, *headers: bytes) -> bytes:
    lines = [
        f"GET {target} HTTP/1.1".encode(),
        b"Host: localhost",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((opcode, 0x80 | 126)) + size.to_bytes(2)
    else:
        head = bytes((opcode, 0x80 | 127)) + size.to_bytes(8)
    return head + MASK + bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))


def read_head(raw: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        assert byte, head
        head += byte
    return head.decode()


def read_answer(raw: socket.socket) -> tuple[int, dict[str, str]]:
    """Give the status and the JSON of an HTTP error; the connection must end after it."""
    data = b""
    while chunk := raw.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def read_close(raw: socket.socket) -> int:
    """Give the code of the Close frame that must come next, answer it, and see the connection end."""
    head = raw.recv(2)
    assert head[:1] == b"\x88", head
    payload = b""
    while len(payload) < head[1]:
        payload += raw.recv(head[1] - len(payload))
    raw.sendall(frame(CLOSE, payload[:2]))
    with suppress(ConnectionResetError):
        assert raw.recv(1) == b""
    code: int = struct.unpack("!H", payload[:2])[0]
    return code


@pytest.mark.parametrize(
    "target",
    [
        "/a/b",
        "/-x",
        "/a%20b",
        "/a%0Ab",
        "/%00",
        "/%FF",
        "/" + "x" * 65,
        "/%2F",
        "/a%2Fb",
        "/%C2%85",
        "/%E2%80%A8",
        "//",
    ],
)
def test_a_bad_room_name_is_404_before_the_upgrade(daemon: Daemon, target: str) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake(target))
        status, said = read_answer(raw)
    assert (status, said["error"]) == (404, "bad_room")


@pytest.mark.parametrize("target", ["/-/", "/-/nothing", "/-/healthz/x", "/-/readyz"])
def test_a_path_under_the_servers_own_is_no_room(daemon: Daemon, target: str) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake(target))
        status, said = read_answer(raw)
    assert (status, said["error"]) == (404, "not_found")


def test_an_unknown_path_of_the_servers_own_is_404_over_http(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        raw.sendall(b"GET /-/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status, said = read_answer(raw)
    assert (status, said["error"]) == (404, "not_found")


def test_a_bad_parameter_is_400(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/ops?echo=yes"))
        status, said = read_answer(raw)
    assert (status, said["message"]) == (400, "echo must be 0 or 1")


def test_a_bad_nick_is_400(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/ops?nick=a:b"))
        status, said = read_answer(raw)
    assert (status, said["message"]) == (400, 'a nick must not hold ":"')


def test_an_unknown_subprotocol_alone_is_400_and_told_what_is_spoken(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/ops", b"Sec-WebSocket-Protocol: mqtt, chatd.v2"))
        status, said = read_answer(raw)
    assert (status, said["error"]) == (400, "bad_request")
    assert "chatd.v1" in said["message"]


def test_a_known_subprotocol_among_others_is_chosen(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/ops", b"Sec-WebSocket-Protocol: mqtt", b"Sec-WebSocket-Protocol: chatd.v1"))
        assert "\r\nSec-WebSocket-Protocol: chatd.v1\r\n" in read_head(raw)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(BINARY, b"\x00\x01"), 1003),
        (frame(TEXT, b"caf\xe9"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"x" * 16385), 1009),
        (frame(TEXT, b"x" * 20000), 1009),
        (bytes((TEXT, 0xFF)) + (2**40).to_bytes(8) + MASK, 1009),
        (bytes((TEXT, 3)) + b"abc", 1002),
        (frame(0x83, b"reserved opcode"), 1002),
        (frame(0xC1, b"reserved bit"), 1002),
        (frame(0x80, b"nothing to continue"), 1002),
    ],
)
def test_a_bad_frame_is_closed_with_its_code_and_nobody_hears_it(daemon: Daemon, data: bytes, code: int) -> None:
    with daemon.connect("frames") as other, websocket(daemon, "frames") as raw:
        raw.sendall(frame(TEXT, b"good") + data)
        assert read_close(raw) == code
        assert other.recv(20) == "good"
        with daemon.connect("frames") as next_one:
            next_one.send("after")
            assert other.recv(20) == "after"
    assert set(daemon.texts()) <= {"good", "after", "still here", "x" * 16384}


def test_an_empty_line_is_for_nobody(daemon: Daemon) -> None:
    with daemon.connect("frames") as other, websocket(daemon, "frames") as raw:
        for empty in (b"", b"\n", b"\r\n"):
            raw.sendall(frame(TEXT, empty))
        raw.sendall(frame(TEXT, b"still here\n"))
        assert other.recv(20) == "still here"


def test_the_line_end_is_not_counted(daemon: Daemon) -> None:
    with daemon.connect("frames") as other, websocket(daemon, "frames") as raw:
        raw.sendall(frame(TEXT, b"x" * 16384 + b"\r\n"))
        assert other.recv(20) == "x" * 16384


def test_a_handshake_that_never_ends_is_answered_408(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/")[:-2])
        status, _ = read_answer(raw)
    assert status == 408


def test_a_hundred_kilobytes_of_header_are_431(daemon: Daemon) -> None:
    with dial(daemon) as raw:
        try:
            raw.sendall(handshake("/", b"X-Long: " + b"x" * 100_000))
            status, _ = read_answer(raw)
        except (ConnectionResetError, BrokenPipeError):
            status = 431  # hung up on while still talking: the answer may be lost with the connection
    assert status == 431


@pytest.mark.parametrize("byte", [0x00, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x7F, 0x85])
def test_a_control_byte_in_the_headers_is_400(daemon: Daemon, byte: int) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/", b"X-Junk: a" + bytes((byte,)) + b"X-Forwarded-User: admin"))
        status, said = read_answer(raw)
    assert (status, said["error"]) == (400, "bad_request")


@pytest.mark.parametrize("junk", [b"X-Junk: a\rX-Forwarded-User: admin", b"X-Junk: a\nX-Forwarded-User: admin"])
def test_a_bare_line_end_in_the_headers_is_400(daemon: Daemon, junk: bytes) -> None:
    with dial(daemon) as raw:
        raw.sendall(handshake("/", junk))
        status, _ = read_answer(raw)
    assert status == 400


def test_one_byte_at_a_time_is_a_frame_all_the_same(daemon: Daemon) -> None:
    with daemon.connect("frames") as other, dial(daemon) as raw:
        for byte in handshake("/frames"):
            raw.sendall(bytes((byte,)))
        assert read_head(raw).startswith("HTTP/1.1 101 ")
        for byte in frame(TEXT, b"still here"):
            raw.sendall(bytes((byte,)))
        assert other.recv(20) == "still here"


def test_a_client_that_closes_and_reads_no_more_does_not_keep_its_descriptor(daemon: Daemon) -> None:
    def connections() -> int:
        pids = daemon.worker_pids()
        return sum(
            "socket:" in os.readlink(f"/proc/{pid}/fd/{fd}") for pid in pids for fd in os.listdir(f"/proc/{pid}/fd")
        )

    with daemon.connect("flood") as talker:
        before = connections()
        with websocket(daemon, "flood") as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(600):  # more than its receive buffer and the server's send buffer hold
                talker.send("x" * 16384)
            raw.sendall(frame(CLOSE, (1000).to_bytes(2)))
            until(lambda: connections() <= before, "the descriptor to be closed", seconds=10)


def test_the_server_says_little_of_all_this(daemon: Daemon) -> None:
    beyond_start = re.split(r"connection_limit_set: .*\n", daemon.log())[1]
    lines = [line for line in beyond_start.splitlines() if "slow_consumers_detected" not in line]
    assert lines == []  # on a busy machine a client of these tests may read too slowly
