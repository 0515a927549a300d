"""What the port says to HTTP, asked with real requests of a site on a bus in memory and a clock."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from chatd.clients.send_buffer import SLOW_CLIENTS, measure_backlogs
from chatd.monitoring.metrics import REFUSED, SEND_BUFFER_BYTES
from chatd.web.channel import Channel
from chatd.web.site import about
from tests.fakes import Events
from tests.web.http_client import CONFIG, ChatServer, HttpClient, SlowHttpClient, error

# What is there


@pytest.mark.parametrize(
    "lines",
    [
        *("GET *", "POST *", "BREW /ops", "GET /a/b", "GET /-/none", "GET /ops?last=x", "GET /ops?nick=j\u00f6rg%20"),
        *("GET /ops?follow=\u20ac", "GET /ops HTTP/3.0", "GET /%FF", "GET ops", "CONNECT localhost:22", "nonsense"),
        *("GET /ops\r\nno header", "GET /ops\r\nUpgrade: websocket", "GET /ops\r\nOrigin: https://evil.example"),
        *(
            "POST /ops\r\nContent-Length: 1000000",
            "POST /ops\r\nContent-Length: x",
            "POST /ops\r\nContent-Type: image/png",
        ),
        *("POST /ops\r\nTransfer-Encoding: gzip", "POST /ops\r\nContent-Encoding: br"),
        "GET /ops\r\nLast-Event-ID: ?\r\nAccept: text/event-stream",
    ],
)
def test_every_refusal_is_json_that_says_why(http_client: HttpClient, lines: str) -> None:
    first, *rest = lines.split("\r\n")
    answer = http_client.ask(first, *rest)
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert json.loads(answer.body).keys() == {"error", "message"}


def test_a_target_may_have_bytes_that_are_not_ascii(http_client: HttpClient) -> None:
    http_client.server.say("hello", room="\u010d\u00e9")
    assert (
        http_client.ask("GET /\u010d\u00e9?last=1").body
        == http_client.ask("GET /%C4%8D%C3%A9?last=1").body
        == b"hello\n"
    )
    assert http_client.ask("POST /ops?nick=j\u00f6rg", "Content-Length: 2", body=b"hi").status == 201
    assert http_client.ask("GET /ops").body == "j\u00f6rg: hi\n".encode()


@pytest.mark.parametrize("name", ["\u00c5", "\u0445"])
def test_a_target_may_have_the_byte_0x85_in_the_first_and_in_later_requests(http_client: HttpClient, name: str) -> None:
    http_client.server.say("hello", room=name)
    for _ in range(2):
        assert http_client.ask(f"GET /{name}?last=1").body == b"hello\n"
    assert error(http_client.ask(f"GET /{name}", f"X: {name}")) == (400, "bad_request")


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "br", "identity, gzip"])
def test_a_body_that_is_compressed_is_415(http_client: HttpClient, coding: str) -> None:
    answer = http_client.ask("POST /ops", "Content-Length: 5", f"Content-Encoding: {coding}", body=b"hello")
    assert error(answer) == (415, "bad_request")
    assert answer.headers["accept-encoding"] == "identity"
    assert http_client.server.bus.published == []


def test_a_body_may_say_that_it_is_as_it_is(http_client: HttpClient) -> None:
    assert http_client.ask("POST /ops", "Content-Length: 5", "Content-Encoding: identity", body=b"hello").status == 201


def test_what_this_is_is_said_under_the_name_that_was_asked(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /-/")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.decode() == about("chat.example:3000")
    assert "websocat ws://chat.example:3000 " in answer.body.decode()


def test_the_name_may_be_an_address_of_ipv6(http_client: HttpClient) -> None:
    assert "ws://[::1]:3000/ops" in http_client.ask("GET /-/", host="[::1]:3000").body.decode()


@pytest.mark.parametrize("host", ["<script>", "a b", "x; rm -rf ~", "a/b", "", "x" * 256, "$(id)", "`id`", "ä.example"])
def test_a_nasty_host_is_not_reflected(http_client: HttpClient, host: str) -> None:
    assert http_client.ask("GET /-/", host=host).body.decode() == about("localhost:3000")


def test_the_root_is_the_lobby(http_client: HttpClient) -> None:
    http_client.server.say("hello", room="lobby")
    assert http_client.ask("GET /").body == http_client.ask("GET /lobby").body == b"hello\n"


def test_an_absolute_target_is_read_as_its_path(http_client: HttpClient) -> None:
    assert http_client.ask("GET http://chat.example:3000/-/healthz").body == b"ok\n"


def test_a_query_does_not_matter_to_the_servers_own_paths(http_client: HttpClient) -> None:
    assert http_client.ask("GET /-/healthz?last=3").body == b"ok\n"


def test_healthz_is_ok(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /-/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_readyz_is_ready_while_the_bus_is(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /-/readyz")
    assert (answer.status, answer.body) == (200, b"ready\n")


def test_those_who_ask_for_readiness_at_the_same_time_share_one_probe(server: ChatServer) -> None:
    probes: list[Deferred[None]] = []

    def probe() -> "Deferred[None]":
        probes.append(Deferred())
        return probes[-1]

    server.bus.probe = probe  # type: ignore[method-assign]
    askers = [HttpClient(server) for _ in range(20)]
    for http_client in askers:
        http_client.send("GET /-/readyz")
    assert len(probes) == 1
    probes[0].callback(None)
    assert [http_client.transport.value()[:15] for http_client in askers] == [b"HTTP/1.1 200 OK"] * 20


def test_readyz_says_what_is_broken_while_the_bus_is_away(http_client: HttpClient) -> None:
    http_client.bus.away = "it is gone"
    answer = http_client.ask("GET /-/readyz")
    assert answer.status == 503
    assert json.loads(answer.body) == {"error": "unavailable", "message": "message bus: it is gone"}


@pytest.mark.parametrize(
    "path", ["/-/", "/-/healthz", "/-/readyz", "/-/rooms", "/ops", "/ops/members", "/-/none", "/a/b"]
)
def test_head_is_get_without_a_body(http_client: HttpClient, path: str) -> None:
    http_client.server.say("hello")
    got = http_client.ask(f"GET {path}")
    head = http_client.ask(f"HEAD {path}")
    assert head.body == b""
    assert head.status == got.status
    assert int(head.headers["content-length"]) == len(got.body) > 0


@pytest.mark.parametrize("path", ["/", "/-/", "/-/healthz", "/-/readyz", "/-/rooms", "/ops/members", "/-/none", "/-"])
def test_no_answer_says_what_serves_it_or_may_be_kept_or_guessed_at(http_client: HttpClient, path: str) -> None:
    answer = http_client.ask(f"GET {path}")
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert int(answer.headers["content-length"]) == len(answer.body)


# What is not


@pytest.mark.parametrize("path", ["/-/none", "/-/healthz/", "/-/HEALTHZ", "/-/members"])
def test_an_unknown_path_of_the_servers_own_is_404(http_client: HttpClient, path: str) -> None:
    assert http_client.error(f"GET {path}") == (404, "not_found")


@pytest.mark.parametrize("path", ["/-", "/-ops", "/a/b", "/a%20b", "/a/b/members", "/a%20b/members"])
def test_a_bad_room_is_404(http_client: HttpClient, path: str) -> None:
    assert http_client.error(f"GET {path}") == (404, "bad_room")


ROOM = "GET, HEAD, POST, OPTIONS"
SHOWN = "GET, HEAD, OPTIONS"
PATHS = [
    ("/ops", ROOM),
    ("/", ROOM),
    ("/ops/members", SHOWN),
    ("/-/rooms", SHOWN),
    ("/-/healthz", SHOWN),
    ("/-/", SHOWN),
]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "BREW"])
@pytest.mark.parametrize(("path", "allowed"), PATHS)
def test_another_method_is_405(http_client: HttpClient, method: str, path: str, allowed: str) -> None:
    answer = http_client.ask(f"{method} {path}", "Content-Length: 0")
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert json.loads(answer.body)["error"] == "bad_request"


@pytest.mark.parametrize("path", ["/ops/members", "/-/rooms", "/-/healthz", "/-/"])
def test_what_can_only_be_seen_takes_nothing(http_client: HttpClient, path: str) -> None:
    assert http_client.post(path, "hello").status == 405


@pytest.mark.parametrize(("path", "allowed"), PATHS)
def test_options_says_what_may_be_done(http_client: HttpClient, path: str, allowed: str) -> None:
    answer = http_client.ask(f"OPTIONS {path}")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")
    assert "content-length" not in answer.headers


# Bodies

MOST = 6 * CONFIG.max_message_size + 4096


@pytest.mark.parametrize("length", ["Content-Length: 1000000000", f"Content-Length: {MOST + 1}"])
def test_a_body_that_is_too_large_is_refused_before_it_comes(http_client: HttpClient, length: str) -> None:
    assert http_client.error("POST /ops", length) == (413, "too_large")


def test_a_body_without_end_is_refused_when_it_is_too_large(http_client: HttpClient) -> None:
    http_client.send("POST /ops", "Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n" % (MOST, b"a" * MOST))
    assert http_client.transport.value() == b""
    http_client.transport.receive(b"1\r\na\r\n")
    assert http_client.transport.value().startswith(b"HTTP/1.1 413 ")


def test_a_refused_body_is_not_asked_for(http_client: HttpClient) -> None:
    answer = http_client.ask("POST /ops", "Content-Length: 1000000000", "Expect: 100-continue")
    assert answer.status == 413
    assert b"100 Continue" not in http_client.transport.value()


def test_a_body_that_is_welcome_is_asked_for(http_client: HttpClient) -> None:
    http_client.send("POST /ops", "Content-Length: 5", "Expect: 100-continue")
    assert http_client.transport.value().startswith(b"HTTP/1.1 100 Continue\r\n")


@pytest.mark.parametrize("behind", [b"a" * 5000, b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3])
def test_what_comes_behind_a_refusal_is_for_nobody(http_client: HttpClient, behind: bytes) -> None:
    http_client.send("POST /ops", f"Content-Length: {MOST + 1}", body=behind)
    http_client.transport.receive(behind)
    http_client.clock.advance(0)
    assert http_client.transport.value().count(b"HTTP/1.1 ") == 1
    assert http_client.transport.value().startswith(b"HTTP/1.1 413 ")


def test_who_is_refused_may_read_that_before_the_connection_is_gone(http_client: HttpClient) -> None:
    http_client.transport.client_reads = False
    http_client.send("POST /ops", f"Content-Length: {MOST + 1}")
    assert http_client.transport.lost is None
    assert len(http_client.site.channels) == 1
    http_client.clock.advance(CONFIG.close_seconds + 0.2)
    http_client.clock.advance(0)
    assert http_client.transport.lost is not None
    assert len(http_client.site.channels) == 0


@pytest.mark.parametrize("length", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_not_waited_for(http_client: HttpClient, length: str) -> None:
    http_client.send("POST /ops", length)
    http_client.clock.advance(3)
    http_client.transport.receive(b"1" if "chunked" in length else b"h")
    http_client.clock.advance(2.2)
    assert http_client.transport.value().startswith(b"HTTP/1.1 408 ")


def test_a_body_that_came_is_no_reason_to_hang_up(http_client: HttpClient) -> None:
    assert http_client.post("/ops", "hello").status == 201
    http_client.clock.advance(6)
    assert http_client.ask("GET /-/healthz").status == 200


def test_a_client_that_leaves_within_a_body_leaves_nothing_behind(http_client: HttpClient) -> None:
    http_client.send("POST /ops", "Content-Length: 5", body=b"he")
    http_client.transport.vanish()
    assert http_client.clock.getDelayedCalls() == []


CHUNKS = b"5\r\nhello\r\n0\r\n"


@pytest.mark.parametrize("split", [1, 100])
def test_chunks_end_with_an_empty_line(http_client: HttpClient, split: int) -> None:
    http_client.send("POST /ops", "Transfer-Encoding: chunked")
    data = CHUNKS + b"\r\n"
    for start in range(0, len(data), split):
        http_client.transport.receive(data[start : start + split])
    http_client.server.turn()
    assert http_client.transport.value().startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize(
    "trailer", [b"X: y\r\n\r\n", b"X", b"\n", b"\rX", b"X: y\n\n", b"GET / HTTP/1.1\r\n\r\n", b" \r\n"]
)
def test_trailers_are_refused(http_client: HttpClient, trailer: bytes) -> None:
    answer = http_client.ask("POST /ops", "Transfer-Encoding: chunked", body=CHUNKS + trailer)
    assert error(answer) == (400, "bad_request")
    assert http_client.bus.published == []


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "image/png", "text/plain; charset=latin-1"])
def test_a_body_of_a_bad_kind_is_refused_before_it_comes(http_client: HttpClient, kind: str) -> None:
    answer = http_client.ask("POST /ops", "Content-Length: 500", f"Content-Type: {kind}", "Expect: 100-continue")
    assert error(answer) == (415, "bad_request")
    assert http_client.transport.value().count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("path", "status"), [("/-/healthz", 405), ("/ops/members", 405), ("/-/none", 404), ("/-", 404)]
)
def test_where_nothing_can_be_said_the_kind_of_a_body_does_not_matter(
    http_client: HttpClient, path: str, status: int
) -> None:
    assert http_client.post(path, "hello", "image/png").status == status


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_no_body_is_taken_apart_as_a_form(http_client: HttpClient, kind: str) -> None:
    seen: list[Any] = []
    resource: Any = http_client.site.resource
    render = resource.render

    def look(request: Any) -> Any:
        seen.append((request.args, request.content.read()))
        request.content.seek(0)
        return render(request)

    resource.render = look
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n' if "multipart" in kind else b"a=b"
    http_client.post("/-/none?last=3", form, kind)
    assert seen == [({b"last": [b"3"]}, form)]


def test_a_body_is_kept_only_if_it_may_be_wanted(http_client: HttpClient) -> None:
    seen: list[bytes] = []
    resource: Any = http_client.site.resource
    render = resource.render

    def look(request: Any) -> Any:
        seen.append(request.content.getvalue())
        return render(request)

    resource.render = look
    for method in ("PUT", "GET", "BREW", "POST"):
        http_client.ask(f"{method} /ops", "Content-Length: 5", body=b"hello")
    assert seen == [b"", b"", b"", b"hello"]


def test_a_body_where_none_is_wanted_is_passed_over(http_client: HttpClient) -> None:
    assert http_client.ask("GET /-/healthz", "Content-Length: 5", body=b"hello").body == b"ok\n"
    assert http_client.ask("GET /-/healthz").body == b"ok\n"


# How often one may ask

LIMITED = replace(CONFIG, request_rate="1", limit_requests_seconds=12.5)


def test_every_request_takes_from_the_limit_of_its_address() -> None:
    http_client = HttpClient(ChatServer(LIMITED))
    statuses = [http_client.post("/ops", "hello").status]
    for line in (
        *("GET /", "GET /ops", "GET /ops/members", "GET /-/", "GET /-/rooms", "GET /-/metrics", "GET /-/none"),
        *("OPTIONS /ops", "BREW /ops", "GET nonsense", "GET /-/assets/none"),
    ):
        statuses.append(http_client.ask(line).status)
    assert statuses == [201, 200, 200, 200, 200, 200, 200, 404, 204, 405, 400, 404]
    for line in ("GET /", "POST /ops", "OPTIONS /ops", "GET /-/rooms", "GET /-/metrics", "BREW /ops"):
        answer = http_client.ask(line)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert json.loads(http_client.ask("GET /").body) == {
        "error": "rate_limited",
        "message": "1 requests a second from one address at most",
    }
    http_client.clock.advance(1)
    assert HttpClient(http_client.server).ask("GET /").status == 200


def test_a_request_that_asks_for_no_stream_recovers_nothing() -> None:
    http_client = HttpClient(ChatServer(LIMITED))
    statuses = [http_client.ask("GET /-/none?resume=a-key-of-mine", "Last-Event-ID: e-1").status for _ in range(13)]
    assert statuses == [404] * 12 + [429]
    assert http_client.ask("GET /ops/members", "Last-Event-ID: e-1").status == 429
    assert http_client.ask("GET /ops", "Accept: text/event-stream", "Last-Event-ID: e-1").status == 200


def test_health_is_told_in_spite_of_a_flood_of_requests_and_is_limited_by_itself() -> None:
    http_client = HttpClient(ChatServer(LIMITED))
    assert [http_client.ask("GET /ops").status for _ in range(13)] == [200] * 12 + [429]
    probes = ["GET /-/healthz", "GET /-/readyz", "GET http://chat.example/-/healthz?x=1"]
    assert [http_client.ask(probes[number % 3]).status for number in range(13)] == [200] * 12 + [429]


def test_pages_of_other_origins_may_read_that_it_was_too_often() -> None:
    http_client = HttpClient(ChatServer(replace(LIMITED, allowed_origin=("https://app.example",))))
    for _ in range(12):
        http_client.ask("GET /ops")
    answer = http_client.ask("GET /ops", "Origin: https://app.example")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (429, "https://app.example")


# What goes wrong


def test_an_error_of_ours_is_500_without_details(http_client: HttpClient, events: Events) -> None:
    http_client.server.hub.publisher.publish = None  # type: ignore[method-assign, assignment]
    answer = http_client.post("/ops", "hello")
    assert (answer.status, json.loads(answer.body)["error"]) == (500, "internal")
    assert b"NoneType" not in answer.body
    assert [level for level, _ in events.said] == ["critical"]


def test_an_error_of_ours_before_anything_is_asked_is_500_too(http_client: HttpClient, events: Events) -> None:
    http_client.server.connections.new_id = None  # type: ignore[method-assign, assignment]
    assert http_client.error("GET /ops?follow=1") == (500, "internal")
    assert [level for level, _ in events.said] == ["critical"]


# A client that does not read

ASKED = b"GET /ops?last=1000 HTTP/1.1\r\nHost: x\r\n\r\n"


def answers(http_client: HttpClient) -> int:
    """Count the answers that were written."""
    data: bytes = http_client.transport.value()
    return data.count(b"HTTP/1.1 200 ")


def fill(http_client: HttpClient) -> None:
    """Fill the room with more than a transport likes to keep."""
    http_client.server.say(*(f"{number}{'x' * 1000}" for number in range(100)))


def test_a_client_that_does_not_read_gets_no_second_answer(http_client: HttpClient) -> None:
    fill(http_client)
    http_client.transport.client_reads = False
    http_client.transport.receive(ASKED * 20)
    http_client.server.turn()
    assert answers(http_client) == 1
    assert http_client.transport.producerState == "paused"


def test_answers_that_are_there_at_once_wait_for_the_client_too(http_client: HttpClient) -> None:
    http_client.transport.client_reads = False
    http_client.transport.receive(b"GET /-/ HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    http_client.server.turn()
    assert len(http_client.transport.value()) < 2 * http_client.transport.MARK


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /-/none HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /-/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS /ops HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /ops HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["errors", "HEAD", "OPTIONS", "POST"],
)
def test_any_answer_waits_for_the_client(http_client: HttpClient, request_: bytes) -> None:
    fill(http_client)
    http_client.transport.client_reads = False
    http_client.transport.receive(ASKED + request_ * 10)
    http_client.server.turn()
    assert http_client.transport.value().count(b"HTTP/1.1 ") == 1
    http_client.transport.catch_up()
    for _ in range(10):
        http_client.server.turn()
    assert http_client.transport.value().count(b"HTTP/1.1 ") == 11


def test_who_reads_on_gets_all_answers_in_order(http_client: HttpClient) -> None:
    fill(http_client)
    http_client.transport.client_reads = False
    for number in range(10):
        http_client.transport.receive(ASKED + b"GET /-/missing-%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
    http_client.transport.receive(b"GET /-/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for number in range(1, 11):
        http_client.server.turn()
        assert answers(http_client) == number
        http_client.transport.read_what_waits()
    http_client.transport.catch_up()
    http_client.server.turn()
    assert answers(http_client) == 11
    assert http_client.transport.value().endswith(b"ok\n")
    assert http_client.transport.lost is not None


def test_who_does_not_read_at_all_is_dropped_in_time(http_client: HttpClient) -> None:
    fill(http_client)
    before = REFUSED["unread"].value
    http_client.transport.client_reads = False
    http_client.transport.receive(ASKED * 2)
    http_client.server.turn()
    http_client.clock.advance(CONFIG.http_unread_seconds - 0.1)
    assert http_client.transport.lost is None
    http_client.clock.advance(0.3)
    http_client.clock.advance(0)
    assert http_client.transport.aborted
    assert http_client.transport.lost is not None
    assert REFUSED["unread"].value == before + 1
    assert len(http_client.site.channels) == 0
    assert http_client.clock.getDelayedCalls() == []


def test_who_does_not_read_the_last_answer_is_dropped_too(http_client: HttpClient) -> None:
    fill(http_client)
    http_client.transport.client_reads = False
    http_client.send("GET /ops?last=1000", "Connection: close")
    http_client.clock.advance(CONFIG.http_unread_seconds - 0.1)
    assert http_client.transport.lost is None
    http_client.clock.advance(0.3)
    http_client.clock.advance(0)
    assert http_client.transport.lost is not None


def test_who_reads_slowly_is_not_dropped_and_is_not_idle_either(
    http_client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = count()
    monkeypatch.setattr(Channel, "acknowledged", property(lambda _: next(taken)))  # there is no kernel here
    fill(http_client)
    http_client.transport.client_reads = False
    http_client.transport.receive(ASKED * 2)
    http_client.server.turn()
    for _ in range(10):
        http_client.clock.advance(CONFIG.http_unread_seconds)
    assert http_client.transport.lost is None
    http_client.transport.catch_up()
    http_client.server.turn()
    assert answers(http_client) == 2
    http_client.clock.advance(CONFIG.http_idle_seconds - 0.1)
    assert http_client.transport.lost is None
    http_client.clock.advance(0.1)
    http_client.clock.advance(0)
    assert http_client.transport.lost is not None


def test_who_stops_reading_is_dropped_in_time_after_what_it_read_last(
    http_client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = 0
    monkeypatch.setattr(Channel, "acknowledged", property(lambda _: has))
    fill(http_client)
    http_client.transport.client_reads = False
    http_client.transport.receive(ASKED * 2)
    http_client.server.turn()
    for step in range(200):  # it reads for 20 seconds
        http_client.clock.advance(0.1)
        has = step
    for _ in range(round(CONFIG.http_unread_seconds * 10) - 1):
        http_client.clock.advance(0.1)
    assert http_client.transport.lost is None
    for _ in range(round(CONFIG.http_unread_look_seconds * 10) + 2):
        http_client.clock.advance(0.1)
    assert http_client.transport.lost is not None
    assert http_client.clock.getDelayedCalls() == []


# What waits for all clients


@pytest.fixture
def slow(server: ChatServer, reactor: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowHttpClient]:
    """Give a client for which an answer of a room's history waits."""
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", 0)
    server.say(*(f"{number}{'x' * 1000}" for number in range(200)))
    slow = SlowHttpClient(server, reactor)
    slow.send("GET /ops?last=1000")
    assert SEND_BUFFER_BYTES.value > 100_000
    yield slow
    slow.close()
    assert SEND_BUFFER_BYTES.value == 0
    assert slow.channel not in SLOW_CLIENTS


def test_an_answer_that_waits_counts_until_it_is_read(slow: SlowHttpClient) -> None:
    assert SEND_BUFFER_BYTES.value == slow.waiting > 100_000
    slow.read_down_to(90_000)
    measure_backlogs()
    assert SEND_BUFFER_BYTES.value == slow.waiting <= 90_000
    slow.read_down_to(0)
    slow.until(lambda: not slow.channel._waitingForTransport, "the transport to say so")
    assert SEND_BUFFER_BYTES.value == 0
    measure_backlogs()
    assert SEND_BUFFER_BYTES.value == 0
    slow.send("GET /ops?last=1000")
    assert SEND_BUFFER_BYTES.value == slow.waiting > 100_000


def test_an_answer_that_waits_counts_no_more_once_its_client_is_gone(slow: SlowHttpClient) -> None:
    slow.close()
    assert SEND_BUFFER_BYTES.value == 0


def test_an_answer_that_waits_counts_no_more_once_others_have_the_connection(slow: SlowHttpClient) -> None:
    slow.channel.leave()
    assert SEND_BUFFER_BYTES.value == 0


# A client that asks for much at once


def test_others_have_turns_between_requests_that_come_at_once(http_client: HttpClient) -> None:
    http_client.transport.receive(FIRST * 200)
    assert 0 < answers(http_client) <= CONFIG.slice_requests
    assert http_client.transport.producerState == "paused"
    other = HttpClient(http_client.server)
    other.transport.receive(FIRST)
    assert answers(other) == 1
    assert answers(http_client) <= CONFIG.slice_requests
    for _ in range(200):
        http_client.clock.advance(0.01)
    assert answers(http_client) == 200
    assert http_client.transport.producerState == "producing"


def test_a_long_head_counts_as_several_requests(http_client: HttpClient) -> None:
    head = FIRST[:-2] + b"X: y\r\n" * 170 + b"\r\n"
    http_client.transport.receive(head * 20)
    assert answers(http_client) == CONFIG.slice_requests // (1 + len(head) // CONFIG.slice_bytes) + 1


def test_others_have_turns_between_the_chunks_of_a_body(http_client: HttpClient) -> None:
    http_client.transport.receive(b"POST /-/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    http_client.transport.receive(b"1\r\na\r\n" * 4000 + b"0\r\n\r\n" + FIRST)
    assert http_client.transport.producerState == "paused"
    assert http_client.transport.value() == b""
    for _ in range(50):
        http_client.clock.advance(0.01)
    assert http_client.transport.value().startswith(b"HTTP/1.1 404 ")
    assert answers(http_client) == 1
    assert http_client.transport.producerState == "producing"


def test_who_leaves_before_its_turn_leaves_nothing_behind(http_client: HttpClient) -> None:
    http_client.transport.receive(FIRST * 200)
    before = answers(http_client)
    http_client.transport.vanish()
    http_client.clock.advance(1)
    assert answers(http_client) == before
    assert http_client.clock.getDelayedCalls() == []


def test_the_last_request_of_many_may_close_the_connection(http_client: HttpClient) -> None:
    http_client.transport.receive(FIRST * (CONFIG.slice_requests - 1))
    http_client.transport.receive(FIRST * 40 + FIRST[:-2] + b"Connection: close\r\n\r\n" + FIRST * 40)
    for _ in range(50):
        http_client.clock.advance(0.01)
    assert answers(http_client) == CONFIG.slice_requests - 1 + 41
    assert http_client.transport.lost is not None


def test_a_body_that_is_refused_twice_has_one_answer(http_client: HttpClient) -> None:
    http_client.send("POST /ops", "Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n" % (MOST, b"a" * MOST))
    http_client.server.turn()
    http_client.transport.receive(b"1\r\na\r\nno chunk\r\n")
    http_client.clock.advance(1)
    assert http_client.transport.value().startswith(b"HTTP/1.1 413 ")
    assert http_client.transport.value().count(b"HTTP/1.1 ") == 1


# The head of a request

FIRST = b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("begun", [b"G", b"GET /ops HTTP/1.1\r\n", b"GET /ops HTTP/1.1\r\nHost: x\r\nX", b"\r"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_a_head_that_is_begun_ends_in_time(http_client: HttpClient, begun: bytes, *, at_once: bool) -> None:
    for data in [FIRST + begun] if at_once else [FIRST, begun]:
        http_client.transport.receive(data)
    before = REFUSED["late"].value
    for _ in range(3):
        http_client.clock.advance(CONFIG.head_seconds / 4)
        assert http_client.transport.value().count(b"HTTP/1.1 ") == 1
        http_client.transport.receive(b"x" if b"\n" not in begun else b"x: y\r\nx")
    http_client.clock.advance(CONFIG.head_seconds / 4 + 0.2)
    assert http_client.transport.value().partition(b"ok\n")[2].startswith(b"HTTP/1.1 408 ")
    assert REFUSED["late"].value == before + 1


def test_a_head_behind_one_that_is_being_answered_has_its_time_from_when_it_is_read(http_client: HttpClient) -> None:
    http_client.bus.answer_at_once = False
    http_client.transport.receive(b"GET /ops/members HTTP/1.1\r\nHost: x\r\n\r\nGET /-/healthz HTTP/1.1\r\n")
    http_client.clock.advance(CONFIG.head_seconds - 0.5)
    assert answers(http_client) == 0
    http_client.bus.answer()
    assert answers(http_client) == 1
    http_client.clock.advance(CONFIG.head_seconds - 0.5)
    http_client.transport.receive(b"Host: x\r\n\r\n")
    assert answers(http_client) == 2
    http_client.clock.advance(1)
    assert http_client.transport.lost is None


def test_a_head_that_came_is_no_reason_to_hang_up(http_client: HttpClient) -> None:
    for _ in range(3):
        http_client.transport.receive(FIRST[:20])
        http_client.transport.receive(FIRST[20:])
        http_client.clock.advance(CONFIG.head_seconds + 0.2)
    assert answers(http_client) == 3
    assert http_client.transport.lost is None


@pytest.mark.parametrize("split", [1, 100, 100_000])
def test_a_later_head_has_the_size_of_the_first_one(http_client: HttpClient, split: int) -> None:
    def ask(size: int) -> bytes:
        http_client.transport.clear()
        head = b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n"
        lines, rest = divmod(size - len(head) - 2, 50)
        head += b"X: %b\r\n" % (b"y" * 45) * (lines - 1) + b"X: %b\r\n\r\n" % (b"y" * (45 + rest))
        assert len(head) == size
        for start in range(0, size, split):
            http_client.transport.receive(head[start : start + split])
        answer: bytes = http_client.transport.value()
        return answer

    assert ask(100).startswith(b"HTTP/1.1 200 ")
    assert ask(CONFIG.head_bytes).startswith(b"HTTP/1.1 200 ")
    assert ask(CONFIG.head_bytes + 1).startswith(b"HTTP/1.1 431 ")


def test_a_line_without_end_is_431_too(http_client: HttpClient) -> None:
    http_client.transport.receive(FIRST)
    http_client.transport.receive(b"GET /" + b"x" * CONFIG.head_bytes)
    assert b"HTTP/1.1 431 " in http_client.transport.value()


def test_too_many_headers_are_an_error_in_json_too(http_client: HttpClient) -> None:
    assert http_client.error("GET /ops", *["a:"] * 1000) == (400, "bad_request")


# The connection


def test_a_second_request_on_the_connection_works(http_client: HttpClient) -> None:
    assert http_client.ask("GET /").status == 200
    assert http_client.ask("GET /ops").status == 200
    assert http_client.ask("GET /-/healthz").status == 200
    assert http_client.transport.lost is None


def test_a_client_that_asks_to_close_is_closed(http_client: HttpClient) -> None:
    assert http_client.ask("GET /", "Connection: close").status == 200
    assert http_client.transport.lost is not None


def test_a_silent_connection_is_closed_in_its_time(http_client: HttpClient) -> None:
    http_client.ask("GET /")
    http_client.clock.advance(6.9)
    assert http_client.transport.lost is None
    http_client.clock.advance(0.1)
    http_client.clock.advance(0)
    assert http_client.transport.lost is not None


def test_a_connection_counts_until_it_is_lost(http_client: HttpClient) -> None:
    http_client.ask("GET /")
    assert len(http_client.site.channels) == 1
    http_client.transport.vanish()
    assert len(http_client.site.channels) == 0
    assert http_client.clock.getDelayedCalls() == []
