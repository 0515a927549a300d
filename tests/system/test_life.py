"""Clients that read a little at a time and never stop live, over every kind of socket; one that stops does not."""

import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.frames import PING, PONG, TEXT, frame, handshake
from tests.waiting import PATIENCE
from tests.worker.test_worker import Station

SIZE = 16_000
"""Bytes of a message."""
BEFORE = 150
"""Messages that are said before anybody reads slowly: one of them asks for all of these."""
SILENT = 1.5
"""Seconds without a sign of life after which a client is dropped."""
OPTIONS: dict[str, Any] = {
    "ping_interval": 0.2,
    "pong_timeout": SILENT,
    "stalled_client_timeout": 4 * SILENT,
    "http_send_timeout": 4 * SILENT,
    "http_send_check_interval": 0.2,
    "tcp_keepalive_time": 1,
    "tcp_keepalive_interval": 1,
    "tcp_keepalive_probes": 1,
    "history_size": 100_000,
    "max_send_buffer": 100_000_000,  # so that ever more waits for who reads slowly
}


class Reader:
    """A client that reads by pieces."""

    def __init__(self, client: socket.socket, hello: bytes) -> None:
        client.sendall(hello)
        self.client = client
        self.texts: list[bytes] = []
        self._pings: list[bytes] = []
        self.data = bytearray()
        """What it has read, but for the head of the answer, and whole frames."""
        while not self.data.endswith(b"\r\n\r\n"):
            self.data += client.recv(1)
        self._upgraded = self.data.startswith(b"HTTP/1.1 101 ")
        self.data.clear()

    def read(self, most: int) -> int:
        """Read so much at most; give how much it was: 0 at the end."""
        chunk = self.client.recv(most)
        self.data += chunk
        while self._upgraded and (whole := self._whole_frame()):
            opcode, payload = whole
            if opcode == TEXT:
                self.texts.append(payload)
            elif opcode == PING:
                self._pings.append(payload)
        return len(chunk)

    def answer(self) -> bool:
        """Answer the pings that it has come to; give whether there were any."""
        pings, self._pings = self._pings, []
        for payload in pings:
            self.client.sendall(frame(payload, PONG))
        return bool(pings)

    def _whole_frame(self) -> tuple[int, bytes] | None:
        if len(self.data) < 4:  # none of them is shorter: a ping has a payload
            return None
        size, start = (self.data[1], 2) if self.data[1] < 126 else (int.from_bytes(self.data[2:4]), 4)
        if len(self.data) < start + size:
            return None
        opcode, payload = self.data[0] & 0x0F, bytes(self.data[start : start + size])
        del self.data[: start + size]
        return opcode, payload

    def read_up_to(self, number: int) -> list[int]:
        """Read up to a message; give the numbers of all that it has heard."""
        last = b"%06dx" % number
        while not any(last in each[:7] for each in self.texts[-1:]) and last not in self.data[-2 * SIZE :]:
            assert self.read(1 << 20)
        return [int(number) for number in re.findall(rb"(\d{6})x", b" ".join([*self.texts, self.data]))]

    def is_dropped(self) -> bool:
        """Whether the server has reset or closed the connection, whatever was not read."""
        look = select.poll()
        look.register(self.client, select.POLLIN)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in look.poll(0))


class Room:
    """A room through one kind of socket, in which somebody talks and somebody else listens."""

    def __init__(self, connect: Callable[[int], socket.socket], stack: ExitStack) -> None:
        self._connect = connect
        self._stack = stack
        self._talker = self.enter(handshake())
        self._hearer = self.enter(handshake())
        self.said = 0

    def enter(self, hello: bytes, keeps: int = 32_768) -> Reader:
        """Let somebody in, whose kernel keeps so much for it."""
        return Reader(self._stack.enter_context(self._connect(keeps)), hello)

    def ask(self, target: str) -> Reader:
        """Let somebody in over HTTP."""
        return self.enter(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    def say(self) -> None:
        """Say something, and see that it is heard."""
        self._talker.client.sendall(frame(b"%06d" % self.said + b"x" * (SIZE - 6)))
        self.said += 1
        while len(self._hearer.texts) < self.said:
            assert self._hearer.read(65536)
        self._hearer.answer()


@pytest.fixture(params=["tcp", "tls", "unix"])
def room(request: pytest.FixtureRequest, tmp_path: Path, valkey_url: str, certificate: Path) -> Iterator[Room]:
    """Give a room of a real worker, to be reached in one of these ways."""
    station, path = Station(tmp_path, valkey_url), ""
    trust = ssl.create_default_context(cafile=str(certificate))
    endpoint = "tcp:0:interface=127.0.0.1"
    if request.param == "tls":
        endpoint = f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1"
    elif request.param == "unix":
        path = str(tmp_path / "chatd.sock")
        endpoint = f"unix:{path}"

    def connect(keeps: int) -> socket.socket:
        client = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, keeps)
        client.settimeout(PATIENCE)
        client.connect(path or ("127.0.0.1", station.port))
        return trust.wrap_socket(client, server_hostname="localhost") if request.param == "tls" else client

    with station.worker(endpoint, path=path, **OPTIONS), ExitStack() as stack:
        yield Room(connect, stack)


def test_who_reads_slowly_without_a_pause_lives_and_who_stands_still_does_not(room: Room) -> None:
    for _ in range(BEFORE):
        room.say()
    slow, still = room.enter(handshake()), room.enter(handshake())
    follower, asker = room.ask("/?follow=1&last=0"), room.ask("/?last=1000")
    end = time.monotonic() + PATIENCE
    while not still.is_dropped():  # the slow one answers no ping meanwhile: it might have to read much before
        assert time.monotonic() < end, "the one that reads nothing is not dropped"
        room.say()
        for reader, part in ((slow, 2), (follower, 2), (asker, 4)):  # what these have read is looked at below
            reader.read(SIZE // part)
    assert slow.answer()
    room.say()
    for reader in (slow, follower):  # they come up with the others, and have missed nothing
        assert reader.read_up_to(room.said - 1) == list(range(BEFORE, room.said))
    assert asker.read_up_to(BEFORE - 1)


@pytest.mark.parametrize("room", ["tcp", "tls"], indirect=True)
@pytest.mark.parametrize("count", [25, 75], ids=["all is in its kernel", "some waits"])
def test_who_reads_slowly_lives_though_its_kernel_keeps_much_for_it(room: Room, count: int) -> None:
    slow = room.enter(handshake(), 300_000)
    for _ in range(count):
        room.say()
    read, began = 0, time.monotonic()
    while read < 20 * SIZE:  # within 4 seconds
        read += slow.read(SIZE // 4)
        time.sleep(max(0, began + read / (5 * SIZE) - time.monotonic()))
    assert slow.read_up_to(count - 1) == list(range(count))
    while not slow.answer():  # the ping comes after what was said
        assert slow.read(SIZE)
    assert not slow.is_dropped()
