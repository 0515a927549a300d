"""Rooms over HTTP: what is shown of them, and what is said there with one request."""

import json
from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred

from chatd.broker.publish_queue import NotPublished, PublishResult
from chatd.config.settings import Config
from chatd.monitoring.metrics import SEND_BUFFER_BYTES, Number
from chatd.protocol.message import StreamPosition
from tests.fakes import Events
from tests.frames import heard
from tests.web.http_client import CONFIG, NOON, ChatServer, HttpClient, error

# What was said


def test_a_room_in_which_nothing_was_said_is_empty(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /ops")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_to_look_at_a_room_does_not_make_it(http_client: HttpClient) -> None:
    http_client.ask("GET /ops")
    http_client.ask("GET /ops/members")
    assert json.loads(http_client.ask("GET /-/rooms").body)["rooms"] == []


def test_lines_are_shown_as_somebody_at_a_terminal_sees_them(http_client: HttpClient, server: ChatServer) -> None:
    server.say("hello", nick="ann")
    server.say("a\x1b[2Jb\nc")
    assert http_client.ask("GET /ops").body.decode() == "ann: hello\na\\x1b[2Jb\\x0ac\n"


def test_the_last_fifty_are_shown_where_no_number_is_asked_for(http_client: HttpClient, server: ChatServer) -> None:
    server.say(*map(str, range(60)))
    assert http_client.ask("GET /ops").body.decode().split() == [str(each) for each in range(10, 60)]


@pytest.mark.parametrize(("last", "shown"), [(0, []), (1, ["3"]), (2, ["2", "3"]), (1000, ["1", "2", "3"])])
def test_as_many_are_shown_as_are_asked_for(
    http_client: HttpClient, server: ChatServer, last: int, shown: list[str]
) -> None:
    server.say("1", "2", "3")
    assert http_client.ask(f"GET /ops?last={last}").body.decode().split() == shown


def test_a_bad_number_is_400(http_client: HttpClient) -> None:
    assert http_client.error("GET /ops?last=all") == (400, "bad_request")


def test_programs_may_get_a_line_of_json_for_each_message(http_client: HttpClient, server: ChatServer) -> None:
    server.say("hello", "there")
    lines = http_client.ask("GET /ops", "Accept: application/x-ndjson")
    assert lines.headers["content-type"] == "application/x-ndjson"
    listed = json.loads(http_client.ask("GET /ops", "Accept: application/json").body)
    assert [json.loads(line) for line in lines.body.splitlines()] == listed


def test_programs_get_a_json_array_of_messages(http_client: HttpClient, server: ChatServer) -> None:
    server.say("hello", nick="ann")
    answer = http_client.ask("GET /ops", "Accept: application/json")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == [
        {
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
    ]


@pytest.mark.parametrize("accept", ["text/plain", "application/json"])
def test_an_answer_says_where_older_messages_are_to_be_had_as_long_as_there_are_any(
    http_client: HttpClient, server: ChatServer, accept: str
) -> None:
    for number in range(1, 6):
        server.say(str(number))
    pages, query = [], "?last=2"
    while query:
        answer = http_client.ask(f"GET /ops{query}", f"Accept: {accept}")
        texts = [each["text"] for each in json.loads(answer.body)] if "json" in accept else answer.body.split()
        pages.append(list(map(int, texts)))
        link = answer.headers.get("link", "")
        query = link.removeprefix("<").partition(">")[0]
        assert link == (f'<{query}>; rel="prev"' if query else "")
    assert pages == [[4, 5], [2, 3], [1]]


def test_so_does_one_that_has_fewer_than_were_asked_for_because_more_do_not_fit() -> None:
    server = ChatServer(replace(CONFIG, max_send_buffer=300))
    for number in range(1, 6):
        server.say(str(number))
    answer = HttpClient(server).ask("GET /ops?last=5")
    assert answer.body.split() == [b"3", b"4", b"5"]
    assert answer.headers["link"] == '<?before=e0-3&last=5>; rel="prev"'
    assert HttpClient(server).ask("GET /ops?before=e0-3&last=5").body.split() == [b"1", b"2"]


def test_messages_of_an_epoch_that_is_over_are_to_be_had_as_long_as_history_has_them(server: ChatServer) -> None:
    server.say("old")
    kept = dict(server.bus.kept)
    server.bus.restart()
    server.bus.kept.update(kept)
    server.say("new")
    assert HttpClient(server).ask("GET /ops?before=e1-2").body == b"new\n"
    assert HttpClient(server).ask("GET /ops?before=e0-2").body == b"old\n"
    assert HttpClient(server).ask("GET /ops?before=e7-2").body == b""


@pytest.mark.parametrize("before", ["", "7", "e0-0", "e0-", "e0:1-2", "e0-1-2", "%c3%a9-1"])
def test_a_bad_message_to_go_back_from_is_400(http_client: HttpClient, before: str) -> None:
    assert http_client.error(f"GET /ops?before={before}") == (400, "bad_request")


def test_an_answer_depends_on_what_is_accepted(http_client: HttpClient) -> None:
    http_client.send("GET /ops")
    assert b"\r\nVary: Accept\r\n" in http_client.transport.value()


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html", "text/event-stream"])
def test_who_follows_cannot_go_back_too(http_client: HttpClient, accept: str) -> None:
    follow = "" if accept == "text/event-stream" else "&follow=1"
    assert http_client.error(f"GET /ops?before=e0-2{follow}", f"Accept: {accept}") == (400, "bad_request")


def test_an_answer_without_messages_does_not_say_where_older_ones_are(
    http_client: HttpClient, server: ChatServer
) -> None:
    server.say("1", "2", "3")
    answer = http_client.ask("GET /ops?last=0&before=e0-3")
    assert (answer.status, answer.body) == (200, b"")
    assert "link" not in answer.headers


def test_what_was_said_is_unavailable_while_the_bus_is_away(http_client: HttpClient) -> None:
    http_client.bus.away = "it is gone"
    answer = http_client.ask("GET /ops")
    assert error(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "5"


@pytest.mark.parametrize("path", ["/ops", "/ops/members", "/-/rooms"])
def test_to_read_goes_on_while_the_broker_refuses_writes(
    http_client: HttpClient, server: ChatServer, path: str
) -> None:
    server.say("hello")
    server.bus.away = server.bus.refusing = "READONLY"
    assert http_client.ask(f"GET {path}").status == 200


@pytest.mark.parametrize("path", ["/ops", "/ops/members", "/-/rooms"])
def test_what_is_asked_of_a_worker_that_starts_waits_for_the_broker(http_client: HttpClient, path: str) -> None:
    http_client.bus.away, http_client.bus.starting, http_client.bus.answer_at_once = "not connected yet", True, False
    http_client.send(f"GET {path}")
    assert http_client.transport.value() == b""
    http_client.bus.away, http_client.bus.starting = "", False
    while not http_client.transport.value():
        http_client.bus.answer()
        http_client.server.turn()
    assert heard(http_client.transport.value()).status == 200


def test_and_is_refused_if_that_does_not_come_in_time(http_client: HttpClient) -> None:
    http_client.bus.away, http_client.bus.starting, http_client.bus.answer_at_once = "not connected yet", True, False
    http_client.send("GET /ops")
    http_client.clock.advance(CONFIG.join_seconds)
    assert error(heard(http_client.transport.value())) == (503, "unavailable")


@pytest.fixture
def backlog(monkeypatch: pytest.MonkeyPatch) -> Number:
    """Let as much wait for all clients as may."""
    monkeypatch.setattr(SEND_BUFFER_BYTES, "value", CONFIG.worker_send_buffers)
    return SEND_BUFFER_BYTES


@pytest.mark.parametrize("line", ["GET /ops", "HEAD /ops", "GET /ops?last=3"])
def test_what_was_said_is_unavailable_while_too_much_waits_for_all_clients(
    http_client: HttpClient, backlog: Number, line: str
) -> None:
    assert http_client.ask(line).status == 200
    backlog.value += 1
    answer = http_client.ask(line)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert http_client.bus.read_bytes == []
    backlog.value -= 1
    assert http_client.ask(line).status == 200


def test_it_is_unavailable_too_if_that_was_not_so_when_it_was_asked_for(
    http_client: HttpClient, backlog: Number
) -> None:
    http_client.bus.answer_at_once = False
    http_client.send("GET /ops", "Accept: application/json")
    backlog.value += 1
    while not http_client.transport.value():
        http_client.bus.answer()
        http_client.server.turn()
    answer = heard(http_client.transport.value())
    assert error(answer) == (503, "unavailable")
    assert json.loads(answer.body)["message"] == "too much data waits for clients that do not read; try again later"


def test_all_else_is_there_while_too_much_waits_for_all_clients(
    http_client: HttpClient, server: ChatServer, backlog: Number
) -> None:
    backlog.value += 1
    assert http_client.post("/ops", "hello").status == 201
    for path in ("/ops/members", "/-/rooms", "/-/healthz", "/ops?follow=1"):
        assert http_client.ask(f"GET {path}").status == 200


def test_what_does_not_come_in_time_is_unavailable(http_client: HttpClient) -> None:
    http_client.bus.answer_at_once = False
    http_client.send("GET /ops")
    assert http_client.transport.value() == b""
    http_client.clock.advance(CONFIG.join_seconds + 0.2)
    assert http_client.transport.value().startswith(b"HTTP/1.1 503 ")


def test_an_asker_that_left_is_not_answered(http_client: HttpClient, events: Events) -> None:
    http_client.bus.answer_at_once = False
    http_client.send("GET /ops")
    http_client.transport.vanish()
    http_client.bus.answer()
    assert http_client.transport.value() == b""
    assert events.said == []


# Who is there


def test_members_are_listed(http_client: HttpClient, server: ChatServer) -> None:
    server.member("ann")
    assert json.loads(http_client.ask("GET /ops/members").body) == {
        "room": "ops",
        "members": [{"session": "ann", "nick": "ann", "since": "1970-01-01T00:00:00.000Z"}],
        "count": 1,
    }


def test_members_that_are_too_many_are_counted(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.presence_limit = 1
    server.member("ann")
    server.member("ben")
    assert json.loads(http_client.ask("GET /ops/members").body) == {"room": "ops", "members": None, "count": 2}


def test_the_room_of_members_may_have_any_name(http_client: HttpClient, server: ChatServer) -> None:
    server.member("ann", "members")
    server.member("ben", "größe")
    assert json.loads(http_client.ask("GET /members/members").body)["count"] == 1
    assert json.loads(http_client.ask("GET /gr%C3%B6%C3%9Fe/members").body)["room"] == "größe"


def test_rooms_are_listed(http_client: HttpClient, server: ChatServer) -> None:
    server.say("hello")
    server.member("ann")
    assert json.loads(http_client.ask("GET /-/rooms").body) == {
        "rooms": [{"room": "ops", "members": 1, "epoch": "e0", "offset": 1}],
        "more": False,
    }


def test_the_list_of_rooms_is_asked_for_once_for_all_who_want_it_at_once(
    http_client: HttpClient, server: ChatServer
) -> None:
    server.bus.answer_at_once = False
    others = [HttpClient(server) for _ in range(3)]
    for each in others:
        each.send("GET /-/rooms")
    server.bus.answer(1)
    assert [each.transport.value()[:15] for each in others] == [b"HTTP/1.1 200 OK"] * 3
    http_client.send("GET /-/rooms")
    assert http_client.transport.value().startswith(b"HTTP/1.1 200 OK")
    server.clock.advance(1.1)
    http_client.send("GET /-/rooms")
    assert http_client.transport.value() == b""


def test_a_list_that_takes_long_is_not_asked_for_again_before_the_broker_had_rest(
    http_client: HttpClient, server: ChatServer
) -> None:
    server.bus.answer_at_once = False
    http_client.send("GET /-/rooms")
    server.clock.advance(0.5)
    server.bus.answer(1)
    server.clock.advance(9)
    other = HttpClient(server)
    other.send("GET /-/rooms")
    assert other.transport.value().startswith(b"HTTP/1.1 200 OK")
    server.clock.advance(1)
    other = HttpClient(server)
    other.send("GET /-/rooms")
    assert other.transport.value() == b""


def test_what_is_read_counts_by_its_size() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", limit_requests_seconds=10, limit_read_bytes=100))
    http_client = HttpClient(server)
    for number in range(20):
        server.say(f"{number}")
    assert http_client.ask("GET /ops?last=1").status == 200  # 1, and 1 for 100 bytes
    assert http_client.ask("GET /ops?last=6").status == 200  # 1, and 6
    assert http_client.ask("GET /ops?last=20").status == 200  # 1, and 20 that it owes
    answer = http_client.ask("GET /ops?last=1")
    assert (answer.status, answer.headers["retry-after"]) == (429, "22")
    http_client.clock.advance(20)
    assert HttpClient(server).ask("GET /ops?last=1").status == 429
    http_client.clock.advance(1)
    assert HttpClient(server).ask("GET /ops?last=0").status == 200


def test_a_list_of_rooms_counts_by_its_size() -> None:
    server = ChatServer(replace(CONFIG, request_rate="1", limit_requests_seconds=10, limit_read_bytes=100))
    http_client = HttpClient(server)
    for number in range(8):
        server.say("hello", room=f"r{number}")
    rest = 10 - 1 - int(len(http_client.ask("GET /-/rooms").body) / 100 + 1)
    assert 0 < rest < 6
    assert [http_client.ask("GET /ops?last=0").status for _ in range(rest + 1)] == [200] * rest + [429]


# What is said


def test_text_is_published_and_answered_with_where_it_stands(http_client: HttpClient, server: ChatServer) -> None:
    answer = http_client.post("/ops", "hello\n")
    assert answer.status == 201
    assert json.loads(answer.body) == {
        "room": "ops",
        "epoch": "e0",
        "offset": 1,
        "id": "w.1.1",
        "time": "2026-09-21T14:13:20.000Z",
    }
    assert [each.text for _, said in server.bus.published for each in said] == ["hello"]


def test_it_is_logged_before_it_is_published(http_client: HttpClient, server: ChatServer) -> None:
    server.chat_log.full = True
    answer = http_client.post("/ops", "hello")
    assert error(answer) == (503, "unavailable")
    assert "the chat log cannot be written" in json.loads(answer.body)["message"]
    assert server.bus.published == []


def test_it_is_logged_with_the_address_it_came_from(http_client: HttpClient, server: ChatServer) -> None:
    http_client.post("/ops?nick=ann", "hello")
    (entry,) = server.chat_log.entries
    assert (entry.room, entry.address, entry.messages[0].nick) == ("ops", "192.0.2.7", "ann")


def test_all_members_hear_it(http_client: HttpClient, server: ChatServer) -> None:
    member = server.member("ben")
    http_client.post("/ops?nick=ann", "hello")
    assert member.blobs[-1].endswith(b"ann: hello")


def test_nobody_is_told_that_its_author_comes_and_goes(http_client: HttpClient, server: ChatServer) -> None:
    server.member("ben")
    http_client.post("/ops?nick=ann", "hello")
    assert server.bus.present["ops"] == {"ben": "ben"}


def test_json_has_text_nick_and_id(http_client: HttpClient, server: ChatServer) -> None:
    answer = http_client.post("/ops?nick=ann", '{"text": "hello", "nick": "ben", "id": "c-1"}', "application/json")
    assert json.loads(answer.body)["id"] == "c-1"
    ((_, (message,)),) = server.bus.published
    assert (message.text, message.nick, message.dedup_id, message.time) == ("hello", "ben", "c-1", NOON * 1000)


def test_the_nick_of_the_url_counts_where_json_has_none(http_client: HttpClient, server: ChatServer) -> None:
    http_client.post("/ops?nick=ann", '{"text": "hello"}', "application/json")
    assert server.bus.published[0][1][0].nick == "ann"


@pytest.mark.parametrize("target", ["/ops?nick=ben", "/ops"])
def test_nothing_is_said_under_the_nick_of_somebody_who_is_there(
    http_client: HttpClient, server: ChatServer, target: str
) -> None:
    server.member("ben")
    answer = http_client.post(target, '{"text": "hello", "nick": "ben"}', "application/json")
    assert error(answer) == (409, "nick_in_use")
    assert "ben is in use in this room" in json.loads(answer.body)["message"]
    assert (server.bus.published, server.chat_log.entries) == ([], [])
    assert http_client.post("/dev?nick=ben", "hello").status == 201


def test_whether_a_nick_is_in_use_is_not_waited_for_for_ever(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.answer_at_once = False
    http_client.post("/ops?nick=ann", "hello")
    assert http_client.transport.value() == b""
    server.clock.advance(CONFIG.publish_timeout + 0.2)
    assert http_client.transport.value().startswith(b"HTTP/1.1 503 ")
    server.bus.answer()
    server.turn()
    assert server.bus.published == []


def test_a_nick_is_looked_for_before_a_full_window_is_waited_for_again(
    http_client: HttpClient, server: ChatServer
) -> None:
    server.bus.answer_at_once = False
    http_client.post("/ops?nick=ann", "hello")
    server.bus.full = True
    server.bus.answer()
    assert http_client.transport.value() == b""
    server.bus.full = False
    server.hub.bus_changed()
    server.turn()
    assert http_client.transport.value().startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        ("", "", 400, "bad_request"),
        ("\n", "", 400, "bad_request"),
        (b"\xff", "", 400, "bad_request"),
        ("a" * (CONFIG.max_message_size + 1), "", 413, "too_large"),
        ("{", "application/json", 400, "bad_request"),
        ('{"text": 1}', "application/json", 400, "bad_request"),
        ("a", "image/png", 415, "bad_request"),
        ("a", "text/plain; charset=latin-1", 415, "bad_request"),
    ],
)
def test_what_can_not_be_said_is_refused(
    http_client: HttpClient, body: str | bytes, kind: str, status: int, code: str
) -> None:
    assert error(http_client.post("/ops", body, kind)) == (status, code)
    assert http_client.bus.published == []
    assert http_client.server.chat_log.entries == []


def test_a_bad_nick_is_400(http_client: HttpClient) -> None:
    assert error(http_client.post("/ops?nick=a:b", "hello")) == (400, "bad_request")


def test_nothing_is_taken_while_the_bus_is_away(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.away = "it is gone"
    answer = http_client.post("/ops", "hello")
    assert error(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "5"
    assert json.loads(answer.body)["message"] == "the message bus is away; try again later"
    server.bus.refusing = "READONLY"
    assert (
        json.loads(http_client.post("/ops", "hello").body)["message"]
        == "the message bus refuses writes; try again later"
    )
    assert server.chat_log.entries == []


def test_what_is_said_to_a_worker_that_starts_waits_for_the_broker(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.away, server.bus.starting = "not connected yet", True
    http_client.post("/ops", "hello")
    assert http_client.transport.value() == b""
    server.bus.away, server.bus.starting = "", False
    server.hub.bus_changed()
    server.turn()
    assert heard(http_client.transport.value()).status == 201


def test_and_is_refused_if_that_is_not_there_in_time(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.away, server.bus.starting = "not connected yet", True
    http_client.post("/ops", "hello")
    http_client.clock.advance(CONFIG.publish_timeout)
    assert error(heard(http_client.transport.value())) == (503, "unavailable")
    assert server.chat_log.entries == []


def test_a_full_window_is_waited_for(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.full = True
    http_client.post("/ops", "hello")
    assert http_client.transport.value() == b""
    server.bus.full = False
    server.hub.bus_changed()
    server.turn()
    assert http_client.transport.value().startswith(b"HTTP/1.1 201 ")


def test_a_window_that_stays_full_is_not_waited_for_for_ever(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.full = True
    http_client.post("/ops", "hello")
    server.clock.advance(CONFIG.publish_timeout + 0.2)
    assert http_client.transport.value().startswith(b"HTTP/1.1 503 ")
    assert server.chat_log.entries == []


def test_what_the_bus_does_not_answer_is_not_waited_for_for_ever(http_client: HttpClient, server: ChatServer) -> None:
    answer: Deferred[PublishResult] = Deferred()
    server.bus.publish = lambda *_: answer  # type: ignore[method-assign]
    http_client.post("/ops", "hello")
    assert http_client.transport.value() == b""
    server.clock.advance(CONFIG.publish_timeout + 0.2)
    assert http_client.transport.value().startswith(b"HTTP/1.1 503 ")
    assert b"try again with the same id" in http_client.transport.value()
    answer.callback(PublishResult(StreamPosition("e0", 1)))
    assert http_client.ask("GET /-/healthz").status == 200


def test_what_the_bus_refuses_is_503(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.refuse = NotPublished("it is full")
    assert error(http_client.post("/ops", "hello")) == (503, "unavailable")


def test_who_left_while_waiting_says_nothing(http_client: HttpClient, server: ChatServer) -> None:
    server.bus.full = True
    http_client.post("/ops", "hello")
    http_client.transport.vanish()
    server.bus.full = False
    server.hub.bus_changed()
    server.turn()
    assert server.bus.published == []
    assert server.hub.publisher.waiting == 0


# The form that is liked best


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "text/plain; charset=utf-8"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.5, text/plain", "text/plain; charset=utf-8"),
        ("image/png", "text/plain; charset=utf-8"),
    ],
)
def test_a_room_is_shown_in_the_form_that_is_liked_best(http_client: HttpClient, accept: str, kind: str) -> None:
    assert http_client.ask("GET /ops", f"Accept: {accept}").headers["content-type"] == kind


def test_history_that_is_not_kept_is_empty() -> None:
    server = ChatServer(Config(history_size=0, flush_interval=0))
    http_client = HttpClient(server)
    server.say("hello")
    assert http_client.ask("GET /ops").body == b""
