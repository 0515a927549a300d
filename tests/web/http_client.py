"""An HTTP client of a worker on a bus in memory and a clock."""

import json
import socket
from contextlib import suppress
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.python.failure import Failure

from chatd.clients.factory import ConnectionFactory
from chatd.config.settings import Config
from chatd.protocol.message import Message
from chatd.rooms.hub import Hub
from chatd.rooms.sharding import Shard, Shards
from chatd.web.site import Site
from tests.fakes import FakeBus, FakeChatLog, FakeMember, FakeMeter, FakeTransport
from tests.frames import Heard, heard
from tests.waiting import until

CONFIG = Config(
    http_idle_seconds=7, flush_interval=0, max_message_size=100, body_seconds=5, join_seconds=5, publish_timeout=10
)
NOON = 1_790_000_000


class ChatServer:
    """A worker's HTTP side."""

    def __init__(self, config: Config = CONFIG, **options: Any) -> None:
        self.clock = Clock()
        self.bus = FakeBus(history=config.history_size)
        bus: Any = self.bus
        self.chat_log = FakeChatLog()
        self.hub = Hub(bus, self.chat_log.log, config, self.clock, now=lambda: NOON)
        self.token_verifier: Any = options.get("token_verifier")
        self.connections = ConnectionFactory(self.clock, lambda room: self.hub, config, "w", **options)
        self.meter = FakeMeter()
        meter: Any = self.meter
        self.site = Site(self.clock, Shards([Shard("broker", bus, self.hub)]), self.connections, meter)

    def turn(self) -> None:
        """Let everything that is on its way arrive."""
        for _ in range(3):
            self.clock.advance(0)
            self.bus.pump()
        self.clock.advance(0)

    def say(self, *texts: str, room: str = "ops", nick: str = "") -> None:
        """Let somebody on another worker say something."""
        messages = [Message(f"other.{text}", NOON * 1000, "other", text, nick) for text in texts]
        self.bus.say(room, messages, len(self.bus.kept), "elsewhere")
        self.turn()

    def member(self, nick: str, room: str = "ops") -> FakeMember:
        """Let somebody be in a room who hears who comes and goes."""
        member = FakeMember(nick, nick=nick, receives_presence=True)
        self.hub.join(room, member)
        self.turn()
        return member


class HttpClient:
    """A client on a connection of its own."""

    def __init__(self, server: ChatServer | None = None) -> None:
        self.server = server or ChatServer()
        self.clock, self.bus, self.site = self.server.clock, self.server.bus, self.server.site
        protocol: Any = self.site.buildProtocol(None)
        self.transport = FakeTransport(self.clock, protocol)
        protocol.makeConnection(self.transport)

    def send(self, line: str, *lines: str, body: bytes = b"", host: str = "chat.example:3000") -> None:
        """Send a request, or the beginning of one."""
        self.transport.clear()
        version = "" if " HTTP/" in line else " HTTP/1.1"
        self.transport.receive("\r\n".join([f"{line}{version}", f"Host: {host}", *lines, "", ""]).encode() + body)
        self.server.turn()

    def ask(self, line: str, *lines: str, body: bytes = b"", host: str = "chat.example:3000") -> Heard:
        """Send a request; give what came back of it."""
        self.send(line, *lines, body=body, host=host)
        return heard(self.transport.value())

    def post(self, target: str, body: bytes | str, kind: str = "") -> Heard:
        """Send a request with a body."""
        data = body.encode() if isinstance(body, str) else body
        lines = [f"Content-Length: {len(data)}", *([f"Content-Type: {kind}"] if kind else ())]
        return self.ask(f"POST {target}", *lines, body=data)

    def error(self, line: str, *lines: str, body: bytes = b"") -> tuple[int, str]:
        """Send a request; give the status and code of the error that came back."""
        return error(self.ask(line, *lines, body=body))


class SlowHttpClient:
    """A client on a TCP connection with small buffers, which reads when the test says so."""

    def __init__(self, server: ChatServer, reactor: Any) -> None:
        self.server, self.reactor = server, reactor
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            self.socket = socket.socket()
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.socket.connect(listener.getsockname())
            near, address = listener.accept()
        near.setblocking(False)
        self.socket.setblocking(False)
        self.channel: Any = server.site.buildProtocol(None)
        port: Any = None
        self.transport = Server(near, self.channel, address, port, 0, reactor)
        self.channel.makeConnection(self.transport)
        self.transport.startReading()
        self.heard = b""

    @property
    def waiting(self) -> int:
        """How many bytes wait for it on the server."""
        waiting: int = len(self.transport.dataBuffer) - self.transport.offset + self.transport._tempDataLen
        return waiting

    def send(self, line: str) -> None:
        """Send a request, and wait until more waits for the client than a transport likes to keep."""
        self.socket.sendall(f"{line} HTTP/1.1\r\nHost: chat.example\r\n\r\n".encode())
        self.until(lambda: self.waiting > FakeTransport.MARK, "an answer that waits")

    def until(self, condition: Any, why: str) -> None:
        """Turn until something is so."""

        def step() -> bool:
            self.reactor.iterate(0)
            self.server.turn()
            return bool(condition())

        until(step, why)

    def read_down_to(self, size: int) -> None:
        """Read until no more than so many bytes wait for it."""

        def read() -> bool:
            with suppress(BlockingIOError):
                self.heard += self.socket.recv(10_000)
            return self.waiting <= size

        self.until(read, f"{size} bytes that wait")

    def close(self) -> None:
        """Let it be gone."""
        self.socket.close()
        if self.transport.connected:
            self.transport.connectionLost(Failure(ConnectionError()))


def error(answer: Heard) -> tuple[int, str]:
    """Give the status and code of an error."""
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)["error"]
