"""Who asks over HTTP: with a token, where the server asks for one, and by which name of the server."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatd.access.tokens import TokenVerifier
from chatd.config.settings import Config
from tests.access.issuer import NOW, public_pem, token
from tests.frames import Heard
from tests.web.http_client import CONFIG, ChatServer, HttpClient, error


@pytest.fixture
def guarded(tmp_path: Path) -> ChatServer:
    path = tmp_path / "key"
    path.write_bytes(public_pem())
    token_verifier = TokenVerifier([str(path)])
    token_verifier.read()
    return ChatServer(token_verifier=token_verifier, now=lambda: NOW)


def ask(server: ChatServer, line: str, *headers: str, body: bytes = b"", sub: str = "ann", **claims: Any) -> Heard:
    """Ask with a token that has these claims."""
    bearer = f"Authorization: Bearer {token(sub=sub, exp=NOW + 60, **claims)}"
    return HttpClient(server).ask(line, bearer, *headers, *length(body), body=body)


def length(body: bytes) -> list[str]:
    return [f"Content-Length: {len(body)}"] if body else []


@pytest.mark.parametrize(
    "line",
    [
        "GET /ops",
        "GET /ops?follow=1",
        "GET /ops/members",
        "GET /-/rooms",
        "POST /ops",
        "HEAD /ops",
    ],
)
def test_who_brings_no_token_is_told_that_one_is_needed(guarded: ChatServer, line: str) -> None:
    body = b"hi" if line.startswith("POST") else b""
    answer = HttpClient(guarded).ask(line, *length(body), body=body)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="chatd"'
    if not line.startswith("HEAD"):
        assert json.loads(answer.body) == {"error": "unauthorized", "message": "this server asks for a token"}


@pytest.mark.parametrize("path", ["/-/healthz", "/-/", "/-/metrics"])
def test_what_says_nothing_of_rooms_needs_none(guarded: ChatServer, path: str) -> None:
    assert HttpClient(guarded).ask(f"GET {path}").status == 200


def test_the_page_needs_none_it_will_ask_for_one(guarded: ChatServer) -> None:
    assert HttpClient(guarded).ask("GET /ops", "Accept: text/html").status == 200


def test_a_browser_that_asks_in_advance_needs_none(guarded: ChatServer) -> None:
    assert HttpClient(guarded).ask("OPTIONS /ops").status == 204


def test_who_has_a_good_one_may_do_what_it_says(guarded: ChatServer) -> None:
    rooms = {"ops": "rw", "news": "r", "drop": "w"}
    assert ask(guarded, "POST /ops", body=b"hi", rooms=rooms).status == 201
    assert ask(guarded, "GET /ops", rooms=rooms).body == b"ann: hi\n"
    assert ask(guarded, "GET /news", rooms=rooms).status == 200
    assert ask(guarded, "POST /drop", body=b"hi", rooms=rooms).status == 201
    refused = [
        ask(guarded, "POST /news", body=b"hi", rooms=rooms),
        ask(guarded, "GET /drop", rooms=rooms),
        ask(guarded, "GET /drop?follow=1", rooms=rooms),
        ask(guarded, "GET /drop/members", rooms=rooms),
        ask(guarded, "GET /drop", "Accept: text/event-stream", rooms=rooms),
    ]
    assert [error(each) for each in refused] == [(403, "forbidden")] * 5


def test_it_may_stand_in_the_url(guarded: ChatServer) -> None:
    assert HttpClient(guarded).ask(f"GET /ops?token={token(sub='ann')}").status == 200
    assert HttpClient(guarded).ask("GET /ops?token=a.b.c").status == 401


def test_a_follower_whose_token_is_revoked_is_told_and_closed(guarded: ChatServer, tmp_path: Path) -> None:
    http_client = HttpClient(guarded)
    text = token(sub="ann", exp=NOW + 60)
    http_client.send(f"GET /ops?token={text}", "Accept: text/event-stream")
    (tmp_path / "key").write_bytes(public_pem("P-256"))
    guarded.token_verifier.read()
    guarded.connections.close_revoked()
    end = http_client.transport.value()
    assert b'{"type":"bye","code":4001,"reason":"the token was revoked"}' in end
    assert end.endswith(b"0\r\n\r\n")


def test_a_follower_that_is_still_joining_when_its_token_is_revoked_is_answered_401(
    guarded: ChatServer, tmp_path: Path
) -> None:
    guarded.bus.confirm_at_once = False
    http_client = HttpClient(guarded)
    http_client.send(f"GET /ops?follow=1&token={token(sub='ann', exp=NOW + 60)}")
    (tmp_path / "key").write_bytes(public_pem("P-256"))
    guarded.token_verifier.read()
    guarded.connections.close_revoked()
    assert http_client.transport.value().startswith(b"HTTP/1.1 401 ")


def test_only_rooms_that_may_be_read_are_listed(guarded: ChatServer) -> None:
    guarded.say("hi", room="ops")
    guarded.say("hi", room="board")
    listed = json.loads(ask(guarded, "GET /-/rooms", rooms={"ops": "r", "board": "w"}).body)["rooms"]
    assert [each["room"] for each in listed] == ["ops"]


def test_whatever_nick_it_asks_for_it_has_that_of_its_token(guarded: ChatServer) -> None:
    ask(guarded, "POST /ops?nick=root", body=b"one")
    ask(guarded, "POST /ops", "Content-Type: application/json", body=b'{"text": "two", "nick": "root"}')
    ask(guarded, "POST /ops?nick=root", body=b"three", nick="anna")
    assert ask(guarded, "GET /ops").body == b"ann: one\nann: two\nanna: three\n"


def test_what_is_said_with_tokens_of_one_subject_has_one_author_and_nobody_elses(guarded: ChatServer) -> None:
    ask(guarded, "POST /ops", body=b"one", nick="x")
    ask(guarded, "POST /ops", body=b"two", nick="y")
    ask(guarded, "POST /ops", body=b"three", nick="x", sub="bob")
    one, two, three = [message.session for _, messages in guarded.bus.published for message in messages]
    assert one == two != three


# Which server it asks for

NAMED = Config(**vars(CONFIG) | {"allowed_host": ("chat.example.org",)})


@pytest.mark.parametrize("line", ["GET /ops", "POST /ops", "GET /-/rooms", "GET /-/metrics", "GET /-/assets/chat.js"])
def test_who_asks_for_another_server_is_refused(line: str) -> None:
    server = ChatServer(NAMED)
    for host in ("evil.example", "127.0.0.1:3000"):
        body = b"hi" if line.startswith("POST") else b""
        assert error(HttpClient(server).ask(line, *length(body), host=host, body=body)) == (403, "forbidden")
    assert HttpClient(server).ask("GET /ops", host="chat.example.org:3000").status == 200


def test_our_health_is_told_under_any_name() -> None:
    assert HttpClient(ChatServer(NAMED)).ask("GET /-/healthz", host="10.0.0.7:3000").status == 200
