"""A connection's first bytes: bounded, checked, in time; then handed to Autobahn or twisted.web, none of them lost."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.protocols.policies import WrappingFactory

from chatd.clients.factory import ConnectionFactory
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED
from chatd.rooms.hub import Hub
from chatd.rooms.sharding import Shard, Shards
from chatd.runtime.transports import check_proxy_headers
from chatd.web.site import Site
from chatd.worker.listener import ListenerFactory
from tests.depth import depth
from tests.fakes import Events, FakeBus, FakeChatLog, FakeMeter, FakeTransport
from tests.frames import Heard, close_frame, frame, handshake, heard
from tests.rows import rows

CONFIG = Config(rejected_connections_margin=2, flush_interval=0)
PEER = IPv4Address("TCP", "192.0.2.7", 40000)
GET = b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class ChatServer:
    """The doors of a worker on a bus in memory and a clock."""

    def __init__(self, config: Config = CONFIG, most: int = 10) -> None:
        self.clock = Clock()
        self.bus = FakeBus()
        bus: Any = self.bus
        self.chat_log = FakeChatLog()
        self.hub = Hub(bus, self.chat_log.log, config, self.clock)
        connections = ConnectionFactory(self.clock, lambda room: self.hub, config, "w")
        meter: Any = FakeMeter()
        self.incomings: IProtocolFactory = ListenerFactory(
            self.clock,
            connections,
            Site(self.clock, Shards([Shard("broker", bus, self.hub)]), connections, meter),
            config,
            most,
        )

    def visitor(self, *data: bytes, peer: IAddress = PEER) -> "Visitor":
        return Visitor(self, data, peer)

    def said(self) -> list[str]:
        """End this turn of the reactor; give all that was ever published."""
        self.clock.advance(0)
        return [each.text for _, messages in self.bus.published for each in messages]


class Visitor:
    """A client that comes to the door."""

    def __init__(self, server: ChatServer, data: tuple[bytes, ...], peer: IAddress) -> None:
        protocol: Any = server.incomings.buildProtocol(peer)
        self.clock = server.clock
        self.transport = FakeTransport(server.clock, protocol, peer)
        protocol.makeConnection(self.transport)
        self.send(*data)

    def send(self, *data: bytes) -> None:
        for each in data:
            self.transport.receive(each)

    @property
    def raw(self) -> bytes:
        data: bytes = self.transport.value()
        return data

    @property
    def heard(self) -> Heard:
        return heard(self.transport.value())

    @property
    def status(self) -> int:
        return self.heard.status

    @property
    def gone(self) -> str:
        """Give why the socket is gone: the name of the error; empty while it is there."""
        self.clock.advance(0)
        return "" if self.transport.lost is None else type(self.transport.lost.value).__name__

    def assert_refused(self, status: int, code: str) -> None:
        answer = self.heard
        assert answer.status == status
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert json.loads(answer.body)["error"] == code
        assert self.gone == "ConnectionDone"


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


# Whom it hands over to


@pytest.mark.parametrize("pieces", [lambda data: [data], lambda data: [bytes([byte]) for byte in data]])
def test_a_websocket_and_http_are_answered_in_one_piece_and_byte_by_byte(
    server: ChatServer, pieces: Callable[[bytes], list[bytes]]
) -> None:
    assert server.visitor(*pieces(handshake() + frame(b"hello"))).status == 101
    assert server.said() == ["hello"]
    assert server.visitor(*pieces(GET)).status == 200


@given(st.lists(st.integers(0, len(handshake() + frame(b"hello"))), max_size=5))
@settings(max_examples=depth(50))
def test_however_the_bytes_are_cut_none_is_lost(cuts: list[int]) -> None:
    server = ChatServer()
    data = handshake() + frame(b"hello")
    edges = [0, *sorted(cuts), len(data)]
    visitor = server.visitor(*[data[start:end] for start, end in pairwise(edges) if start < end])
    assert visitor.status == 101
    assert server.said() == ["hello"]


def test_what_follows_the_head_in_one_segment_is_not_lost(server: ChatServer) -> None:
    visitor = server.visitor(handshake("/ops") + frame(b"a") + frame(b"b") + close_frame())
    assert server.said() == ["a", "b"]
    assert visitor.heard.close_code == 1000


def test_frames_may_hold_bytes_that_a_head_may_not(server: ChatServer) -> None:
    server.visitor(handshake() + frame(b"\x00\x85\x0b", mask=b"\x00\x00\x00\x00").replace(b"\x85\x0b", b"\x1c\x0b"))
    assert server.said() == ["\x00\x1c\x0b"]


def test_two_http_requests_in_one_segment_are_both_answered(server: ChatServer) -> None:
    assert server.visitor(GET + GET).transport.value().count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("request_head", [GET, handshake()], ids=["HTTP", "a WebSocket"])
def test_an_empty_line_before_a_request_is_passed_over(server: ChatServer, request_head: bytes) -> None:
    alone = server.visitor(request_head).status
    assert server.visitor(b"\r\n" + request_head).status == alone < 300
    assert server.visitor(*[bytes([each]) for each in b"\r\n" + request_head]).status == alone
    again = server.visitor(GET + b"\r\n" + request_head)
    assert again.raw.count(b"HTTP/1.1 ") == 2
    assert b" 400 " not in again.raw


@pytest.mark.parametrize("before", [b"", GET], ids=["at first", "later"])
def test_lines_without_end_before_a_request_are_refused(server: ChatServer, before: bytes) -> None:
    visitor = server.visitor(before + b"\r\n" * 2 + GET)
    assert visitor.raw.count(b"HTTP/1.1 400 ") == 1


def test_a_websocket_where_http_was_spoken_before_is_let_in_and_counts_once(server: ChatServer) -> None:
    visitors = [server.visitor(GET) for _ in range(9)]
    for visitor in visitors:
        assert visitor.status == 200
        visitor.transport.clear()
        visitor.send(handshake("/ops"))
    assert [visitor.status for visitor in visitors] == [101] * 9
    visitors[0].send(frame(b"a"))
    assert server.said() == ["a"]
    visitors.append(server.visitor(handshake()))
    assert visitors[-1].status == 101
    server.visitor(handshake()).assert_refused(503, "unavailable")
    for visitor in visitors:
        visitor.transport.vanish()
    server.clock.advance(0)
    assert (server.bus.rooms, server.clock.getDelayedCalls()) == ({}, [])


def test_what_follows_such_a_head_in_one_segment_is_not_lost(server: ChatServer) -> None:
    visitor = server.visitor(GET + handshake("/ops") + frame(b"a") + frame(b"b"))
    assert visitor.transport.value().count(b"HTTP/1.1 101 ") == 1
    assert server.said() == ["a", "b"]


def test_such_a_websocket_is_refused_as_at_the_incoming(server: ChatServer) -> None:
    visitor = server.visitor(GET)
    for head, status in (
        (handshake(Origin="https://evil.example"), 403),
        (handshake("/a/b"), 404),
        (handshake(Sec_WebSocket_Key=""), 400),
        (handshake(Sec_WebSocket_Version="8"), 426),
    ):
        visitor.transport.clear()
        visitor.send(head)
        assert visitor.status == status
    assert server.bus.rooms == {}


@rows(("upgrade", "status"), [("h2c", 200), ("h2c, WebSocket", 101)])
def test_an_upgrade_to_something_else_is_http(server: ChatServer, upgrade: str, status: int) -> None:
    assert server.visitor(handshake(Upgrade=upgrade)).status == status


def addresses(server: ChatServer) -> list[str]:
    """End this turn of the reactor; return the address of each entry of the chat log."""
    server.said()
    return [entry.address for entry in server.chat_log.entries]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (PEER, PEER.host),
        (IPv4Address("TCP", "198.51.100.9", 1), "198.51.100.9"),
        (UNIXAddress(None), "unix"),
    ],
)
def test_a_client_is_known_by_its_own_address_whatever_its_headers_say(
    server: ChatServer, peer: IAddress, address: str
) -> None:
    server.visitor(handshake() + frame(b"a"), peer=peer)
    server.visitor(handshake(X_Forwarded_For="203.0.113.5") + frame(b"a"), peer=peer)
    assert addresses(server) == [address] * 2


def test_a_wrapped_connection_is_handed_over_inside_its_wrapper(server: ChatServer) -> None:
    server.incomings = WrappingFactory(server.incomings)
    visitor = server.visitor(handshake() + frame(b"a"))
    visitor.send(frame(b"b"))
    assert visitor.status == 101
    assert server.said() == ["a", "b"]
    visitor.transport.vanish()
    assert server.bus.rooms == {}


def test_http_in_a_wrapper_is_answered(server: ChatServer) -> None:
    server.incomings = WrappingFactory(server.incomings)
    assert server.visitor(GET).status == 200


def test_behind_a_proxy_a_client_is_known_by_the_address_that_the_proxy_tells(server: ChatServer) -> None:
    reactor = MemoryReactor()
    serverFromString(reactor, "haproxy:tcp:3000").listen(server.incomings)
    server.incomings = reactor.tcpServers[0][1]
    server.visitor(b"PROXY TCP4 203.0.113.5 192.0.2.1 5000 3000\r\n" + handshake() + frame(b"a"))
    assert server.said() == ["a"]
    assert addresses(server) == ["203.0.113.5"]


@pytest.mark.parametrize("peer", [IPv4Address("TCP", "10.0.0.1", 40000), UNIXAddress(None)])
def test_behind_a_trusted_proxy_a_client_is_known_by_its_header(
    peer: IAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTransport, "may_be_proxy", True, raising=False)
    server = ChatServer(replace(CONFIG, trusted_proxy=("10.0.0.0/8", "unix")))
    server.visitor(handshake(X_Forwarded_For="198.51.100.1, 203.0.113.5") + frame(b"a"), peer=peer)
    assert server.said() == ["a"]
    assert addresses(server) == ["203.0.113.5"]


def test_a_user_of_a_unix_socket_that_may_not_be_a_proxy_is_a_client() -> None:
    server = ChatServer(replace(CONFIG, trusted_proxy=("unix",)))
    server.visitor(handshake(X_Forwarded_For="203.0.113.5") + frame(b"a"), peer=UNIXAddress(None))
    assert addresses(server) == ["unix"]


def sealed(server: ChatServer) -> None:
    """Have the clients of a server come to a port that expects the PROXY protocol, as a worker sets it up."""
    reactor = MemoryReactor()
    incomings: Any = server.incomings
    serverFromString(reactor, "haproxy:tcp:3000").listen(incomings.port(exposed=True, proxied=True))
    server.incomings = check_proxy_headers(reactor.tcpServers[0][1])


def announced(client: bytes, form: bytes = b"TCP4 ") -> bytes:
    """Make a PROXY header, version 1, for a client at some address."""
    return b"PROXY " + form + client + b" 192.0.2.1 5000 3000\r\n"


@pytest.mark.parametrize(
    "client",
    [b"not-an-address", b"zz", b"unix", b"1.2.3.4\x1b[2J", "1.2.3.4\u202e".encode(), b"1.2.3", b"fe80::1%eth0", b""],
)
def test_a_client_that_is_announced_without_an_address_is_dropped(server: ChatServer, client: bytes) -> None:
    sealed(server)
    before = REFUSED["untrusted"].value
    visitor = server.visitor(announced(client) + handshake() + frame(b"a"))
    assert (visitor.transport.value(), visitor.gone) == (b"", "ConnectionAborted")
    assert REFUSED["untrusted"].value == before + 1
    assert server.said() == []


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 1.2.3.4 192.0.2.1 x 3000\r\n",
        b"PROXY TCP4 \xff 192.0.2.1 5000 3000\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x13\0\x0c" + bytes(12),
    ],
)
def test_a_header_that_cannot_be_read_ends_the_connection_and_is_no_error_of_ours(
    server: ChatServer, header: bytes
) -> None:
    sealed(server)
    visitor = server.visitor(header + handshake())
    assert visitor.transport.value() == b""
    assert visitor.gone


LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
"""A PROXY header, version 2, of a connection that the proxy makes for itself, such as a health check."""
THROUGH_UNIX = b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8" + b"/run/x".ljust(108, b"\0") * 2
"""One of a client that has come to the proxy through a unix socket."""


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN x y\r\n"])
def test_a_proxy_that_names_nobody_is_the_client_itself(server: ChatServer, header: bytes) -> None:
    sealed(server)
    server.visitor(header + handshake() + frame(b"a"))
    assert server.said() == ["a"]
    assert addresses(server) == [PEER.host]


def test_a_client_that_came_to_the_proxy_through_a_unix_socket_is_no_proxy() -> None:
    server = ChatServer(replace(CONFIG, trusted_proxy=("unix", PEER.host)))
    sealed(server)
    server.visitor(THROUGH_UNIX + handshake(X_Forwarded_For="203.0.113.5") + frame(b"a"))
    assert addresses(server) == ["unix"]


def test_clients_are_announced_by_trusted_proxies_alone_if_there_are_any(events: Events) -> None:
    for trusted, taken in (((), True), ((PEER.host,), True), (("198.51.100.1",), False), (("unix",), False)):
        server = ChatServer(replace(CONFIG, trusted_proxy=trusted))
        sealed(server)
        visitor = server.visitor(announced(b"203.0.113.5") + handshake() + frame(b"a"))
        assert (visitor.gone == "", bool(server.said())) == (taken, taken), trusted
    text = f"closed a connection from {PEER.host} to a haproxy: port; --trusted-proxy does not name that address"
    assert events.said == [("warn", text)] * 2


def test_several_such_headers_are_one_list() -> None:
    server = ChatServer(replace(CONFIG, trusted_proxy=("192.0.2.0/24",)))
    forged = b"X-Forwarded-For: 198.51.100.1\r\nHost: "
    server.visitor(handshake(X_Forwarded_For="203.0.113.5").replace(b"Host: ", forged) + frame(b"a"))
    assert addresses(server) == ["203.0.113.5"]


def test_on_one_connection_of_a_proxy_each_request_has_its_own_client() -> None:
    server = ChatServer(replace(CONFIG, trusted_proxy=(PEER.host,)))
    visitor = server.visitor()
    for address in ("203.0.113.5", "203.0.113.6"):
        forwarded = f"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: {address}"
        visitor.send(f"POST /ops HTTP/1.1\r\nHost: x\r\n{forwarded}\r\nContent-Length: 1\r\n\r\na".encode())
        server.said()
    assert addresses(server) == ["203.0.113.5", "203.0.113.6"]


def test_with_the_proxy_protocol_it_is_what_that_says_that_has_to_be_trusted() -> None:
    server = ChatServer(replace(CONFIG, trusted_proxy=(PEER.host,)))
    reactor = MemoryReactor()
    serverFromString(reactor, "haproxy:tcp:3000").listen(server.incomings)
    server.incomings = reactor.tcpServers[0][1]
    for source in ("203.0.113.5", PEER.host):
        line = f"PROXY TCP4 {source} 192.0.2.1 5000 3000\r\n".encode()
        server.visitor(line + handshake(X_Forwarded_For="198.51.100.1") + frame(b"a"))
    assert addresses(server) == ["203.0.113.5", "198.51.100.1"]


@rows(
    ("headers", "status"),
    [
        ({"Host": "chat.example", "Origin": "https://chat.example"}, 101),
        ({"Origin": "https://app.example.org"}, 101),
        ({"Origin": "https://example.org"}, 403),
    ],
)
def test_our_own_page_and_one_of_an_allowed_origin_are_let_in(headers: dict[str, str], status: int) -> None:
    server = ChatServer(replace(CONFIG, allowed_origin=("https://*.example.org",)))
    assert server.visitor(handshake(**headers)).status == status


# What it refuses


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost", "null", "nonsense"])
def test_any_other_page_is_403_before_the_upgrade(server: ChatServer, events: Events, origin: str) -> None:
    server.visitor(handshake(Origin=origin) + frame(b"a")).assert_refused(403, "forbidden")
    assert (server.said(), server.bus.rooms, server.clock.getDelayedCalls()) == ([], {}, [])
    assert all("--allowed-origin" in text for _, text in events.said)


def test_two_origins_are_none(server: ChatServer) -> None:
    own = b"Origin: http://localhost:3000\r\n"
    server.visitor(handshake().replace(b"Host: ", own + own + b"Host: ")).assert_refused(403, "forbidden")


def test_a_page_of_another_origin_does_not_learn_what_rooms_there_may_be(server: ChatServer) -> None:
    server.visitor(handshake("/a/b", Origin="https://evil.example")).assert_refused(403, "forbidden")


@rows(("longer", "status"), [(1, 101), (2, 431), (102_400, 431)])
def test_a_head_longer_than_the_limit_is_431(server: ChatServer, longer: int, status: int) -> None:
    head = handshake(X="x" * (CONFIG.client_header_size - len(handshake(X=".")) + longer))
    for piece in (len(head), 1000):
        visitor = server.visitor(*[head[start : start + piece] for start in range(0, len(head), piece)])
        assert visitor.status == status
        if status == 431:
            visitor.assert_refused(431, "too_large")


def test_a_header_without_end_is_431_at_the_limit(server: ChatServer) -> None:
    visitor = server.visitor(b"x" * CONFIG.client_header_size)
    assert visitor.status == 0
    visitor.send(b"x")
    visitor.assert_refused(431, "too_large")


def test_frames_behind_the_head_do_not_count(server: ChatServer) -> None:
    server.visitor(handshake() + frame(b"x" * 9000))
    assert server.said() == ["x" * 9000]


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
def test_a_slow_head_is_408(server: ChatServer, start: bytes) -> None:
    visitor = server.visitor(start) if start else server.visitor()
    server.clock.advance(CONFIG.client_header_timeout - 0.1)
    assert visitor.gone == ""
    server.clock.advance(0.1)
    visitor.assert_refused(408, "bad_request")


def test_a_head_that_drips_is_408(server: ChatServer) -> None:
    visitor = server.visitor()
    for each in GET[:10]:
        visitor.send(bytes([each]))
        server.clock.advance(0.5)
    visitor.assert_refused(408, "bad_request")


CONTROLS = [bytes([each]) for each in [*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F]]


@rows(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        *(handshake(X_Junk="a?b: c").replace(b"?", end) for end in (b"\r", b"\n")),
        *(line + b"\r\n\r\n" for line in (b"HELO there", b"GET /", b"GET / HTTP/2.0", b"GET  / HTTP/1.1")),
        *(handshake(X_Junk="a?X-Forwarded-User: admin").replace(b"?", control) for control in (*CONTROLS, b"\x85")),
        *(b"GET /" + control for control in CONTROLS),  # before the head ends
    ],
)
def test_what_is_no_head_is_400_at_once(server: ChatServer, data: bytes) -> None:
    server.visitor(data).assert_refused(400, "bad_request")


@pytest.mark.parametrize("name", ["\u00c5", "\u0445"])
def test_a_url_with_the_byte_0x85_is_read_in_pieces_too(server: ChatServer, name: str) -> None:
    for head, status in (handshake(f"/{name}"), 101), (GET.replace(b"healthz", f"healthz?{name}".encode()), 200):
        middle = head.index(b"\x85") + 1
        assert server.visitor(head[:middle], head[middle:]).status == status
    assert list(server.bus.rooms) == [name]


@pytest.mark.parametrize(
    "path",
    [*("/-ops", "/a/b", "/a%2Fb", "/a%20b", "/%0A", "/%C2%85", "/%FF", "/" + "x" * 65), *("/-/x", "/-/healthz")],
)
def test_a_bad_room_is_404_before_the_upgrade(server: ChatServer, path: str) -> None:
    visitor = server.visitor(handshake(path))
    visitor.assert_refused(404, "not_found" if path.startswith("/-/") else "bad_room")
    assert server.bus.rooms == {}


def test_a_bad_parameter_is_400_before_the_upgrade(server: ChatServer) -> None:
    server.visitor(handshake("/ops?echo=2")).assert_refused(400, "bad_request")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (handshake(Sec_WebSocket_Key=""), 400),
        (handshake(Host=""), 400),
        (handshake(Connection=""), 400),
        (handshake(Sec_WebSocket_Version="8"), 426),
        (handshake(Sec_WebSocket_Version=""), 426),
        (handshake().replace(b"GET", b"POST", 1), 405),
        (handshake().replace(b"HTTP/1.1", b"HTTP/1.0", 1), 505),
    ],
    ids=["key", "host", "connection", "version", "no version", "method", "http/1.0"],
)
def test_a_bad_handshake_is_refused_and_leaves_nothing(
    server: ChatServer, events: Events, head: bytes, status: int
) -> None:
    server.visitor(head).assert_refused(status, "bad_request")
    assert (server.bus.rooms, server.clock.getDelayedCalls(), events.said) == ({}, [], [])


def test_another_version_is_told_which_would_do(server: ChatServer) -> None:
    answer = server.visitor(handshake(Sec_WebSocket_Version="8")).heard
    assert (answer.headers["sec-websocket-version"], answer.headers["upgrade"]) == ("13", "websocket")


def test_nothing_is_read_after_a_refusal(server: ChatServer) -> None:
    visitor = server.visitor()
    visitor.transport.client_reads = False
    visitor.send(b"GET /\x00")
    before = visitor.transport.value()
    visitor.transport.protocol.dataReceived(handshake())
    assert visitor.transport.value() == before


def test_a_refused_client_that_does_not_read_is_aborted(server: ChatServer) -> None:
    visitor = server.visitor()
    visitor.transport.client_reads = False
    visitor.send(b"\x00")
    server.clock.advance(CONFIG.close_timeout - 0.1)
    assert visitor.gone == ""
    server.clock.advance(0.1)
    assert visitor.gone == "ConnectionAborted"


@given(st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=depth(60))
def test_any_bytes_end_in_an_answer_and_leave_nothing_behind(reads: list[bytes]) -> None:
    server = ChatServer()
    visitor = server.visitor(*reads)
    server.clock.pump([1.0] * 60)
    assert visitor.status >= 400
    assert visitor.gone
    assert server.clock.getDelayedCalls() == []


# How many


@rows("request_head", [None, GET, handshake()])
def test_one_connection_too_many_is_503_and_one_that_leaves_makes_room(request_head: bytes | None) -> None:
    server = ChatServer()
    visitors = [server.visitor(*([request_head] if request_head else [])) for _ in range(10)]
    last = server.visitor(handshake())
    last.assert_refused(503, "unavailable")
    assert last.heard.headers["retry-after"] == "5"
    visitors[0].transport.vanish()
    assert server.visitor(handshake()).status == 101


def test_a_full_server_is_said_when_it_begins_and_when_it_ends(server: ChatServer, events: Events) -> None:
    guests = [server.visitor(handshake()) for _ in range(10)]
    for _ in range(5):
        server.visitor(handshake())
    full = ("warn", "the limit of 10 connections is reached; new connections are answered with 503")
    assert events.said == [full]
    for guest in guests[:3]:
        guest.transport.vanish()
    server.clock.advance(0)
    server.visitor(handshake())
    assert events.said == [full, ("info", "new connections are accepted again")]


def test_a_full_server_lets_an_event_source_come_back(server: ChatServer) -> None:
    for _ in range(10):
        server.visitor()
    late = server.visitor()
    late.send(b"GET /ops HTTP/1.1\r\nHost: chat.example\r\nAccept: text/event-stream\r\n\r\n")
    head, _, body = late.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    assert b"\r\nAccess-Control-Allow-Origin: *" in head
    assert body.startswith(b"retry: ")
    assert b"\n\nevent: bye\ndata: " in body


def get(target: str) -> bytes:
    return GET.replace(b"/-/healthz", target.encode())


def test_in_a_full_server_a_connection_that_began_with_a_probe_is_asked_nothing_else(server: ChatServer) -> None:
    for _ in range(10):
        server.visitor(handshake())
    before = REFUSED["full"].value
    for request in (get("/ops"), get("/-/rooms"), get("/-/"), get("/-/assets/x"), handshake()):
        for probe in (GET, get("/-/metrics")):
            visitor = server.visitor(probe)
            assert visitor.status == 200
            visitor.transport.clear()
            visitor.send(probe)
            assert visitor.status == 200
            visitor.transport.clear()
            visitor.send(request)
            visitor.assert_refused(503, "unavailable")
    server.visitor(get("/-/rooms")).assert_refused(503, "unavailable")
    assert REFUSED["full"].value == before + 11


def test_who_is_in_is_asked_for_room_once(server: ChatServer) -> None:
    visitor = server.visitor(get("/ops"))
    for _ in range(9):
        server.visitor(handshake())
    late = server.visitor(GET)
    visitor.transport.clear()
    visitor.send(get("/ops"))
    assert visitor.status == 200
    late.transport.vanish()


def test_far_too_many_are_dropped_at_once_and_do_not_count(server: ChatServer) -> None:
    waiting = [server.visitor() for _ in range(10 + CONFIG.rejected_connections_margin)]
    for _ in range(5):
        dropped = server.visitor(handshake())
        assert (dropped.gone, dropped.transport.value()) == ("ConnectionAborted", b"")
    for visitor in waiting:
        visitor.transport.vanish()
    assert server.visitor(handshake()).status == 101


# What it leaves behind


@rows("data", [b"GET", b"\x00"])
def test_a_client_that_is_gone_or_refused_leaves_no_timer(server: ChatServer, data: bytes) -> None:
    visitor = server.visitor(data)
    if not visitor.gone:
        visitor.transport.vanish()
    assert server.clock.getDelayedCalls() == []


def test_one_let_in_is_not_late_any_more(server: ChatServer) -> None:
    visitor = server.visitor(handshake())
    server.clock.advance(CONFIG.client_header_timeout)
    assert visitor.gone == ""


def test_a_silent_http_connection_is_closed_in_its_time() -> None:
    server = ChatServer(replace(CONFIG, http_keepalive_timeout=7))
    visitor = server.visitor(GET)
    server.clock.advance(6.9)
    assert visitor.gone == ""
    server.clock.advance(0.1)
    assert visitor.gone


# Those who say nothing, and those who are not wanted


def test_of_too_many_that_have_said_nothing_the_oldest_gives_way() -> None:
    server = ChatServer(replace(CONFIG, unidentified_connections_min=3), most=8)
    waiting = [server.visitor() for _ in range(3)]
    assert [each.gone for each in waiting] == [""] * 3
    newest = server.visitor()
    assert [each.gone for each in waiting] == ["ConnectionAborted", "", ""]
    newest.send(handshake())
    assert newest.status == 101
    another = server.visitor()
    assert [each.gone for each in waiting] == ["ConnectionAborted", "", ""], "who is in is not among them"
    assert another.gone == ""


def banned(folder: Path, *lines: str, **options: Any) -> ChatServer:
    path = folder / "bans"
    path.write_text("\n".join(lines))
    server = ChatServer(replace(CONFIG, ban_list=str(path), **options))
    incomings: Any = server.incomings
    incomings.connections.bans.read()
    return server


def test_who_is_banned_is_hung_up_on_at_once(tmp_path: Path) -> None:
    server = banned(tmp_path, "192.0.2.0/24")
    assert server.visitor().gone == "ConnectionAborted"
    assert server.visitor(peer=IPv4Address("TCP", "198.51.100.1", 1)).gone == ""


def test_who_comes_through_a_proxy_and_is_banned_is_told(tmp_path: Path) -> None:
    server = banned(tmp_path, "198.51.100.7", trusted_proxy=("192.0.2.7",))
    server.visitor(handshake(x_forwarded_for="198.51.100.7")).assert_refused(403, "banned")
    get = GET.replace(b"/-/healthz", b"/ops")
    server.visitor(get.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n")).assert_refused(403, "banned")
    assert server.visitor(handshake(x_forwarded_for="198.51.100.8")).status == 101


def test_those_who_are_put_on_the_list_are_closed(tmp_path: Path) -> None:
    server = banned(tmp_path)
    visitor = server.visitor(handshake())
    (tmp_path / "bans").write_text("192.0.2.7\n")
    incomings: Any = server.incomings
    incomings.connections.bans.read()
    incomings.connections.close_banned()
    assert visitor.heard.close_code == 1008


def test_an_address_has_no_more_connections_than_it_may_asked_for_or_not() -> None:
    server = ChatServer(replace(CONFIG, connections_per_address="2", connection_rate="off"))
    incomings: Any = server.incomings
    server.incomings = incomings.port(exposed=True)
    inside = [server.visitor(handshake()) for _ in range(2)]
    assert [each.status for each in inside] == [101, 101]
    server.visitor(handshake()).assert_refused(429, "rate_limited")
    waiting = [server.visitor() for _ in range(4)]
    assert [each.gone for each in waiting] == ["", "", "ConnectionAborted", "ConnectionAborted"], (
        "no more than twice so many"
    )
    assert server.visitor(handshake(), peer=IPv4Address("TCP", "198.51.100.1", 1)).status == 101
    for each in (*inside, *waiting[:2]):
        each.transport.vanish()
    assert server.visitor(handshake()).status == 101


def test_who_is_at_the_other_end_of_a_proxy_protocol_is_not_counted_before_it_is_known() -> None:
    server = ChatServer(replace(CONFIG, connections_per_address="2"))
    incomings: Any = server.incomings
    server.incomings = incomings.port(exposed=True, proxied=True)
    waiting = [server.visitor() for _ in range(6)]
    assert [each.gone for each in waiting] == [""] * 6


def test_a_program_from_elsewhere_makes_no_more_rooms_than_it_may_however_fast_it_may_speak() -> None:
    server = ChatServer(replace(CONFIG, message_rate="off", byte_rate="off", auto_room_rate=2.0))
    incomings: Any = server.incomings
    codes = []
    for port in (incomings.port(exposed=True), incomings.port(exposed=False)):
        server.incomings = port
        visitor = server.visitor(handshake("/lobby", sec_websocket_protocol="chatd.v1"))
        for room in ("a", "b", "c"):
            visitor.send(frame(json.dumps({"type": "join", "room": room, "ref": room}).encode()))
        server.said()
        codes.append([json.loads(each).get("code") for each in visitor.heard.texts if '"ref"' in each])
    assert codes[0].count("rate_limited") >= 1
    assert codes[1].count("rate_limited") == 0


def test_a_port_on_a_loopback_address_serves_names_of_this_host_alone() -> None:
    rebound = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    requests = {
        "a page": rebound,
        "a websocket": handshake(Host="evil.example"),
        "a websocket behind a probe": GET + handshake(Host="evil.example"),
        "a probe": rebound.replace(b" / ", b" /-/healthz "),
        "our own name": handshake(),
    }
    server = ChatServer()
    incomings: Any = server.incomings
    ports = {
        "loopback": incomings.port(exposed=False),
        "exposed": incomings.port(exposed=True),
        "unix": incomings.port(exposed=False, unix=True),
        "PROXY": incomings.port(exposed=False, proxied=True),
    }
    refused = []
    for name, port in ports.items():
        server.incomings = port
        refused += [(name, request) for request, data in requests.items() if b" 403 " in server.visitor(data).raw]
    assert refused == [("loopback", each) for each in ("a page", "a websocket", "a websocket behind a probe")]


def test_a_listener_for_metrics_serves_nothing_else_and_no_other_listener_serves_them() -> None:
    requests = {
        **{path: get(path) for path in ("/-/metrics", "/-/healthz", "/-/readyz", "/ops")},
        "a websocket": handshake(),
        "a websocket after a probe": GET + handshake(),
    }

    def not_found(*, metrics: bool) -> set[str]:
        server = ChatServer(replace(CONFIG, metrics_listen=("tcp:9100",)))
        incomings: Any = server.incomings
        server.incomings = incomings.port(exposed=False, metrics=metrics)
        return {request for request, data in requests.items() if b" 404 " in server.visitor(data).raw}

    assert not_found(metrics=False) == {"/-/metrics"}
    assert not_found(metrics=True) == {"/ops", "a websocket", "a websocket after a probe"}


def test_a_listener_for_metrics_may_be_asked_by_any_name() -> None:
    server = ChatServer(replace(CONFIG, metrics_listen=("tcp:9100",), allowed_host=("chat.example.org",)))
    incomings: Any = server.incomings
    server.incomings = incomings.port(exposed=True, metrics=True)
    assert server.visitor(get("/-/metrics").replace(b"localhost", b"192.0.2.1:9100")).raw.startswith(b"HTTP/1.1 200")


# What an address may ask for


def exposed(**limits: Any) -> ChatServer:
    server = ChatServer(replace(CONFIG, **limits))
    incomings: Any = server.incomings
    server.incomings = incomings.port(exposed=True)
    return server


def test_an_address_has_no_more_connections_than_it_may_behind_probes_either() -> None:
    server = exposed(connections_per_address="2", connection_rate="off")
    visitors = [server.visitor(GET) for _ in range(3)]
    for visitor in visitors:
        visitor.transport.clear()
        visitor.send(get("/ops"))
    visitors[0].assert_refused(429, "rate_limited")
    assert [visitor.status for visitor in visitors[1:]] == [200, 200]


def test_an_address_begins_no_more_than_it_may_behind_probes_either() -> None:
    server = exposed(connection_rate="2")
    visitors = [server.visitor(GET) for _ in range(3)]
    for visitor in visitors:
        visitor.transport.clear()
        visitor.send(get("/ops"))
        assert visitor.status == (200 if visitor is not visitors[2] else 429)
        visitor.transport.clear()
        if visitor is not visitors[2]:
            visitor.send(get("/ops"))
            assert visitor.status == 200, "it is in by now"
    visitors[2].transport.vanish()


def test_a_handshake_that_reads_is_refused_where_the_address_has_asked_for_too_much() -> None:
    server = exposed(request_rate="1")
    visitor = server.visitor(*[get("/ops")] * 11)
    assert visitor.transport.value().count(b"HTTP/1.1 200 ") == 10
    assert visitor.transport.value().count(b"HTTP/1.1 429 ") == 1
    server.visitor(handshake("/ops?last=20")).assert_refused(429, "rate_limited")
    assert server.visitor(handshake("/ops")).status == 101
    assert server.visitor(handshake("/ops?last=20&resume=a-key-of-mine")).status == 101


def statuses_of(server: ChatServer, requests: Iterable[bytes]) -> list[int | None]:
    """Return how requests are answered, each on a connection of its own that then ends."""
    found: list[int | None] = []
    for request in requests:
        visitor = server.visitor(request)
        found.append(visitor.status)
        visitor.transport.vanish()
    return found


def test_a_made_up_resume_key_reads_no_more_than_the_address_may_owe() -> None:
    server = exposed(request_rate="1", connection_rate="off", room_rate="off")
    keys = (handshake(f"/ops?resume=a-made-up-key-{number}") for number in range(40))
    assert statuses_of(server, keys) == [101] * 25 + [429] * 15


def test_a_request_that_is_refused_by_its_head_is_one_of_its_address() -> None:
    server = exposed(request_rate="1", connection_rate="off")
    image = b"POST /ops HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\n"
    assert statuses_of(server, [b"GARBAGE\r\n\r\n", image] * 5) == [400, 415] * 5
    assert server.visitor(get("/ops")).status == 429


def test_a_handshake_that_is_refused_was_a_request_too() -> None:
    server = exposed(request_rate="1")
    visitor = server.visitor(GET)
    for number in range(10):
        visitor.transport.clear()
        visitor.send(handshake(Sec_WebSocket_Version="8") if number % 2 else handshake(Origin="https://evil.example"))
        assert visitor.status in (403, 426)
    assert server.visitor(get("/ops")).status == 429


def test_behind_a_proxy_each_request_is_one_of_its_client() -> None:
    server = exposed(request_rate="1", trusted_proxy=(PEER.host,))
    visitor = server.visitor()
    statuses = []
    for address in ["203.0.113.5"] * 11 + ["203.0.113.6"]:
        visitor.transport.clear()
        visitor.send(get("/ops").replace(b"\r\n\r\n", f"\r\nX-Forwarded-For: {address}\r\n\r\n".encode()))
        statuses.append(visitor.status)
    assert statuses == [200] * 10 + [429, 200]
