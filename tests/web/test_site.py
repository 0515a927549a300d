"""The HTTP side of the port: real requests to a site on a bus in memory and a clock."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from chatd.clients.send_buffer import SLOW_CLIENTS, measure_backlogs
from chatd.monitoring.metrics import REFUSED, SEND_BUFFER_BYTES
from chatd.web.channel import Channel
from chatd.web.site import about
from tests.fakes import Events
from tests.rows import rows
from tests.web.http_client import CONFIG, ChatServer, HttpClient, SlowHttpClient, error

# Paths and methods


@rows(
    "lines",
    [
        *("GET *", "POST *", "BREW /ops", "GET /a/b", "GET /-/none", "GET /ops?last=x", "GET /ops?nick=j\u00f6rg%20"),
        *("GET /ops?follow=\u20ac", "GET /ops HTTP/3.0", "GET /%FF", "GET ops", "CONNECT localhost:22", "nonsense"),
        *("GET /ops\r\nno header", "GET /ops\r\nUpgrade: websocket", "GET /ops\r\nOrigin: https://evil.example"),
        *("POST /ops\r\nContent-Length: 1000000", "POST /ops\r\nContent-Length: x"),
        *("POST /ops\r\nTransfer-Encoding: gzip", "POST /ops\r\nContent-Encoding: br"),
        "POST /ops\r\nContent-Type: image/png",
        "GET /ops\r\nLast-Event-ID: ?\r\nAccept: text/event-stream",
    ],
)
def test_every_refusal_is_json_with_a_reason(lines: str) -> None:
    answer = HttpClient().request(*lines.split("\r\n"))
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert json.loads(answer.body).keys() == {"error", "message"}


def test_a_target_may_have_bytes_that_are_not_ascii(client: HttpClient) -> None:
    client.server.publish("hello", room="\u010d\u00e9")
    for target in ("/\u010d\u00e9?last=1", "/%C4%8D%C3%A9?last=1"):
        assert client.request(f"GET {target}").body == b"hello\n"
    assert client.post("/ops?nick=j\u00f6rg", "hi").status == 201
    assert client.request("GET /ops").body == "j\u00f6rg: hi\n".encode()


@rows("name", ["\u00c5", "\u0445"])
def test_a_target_may_have_the_byte_0x85_in_the_first_and_in_later_requests(name: str) -> None:
    client = HttpClient()
    client.server.publish("hello", room=name)
    for _ in range(2):
        assert client.request(f"GET /{name}?last=1").body == b"hello\n"
    assert client.error(f"GET /{name}", f"X: {name}") == (400, "bad_request")


@rows(
    "coding, status",
    [*((coding, 415) for coding in ("gzip", "x-gzip", "br", "identity, gzip")), ("identity", 201)],
)
def test_a_compressed_body_is_415(coding: str, status: int) -> None:
    client = HttpClient()
    answer = client.request("POST /ops", f"Content-Encoding: {coding}", body=b"hello")
    assert answer.status == status
    if status == 415:
        assert error(answer) == (415, "bad_request")
        assert answer.headers["accept-encoding"] == "identity"
        assert client.bus.published == []


def test_the_description_names_the_requested_host(client: HttpClient) -> None:
    answer = client.request("GET /-/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.body.decode() == about("chat.example:3000")
    assert b"websocat ws://chat.example:3000 " in answer.body
    assert b"ws://[::1]:3000/ops" in client.request("GET /-/", host="[::1]:3000").body


@rows("host", ["<script>", "a b", "x; rm -rf ~", "a/b", "", "x" * 256, "$(id)", "`id`", "ä.example"])
def test_a_nasty_host_is_not_reflected(host: str) -> None:
    assert HttpClient().request("GET /-/", host=host).body.decode() == about("localhost:3000")


def test_the_root_is_the_lobby(client: HttpClient) -> None:
    client.server.publish("hello", room="lobby")
    assert client.request("GET /").body == client.request("GET /lobby").body == b"hello\n"


@rows("target", ["http://chat.example:3000/-/healthz", "/-/healthz?last=3"])
def test_an_absolute_target_and_a_query_do_not_matter(target: str) -> None:
    assert HttpClient().request(f"GET {target}").body == b"ok\n"


@rows("path", ["/-/", "/-/healthz", "/-/readyz", "/-/rooms", "/ops", "/ops/members", "/-/none", "/a/b"])
def test_head_is_get_without_a_body(client: HttpClient, path: str) -> None:
    client.server.publish("hello")
    got, head = client.request(f"GET {path}"), client.request(f"HEAD {path}")
    assert (head.status, head.body) == (got.status, b"")
    assert int(head.headers["content-length"]) == len(got.body) > 0


@rows("path", ["/", "/-/", "/-/healthz", "/-/readyz", "/-/rooms", "/ops/members", "/-/none", "/-"])
def test_no_answer_names_the_server_or_may_be_kept_or_guessed_at(client: HttpClient, path: str) -> None:
    answer = client.request(f"GET {path}")
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert int(answer.headers["content-length"]) == len(answer.body)


@rows(
    "path, code",
    [
        *((path, "not_found") for path in ("/-/none", "/-/healthz/", "/-/HEALTHZ", "/-/members")),
        *((path, "bad_room") for path in ("/-", "/-ops", "/a/b", "/a%20b", "/a/b/members", "/a%20b/members")),
    ],
)
def test_an_unknown_path_or_a_bad_room_is_404(client: HttpClient, path: str, code: str) -> None:
    assert client.error(f"GET {path}") == (404, code)


@rows(
    "path, allowed",
    [
        *((path, "GET, HEAD, POST, OPTIONS") for path in ("/ops", "/")),
        *((path, "GET, HEAD, OPTIONS") for path in ("/ops/members", "/-/rooms", "/-/healthz", "/-/")),
    ],
)
def test_options_and_the_refusal_of_another_method_name_the_allowed_ones(path: str, allowed: str) -> None:
    client = HttpClient()
    answer = client.request(f"OPTIONS {path}")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")
    assert "content-length" not in answer.headers
    for method in ("PUT", "DELETE", "PATCH", "BREW", *([] if "POST" in allowed else ["POST"])):
        answer = HttpClient().request(f"{method} {path}", body=b"hello")
        assert (error(answer), answer.headers["allow"]) == ((405, "bad_request"), allowed)


# Bodies

MAX_BODY = 6 * CONFIG.max_message_size + 4096


@rows("length", ["Content-Length: 1000000000", f"Content-Length: {MAX_BODY + 1}"])
def test_a_body_that_is_too_large_is_refused_before_it_comes(length: str) -> None:
    client = HttpClient()
    assert client.error("POST /ops", length, "Expect: 100-continue") == (413, "too_large")
    assert b"100 Continue" not in client.received


def test_a_chunked_body_is_refused_once_when_it_becomes_too_large(client: HttpClient) -> None:
    client.send("POST /ops", "Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n" % (MAX_BODY, b"a" * MAX_BODY))
    assert client.received == b""
    client.transport.receive(b"1\r\na\r\nno chunk\r\n")
    client.wait(1)
    assert client.received.startswith(b"HTTP/1.1 413 ")
    assert client.received.count(b"HTTP/1.1 ") == 1


def test_a_body_is_asked_for_with_100_continue(client: HttpClient) -> None:
    client.send("POST /ops", "Content-Length: 5", "Expect: 100-continue")
    assert client.received.startswith(b"HTTP/1.1 100 Continue\r\n")


@rows("rest", [b"a" * 5000, b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3])
def test_data_after_a_refusal_is_ignored(rest: bytes) -> None:
    client = HttpClient()
    client.send("POST /ops", f"Content-Length: {MAX_BODY + 1}", body=rest)
    client.transport.receive(rest)
    client.wait(0)
    assert client.received.count(b"HTTP/1.1 ") == 1
    assert client.received.startswith(b"HTTP/1.1 413 ")


def test_a_refusal_can_be_read_before_the_connection_is_closed(client: HttpClient) -> None:
    client.transport.client_reads = False
    client.send("POST /ops", f"Content-Length: {MAX_BODY + 1}")
    assert not client.closed
    assert len(client.site.channels) == 1
    client.wait(CONFIG.close_timeout + 0.2)
    assert client.closed
    assert len(client.site.channels) == 0


@rows("length, begun", [("Content-Length: 5", b"h"), ("Transfer-Encoding: chunked", b"1")])
def test_a_body_that_does_not_come_in_time_is_408(length: str, begun: bytes) -> None:
    client = HttpClient()
    client.send("POST /ops", length)
    client.wait(3)
    client.transport.receive(begun)
    client.wait(2.2)
    assert client.answer.status == 408


def test_a_complete_body_stops_its_timer(client: HttpClient) -> None:
    assert client.post("/ops", "hello").status == 201
    client.wait(6)
    assert client.request("GET /-/healthz").status == 200


def test_a_client_that_leaves_within_a_body_leaves_no_timer(client: HttpClient) -> None:
    client.send("POST /ops", "Content-Length: 5", body=b"he")
    client.transport.vanish()
    assert client.clock.getDelayedCalls() == []


CHUNKS = b"5\r\nhello\r\n0\r\n"


@rows("step", [1, 100])
def test_chunks_end_with_an_empty_line(step: int) -> None:
    client = HttpClient()
    client.send("POST /ops", "Transfer-Encoding: chunked")
    data = CHUNKS + b"\r\n"
    for start in range(0, len(data), step):
        client.transport.receive(data[start : start + step])
    client.server.turn()
    assert client.answer.status == 201


@rows("trailer", [b"X: y\r\n\r\n", b"X", b"\n", b"\rX", b"X: y\n\n", b"GET / HTTP/1.1\r\n\r\n", b" \r\n"])
def test_trailers_are_refused(trailer: bytes) -> None:
    client = HttpClient()
    assert client.error("POST /ops", "Transfer-Encoding: chunked", body=CHUNKS + trailer) == (400, "bad_request")
    assert client.bus.published == []


@rows("content_type", ["multipart/form-data; boundary=x", "image/png", "text/plain; charset=latin-1"])
def test_a_body_of_a_bad_type_is_refused_before_it_comes(content_type: str) -> None:
    client, headers = HttpClient(), (f"Content-Type: {content_type}", "Expect: 100-continue")
    assert client.error("POST /ops", "Content-Length: 500", *headers) == (415, "bad_request")
    assert client.received.count(b"HTTP/1.1 ") == 1


@rows("path, status", [("/-/healthz", 405), ("/ops/members", 405), ("/-/none", 404), ("/-", 404)])
def test_the_type_of_a_body_does_not_matter_outside_of_rooms(path: str, status: int) -> None:
    assert HttpClient().post(path, "hello", "image/png").status == status


@pytest.fixture
def requests(client: HttpClient) -> list[tuple[Any, bytes]]:
    """Return the arguments and bodies of the requests that reach the site's resource."""
    requests: list[tuple[Any, bytes]] = []
    resource: Any = client.site.resource
    render = resource.render

    def record(request: Any) -> Any:
        requests.append((request.args, request.content.getvalue()))
        return render(request)

    resource.render = record
    return requests


def test_no_body_is_parsed_as_a_form(client: HttpClient, requests: list[tuple[Any, bytes]]) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    client.post("/-/none?last=3", b"a=b", "application/x-www-form-urlencoded")
    client.post("/-/none?last=3", part, "multipart/form-data; boundary=x")
    assert requests == [({b"last": [b"3"]}, b"a=b"), ({b"last": [b"3"]}, part)]


def test_only_the_body_of_a_post_is_kept(client: HttpClient, requests: list[tuple[Any, bytes]]) -> None:
    for method in ("PUT", "GET", "BREW", "POST"):
        client.request(f"{method} /ops", body=b"hello")
    assert [body for _, body in requests] == [b"", b"", b"", b"hello"]


def test_the_body_of_a_get_is_skipped(client: HttpClient) -> None:
    assert client.request("GET /-/healthz", body=b"hello").body == b"ok\n"
    assert client.request("GET /-/healthz").body == b"ok\n"


# The rate limit of requests

LIMITED = replace(CONFIG, request_rate="1", request_burst_time=12.5)


def test_every_request_is_charged_to_its_address() -> None:
    client = HttpClient(ChatServer(LIMITED))
    lines = [
        *("GET /", "GET /ops", "GET /ops/members", "GET /-/", "GET /-/rooms", "GET /-/metrics", "GET /-/none"),
        *("OPTIONS /ops", "BREW /ops", "GET nonsense", "GET /-/assets/none"),
    ]
    statuses = [client.post("/ops", "hello").status, *(client.request(line).status for line in lines)]
    assert statuses == [201, 200, 200, 200, 200, 200, 200, 404, 204, 405, 400, 404]
    for line in ("GET /", "POST /ops", "OPTIONS /ops", "GET /-/rooms", "GET /-/metrics", "BREW /ops"):
        answer = client.request(line)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert json.loads(client.request("GET /").body) == {
        "error": "rate_limited",
        "message": "1 requests a second from one address at most",
    }
    client.wait(1)
    assert HttpClient(client.server).request("GET /").status == 200


def test_a_request_for_no_stream_is_not_excused_as_recovery() -> None:
    client = HttpClient(ChatServer(LIMITED))
    statuses = [client.request("GET /-/none?resume=a-key-of-mine", "Last-Event-ID: e-1").status for _ in range(13)]
    assert statuses == [404] * 12 + [429]
    assert client.request("GET /ops/members", "Last-Event-ID: e-1").status == 429
    assert client.request("GET /ops", "Accept: text/event-stream", "Last-Event-ID: e-1").status == 200


def test_health_checks_have_a_rate_limit_of_their_own() -> None:
    client = HttpClient(ChatServer(LIMITED))
    assert [client.request("GET /ops").status for _ in range(13)] == [200] * 12 + [429]
    probes = ["GET /-/healthz", "GET /-/readyz", "GET http://chat.example/-/healthz?x=1"]
    assert [client.request(probes[number % 3]).status for number in range(13)] == [200] * 12 + [429]


def test_pages_of_allowed_origins_may_read_429() -> None:
    client = HttpClient(ChatServer(replace(LIMITED, allowed_origin=("https://app.example",))))
    for _ in range(12):
        client.request("GET /ops")
    answer = client.request("GET /ops", "Origin: https://app.example")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (429, "https://app.example")


# Errors of the server


def test_an_internal_error_is_500_without_details(client: HttpClient, events: Events) -> None:
    client.server.hub.publisher.publish = None  # type: ignore[method-assign, assignment]
    answer = client.post("/ops", "hello")
    assert error(answer) == (500, "internal")
    assert b"NoneType" not in answer.body
    assert [level for level, _ in events.said] == ["critical"]


def test_an_internal_error_before_a_stream_is_500(client: HttpClient, events: Events) -> None:
    client.server.connections.new_id = None  # type: ignore[method-assign, assignment]
    assert client.error("GET /ops?follow=1") == (500, "internal")
    assert [level for level, _ in events.said] == ["critical"]


# A client that does not read

HISTORY = b"GET /ops?last=1000 HTTP/1.1\r\nHost: x\r\n\r\n"


def answers(client: HttpClient) -> int:
    """Count the answers 200 that were written."""
    return client.received.count(b"HTTP/1.1 200 ")


@pytest.fixture
def blocked(client: HttpClient) -> HttpClient:
    """Return a client that does not read, and whose room has more messages than fit into a transport."""
    client.server.publish(*(f"{number}{'x' * 1000}" for number in range(100)))
    client.transport.client_reads = False
    return client


def test_a_client_that_does_not_read_gets_no_second_answer(blocked: HttpClient) -> None:
    blocked.transport.receive(HISTORY * 20)
    blocked.server.turn()
    assert answers(blocked) == 1
    assert blocked.transport.producerState == "paused"


def test_answers_without_the_bus_wait_for_the_client_too(blocked: HttpClient) -> None:
    blocked.transport.receive(b"GET /-/ HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    blocked.server.turn()
    assert len(blocked.received) < 2 * blocked.transport.MARK


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
def test_any_answer_waits_for_the_client(blocked: HttpClient, request_: bytes) -> None:
    blocked.transport.receive(HISTORY + request_ * 10)
    blocked.server.turn()
    assert blocked.received.count(b"HTTP/1.1 ") == 1
    blocked.transport.catch_up()
    for _ in range(10):
        blocked.server.turn()
    assert blocked.received.count(b"HTTP/1.1 ") == 11


def test_a_client_that_reads_on_gets_all_answers_in_order(blocked: HttpClient) -> None:
    for number in range(10):
        blocked.transport.receive(HISTORY + b"GET /-/missing-%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
    blocked.transport.receive(b"GET /-/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for number in range(1, 11):
        blocked.server.turn()
        assert answers(blocked) == number
        blocked.transport.read_what_waits()
    blocked.transport.catch_up()
    blocked.server.turn()
    assert answers(blocked) == 11
    assert blocked.received.endswith(b"ok\n")
    assert blocked.closed


def test_a_client_that_does_not_read_at_all_is_dropped_in_time(blocked: HttpClient) -> None:
    before = REFUSED["unread"].value
    blocked.transport.receive(HISTORY * 2)
    blocked.server.turn()
    blocked.wait(CONFIG.http_send_timeout - 0.1)
    assert not blocked.closed
    blocked.wait(0.3)
    assert blocked.closed
    assert blocked.transport.aborted
    assert REFUSED["unread"].value == before + 1
    assert len(blocked.site.channels) == 0
    assert blocked.clock.getDelayedCalls() == []


def test_a_client_that_does_not_read_the_last_answer_is_dropped_in_time(blocked: HttpClient) -> None:
    blocked.send("GET /ops?last=1000", "Connection: close")
    blocked.wait(CONFIG.http_send_timeout - 0.1)
    assert not blocked.closed
    blocked.wait(0.3)
    assert blocked.closed


def test_a_client_that_reads_slowly_is_neither_dropped_nor_idle(
    blocked: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()
    monkeypatch.setattr(Channel, "acknowledged", property(lambda _: next(numbers)))  # there is no kernel here
    blocked.transport.receive(HISTORY * 2)
    blocked.server.turn()
    for _ in range(10):
        blocked.clock.advance(CONFIG.http_send_timeout)
    assert not blocked.closed
    blocked.transport.catch_up()
    blocked.server.turn()
    assert answers(blocked) == 2
    blocked.clock.advance(CONFIG.http_keepalive_timeout - 0.1)
    assert not blocked.closed
    blocked.wait(0.1)
    assert blocked.closed


def test_a_client_that_stops_to_read_is_dropped_in_time(blocked: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged = 0
    monkeypatch.setattr(Channel, "acknowledged", property(lambda _: acknowledged))
    blocked.transport.receive(HISTORY * 2)
    blocked.server.turn()
    for acknowledged in range(200):  # noqa: B007 - the client reads for 20 seconds
        blocked.clock.advance(0.1)
    for _ in range(round(CONFIG.http_send_timeout * 10) - 1):
        blocked.clock.advance(0.1)
    assert not blocked.closed
    for _ in range(round(CONFIG.http_send_check_interval * 10) + 2):
        blocked.clock.advance(0.1)
    assert blocked.closed
    assert blocked.clock.getDelayedCalls() == []


# The send buffers of all clients


@pytest.fixture
def slow(server: ChatServer, reactor: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowHttpClient]:
    """Return a client for which an answer with a room's history waits."""
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", 0)
    server.publish(*(f"{number}{'x' * 1000}" for number in range(200)))
    slow = SlowHttpClient(server, reactor)
    slow.send("GET /ops?last=1000")
    assert SEND_BUFFER_BYTES.value == slow.waiting > 100_000
    yield slow
    slow.close()
    assert SEND_BUFFER_BYTES.value == 0
    assert slow.channel not in SLOW_CLIENTS


def test_a_waiting_answer_counts_until_it_is_read(slow: SlowHttpClient) -> None:
    slow.read_down_to(90_000)
    measure_backlogs()
    assert SEND_BUFFER_BYTES.value == slow.waiting <= 90_000
    slow.read_down_to(0)
    slow.until(lambda: not slow.channel._waitingForTransport, "the transport to resume its producer")
    assert SEND_BUFFER_BYTES.value == 0
    measure_backlogs()
    assert SEND_BUFFER_BYTES.value == 0
    slow.send("GET /ops?last=1000")
    assert SEND_BUFFER_BYTES.value == slow.waiting > 100_000


@pytest.mark.parametrize("end", ["its client is gone", "another protocol has the connection"])
def test_a_waiting_answer_counts_no_more_after(slow: SlowHttpClient, end: str) -> None:
    slow.close() if end == "its client is gone" else slow.channel.leave()
    assert SEND_BUFFER_BYTES.value == 0


# A client that sends much at once

HEALTH = b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_other_clients_have_turns_between_requests_that_come_at_once(client: HttpClient) -> None:
    client.transport.receive(HEALTH * 200)
    assert 0 < answers(client) <= CONFIG.http_requests_per_turn
    assert client.transport.producerState == "paused"
    other = HttpClient(client.server)
    other.transport.receive(HEALTH)
    assert answers(other) == 1
    assert answers(client) <= CONFIG.http_requests_per_turn
    for _ in range(200):
        client.clock.advance(0.01)
    assert answers(client) == 200
    assert client.transport.producerState == "producing"


def test_a_long_head_counts_as_several_requests(client: HttpClient) -> None:
    head = HEALTH[:-2] + b"X: y\r\n" * 170 + b"\r\n"
    client.transport.receive(head * 20)
    assert answers(client) == CONFIG.http_requests_per_turn // (1 + len(head) // CONFIG.http_bytes_per_step) + 1


def test_other_clients_have_turns_between_the_chunks_of_a_body(client: HttpClient) -> None:
    client.transport.receive(b"POST /-/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.transport.receive(b"1\r\na\r\n" * 4000 + b"0\r\n\r\n" + HEALTH)
    assert client.transport.producerState == "paused"
    assert client.received == b""
    for _ in range(50):
        client.clock.advance(0.01)
    assert client.received.startswith(b"HTTP/1.1 404 ")
    assert answers(client) == 1
    assert client.transport.producerState == "producing"


def test_a_client_that_leaves_before_its_turn_leaves_no_timer(client: HttpClient) -> None:
    client.transport.receive(HEALTH * 200)
    before = answers(client)
    client.transport.vanish()
    client.clock.advance(1)
    assert answers(client) == before
    assert client.clock.getDelayedCalls() == []


def test_the_last_request_of_many_may_close_the_connection(client: HttpClient) -> None:
    client.transport.receive(HEALTH * (CONFIG.http_requests_per_turn - 1))
    client.transport.receive(HEALTH * 40 + HEALTH[:-2] + b"Connection: close\r\n\r\n" + HEALTH * 40)
    for _ in range(50):
        client.clock.advance(0.01)
    assert answers(client) == CONFIG.http_requests_per_turn - 1 + 41
    assert client.closed


# The head of a request


@rows("begun", [b"G", b"GET /ops HTTP/1.1\r\n", b"GET /ops HTTP/1.1\r\nHost: x\r\nX", b"\r"])
@rows("at_once", [True, False])
def test_a_head_that_is_begun_ends_in_time(begun: bytes, *, at_once: bool) -> None:
    client = HttpClient()
    for data in [HEALTH + begun] if at_once else [HEALTH, begun]:
        client.transport.receive(data)
    before = REFUSED["late"].value
    for _ in range(3):
        client.clock.advance(CONFIG.client_header_timeout / 4)
        assert client.received.count(b"HTTP/1.1 ") == 1
        client.transport.receive(b"x" if b"\n" not in begun else b"x: y\r\nx")
    client.clock.advance(CONFIG.client_header_timeout / 4 + 0.2)
    assert client.received.partition(b"ok\n")[2].startswith(b"HTTP/1.1 408 ")
    assert REFUSED["late"].value == before + 1


def test_the_time_of_a_waiting_head_begins_when_it_is_read(client: HttpClient) -> None:
    client.bus.answer_at_once = False
    client.transport.receive(b"GET /ops/members HTTP/1.1\r\nHost: x\r\n\r\nGET /-/healthz HTTP/1.1\r\n")
    client.clock.advance(CONFIG.client_header_timeout - 0.5)
    assert answers(client) == 0
    client.bus.answer()
    assert answers(client) == 1
    client.clock.advance(CONFIG.client_header_timeout - 0.5)
    client.transport.receive(b"Host: x\r\n\r\n")
    assert answers(client) == 2
    client.clock.advance(1)
    assert not client.closed


def test_a_complete_head_stops_its_timer(client: HttpClient) -> None:
    for _ in range(3):
        client.transport.receive(HEALTH[:20])
        client.transport.receive(HEALTH[20:])
        client.clock.advance(CONFIG.client_header_timeout + 0.2)
    assert answers(client) == 3
    assert not client.closed


@rows("step", [1, 100, 100_000])
def test_a_later_head_has_the_size_limit_of_the_first_one(step: int) -> None:
    client = HttpClient()
    for size, status in ((100, 200), (CONFIG.client_header_size, 200), (CONFIG.client_header_size + 1, 431)):
        client.transport.clear()
        count, rest = divmod(size - len(HEALTH), 50)
        head = HEALTH[:-2] + (b"X: %b\r\n" % (b"y" * 45)) * (count - 1) + b"X: %b\r\n\r\n" % (b"y" * (45 + rest))
        assert len(head) == size
        for start in range(0, size, step):
            client.transport.receive(head[start : start + step])
        assert client.answer.status == status


def test_a_line_without_end_is_431_too(client: HttpClient) -> None:
    client.transport.receive(HEALTH)
    client.transport.receive(b"GET /" + b"x" * CONFIG.client_header_size)
    assert b"HTTP/1.1 431 " in client.received


def test_too_many_headers_are_400(client: HttpClient) -> None:
    assert client.error("GET /ops", *["a:"] * 1000) == (400, "bad_request")


# The connection


def test_a_connection_counts_until_it_is_lost(client: HttpClient) -> None:
    for path in ("/", "/ops", "/-/healthz"):
        assert client.request(f"GET {path}").status == 200
        assert not client.closed
        assert len(client.site.channels) == 1
    client.transport.vanish()
    assert len(client.site.channels) == 0
    assert client.clock.getDelayedCalls() == []


def test_a_client_that_asks_to_close_is_closed(client: HttpClient) -> None:
    assert client.request("GET /", "Connection: close").status == 200
    assert client.closed


def test_an_idle_connection_is_closed_in_time(client: HttpClient) -> None:
    client.request("GET /")
    client.clock.advance(6.9)
    assert not client.closed
    client.wait(0.1)
    assert client.closed
