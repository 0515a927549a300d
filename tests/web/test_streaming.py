"""A room that is followed over HTTP: the answer begins, goes on, falls behind, catches up, and ends."""

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
from tests.frames import heard
from tests.web.http_client import CONFIG, ChatServer, HttpClient, error

HELD = Config(max_send_buffer=65_536, max_message_size=30_000, flush_interval=0)


def streamed(http_client: HttpClient) -> str:
    """Give what has come of the answer's body, out of its chunks."""
    rest: bytes
    head, _, rest = http_client.transport.value().partition(b"\r\n\r\n")
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


def events_of(http_client: HttpClient) -> list[tuple[str, str, dict[str, object]]]:
    """Give the events that have come: id, kind and data."""
    found = []
    for block in streamed(http_client).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "data" in fields:
            found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


# Whether it begins


def test_no_more_clients_follow_than_may_and_when_one_has_gone_the_next_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLIENTS["http"], "value", 0)
    server = ChatServer(replace(CONFIG, worker_connections=4))
    followers = [HttpClient(server) for _ in range(2)]
    for follower in followers:
        follower.send("GET /ops?follow=1")
    late = HttpClient(server)
    answer = late.ask("GET /ops?follow=1")
    assert (*error(answer), answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert late.ask("GET /ops").status == 200
    followers[0].transport.vanish()
    assert late.ask("GET /ops?follow=1").status == 200
    server.say("now")
    assert [streamed(follower) for follower in (followers[1], late)] == ["now\n", "now\n"]


EVENTS = "Accept: text/event-stream"


def test_an_event_source_that_is_refused_for_now_gets_a_stream_that_ends_and_says_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CLIENTS["http"], "value", 0)
    server = ChatServer(replace(CONFIG, worker_connections=0))
    before = REFUSED["unavailable"].value
    answers = [HttpClient(server).ask("GET /ops", EVENTS) for _ in range(9)]
    waits = set()
    for answer in answers:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        assert answer.headers["retry-after"] == "5"
        retry, event, data = filter(None, answer.body.decode().split("\n"))
        bye = json.loads(data.removeprefix("data: "))
        assert (event, bye["type"], bye["code"]) == ("event: bye", "bye", 1013)
        assert bye["reason"] == "too many clients follow rooms over HTTP; try again later"
        assert retry == f"retry: {round(bye['reconnect_after'] * 1000)}"
        assert 5 <= bye["reconnect_after"] <= 5 + CONFIG.retry_seconds
        waits.add(bye["reconnect_after"])
    assert len(waits) > 1
    assert REFUSED["unavailable"].value == before + 9
    assert HttpClient(server).ask("HEAD /ops", EVENTS).status == 200  # it would not stay
    assert HttpClient(server).ask("GET /ops?follow=1").status == 503
    assert HttpClient(server).ask("GET /ops?follow=1", "Accept: application/json").status == 503


def test_one_that_is_too_fast_is_told_so_in_the_same_way() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", limit_requests_seconds=1))
    HttpClient(server).ask("GET /ops")
    answer = HttpClient(server).ask("GET /ops", EVENTS)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert b'"code":4029' in answer.body


def test_one_whose_broker_is_away_is_told_so_in_the_same_way(http_client: HttpClient) -> None:
    http_client.bus.confirm_at_once = False
    http_client.send("GET /ops", EVENTS)
    http_client.clock.advance(CONFIG.join_seconds)
    answer = heard(http_client.transport.value())
    assert answer.status == 200
    assert BUS_AWAY.reason.encode() in answer.body


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /-/nothing", 404),
        ("GET /-ops", 404),
        ("GET /ops?last=x", 400),
        ("POST /ops", 400),
        ("DELETE /ops", 405),
    ],
)
def test_what_is_refused_for_good_stays_an_error(http_client: HttpClient, line: str, status: int) -> None:
    assert http_client.ask(line, EVENTS).status == status


def test_what_no_event_source_asks_for_stays_an_error(http_client: HttpClient) -> None:
    http_client.bus.away = "it is gone"
    assert http_client.ask("GET /-/readyz", EVENTS).status == 503
    assert http_client.ask("GET /-/rooms", EVENTS).status == 503


# How it begins


def test_what_a_follower_is_given_is_charged_and_what_it_missed_is_not_refused() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", limit_requests_seconds=5, limit_read_bytes=5))
    for number in range(10):
        server.say(f"{number}")
    first, second = HttpClient(server), HttpClient(server)
    first.send("GET /ops?follow=1&last=10")
    assert len(streamed(first).split()) == 10
    assert second.error("GET /ops?follow=1&last=10") == (429, "rate_limited")
    second.send("GET /ops", "Accept: text/event-stream", "Last-Event-ID: e0-8")
    assert len(events_of(second)) == 2


def test_lines_come_as_they_are_said_behind_the_last_ones(http_client: HttpClient, server: ChatServer) -> None:
    server.say("before", nick="ann")
    http_client.send("GET /ops?follow=1")
    assert streamed(http_client) == "ann: before\n"
    server.say("now")
    assert streamed(http_client) == "ann: before\nnow\n"


FORMS = {
    "text/plain": "text/plain; charset=utf-8",
    "application/json": "application/x-ndjson",
    "application/x-ndjson": "application/x-ndjson",
    "text/event-stream": "text/event-stream",
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", FORMS)
def test_nothing_on_the_way_is_to_compress_it_or_hold_it_back(
    http_client: HttpClient, method: str, accept: str
) -> None:
    headers = http_client.ask(f"{method} /ops?follow=1", f"Accept: {accept}").headers
    assert headers["content-type"] == FORMS[accept]
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"


def test_its_headers_say_how_it_ends(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /ops?follow=1")
    assert answer.headers["connection"] == "close"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "content-length" not in answer.headers


def test_to_http_1_0_it_goes_without_chunks(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1 HTTP/1.0")
    assert b"chunked" not in http_client.transport.value().lower()
    server.say("now")
    assert http_client.transport.value().endswith(b"\r\n\r\nnow\n")


def test_programs_follow_in_json_lines(http_client: HttpClient, server: ChatServer) -> None:
    server.say("before")
    answer = http_client.ask("GET /ops?follow=1", "Accept: application/json")
    server.say("now")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["text"] for line in streamed(http_client).splitlines()] == ["before", "now"]


def test_events_come_with_where_they_stand(http_client: HttpClient, server: ChatServer) -> None:
    server.say("before")
    answer = http_client.ask("GET /ops", "Accept: text/event-stream")
    assert answer.headers["content-type"] == "text/event-stream"
    server.say("now")
    ((id, kind, data),) = events_of(http_client)
    assert (id, kind, data["text"], data["offset"]) == ("e0-2", "message", "now", 2)


def test_events_begin_with_when_to_come_back(http_client: HttpClient) -> None:
    http_client.send("GET /ops", "Accept: text/event-stream")
    found = re.fullmatch(r"retry: (\d+)\n\n", streamed(http_client))
    assert found is not None
    assert 1000 <= int(found[1]) <= 1000 * CONFIG.retry_seconds


def test_events_begin_with_the_last_ones_where_they_are_asked_for(http_client: HttpClient, server: ChatServer) -> None:
    server.say("1", "2", "3")
    http_client.send("GET /ops?last=2", "Accept: text/event-stream")
    assert [data["text"] for _, _, data in events_of(http_client)] == ["2", "3"]


def test_events_go_on_behind_the_last_one_that_was_heard(http_client: HttpClient, server: ChatServer) -> None:
    server.say("1", "2", "3")
    http_client.send("GET /ops?last=1", "Accept: text/event-stream", "Last-Event-ID: e0-1")
    assert [id for id, _, _ in events_of(http_client)] == ["e0-2", "e0-3"]


def test_what_is_lost_meanwhile_is_told(server: ChatServer) -> None:
    server = ChatServer(Config(history_size=2, flush_interval=0))
    http_client = HttpClient(server)
    for each in range(6):
        server.say(str(each))
    http_client.send("GET /ops", "Accept: text/event-stream", "Last-Event-ID: e0-1")
    (id, kind, gap), *rest = events_of(http_client)
    assert (id, kind) == ("e0-4", "gap")
    assert gap == {"type": "gap", "room": "ops", "epoch": "e0", "from": 2, "to": 4}
    assert [data["text"] for _, _, data in rest] == ["4", "5"]


@pytest.mark.parametrize("id", ["3", "e0", "e0-", "e 0-3", "e0-x", "e0-3-4"])
def test_a_bad_last_event_id_is_400(http_client: HttpClient, id: str) -> None:
    assert http_client.error("GET /ops", "Accept: text/event-stream", f"Last-Event-ID: {id}") == (400, "bad_request")


def test_follow_is_0_or_1(http_client: HttpClient) -> None:
    assert http_client.error("GET /ops?follow=yes") == (400, "bad_request")
    assert http_client.ask("GET /ops?follow=0").headers["content-length"] == "0"


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "application/json"])
def test_head_does_not_follow(http_client: HttpClient, server: ChatServer, accept: str) -> None:
    answer = http_client.ask("HEAD /ops?follow=1", f"Accept: {accept}")
    assert (answer.status, answer.body) == (200, b"")
    assert server.bus.rooms == {}


def test_it_works_on_a_connection_that_was_used_before(http_client: HttpClient, server: ChatServer) -> None:
    http_client.ask("GET /-/healthz")
    http_client.send("GET /ops?follow=1")
    server.say("now")
    assert streamed(http_client) == "now\n"


def test_of_those_who_come_through_a_proxy_each_follows_no_more_than_it_may_on_whichever_connection() -> None:
    config = replace(CONFIG, connections_per_address="2", trusted_proxy=("192.0.2.7",))
    server, statuses = ChatServer(config), []
    for client in ("192.0.2.8", "192.0.2.8", "192.0.2.8", "192.0.2.9"):
        http_client = HttpClient(server)
        http_client.ask("GET /-/healthz", "X-Forwarded-For: 192.0.2.1")
        statuses.append(http_client.ask("GET /ops?follow=1", f"X-Forwarded-For: {client}").status)
    assert statuses == [200, 200, 429, 200]


def test_what_the_client_sends_behind_it_is_for_nobody(http_client: HttpClient, server: ChatServer) -> None:
    behind = b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    http_client.send("GET /ops?follow=1", body=behind)
    http_client.transport.receive(behind)
    server.say("now")
    assert streamed(http_client) == "now\n"


# As a member


def test_a_follower_without_a_nick_is_a_member_of_whom_nobody_hears(
    http_client: HttpClient, server: ChatServer
) -> None:
    server.member("ann")
    http_client.send("GET /ops?follow=1")
    assert server.bus.present["ops"] == {"ann": "ann", "w.1": ""}
    server.member("ben")
    assert streamed(http_client) == ""


def test_one_with_a_nick_is_seen_and_sees_who_comes_and_goes(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1&nick=ann")
    server.member("ben")
    assert server.bus.present["ops"] == {"w.1": "ann", "ben": "ben"}
    assert streamed(http_client) == "* ben joined\n"


def test_one_with_a_nick_has_presence_events(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?nick=ann", "Accept: text/event-stream")
    server.member("ben")
    ((id, kind, data),) = events_of(http_client)
    assert (id, kind, data["event"], data["nick"]) == ("", "presence", "join", "ben")


def test_who_gets_another_nick_is_told(http_client: HttpClient, server: ChatServer) -> None:
    server.member("ann")
    http_client.send("GET /ops?follow=1&nick=ann")
    assert streamed(http_client) == "* ann is taken, you are ann*2\n"


def test_a_place_is_kept_under_a_key(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1&resume=a-key-of-mine&last=0")
    server.say("one")
    server.connections.close_all(STOPPING)
    http_client.transport.vanish()
    server.connections.close_code = None
    server.say("two")
    place = server.bus.places["ops", "a-key-of-mine"]
    again = HttpClient(server)
    again.send("GET /ops?follow=1&resume=a-key-of-mine")
    assert place.sender_id == "w.1"
    assert streamed(again).endswith("two\n")


def test_who_comes_back_with_its_key_takes_over(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1&resume=a-key-of-mine")
    HttpClient(server).send("GET /ops?follow=1&resume=a-key-of-mine")
    assert streamed(http_client).startswith("* closing: another connection has come")
    assert http_client.transport.lost is not None


# While it lasts


def test_events_show_that_they_live(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops", "Accept: text/event-stream")
    http_client.transport.clear()
    for _ in range(3):
        server.clock.advance(CONFIG.heartbeat_seconds + 0.1)
    assert http_client.transport.value() == b"3\r\n:\n\n\r\n" * 3


def test_json_lines_show_that_they_live_by_an_empty_one(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1", "Accept: application/json")
    http_client.transport.clear()
    for _ in range(3):
        server.clock.advance(CONFIG.heartbeat_seconds + 0.1)
    assert http_client.transport.value() == b"1\r\n\n\r\n" * 3


@pytest.mark.parametrize(
    ("accept", "beat"),
    [("text/plain", b"1\r\n\n\r\n"), ("application/json", b"1\r\n\n\r\n"), ("text/event-stream", b"3\r\n:\n\n\r\n")],
)
def test_a_client_says_how_often_it_wants_a_heartbeat(
    http_client: HttpClient, server: ChatServer, accept: str, beat: bytes
) -> None:
    http_client.send("GET /ops?follow=1&heartbeat=5", f"Accept: {accept}")
    http_client.transport.clear()
    for _ in range(3):
        server.clock.advance(5.1)
    assert http_client.transport.value() == beat * 3


@pytest.mark.parametrize("accept", ["text/plain", "application/json", "text/event-stream"])
def test_a_client_may_want_no_heartbeat(http_client: HttpClient, server: ChatServer, accept: str) -> None:
    http_client.send("GET /ops?follow=1&heartbeat=0", f"Accept: {accept}")
    http_client.transport.clear()
    server.clock.advance(1000)
    assert http_client.transport.value() == b""
    assert http_client.transport.lost is None


@pytest.mark.parametrize("value", ["", "1", "4", "301", "1000", "-5", "5.5", "+5", "x", "%D9%A5"])
@pytest.mark.parametrize("target", ["/ops?", "/ops?follow=1&"])
def test_any_other_heartbeat_is_400(http_client: HttpClient, target: str, value: str) -> None:
    assert http_client.error(f"GET {target}heartbeat={value}") == (400, "bad_request")


@pytest.mark.parametrize("value", ["0", "5", "300", "060"])
def test_a_heartbeat_may_be_0_or_5_to_300_seconds(http_client: HttpClient, value: str) -> None:
    assert http_client.ask(f"GET /ops?follow=1&heartbeat={value}").status == 200


def test_lines_are_not_mixed_with_signs_of_life(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1")
    http_client.transport.clear()
    server.clock.advance(1000)
    assert http_client.transport.value() == b""
    assert http_client.transport.lost is None


def test_a_client_that_does_not_read_gets_no_signs_of_life(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops", "Accept: text/event-stream")
    http_client.transport.client_reads = False
    producer: Any = http_client.transport.producer
    producer.pauseProducing()
    http_client.transport.clear()
    server.clock.advance(CONFIG.heartbeat_seconds + 0.1)
    assert http_client.transport.value() == b""


def test_a_slow_follower_gets_later_what_it_can_not_take_now() -> None:
    server = ChatServer(HELD)
    http_client, other = HttpClient(server), HttpClient(server)
    http_client.send("GET /ops?follow=1")
    other.send("GET /ops?follow=1")
    http_client.transport.client_reads = False
    texts = [f"{number} {'x' * 20_000}" for number in range(10)]
    for each in texts:
        server.say(each)
    assert streamed(other) == "".join(f"{each}\n" for each in texts)
    assert len(streamed(http_client)) < 150_000
    http_client.transport.catch_up()
    server.turn()
    for _ in range(10):
        http_client.transport.catch_up()
        server.turn()
    assert streamed(http_client) == streamed(other)


def test_without_history_it_is_told_what_it_missed() -> None:
    server = ChatServer(Config(max_send_buffer=65_536, max_message_size=30_000, flush_interval=0, history_size=0))
    http_client = HttpClient(server)
    http_client.send("GET /ops?follow=1")
    http_client.transport.client_reads = False
    for number in range(10):
        server.say(f"{number} {'x' * 20_000}")
    http_client.transport.catch_up()
    server.turn()
    server.say("now")
    assert re.search(r"\* \d+ lines? (lost|missed)\nnow\n\Z", streamed(http_client))


# How it ends


def test_a_follower_that_leaves_is_forgotten(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1", "Accept: text/event-stream")
    assert len(server.connections.connections) == 1
    assert len(server.site.channels) == 0
    http_client.transport.vanish()
    server.turn()
    assert len(server.connections.connections) == 0
    assert server.bus.rooms == {}
    server.clock.advance(2)
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("accept", "end"),
    [
        ("*/*", "* closing: the server stops\n"),
        ("application/json", '{"type":"bye","code":1001,"reason":"the server stops","reconnect_after":'),
        ("text/event-stream", 'event: bye\ndata: {"type":"bye","code":1001,"reason":"the server stops",'),
    ],
)
def test_it_ends_with_the_reason_where_it_is_meant_to_end(
    http_client: HttpClient, server: ChatServer, accept: str, end: str
) -> None:
    http_client.send("GET /ops?follow=1", f"Accept: {accept}")
    gone = server.connections.close_all(STOPPING)
    assert end in streamed(http_client)
    assert http_client.transport.value().endswith(b"\r\n0\r\n\r\n")
    server.turn()
    assert http_client.transport.lost is not None
    assert http_client.transport.lost.check(ConnectionDone)
    assert gone.called


def test_nothing_follows_on_the_end(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1")
    http_client.transport.client_reads = False
    server.connections.close_all(STOPPING)
    server.say("now")
    server.connections.close_all(STOPPING)
    assert http_client.transport.value().count(b"0\r\n\r\n") == 1
    assert b"now" not in http_client.transport.value()


def test_a_client_that_does_not_read_the_end_is_dropped(http_client: HttpClient, server: ChatServer) -> None:
    http_client.send("GET /ops?follow=1")
    http_client.transport.client_reads = False
    server.say("x" * 90)
    server.connections.close_all(STOPPING)
    server.clock.advance(CONFIG.close_seconds + 0.2)
    server.turn()
    assert http_client.transport.aborted


# Where it can not begin


def test_it_is_unavailable_where_the_room_is_not_heard_in_time(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    http_client.send("GET /ops?follow=1")
    assert http_client.transport.value() == b""
    server.clock.advance(CONFIG.join_seconds + 0.2)
    assert http_client.transport.value().startswith(b"HTTP/1.1 503 ")
    assert (len(server.connections.connections), server.bus.rooms) == (0, {})
    assert http_client.ask("GET /-/healthz").status == 200


def test_who_leaves_before_it_begins_is_forgotten(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    http_client.send("GET /ops?follow=1")
    http_client.transport.vanish()
    assert (len(server.connections.connections), server.bus.rooms) == (0, {})
    server.clock.advance(CONFIG.join_seconds + 1)
    assert http_client.transport.value() == b""


def test_who_comes_while_the_server_stops_is_told_so(http_client: HttpClient, server: ChatServer) -> None:
    server.connections.close_all(STOPPING)
    assert error(http_client.ask("GET /ops?follow=1")) == (503, "unavailable")
    assert len(server.connections.connections) == 0


def test_who_is_on_the_way_in_while_the_server_stops_is_told_so(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    http_client.send("GET /ops?follow=1")
    gone = server.connections.close_all(STOPPING)
    assert http_client.transport.value().startswith(b"HTTP/1.1 503 ")
    assert gone.called


def test_an_error_of_ours_on_the_way_in_is_500(http_client: HttpClient, server: ChatServer, events: Events) -> None:
    server.bus.claim = None  # type: ignore[method-assign, assignment]
    assert http_client.error("GET /ops?follow=1&resume=a-key-of-mine") == (500, "internal")
    assert [level for level, _ in events.said] == ["critical"]
    assert len(server.connections.connections) == 0
