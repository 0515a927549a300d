"""What the port says to HTTP, asked with real requests of a site on a bus in memory and a clock."""

import json
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.config import Config
from chatd.web.site import Site, about
from tests.fakes import FakeBus, FakeTransport
from tests.frames import Heard, heard


class Asker:
    """An HTTP client on a connection of its own."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.bus = FakeBus()
        bus: Any = self.bus
        self.site = Site(self.clock, bus, Config(http_idle_seconds=7))
        protocol: Any = self.site.buildProtocol(None)
        self.transport = FakeTransport(self.clock, protocol)
        protocol.makeConnection(self.transport)

    def ask(self, line: str, *lines: str, body: bytes = b"", host: str = "chat.example:3000") -> Heard:
        """Send a request; give what came back of it."""
        self.transport.clear()
        self.transport.receive("\r\n".join([f"{line} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode() + body)
        self.clock.advance(0)
        return heard(self.transport.value())

    def error(self, line: str, *lines: str, body: bytes = b"") -> tuple[int, str]:
        """Send a request; give the status and code of the error that came back."""
        answer = self.ask(line, *lines, body=body)
        assert answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(answer.body)["error"]


@pytest.fixture
def asker() -> Asker:
    return Asker()


# What is there


def test_the_root_says_how_to_connect_under_the_name_that_was_asked(asker: Asker) -> None:
    answer = asker.ask("GET /")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.decode() == about("chat.example:3000")
    assert "websocat ws://chat.example:3000 " in answer.body.decode()


def test_the_root_has_a_name_in_ipv6(asker: Asker) -> None:
    assert "ws://[::1]:3000/ops" in asker.ask("GET /", host="[::1]:3000").body.decode()


@pytest.mark.parametrize("host", ["<script>", "a b", "x; rm -rf ~", "a/b", "", "x" * 256, "$(id)", "`id`", "ä.example"])
def test_a_nasty_host_is_not_reflected(asker: Asker, host: str) -> None:
    assert asker.ask("GET /", host=host).body.decode() == about("localhost:3000")


def test_a_query_does_not_matter(asker: Asker) -> None:
    assert asker.ask("GET /?last=3").status == 200


def test_healthz_is_ok(asker: Asker) -> None:
    answer = asker.ask("GET /-/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_readyz_is_ready_while_the_bus_is(asker: Asker) -> None:
    answer = asker.ask("GET /-/readyz")
    assert (answer.status, answer.body) == (200, b"ready\n")


def test_readyz_says_what_is_broken_while_the_bus_is_away(asker: Asker) -> None:
    asker.bus.away = "it is gone"
    answer = asker.ask("GET /-/readyz")
    assert answer.status == 503
    assert json.loads(answer.body) == {"error": "unavailable", "message": "message bus: it is gone"}


@pytest.mark.parametrize("path", ["/", "/-/healthz", "/-/readyz", "/ops", "/-/none"])
def test_head_is_get_without_a_body(asker: Asker, path: str) -> None:
    got = asker.ask(f"GET {path}")
    head = asker.ask(f"HEAD {path}")
    assert head.body == b""
    assert head.status == got.status
    assert int(head.headers["content-length"]) == len(got.body) > 0


@pytest.mark.parametrize("path", ["/", "/-/healthz", "/-/readyz", "/ops", "/-/none", "/-"])
def test_no_answer_says_what_serves_it_or_may_be_kept(asker: Asker, path: str) -> None:
    answer = asker.ask(f"GET {path}")
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["content-length"]) == len(answer.body)


# What is not


@pytest.mark.parametrize("path", ["/-/", "/-/none", "/-/healthz/", "/-/HEALTHZ"])
def test_an_unknown_path_of_the_servers_own_is_404(asker: Asker, path: str) -> None:
    assert asker.error(f"GET {path}") == (404, "not_found")


@pytest.mark.parametrize("path", ["/-", "/-ops", "/a/b", "/a%20b"])
def test_a_bad_room_is_404(asker: Asker, path: str) -> None:
    assert asker.error(f"GET {path}") == (404, "bad_room")


def test_a_room_speaks_websocket(asker: Asker) -> None:
    answer = asker.ask("GET /ops?last=20")
    assert answer.status == 426
    assert answer.headers["upgrade"] == "websocket"
    assert "ops is a room" in json.loads(answer.body)["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_another_method_is_405(asker: Asker, method: str) -> None:
    answer = asker.ask(f"{method} /ops", "Content-Length: 0")
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert json.loads(answer.body)["error"] == "bad_request"


@pytest.mark.parametrize("length", ["Content-Length: 1000000000", "Content-Length: 1", "Transfer-Encoding: chunked"])
def test_a_body_is_refused_before_it_comes(asker: Asker, length: str) -> None:
    assert asker.error("POST /ops", length) == (413, "too_large")
    assert asker.transport.lost is not None


@pytest.mark.parametrize(
    ("length", "body"),
    [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")],
)
def test_a_body_in_the_same_segment_gets_one_answer(asker: Asker, length: str, body: bytes) -> None:
    assert asker.error("POST /ops", length, body=body) == (413, "too_large")
    assert asker.transport.value().count(b"HTTP/1.1 ") == 1


def test_a_request_behind_a_refused_body_is_not_answered(asker: Asker) -> None:
    smuggled = b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert asker.error("POST /ops", "Content-Length: 5", body=b"hello" + smuggled) == (413, "too_large")
    assert asker.transport.value().count(b"HTTP/1.1 ") == 1


# The connection


def test_a_second_request_on_the_connection_works(asker: Asker) -> None:
    assert asker.ask("GET /").status == 200
    assert asker.ask("GET /ops").status == 426
    assert asker.ask("GET /-/healthz").status == 200
    assert asker.transport.lost is None


def test_a_client_that_asks_to_close_is_closed(asker: Asker) -> None:
    assert asker.ask("GET /", "Connection: close").status == 200
    assert asker.transport.lost is not None


def test_a_silent_connection_is_closed_in_its_time(asker: Asker) -> None:
    asker.ask("GET /")
    asker.clock.advance(6.9)
    assert asker.transport.lost is None
    asker.clock.advance(0.1)
    asker.clock.advance(0)
    assert asker.transport.lost is not None


def test_a_connection_counts_until_it_is_lost(asker: Asker) -> None:
    asker.ask("GET /")
    assert len(asker.site.channels) == 1
    asker.transport.vanish()
    assert asker.site.channels == set()
    assert asker.clock.getDelayedCalls() == []
