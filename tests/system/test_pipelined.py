"""Several HTTP requests at once on one connection, however it is made: no answer is lost, and none waits in memory."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.authority import self_signed
from tests.frames import frame, handshake
from tests.system.daemon import Daemon
from tests.system.test_hostile import SLACK, memory
from tests.waiting import until

TEXTS = 60
SIZE = 16_000
"""Bytes of each: the room's history is less than ``--max-send-buffer``."""
SAID = (b"x" * SIZE + b"\n") * TEXTS
FIRST = b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class PipelinedServer:
    """A chatd with one worker that listens in every way, and a room in which much was said."""

    def __init__(self, daemon: Daemon, pem: Path) -> None:
        self.daemon = daemon
        self.plain, self.tls, self.proxied = (
            int(daemon.wait_for(pattern)[1])
            for pattern in (r" ws://127.0.0.1:(\d+)", r"wss://127.0.0.1:(\d+)", r"PROXY protocol: [^ ]*?:(\d+)\n")
        )
        self._trust = ssl.create_default_context(cafile=str(pem))
        daemon.port = self.plain
        [self.worker] = daemon.worker_pids()
        with self.connect_plainly() as talker:
            talker.sendall(handshake("/big") + frame(b"x" * SIZE) * TEXTS)
            until(lambda: self.ask() == (200, SAID), "all to be said")

    def ask(self) -> tuple[int, bytes]:
        """Ask for what was said."""
        with self.connect_plainly() as client, client.makefile("rb") as stream:
            client.sendall(b"GET /big?last=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return read_answer(stream)

    def _connect(self, port: int) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # else the kernel has room for all answers
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        return client

    def connect_plainly(self) -> socket.socket:
        return self._connect(self.plain)

    def connect_with_tls(self) -> socket.socket:
        return self._trust.wrap_socket(self._connect(self.tls), server_hostname="localhost")

    def connect_through_a_proxy(self) -> socket.socket:
        client = self._connect(self.proxied)
        client.sendall(b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 3000\r\n")
        return client

    def connect_to_unix(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(self.daemon.unix_socket)
        return client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelinedServer]:
    folder = tmp_path_factory.mktemp("pipelined")
    pem = self_signed(folder / "localhost.pem")
    own = "interface=127.0.0.1"
    listen = [f"tcp:0:{own}", f"ssl:0:privateKey={pem}:certKey={pem}:{own}", f"haproxy:tcp:0:{own}"]
    options = [option for endpoint in listen for option in ("--listen", endpoint)]
    daemon = Daemon(folder, *options, workers=1, any_port=False)
    daemon.unix_socket = str(folder / "chatd.sock")
    with daemon:
        yield PipelinedServer(daemon, pem)


Way = Callable[[PipelinedServer], socket.socket]
WAYS: list[Way] = [
    PipelinedServer.connect_plainly,
    PipelinedServer.connect_with_tls,
    PipelinedServer.connect_through_a_proxy,
    PipelinedServer.connect_to_unix,
]


@contextmanager
def asked(server: PipelinedServer, way: Way, count: int) -> Iterator[socket.socket]:
    """Ask for the room again and again, each time with something else behind it, and at last to close."""
    with way(server) as client:
        pairs = (
            b"GET /big?last=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            b"GET /-/missing-%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number
            for number in range(count)
        )
        client.sendall(b"".join(pairs) + b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        yield client


def read_answer(stream: BinaryIO) -> tuple[int, bytes]:
    """Read an answer; give its status and body."""
    status = int(stream.readline().split(b" ")[1])
    length = 0
    while line := stream.readline().rstrip():
        name, _, value = line.lower().partition(b": ")
        if name == b"content-length":
            length = int(value)
    return status, stream.read(length)


@pytest.mark.parametrize("way", WAYS, ids=[each.__name__ for each in WAYS])
def test_who_reads_gets_all_answers_whole_and_in_order(server: PipelinedServer, way: Way) -> None:
    with asked(server, way, 25) as client, client.makefile("rb") as stream:
        answers = [read_answer(stream) for _ in range(51)]
        assert stream.read() == b""
    assert [status for status, _ in answers] == [200, 404] * 25 + [200]
    assert all(body == SAID for _, body in answers[:-1:2])
    assert answers[-1][1] == b"ok\n"


HALF_CLOSING = [way for way in WAYS if way is not PipelinedServer.connect_with_tls]
"""Ways in which a client can close its half of the connection; TLS has only both."""


@pytest.mark.parametrize("way", HALF_CLOSING, ids=[each.__name__ for each in HALF_CLOSING])
def test_who_closes_its_half_behind_its_requests_gets_all_answers(server: PipelinedServer, way: Way) -> None:
    post = b"POST /halves HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    get = b"GET /big?last=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with way(server) as client, client.makefile("rb") as stream:
        client.sendall(post + get * 20)
        client.shutdown(socket.SHUT_WR)
        assert [read_answer(stream)[0] for _ in range(21)] == [201] + [200] * 20
        assert stream.read() == b""


@pytest.mark.parametrize("way", HALF_CLOSING, ids=[each.__name__ for each in HALF_CLOSING])
@pytest.mark.parametrize("request_line", ["GET /-/missing HTTP/1.0", "GET / HTTP/3.0", "nonsense"])
def test_who_closes_its_half_is_told_that_it_is_refused(server: PipelinedServer, way: Way, request_line: str) -> None:
    with way(server) as client, client.makefile("rb") as stream:
        client.sendall(f"{request_line}\r\nHost: localhost\r\n\r\n".encode())
        client.shutdown(socket.SHUT_WR)
        status, body = read_answer(stream)
        assert (status, body[:10]) == (404 if "missing" in request_line else 400, b'{"error":"')
        assert stream.read() == b""


@pytest.mark.parametrize("way", HALF_CLOSING, ids=[each.__name__ for each in HALF_CLOSING])
@pytest.mark.parametrize(
    "rest",
    [b"", FIRST[:-2], b"POST /halves HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell"],
    ids=["nothing", "a head", "a body"],
)
def test_who_closes_its_half_within_a_request_gets_the_answers_to_those_before(
    server: PipelinedServer, way: Way, rest: bytes
) -> None:
    with way(server) as client, client.makefile("rb") as stream:
        client.sendall(FIRST + rest)
        client.shutdown(socket.SHUT_WR)
        assert read_answer(stream) == (200, b"ok\n")
        assert stream.read() == b""


@pytest.mark.parametrize("way", HALF_CLOSING, ids=[each.__name__ for each in HALF_CLOSING])
@pytest.mark.parametrize(
    "hello",
    [handshake("/"), b"GET /?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=["a WebSocket", "a stream"],
)
def test_who_closes_its_half_follows_nothing(server: PipelinedServer, way: Way, hello: bytes) -> None:
    with way(server) as client, client.makefile("rb") as stream:
        client.sendall(hello)
        client.shutdown(socket.SHUT_WR)
        stream.read()  # to the end


@pytest.mark.parametrize("way", WAYS, ids=[each.__name__ for each in WAYS])
def test_who_does_not_read_has_no_more_than_one_answer_waiting(server: PipelinedServer, way: Way) -> None:
    before = memory(server.worker)
    with asked(server, way, 100):
        for _ in range(100):  # the other one's turns come as often as these
            server.ask()
        assert memory(server.worker) <= before + SLACK


def test_a_second_head_that_comes_line_by_line_ends_in_time(server: PipelinedServer) -> None:
    with server.connect_plainly() as client:
        client.sendall(FIRST)
        heard = client.recv(65536)
        client.sendall(b"GET /ops HTTP/1.1\r\n")
        client.settimeout(0.5)

        def refused() -> bool:
            nonlocal heard
            try:
                heard += client.recv(65536)
            except TimeoutError:
                client.sendall(b"X-Slow: and slower\r\n")
            return b"HTTP/1.1 408 " in heard

        until(refused, "the end of it")
        assert heard.count(b"HTTP/1.1 ") == 2


def test_a_second_head_has_the_bound_of_the_first_one(server: PipelinedServer) -> None:
    with server.connect_plainly() as client:
        client.sendall(FIRST + b"GET /ops HTTP/1.1\r\nHost: localhost\r\n" + b"X: %b\r\n" % (b"y" * 995) * 12 + b"\r\n")
        with client.makefile("rb") as stream:
            assert read_answer(stream) == (200, b"ok\n")
            status, body = read_answer(stream)
            assert (status, b'"too_large"' in body) == (431, True)
            assert stream.read() == b""
