"""An HTTP client of a worker on a bus in memory and a clock."""

import json
import re
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
    http_keepalive_timeout=7,
    flush_interval=0,
    max_message_size=100,
    client_body_timeout=5,
    subscribe_timeout=5,
    publish_timeout=10,
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
        self.shards = [Shard("broker", bus, self.hub)]
        self.site = Site(self.clock, Shards(self.shards), self.connections, meter)

    def turn(self) -> None:
        """Deliver everything that is on its way."""
        for _ in range(3):
            self.clock.advance(0)
            self.bus.pump()
        self.clock.advance(0)

    def publish(self, *texts: str, room: str = "ops", nick: str = "") -> None:
        """Publish messages from another worker."""
        messages = [Message(f"other.{text}", NOON * 1000, "other", text, nick) for text in texts]
        self.bus.say(room, messages, len(self.bus.kept), "elsewhere")
        self.turn()

    def join(self, nick: str, room: str = "ops") -> FakeMember:
        """Add a subscriber that gets presence events."""
        subscriber = FakeMember(nick, nick=nick, receives_presence=True)
        self.hub.join(room, subscriber)
        self.turn()
        return subscriber


class HttpClient:
    """A client on a connection of its own."""

    def __init__(self, server: ChatServer | None = None) -> None:
        self.server = server or ChatServer()
        self.clock, self.bus, self.site = self.server.clock, self.server.bus, self.server.site
        protocol: Any = self.site.buildProtocol(None)
        self.transport = FakeTransport(self.clock, protocol)
        protocol.makeConnection(self.transport)

    @property
    def received(self) -> bytes:
        """What the server has sent since the last request."""
        data: bytes = self.transport.value()
        return data

    @property
    def answer(self) -> Heard:
        return heard(self.received)

    @property
    def closed(self) -> bool:
        return self.transport.lost is not None

    def send(self, line: str, *lines: str, body: bytes = b"", host: str = "chat.example:3000") -> None:
        """Send a request, or the beginning of one; a Content-Length is added to a body that has no length."""
        self.transport.clear()
        version = "" if " HTTP/" in line else " HTTP/1.1"
        length = (
            [f"Content-Length: {len(body)}"] if body and not re.search("Content-Length|chunked", str(lines)) else []
        )
        head = [f"{line}{version}", f"Host: {host}", *lines, *length, "", ""]
        self.transport.receive("\r\n".join(head).encode() + body)
        self.server.turn()

    def request(self, line: str, *lines: str, body: bytes = b"", host: str = "chat.example:3000") -> Heard:
        """Send a request and return the answer."""
        self.send(line, *lines, body=body, host=host)
        return self.answer

    def post(self, target: str, body: bytes | str, content_type: str = "") -> Heard:
        data = body.encode() if isinstance(body, str) else body
        lines = [f"Content-Type: {content_type}"] if content_type else []
        return self.request(f"POST {target}", *lines, *([] if data else ["Content-Length: 0"]), body=data)

    def error(self, line: str, *lines: str, body: bytes = b"") -> tuple[int, str]:
        """Send a request and return the status and code of the error."""
        return error(self.request(line, *lines, body=body))

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.turn()


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

    @property
    def waiting(self) -> int:
        """How many bytes the server holds for the client."""
        waiting: int = len(self.transport.dataBuffer) - self.transport.offset + self.transport._tempDataLen
        return waiting

    def send(self, line: str) -> None:
        """Send a request and wait until the transport pauses its producer."""
        self.socket.sendall(f"{line} HTTP/1.1\r\nHost: chat.example\r\n\r\n".encode())
        self.until(lambda: self.waiting > FakeTransport.MARK, "an answer that waits")

    def until(self, condition: Any, why: str) -> None:
        """Run the reactor until a condition holds."""

        def step() -> bool:
            self.reactor.iterate(0)
            self.server.turn()
            return bool(condition())

        until(step, why)

    def read_down_to(self, size: int) -> None:
        """Read until at most this many bytes wait for the client."""

        def read() -> bool:
            with suppress(BlockingIOError):
                self.socket.recv(10_000)
            return self.waiting <= size

        self.until(read, f"{size} bytes that wait")

    def close(self) -> None:
        """Close the connection on both ends."""
        self.socket.close()
        if self.transport.connected:
            self.transport.connectionLost(Failure(ConnectionError()))


def error(answer: Heard) -> tuple[int, str]:
    """Return the status and code of an error."""
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)["error"]
