"""What is fuzzed: each target takes bytes, and raises where a promise is broken. Its seeds are where it begins."""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from chatd.access.tokens import BadToken, TokenVerifier
from chatd.clients.factory import ConnectionFactory
from chatd.config.settings import Config
from chatd.protocol import http_api, json_v1, text
from chatd.protocol.http_head import HEAD_END, Refused, follows, read_head, read_target, read_upgrade, tokens_of_target
from chatd.protocol.json_line import encode
from chatd.protocol.nick import BadNick, as_nick, candidates, folded, read_nick
from chatd.protocol.websocket_frames import LONGEST, take_texts
from chatd.rooms.hub import Hub
from chatd.rooms.sharding import Shard, Shards
from chatd.web.site import Site
from chatd.worker.listener import ListenerFactory
from tests.access.issuer import private_key, public_pem, token
from tests.fakes import FakeBus, FakeChatLog, FakeMeter, FakeTransport
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, handshake, header


@dataclass(frozen=True)
class Target:
    """One of them."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]


# wire/


def head(data: bytes) -> None:
    """Read a head and all that may be read of it: it is refused, or it is one."""
    try:
        request = read_head(data + HEAD_END)
    except Refused:
        return
    for read in (
        lambda: read_upgrade(request),
        lambda: read_target(request.target),
        lambda: follows(request.target),
        lambda: tokens_of_target(request.target),
        lambda: http_api.read_event_id(request.headers.get("last-event-id", "")),
        lambda: http_api.read_publish_body(request.headers.get("content-type"), data, 1000),
    ):
        try:
            read()
        except Refused as refused:
            refused.response()
    http_api.choose_form(request.headers.get("accept"))


def target(data: bytes) -> None:
    """Read a request target: a room and its parameters are within their bounds."""
    try:
        place = read_target(data)
    except Refused:
        return
    assert 1 <= len(place.room) <= 64
    assert read_target(data) == place
    assert not place.nick or read_nick(place.nick) == place.nick
    assert not place.resume or 8 <= len(place.resume) <= 64


def frames(data: bytes) -> None:
    """Take messages from a buffer: no more than there is, each of them text, the same however the buffer is cut."""
    most = min(LONGEST, 1000)
    texts, used, _ = take_texts(data, most)
    assert 0 <= used <= len(data)
    for each in texts:
        assert len(each.encode()) <= most
    cut = used // 2
    first, used_first, _ = take_texts(data[:cut], most)
    rest, used_rest, _ = take_texts(data[used_first:], most)
    assert [*first, *rest][: len(texts)] == texts
    assert used_first + used_rest >= used


def request(data: bytes) -> None:
    """Read a request of chatd.v1: it is refused in a line that can be sent, or it is one."""
    try:
        found = json_v1.read_request(data)
    except json_v1.BadRequest as bad:
        encode(json_v1.Error("bad_request", bad.message, ref=bad.ref))
        assert "\n" not in bad.message
        return
    again = json_v1.read_request(encode(found))
    assert again == found


def line(data: bytes) -> None:
    """Read a line that somebody types: what is shown of it is safe, and ends nowhere."""
    typed = data.decode("utf-8", "ignore")
    said = text.read_line(typed)
    assert text.utf8_size(said) <= len(typed.encode())
    shown = text.safe(said)
    assert not any((ord(each) < 32 and each != "\t") or 127 <= ord(each) < 160 for each in shown)
    if said:
        match text.read_command(said):
            case text.Answer(lines):
                assert all(each.startswith("* ") and "\n" not in each for each in lines)
            case text.Rename(nick):
                assert read_nick(nick) == nick


def nick(data: bytes) -> None:
    """Read a nick: what is one stays one, and so do those that are tried where it is taken, up to their number."""
    wanted = data.decode("utf-8", "ignore")
    like = as_nick(wanted)
    assert len(like) <= 32 and (not like or read_nick(like.partition("*")[0]))
    try:
        found = read_nick(wanted)
    except BadNick:
        return
    assert read_nick(found) == found
    assert folded(folded(found)) == folded(found)
    for _, each in zip(range(12), candidates(found), strict=False):
        base = each.partition("*")[0]
        assert len(each) <= 32 and read_nick(base) == base


# gate/


def bearer(data: bytes) -> None:
    """Check a token, and claims that somebody has signed: it is refused, or says what it says."""
    for text_ in (data.decode("latin-1"), _signed(data)):
        try:
            permissions = _token_verifier().check(text_, 1_790_000_000)
        except BadToken as bad:
            assert "\n" not in str(bad)
            continue
        assert not permissions.nick or read_nick(permissions.nick) == permissions.nick
        permissions.may_read("ops")
        permissions.may_write("ops")


def _signed(claims: bytes) -> str:
    import jwt

    return jwt.PyJWS().encode(claims, private_key("Ed25519"), "EdDSA")


_GUARD: list[TokenVerifier] = []


def _token_verifier() -> TokenVerifier:
    if not _GUARD:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(public_pem())
            file.flush()
            _GUARD.append(TokenVerifier([file.name]))
            _GUARD[0].read()
    return _GUARD[0]


# The whole path of a client

MOST = 200
LIMITED = Config(
    max_message_size=MOST,
    flush_interval=0,
    compress=True,
    rooms_per_client=3,
    message_rate="1000",
    message_burst=50,
    history_size=10,
)
GREETINGS = (
    b"",
    handshake("/ops"),
    handshake("/ops?nick=ann&last=3&echo=1"),
    handshake("/ops", sec_websocket_protocol="chatd.v1"),
    handshake("/ops?nick=bob", sec_websocket_extensions="permessage-deflate"),
    b"POST /ops HTTP/1.1\r\nHost: localhost\r\n",
    b"GET /ops?follow=1 HTTP/1.1\r\nHost: localhost\r\n",
)
"""How a connection begins; the first byte of the input chooses. What follows is what the client sends then."""
PEER = IPv4Address("TCP", "192.0.2.7", 40000)


class World:
    """A worker on a bus in memory, made anew now and then: what it has heard stays in its rooms."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.bus = FakeBus()
        bus: Any = self.bus
        meter: Any = FakeMeter()
        hub = Hub(bus, FakeChatLog().log, LIMITED, self.clock, lambda: 0)
        connections = ConnectionFactory(self.clock, lambda room: hub, LIMITED, "w", now=lambda: 0)
        site = Site(self.clock, Shards([Shard("broker", bus, hub)]), connections, meter)
        self.incomings = ListenerFactory(self.clock, connections, site, LIMITED, 10).port(exposed=True)
        self.site, self.connections = site, connections
        self.visits = 0

    def visit(self, data: bytes) -> None:
        """Let a client come that sends this, in pieces, and go."""
        self.visits += 1
        before = len(self.bus.published)
        protocol: Any = self.incomings.buildProtocol(PEER)
        transport = FakeTransport(self.clock, protocol, PEER)
        protocol.makeConnection(transport)
        for piece in pieces(data):
            transport.receive(piece)
            self.turn()
            owner = transport.protocol
            assert len(getattr(owner, "data", b"")) <= 64 * MOST, "what is not a whole frame yet is bounded"
        assert len(transport.value()) <= 100_000 + 200 * len(data), "what is answered is bounded"
        for _, messages in self.bus.published[before:]:
            for each in messages:
                assert each.text
                assert len(each.text.encode()) <= MOST
        transport.vanish()
        self.turn()
        self.clock.advance(60)
        self.turn()
        assert not self.connections.connections
        assert not self.site.channels

    def turn(self) -> None:
        for _ in range(3):
            self.clock.advance(0)
            self.bus.pump()
        self.clock.advance(0)


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut what is sent as its first two bytes say: which greeting, and how long each piece is."""
    if len(data) < 2:
        return
    yield GREETINGS[data[0] % len(GREETINGS)]
    rest, step = data[2:], data[1] or len(data)
    for at in range(0, len(rest), step):
        yield rest[at : at + step]


_WORLD: list[World] = []
_FAILURES: list[LogEvent] = []


@implementer(ILogObserver)
def _note(event: LogEvent) -> None:
    if "log_failure" in event:
        _FAILURES.append(event)


globalLogPublisher.addObserver(_note)


def client(data: bytes) -> None:
    """Let a client come: nothing that it sends makes an error of ours, or anything without bound."""
    if not _WORLD or _WORLD[0].visits >= 200:
        _WORLD[:] = [World()]
    _FAILURES.clear()
    _WORLD[0].visit(data)
    if _FAILURES:
        raise AssertionError(_FAILURES[0]["log_failure"].getTraceback())


def _open(payload: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """Make a frame whose mask changes nothing: what is fuzzed is what is read."""
    return frame(payload, opcode, fin=fin, mask=b"\0\0\0\0")


def _asks(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


_deflated = zlib.compressobj(wbits=-15)
_DEFLATED = (_deflated.compress(b"hello hello hello") + _deflated.flush(zlib.Z_SYNC_FLUSH))[:-4]

REQUESTS = [
    _asks(type="publish", room="ops", text="hi", ref=1, id="c-1"),
    _asks(type="join", room="dev", since={"last": 2}, ref="x"),
    _asks(type="join", room="dev", since={"epoch": "e1", "offset": 1}),
    _asks(type="leave", room="ops", ref=2),
    _asks(type="members", room="ops", ref=3),
    _asks(type="history", room="ops", before=5, limit=5),
    _asks(type="nick", nick="anna"),
    _asks(type="auth", token="a.b.c"),
    _asks(type="ping", ref=8),
]
LINES = [
    b"hello",
    b"/help",
    b"/who",
    b"/nick ann",
    b"/last 3",
    b"/me waves",
    b"/ping",
    b"/quit",
    b"//x",
    b"a\x1b[2J\r\n",
]
HEADS = [
    handshake("/ops?nick=ann&last=20&resume=abcdefgh&echo=1").removesuffix(HEAD_END),
    handshake("/ops", sec_websocket_protocol="chatd.v1, bearer.a.b.c").removesuffix(HEAD_END),
    b"GET /ops?follow=1 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream;q=0.5, text/html\r\nLast-Event-ID: e1-5",
    b"POST http://x/ops HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 13",
    b"OPTIONS /ops HTTP/1.0\r\nOrigin: https://x",
]

READERS: Sequence[tuple[Callable[[bytes], None], Sequence[bytes]]] = (
    (head, HEADS),
    (target, [b"/ops?nick=ann&last=20&resume=abcdefgh&echo=1", b"/%C3%A5", b"http://x/?x=%2", b"/-/"]),
    (
        frames,
        [_open(b"hi") + _open(b"x" * 200), _open(b"", CLOSE), frame(b"masked"), header(TEXT, 70_000)],
    ),
    (request, REQUESTS),
    (line, LINES),
    (nick, [b"ann", "\u00e5".encode(), b"a" * 32, "A\u030a".encode()]),
    (bearer, [token(sub="ann").encode(), b'{"sub":"ann","rooms":{"ops":"rw"},"exp":1800000000}']),
)


def wire(data: bytes) -> None:
    """Read something as what the first byte says that it is."""
    if data:
        READERS[data[0] % len(READERS)][0](data[1:])


VISITS = [
    *[b"\0\7" + each + HEAD_END for each in HEADS],
    b"\2\0" + b"".join(map(_open, LINES)),
    *[b"\3\0" + _open(each) for each in REQUESTS],
    b"\1\1" + _open(b"a", fin=False) + _open(b"p", PING) + _open(b"b", CONTINUATION) + _open(b"", PONG),
    b"\1\0" + _open(b"x", BINARY),
    b"\2\0" + _open(b"\x03\xe8bye", CLOSE),
    b"\4\0" + bytes([0xC1]) + _open(_DEFLATED)[1:],
    b"\5\0Content-Length: 5\r\n\r\nhello",
    b"\5\0Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    b"\6\0Accept: text/event-stream\r\n\r\n",
    b"\6\0Accept: text/\x9d\r\n\r\n",
]

TARGETS = {
    "wire": Target(wire, [bytes([kind]) + seed for kind, (_, seeds) in enumerate(READERS) for seed in seeds]),
    "client": Target(client, VISITS),
}
