"""A room that is followed over HTTP: the stream begins, continues, falls behind, recovers, and ends."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone

from chatd.config.settings import Config
from chatd.monitoring.metrics import CLIENTS, REFUSED
from chatd.protocol.close_codes import BUS_AWAY, STOPPING
from tests.fakes import Events
from tests.rows import rows
from tests.web.http_client import CONFIG, ChatServer, HttpClient, error

EVENTS = "Accept: text/event-stream"
JSON = "Accept: application/json"
TYPES = {
    "text/plain": "text/plain; charset=utf-8",
    "application/json": "application/x-ndjson",
    "application/x-ndjson": "application/x-ndjson",
    "text/event-stream": "text/event-stream",
}


def streamed(client: HttpClient) -> str:
    """Return what has come of the body, out of its chunks."""
    rest: bytes
    head, _, rest = client.received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest.decode()
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]
    return body.decode()


def events_of(client: HttpClient) -> list[tuple[str, str, dict[str, object]]]:
    """Return the events that have come: id, type and data."""
    found = []
    for block in streamed(client).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "data" in fields:
            found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


# Refused streams


def test_the_limit_of_followers_frees_a_place_when_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLIENTS["http"], "value", 0)
    server = ChatServer(replace(CONFIG, worker_connections=4))
    followers = [HttpClient(server) for _ in range(2)]
    for follower in followers:
        follower.send("GET /ops?follow=1")
    late = HttpClient(server)
    answer = late.request("GET /ops?follow=1")
    assert (*error(answer), answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert late.request("GET /ops").status == 200
    followers[0].transport.vanish()
    assert late.request("GET /ops?follow=1").status == 200
    server.publish("now")
    assert [streamed(follower) for follower in (followers[1], late)] == ["now\n", "now\n"]


def test_an_event_source_that_is_refused_for_now_gets_a_stream_that_ends_with_when_to_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CLIENTS["http"], "value", 0)
    server = ChatServer(replace(CONFIG, worker_connections=0))
    before = REFUSED["unavailable"].value
    waits = set()
    for answer in [HttpClient(server).request("GET /ops", EVENTS) for _ in range(9)]:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        assert answer.headers["retry-after"] == "5"
        retry, event, data = filter(None, answer.body.decode().split("\n"))
        bye = json.loads(data.removeprefix("data: "))
        assert (event, bye["type"], bye["code"]) == ("event: bye", "bye", 1013)
        assert bye["reason"] == "too many clients follow rooms over HTTP; try again later"
        assert retry == f"retry: {round(bye['reconnect_after'] * 1000)}"
        assert 5 <= bye["reconnect_after"] <= 5 + CONFIG.retry_after
        waits.add(bye["reconnect_after"])
    assert len(waits) > 1
    assert REFUSED["unavailable"].value == before + 9
    assert HttpClient(server).request("HEAD /ops", EVENTS).status == 200  # it would not stay
    assert HttpClient(server).request("GET /ops?follow=1").status == 503
    assert HttpClient(server).request("GET /ops?follow=1", JSON).status == 503


def test_an_event_source_over_its_rate_limit_gets_4029() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", request_burst_time=1))
    HttpClient(server).request("GET /ops")
    answer = HttpClient(server).request("GET /ops", EVENTS)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert b'"code":4029' in answer.body


def test_an_event_source_is_refused_in_time_while_the_bus_is_away(client: HttpClient) -> None:
    client.bus.confirm_at_once = False
    client.send("GET /ops", EVENTS)
    client.wait(CONFIG.subscribe_timeout)
    assert client.answer.status == 200
    assert BUS_AWAY.reason.encode() in client.answer.body


@rows(
    "line, status",
    [
        *(("GET /-/nothing", 404), ("GET /-ops", 404), ("GET /ops?last=x", 400), ("POST /ops", 400)),
        *(("DELETE /ops", 405), ("GET /-/readyz", 503), ("GET /-/rooms", 503)),
    ],
)
def test_other_refusals_stay_errors_for_event_sources(line: str, status: int) -> None:
    client = HttpClient()
    client.bus.away = "it is gone" if status == 503 else ""
    assert client.request(line, EVENTS).status == status


# Begin


def test_a_follower_is_charged_for_history_but_not_refused_recovery() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", request_burst_time=5, read_bytes_per_request=5))
    for number in range(10):
        server.publish(f"{number}")
    first, second = HttpClient(server), HttpClient(server)
    first.send("GET /ops?follow=1&last=10")
    assert len(streamed(first).split()) == 10
    assert second.error("GET /ops?follow=1&last=10") == (429, "rate_limited")
    second.send("GET /ops", EVENTS, "Last-Event-ID: e0-8")
    assert len(events_of(second)) == 2


def test_the_stream_begins_with_the_last_messages(client: HttpClient, server: ChatServer) -> None:
    server.publish("before", nick="ann")
    client.send("GET /ops?follow=1")
    assert streamed(client) == "ann: before\n"
    server.publish("now")
    assert streamed(client) == "ann: before\nnow\n"


@rows("method", ["GET", "HEAD"])
@rows("accept", TYPES)
def test_no_proxy_may_compress_or_buffer_the_stream(method: str, accept: str) -> None:
    headers = HttpClient().request(f"{method} /ops?follow=1", f"Accept: {accept}").headers
    assert headers["content-type"] == TYPES[accept]
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"


def test_the_headers_of_a_stream(client: HttpClient) -> None:
    answer = client.request("GET /ops?follow=1")
    assert answer.headers["connection"] == "close"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "content-length" not in answer.headers


def test_http_1_0_gets_no_chunks(client: HttpClient, server: ChatServer) -> None:
    client.send("GET /ops?follow=1 HTTP/1.0")
    assert b"chunked" not in client.received.lower()
    server.publish("now")
    assert client.received.endswith(b"\r\n\r\nnow\n")


def test_programs_follow_in_json_lines(client: HttpClient, server: ChatServer) -> None:
    server.publish("before")
    client.send("GET /ops?follow=1", JSON)
    server.publish("now")
    assert [json.loads(line)["text"] for line in streamed(client).splitlines()] == ["before", "now"]


def test_events_have_their_position_as_id(client: HttpClient, server: ChatServer) -> None:
    server.publish("before")
    client.send("GET /ops", EVENTS)
    retry = re.fullmatch(r"retry: (\d+)\n\n", streamed(client))
    assert retry is not None
    assert 1000 <= int(retry[1]) <= 1000 * CONFIG.retry_after
    server.publish("now")
    ((id, kind, data),) = events_of(client)
    assert (id, kind, data["text"], data["offset"]) == ("e0-2", "message", "now", 2)


@rows("query, headers", [("?last=2", []), ("?last=1", ["Last-Event-ID: e0-1"])])
def test_events_begin_with_the_last_ones_or_after_the_last_event_id(query: str, headers: list[str]) -> None:
    client = HttpClient()
    client.server.publish("1", "2", "3")
    client.send(f"GET /ops{query}", EVENTS, *headers)
    assert [(id, data["text"]) for id, _, data in events_of(client)] == [("e0-2", "2"), ("e0-3", "3")]


def test_a_gap_is_an_event() -> None:
    client = HttpClient(ChatServer(Config(history_size=2, flush_interval=0)))
    for number in range(6):
        client.server.publish(str(number))
    client.send("GET /ops", EVENTS, "Last-Event-ID: e0-1")
    (id, kind, gap), *rest = events_of(client)
    assert (id, kind) == ("e0-4", "gap")
    assert gap == {"type": "gap", "room": "ops", "epoch": "e0", "from": 2, "to": 4}
    assert [data["text"] for _, _, data in rest] == ["4", "5"]


@rows(
    "query, headers",
    [
        *(("", [EVENTS, f"Last-Event-ID: {id}"]) for id in ("3", "e0", "e0-", "e 0-3", "e0-x", "e0-3-4")),
        ("?follow=yes", []),
        *(
            (f"{query}heartbeat={value}", [])
            for query in ("?", "?follow=1&")
            for value in ("", "1", "4", "301", "1000", "-5", "5.5", "+5", "x", "%D9%A5")
        ),
    ],
)
def test_a_bad_request_for_a_stream_is_400(query: str, headers: list[str]) -> None:
    assert HttpClient().error(f"GET /ops{query}", *headers) == (400, "bad_request")


def test_follow_0_is_no_stream(client: HttpClient) -> None:
    assert client.request("GET /ops?follow=0").headers["content-length"] == "0"


@rows("accept", ["*/*", "text/event-stream", "application/json"])
def test_head_does_not_follow(client: HttpClient, server: ChatServer, accept: str) -> None:
    answer = client.request("HEAD /ops?follow=1", f"Accept: {accept}")
    assert (answer.status, answer.body) == (200, b"")
    assert server.bus.rooms == {}


def test_the_limit_of_an_address_counts_followers_behind_a_proxy_on_any_connection() -> None:
    config = replace(CONFIG, connections_per_address="2", trusted_proxy=("192.0.2.7",))
    server, statuses = ChatServer(config), []
    for address in ("192.0.2.8", "192.0.2.8", "192.0.2.8", "192.0.2.9"):
        client = HttpClient(server)
        client.request("GET /-/healthz", "X-Forwarded-For: 192.0.2.1")
        statuses.append(client.request("GET /ops?follow=1", f"X-Forwarded-For: {address}").status)
    assert statuses == [200, 200, 429, 200]


def test_data_after_the_request_is_ignored(client: HttpClient, server: ChatServer) -> None:
    rest = b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    client.request("GET /-/healthz")  # the stream may be a later request of a connection
    client.transport.clear()
    client.transport.receive(b"GET /ops?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n" + rest)
    client.transport.receive(rest)
    server.publish("now")
    assert streamed(client) == "now\n"


# Presence and resume keys


def test_a_follower_without_a_nick_is_not_seen_and_gets_no_presence_events(
    client: HttpClient, server: ChatServer
) -> None:
    server.join("ann")
    client.send("GET /ops?follow=1")
    assert server.bus.present["ops"] == {"ann": "ann", "w.1": ""}
    server.join("ben")
    assert streamed(client) == ""


def test_a_follower_with_a_nick_is_seen_and_gets_presence_events(server: ChatServer) -> None:
    lines, events = HttpClient(server), HttpClient(server)
    lines.send("GET /ops?follow=1&nick=ann")
    events.send("GET /ops?nick=eve", EVENTS)
    server.join("ben")
    assert server.bus.present["ops"] == {"w.1": "ann", "w.2": "eve", "ben": "ben"}
    assert streamed(lines) == "* eve joined\n* ben joined\n"
    ((id, kind, data),) = events_of(events)
    assert (id, kind, data["event"], data["nick"]) == ("", "presence", "join", "ben")


def test_a_follower_gets_its_other_nick(client: HttpClient, server: ChatServer) -> None:
    server.join("ann")
    client.send("GET /ops?follow=1&nick=ann")
    assert streamed(client) == "* ann is taken, you are ann*2\n"


def test_a_resume_position_is_stored_under_the_key(client: HttpClient, server: ChatServer) -> None:
    client.send("GET /ops?follow=1&resume=a-key-of-mine&last=0")
    server.publish("one")
    server.connections.close_all(STOPPING)
    client.transport.vanish()
    server.connections.close_code = None
    server.publish("two")
    position = server.bus.places["ops", "a-key-of-mine"]
    again = HttpClient(server)
    again.send("GET /ops?follow=1&resume=a-key-of-mine")
    assert position.sender_id == "w.1"
    assert streamed(again).endswith("two\n")


def test_a_second_client_with_the_key_closes_the_first(client: HttpClient, server: ChatServer) -> None:
    client.send("GET /ops?follow=1&resume=a-key-of-mine")
    HttpClient(server).send("GET /ops?follow=1&resume=a-key-of-mine")
    assert streamed(client).startswith("* closing: another connection has come")
    assert client.closed


# Heartbeats and slow consumers

LINE, COMMENT = b"1\r\n\n\r\n", b"3\r\n:\n\n\r\n"


@rows(
    "query, accept, seconds, heartbeat",
    [
        ("", "text/event-stream", CONFIG.stream_heartbeat_interval, COMMENT),
        ("", "application/json", CONFIG.stream_heartbeat_interval, LINE),
        ("", "text/plain", 1000, b""),
        *((f"&heartbeat={value}", "text/event-stream", int(value), COMMENT) for value in ("5", "060", "300")),
        ("&heartbeat=5", "text/plain", 5, LINE),
        ("&heartbeat=5", "application/json", 5, LINE),
        *(("&heartbeat=0", accept, 1000, b"") for accept in ("text/plain", "application/json", "text/event-stream")),
    ],
)
def test_heartbeats_come_as_often_as_requested(query: str, accept: str, seconds: float, heartbeat: bytes) -> None:
    client = HttpClient()
    assert client.request(f"GET /ops?follow=1{query}", f"Accept: {accept}").status == 200
    client.transport.clear()
    for number in range(4):
        assert client.received == heartbeat * number
        client.clock.advance(seconds + 0.1)
    assert not client.closed


def test_a_client_that_does_not_read_gets_no_heartbeat(client: HttpClient) -> None:
    client.send("GET /ops", EVENTS)
    client.transport.client_reads = False
    producer: Any = client.transport.producer
    producer.pauseProducing()
    client.transport.clear()
    client.clock.advance(CONFIG.stream_heartbeat_interval + 0.1)
    assert client.received == b""


def slow_follower(history_size: int) -> tuple[HttpClient, str]:
    """Return a follower that reads too slowly for ten messages, and what they are in the stream."""
    config = Config(max_send_buffer=65_536, max_message_size=30_000, flush_interval=0, history_size=history_size)
    client = HttpClient(ChatServer(config))
    client.send("GET /ops?follow=1")
    client.transport.client_reads = False
    texts = [f"{number} {'x' * 20_000}" for number in range(10)]
    for text in texts:
        client.server.publish(text)
    assert len(streamed(client)) < 150_000
    return client, "".join(f"{text}\n" for text in texts)


def test_a_slow_consumer_gets_all_messages_when_it_reads() -> None:
    client, expected = slow_follower(history_size=1000)
    for _ in range(11):
        client.transport.catch_up()
        client.server.turn()
    assert streamed(client) == expected


def test_without_history_a_slow_consumer_gets_the_size_of_the_gap() -> None:
    client, _ = slow_follower(history_size=0)
    client.transport.catch_up()
    client.server.turn()
    client.server.publish("now")
    assert re.search(r"\* \d+ lines? (lost|missed)\nnow\n\Z", streamed(client))


# End


def test_a_follower_that_leaves_is_forgotten(client: HttpClient, server: ChatServer) -> None:
    client.send("GET /ops?follow=1", EVENTS)
    assert len(server.connections.connections) == 1
    assert len(server.site.channels) == 0
    client.transport.vanish()
    server.turn()
    assert len(server.connections.connections) == 0
    assert server.bus.rooms == {}
    server.clock.advance(2)
    assert server.clock.getDelayedCalls() == []


@rows(
    "accept, end",
    [
        ("*/*", "* closing: the server stops\n"),
        ("application/json", '{"type":"bye","code":1001,"reason":"the server stops","reconnect_after":'),
        ("text/event-stream", 'event: bye\ndata: {"type":"bye","code":1001,"reason":"the server stops",'),
    ],
)
def test_a_stream_that_the_server_closes_ends_with_the_reason(accept: str, end: str) -> None:
    client = HttpClient()
    client.send("GET /ops?follow=1", f"Accept: {accept}")
    closed = client.server.connections.close_all(STOPPING)
    assert end in streamed(client)
    assert client.received.endswith(b"\r\n0\r\n\r\n")
    client.server.turn()
    assert client.transport.lost is not None
    assert client.transport.lost.check(ConnectionDone)
    assert closed.called


def test_nothing_follows_the_end(client: HttpClient, server: ChatServer) -> None:
    client.send("GET /ops?follow=1")
    client.transport.client_reads = False
    server.connections.close_all(STOPPING)
    server.publish("now")
    server.connections.close_all(STOPPING)
    assert client.received.count(b"0\r\n\r\n") == 1
    assert b"now" not in client.received


def test_a_client_that_does_not_read_the_end_is_dropped(client: HttpClient, server: ChatServer) -> None:
    client.send("GET /ops?follow=1")
    client.transport.client_reads = False
    server.publish("x" * 90)
    server.connections.close_all(STOPPING)
    client.wait(CONFIG.close_timeout + 0.2)
    assert client.transport.aborted


# A follower that has not joined yet


@pytest.fixture
def joining(client: HttpClient, server: ChatServer) -> HttpClient:
    """Return a follower that waits until the broker confirms the subscription."""
    server.bus.confirm_at_once = False
    client.send("GET /ops?follow=1")
    assert client.received == b""
    return client


def test_a_follower_is_refused_if_it_cannot_join_in_time(joining: HttpClient, server: ChatServer) -> None:
    joining.wait(CONFIG.subscribe_timeout + 0.2)
    assert joining.answer.status == 503
    assert (len(server.connections.connections), server.bus.rooms) == (0, {})
    assert joining.request("GET /-/healthz").status == 200


def test_a_client_that_leaves_before_it_joins_is_forgotten(joining: HttpClient, server: ChatServer) -> None:
    joining.transport.vanish()
    assert (len(server.connections.connections), server.bus.rooms) == (0, {})
    server.clock.advance(CONFIG.subscribe_timeout + 1)
    assert joining.received == b""


def test_followers_are_refused_while_the_server_stops(joining: HttpClient, server: ChatServer) -> None:
    closed = server.connections.close_all(STOPPING)
    assert joining.answer.status == 503
    assert closed.called
    server.bus.confirm_at_once = True
    assert HttpClient(server).error("GET /ops?follow=1") == (503, "unavailable")
    assert len(server.connections.connections) == 0


def test_an_internal_error_while_joining_is_500(client: HttpClient, server: ChatServer, events: Events) -> None:
    server.bus.claim = None  # type: ignore[method-assign, assignment]
    assert client.error("GET /ops?follow=1&resume=a-key-of-mine") == (500, "internal")
    assert [level for level, _ in events.said] == ["critical"]
    assert len(server.connections.connections) == 0
