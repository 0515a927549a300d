"""Rooms over HTTP: what a request reads of them, and what it publishes."""

import json
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from chatd.broker.publish_queue import NotPublished, PublishResult
from chatd.config.settings import Config
from chatd.monitoring.metrics import SEND_BUFFER_BYTES, Number
from chatd.protocol.message import StreamPosition
from tests.fakes import Events
from tests.rows import rows
from tests.web.http_client import CONFIG, NOON, ChatServer, HttpClient, error

SHOWN = ("/ops", "/ops/members", "/-/rooms")

# History


def test_an_unused_room_is_empty_and_is_not_created(client: HttpClient) -> None:
    answer = client.request("GET /ops")
    assert (answer.status, answer.body) == (200, b"")
    client.request("GET /ops/members")
    assert json.loads(client.request("GET /-/rooms").body)["rooms"] == []


def test_messages_are_shown_as_in_a_terminal(client: HttpClient, server: ChatServer) -> None:
    server.publish("hello", nick="ann")
    server.publish("a\x1b[2Jb\nc")
    assert client.request("GET /ops").body.decode() == "ann: hello\na\\x1b[2Jb\\x0ac\n"


@rows("query, shown", [("", 50), ("?last=0", 0), ("?last=1", 1), ("?last=2", 2), ("?last=1000", 60)])
def test_the_last_50_or_as_many_as_requested_are_shown(query: str, shown: int) -> None:
    client = HttpClient()
    client.server.publish(*map(str, range(60)))
    assert [int(line) for line in client.request(f"GET /ops{query}").body.split()] == [*range(60)][60 - shown :]


def test_programs_get_json_as_an_array_or_in_lines(client: HttpClient, server: ChatServer) -> None:
    server.publish("hello", "there", nick="ann")
    answer = client.request("GET /ops", "Accept: application/json")
    assert answer.headers["content-type"] == "application/json"
    listed = json.loads(answer.body)
    assert listed[0] == {
        "type": "message",
        "room": "ops",
        "epoch": "e0",
        "offset": 1,
        "id": "other.hello",
        "time": "2026-09-21T14:13:20.000Z",
        "session": "other",
        "nick": "ann",
        "text": "hello",
    }
    lines = client.request("GET /ops", "Accept: application/x-ndjson")
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.body.splitlines()] == listed


@rows("accept", ["text/plain", "application/json"])
def test_an_answer_links_to_earlier_messages_if_there_are_any(accept: str) -> None:
    client = HttpClient()
    for number in range(1, 6):
        client.server.publish(str(number))
    pages, query = [], "?last=2"
    while query:
        answer = client.request(f"GET /ops{query}", f"Accept: {accept}")
        texts = [message["text"] for message in json.loads(answer.body)] if "json" in accept else answer.body.split()
        pages.append(list(map(int, texts)))
        link = answer.headers.get("link", "")
        query = link.removeprefix("<").partition(">")[0]
        assert link == (f'<{query}>; rel="prev"' if query else "")
    assert pages == [[4, 5], [2, 3], [1]]
    answer = client.request("GET /ops?last=0&before=e0-3", f"Accept: {accept}")
    assert (answer.status, "link" in answer.headers) == (200, False)


def test_an_answer_that_does_not_fit_links_to_the_rest() -> None:
    server = ChatServer(replace(CONFIG, max_send_buffer=300))
    for number in range(1, 6):
        server.publish(str(number))
    answer = HttpClient(server).request("GET /ops?last=5")
    assert answer.body.split() == [b"3", b"4", b"5"]
    assert answer.headers["link"] == '<?before=e0-3&last=5>; rel="prev"'
    assert HttpClient(server).request("GET /ops?before=e0-3&last=5").body.split() == [b"1", b"2"]


def test_messages_of_an_earlier_epoch_are_shown_while_history_has_them(client: HttpClient, server: ChatServer) -> None:
    server.publish("old")
    kept = dict(server.bus.kept)
    server.bus.restart()
    server.bus.kept.update(kept)
    server.publish("new")
    answers = [client.request(f"GET /ops?before={position}").body for position in ("e1-2", "e0-2", "e7-2")]
    assert answers == [b"new\n", b"old\n", b""]


@rows(
    "query, accept",
    [
        ("last=all", "*/*"),
        *((f"before={before}", "*/*") for before in ("", "7", "e0-0", "e0-", "e0:1-2", "e0-1-2", "%c3%a9-1")),
        *(("before=e0-2&follow=1", accept) for accept in ("*/*", "application/json", "text/html")),
        ("before=e0-2", "text/event-stream"),  # a follower cannot go back too
    ],
)
def test_a_bad_query_is_400(client: HttpClient, query: str, accept: str) -> None:
    assert client.error(f"GET /ops?{query}", f"Accept: {accept}") == (400, "bad_request")


@rows(
    "accept, content_type",
    [
        ("*/*", "text/plain; charset=utf-8"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.5, text/plain", "text/plain; charset=utf-8"),
        ("image/png", "text/plain; charset=utf-8"),
    ],
)
def test_the_type_depends_on_the_accept_header(client: HttpClient, accept: str, content_type: str) -> None:
    assert client.request("GET /ops", f"Accept: {accept}").headers["content-type"] == content_type
    assert b"\r\nVary: Accept\r\n" in client.received


def test_a_room_without_history_is_empty() -> None:
    client = HttpClient(ChatServer(Config(history_size=0, flush_interval=0)))
    client.server.publish("hello")
    assert client.request("GET /ops").body == b""


# While the broker or the clients cannot keep up


def test_history_is_unavailable_while_the_bus_is_away(client: HttpClient) -> None:
    client.bus.away = "it is gone"
    answer = client.request("GET /ops")
    assert error(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "5"


@rows("path", SHOWN)
def test_reading_works_while_the_broker_refuses_writes(path: str) -> None:
    client = HttpClient()
    client.server.publish("hello")
    client.bus.away = client.bus.refusing = "READONLY"
    assert client.request(f"GET {path}").status == 200


@rows("path", SHOWN)
def test_reading_from_a_worker_that_starts_waits_for_the_broker(path: str) -> None:
    client = HttpClient()
    client.bus.away, client.bus.starting, client.bus.answer_at_once = "not connected yet", True, False
    client.send(f"GET {path}")
    assert client.received == b""
    client.bus.away, client.bus.starting = "", False
    while not client.received:
        client.bus.answer()
        client.server.turn()
    assert client.answer.status == 200


@rows("away, seconds", [("not connected yet", CONFIG.subscribe_timeout), ("", CONFIG.subscribe_timeout + 0.2)])
def test_reading_is_refused_if_the_broker_does_not_answer_in_time(away: str, seconds: float) -> None:
    client = HttpClient()
    client.bus.away, client.bus.starting, client.bus.answer_at_once = away, bool(away), False
    client.send("GET /ops")
    assert client.received == b""
    client.wait(seconds)
    assert error(client.answer) == (503, "unavailable")


@pytest.fixture
def backlog(monkeypatch: pytest.MonkeyPatch) -> Number:
    """Fill the send buffers of the worker up to their limit."""
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", CONFIG.worker_send_buffers)
    return SEND_BUFFER_BYTES


@pytest.mark.parametrize("line", ["GET /ops", "HEAD /ops", "GET /ops?last=3"])
def test_history_is_unavailable_while_send_buffers_are_full(client: HttpClient, backlog: Number, line: str) -> None:
    assert client.request(line).status == 200
    backlog.value += 1
    answer = client.request(line)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert client.bus.read_bytes == []
    backlog.value -= 1
    assert client.request(line).status == 200


def test_history_is_unavailable_if_send_buffers_fill_while_it_is_read(client: HttpClient, backlog: Number) -> None:
    client.bus.answer_at_once = False
    client.send("GET /ops", "Accept: application/json")
    backlog.value += 1
    while not client.received:
        client.bus.answer()
        client.server.turn()
    assert error(client.answer) == (503, "unavailable")
    assert b"too much data waits for clients that do not read; try again later" in client.received


def test_everything_else_is_available_while_send_buffers_are_full(client: HttpClient, backlog: Number) -> None:
    backlog.value += 1
    assert client.post("/ops", "hello").status == 201
    for path in ("/ops/members", "/-/rooms", "/-/healthz", "/ops?follow=1"):
        assert client.request(f"GET {path}").status == 200


def test_a_client_that_left_is_not_answered(client: HttpClient, events: Events) -> None:
    client.bus.answer_at_once = False
    client.send("GET /ops")
    client.transport.vanish()
    client.bus.answer()
    assert client.received == b""
    assert events.said == []


# Lists of members and rooms


def test_members_are_listed_or_counted_if_there_are_too_many(client: HttpClient, server: ChatServer) -> None:
    server.join("ann")
    assert json.loads(client.request("GET /ops/members").body) == {
        "room": "ops",
        "members": [{"session": "ann", "nick": "ann", "since": "1970-01-01T00:00:00.000Z"}],
        "count": 1,
    }
    server.bus.presence_limit = 1
    server.join("ben")
    assert json.loads(client.request("GET /ops/members").body) == {"room": "ops", "members": None, "count": 2}


def test_the_room_of_members_may_have_any_name(client: HttpClient, server: ChatServer) -> None:
    server.join("ann", "members")
    server.join("ben", "größe")
    assert json.loads(client.request("GET /members/members").body)["count"] == 1
    assert json.loads(client.request("GET /gr%C3%B6%C3%9Fe/members").body)["room"] == "größe"


def test_rooms_are_listed(client: HttpClient, server: ChatServer) -> None:
    server.publish("hello")
    server.join("ann")
    assert json.loads(client.request("GET /-/rooms").body) == {
        "rooms": [{"room": "ops", "members": 1, "epoch": "e0", "offset": 1}],
        "more": False,
    }


@rows("seconds, kept", [(0, 1), (0.5, 9)])
def test_a_list_of_rooms_is_shared_by_requests_and_kept_longer_if_it_took_long(seconds: float, kept: float) -> None:
    server = ChatServer()
    server.bus.answer_at_once = False
    clients = [HttpClient(server) for _ in range(3)]
    for client in clients:
        client.send("GET /-/rooms")
    server.clock.advance(seconds)
    server.bus.answer(1)
    assert [client.answer.status for client in clients] == [200] * 3
    server.clock.advance(kept - 0.1)
    assert HttpClient(server).request("GET /-/rooms").status == 200
    server.clock.advance(1.1)
    client = HttpClient(server)
    client.send("GET /-/rooms")
    assert client.received == b""


def test_an_answer_is_charged_by_its_size() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", request_burst_time=10, read_bytes_per_request=100))
    client = HttpClient(server)
    for number in range(20):
        server.publish(f"{number}")
    assert client.request("GET /ops?last=1").status == 200  # 1, and 1 for 100 bytes
    assert client.request("GET /ops?last=6").status == 200  # 1, and 6
    assert client.request("GET /ops?last=20").status == 200  # 1, and 20 that it owes
    answer = client.request("GET /ops?last=1")
    assert (answer.status, answer.headers["retry-after"]) == (429, "22")
    client.clock.advance(20)
    assert HttpClient(server).request("GET /ops?last=1").status == 429
    client.clock.advance(1)
    assert HttpClient(server).request("GET /ops?last=0").status == 200


def test_a_list_of_rooms_is_charged_by_its_size() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", request_burst_time=10, read_bytes_per_request=100))
    client = HttpClient(server)
    for number in range(8):
        server.publish("hello", room=f"r{number}")
    rest = 10 - 1 - int(len(client.request("GET /-/rooms").body) / 100 + 1)
    assert 0 < rest < 6
    assert [client.request("GET /ops?last=0").status for _ in range(rest + 1)] == [200] * rest + [429]


# Publishing


def test_text_is_published_and_answered_with_its_position(client: HttpClient, server: ChatServer) -> None:
    subscriber = server.join("ben")
    answer = client.post("/ops?nick=ann", "hello\n")
    assert answer.status == 201
    assert json.loads(answer.body) == {
        "room": "ops",
        "epoch": "e0",
        "offset": 1,
        "id": "w.1.1",
        "time": "2026-09-21T14:13:20.000Z",
    }
    ((_, (message,)),) = server.bus.published
    assert (message.text, message.nick) == ("hello", "ann")
    (entry,) = server.chat_log.entries
    assert (entry.room, entry.address, entry.messages[0].nick) == ("ops", "192.0.2.7", "ann")
    assert subscriber.blobs[-1].endswith(b"ann: hello")
    assert server.bus.present["ops"] == {"ben": "ben"}  # the sender is not in the room


def test_nothing_is_published_that_cannot_be_logged(client: HttpClient, server: ChatServer) -> None:
    server.chat_log.full = True
    assert error(client.post("/ops", "hello")) == (503, "unavailable")
    assert b"the chat log cannot be written" in client.received
    assert server.bus.published == []


def test_json_has_text_nick_and_id(client: HttpClient, server: ChatServer) -> None:
    body = '{"text": "hello", "nick": "ben", "id": "c-1"}'
    assert json.loads(client.post("/ops?nick=ann", body, "application/json").body)["id"] == "c-1"
    client.post("/ops?nick=ann", '{"text": "hello"}', "application/json")
    (_, (first,)), (_, (second,)) = server.bus.published
    assert (first.text, first.nick, first.dedup_id, first.time) == ("hello", "ben", "c-1", NOON * 1000)
    assert second.nick == "ann"


@rows("target", ["/ops?nick=ben", "/ops"])
def test_nothing_is_published_under_a_nick_in_use(target: str) -> None:
    server = ChatServer()
    client = HttpClient(server)
    server.join("ben")
    answer = client.post(target, '{"text": "hello", "nick": "ben"}', "application/json")
    assert error(answer) == (409, "nick_in_use")
    assert "ben is in use in this room" in json.loads(answer.body)["message"]
    assert (server.bus.published, server.chat_log.entries) == ([], [])
    assert client.post("/dev?nick=ben", "hello").status == 201


@rows(
    "target, body, content_type, status, code",
    [
        ("/ops", "", "", 400, "bad_request"),
        ("/ops", "\n", "", 400, "bad_request"),
        ("/ops", b"\xff", "", 400, "bad_request"),
        ("/ops", "a" * (CONFIG.max_message_size + 1), "", 413, "too_large"),
        ("/ops", "{", "application/json", 400, "bad_request"),
        ("/ops", '{"text": 1}', "application/json", 400, "bad_request"),
        ("/ops", "a", "image/png", 415, "bad_request"),
        ("/ops", "a", "text/plain; charset=latin-1", 415, "bad_request"),
        ("/ops?nick=a:b", "hello", "", 400, "bad_request"),
    ],
)
def test_a_bad_message_is_refused(target: str, body: str | bytes, content_type: str, status: int, code: str) -> None:
    client = HttpClient()
    assert error(client.post(target, body, content_type)) == (status, code)
    assert client.bus.published == []
    assert client.server.chat_log.entries == []


def test_nothing_is_published_while_the_bus_is_away_or_refuses_writes(client: HttpClient, server: ChatServer) -> None:
    server.bus.away = "it is gone"
    answer = client.post("/ops", "hello")
    assert (error(answer), answer.headers["retry-after"]) == ((503, "unavailable"), "5")
    assert json.loads(answer.body)["message"] == "the message bus is away; try again later"
    server.bus.refusing = "READONLY"
    answer = client.post("/ops", "hello")
    assert json.loads(answer.body)["message"] == "the message bus refuses writes; try again later"
    assert server.chat_log.entries == []


def starting(server: ChatServer, *, ready: bool) -> None:
    """Set whether the worker is still connecting to the broker."""
    server.bus.away, server.bus.starting = "" if ready else "not connected yet", not ready


def full(server: ChatServer, *, ready: bool) -> None:
    """Set whether the publish queue of the worker has room."""
    server.bus.full = not ready


@pytest.mark.parametrize("wait", [starting, full])
@pytest.mark.parametrize("end", ["ready", "late", "client gone"])
def test_publishing_waits_a_while_for_the_broker(client: HttpClient, server: ChatServer, wait: Any, end: str) -> None:
    wait(server, ready=False)
    client.post("/ops", "hello")
    assert client.received == b""
    if end == "late":
        client.wait(CONFIG.publish_timeout + 0.2)
        assert error(client.answer) == (503, "unavailable")
        assert server.chat_log.entries == []
        return
    if end == "client gone":
        client.transport.vanish()
    wait(server, ready=True)
    server.hub.bus_changed()
    server.turn()
    assert client.answer.status == (201 if end == "ready" else 0)
    assert len(server.bus.published) == (end == "ready")
    assert server.hub.publisher.waiting == 0


def test_a_search_for_a_nick_ends_in_time(client: HttpClient, server: ChatServer) -> None:
    server.bus.answer_at_once = False
    client.post("/ops?nick=ann", "hello")
    assert client.received == b""
    client.wait(CONFIG.publish_timeout + 0.2)
    assert client.answer.status == 503
    server.bus.answer()
    server.turn()
    assert server.bus.published == []


def test_a_nick_is_looked_up_before_publishing_waits_for_the_broker(client: HttpClient, server: ChatServer) -> None:
    server.bus.answer_at_once = False
    client.post("/ops?nick=ann", "hello")
    server.bus.full = True
    server.bus.answer()
    assert client.received == b""
    server.bus.full = False
    server.hub.bus_changed()
    server.turn()
    assert client.answer.status == 201


def test_publishing_does_not_wait_long_for_the_result(client: HttpClient, server: ChatServer) -> None:
    result: Deferred[PublishResult] = Deferred()
    server.bus.publish = lambda *_: result  # type: ignore[method-assign]
    client.post("/ops", "hello")
    assert client.received == b""
    client.wait(CONFIG.publish_timeout + 0.2)
    assert client.answer.status == 503
    assert b"try again with the same id" in client.received
    result.callback(PublishResult(StreamPosition("e0", 1)))
    assert client.request("GET /-/healthz").status == 200


def test_a_refusal_of_the_broker_is_503(client: HttpClient, server: ChatServer) -> None:
    server.bus.refuse = NotPublished("it is full")
    assert error(client.post("/ops", "hello")) == (503, "unavailable")
