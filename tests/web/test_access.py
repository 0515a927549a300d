"""Access over HTTP: by a token, where the server requires one, and by the name of the server."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatd.access.tokens import TokenVerifier
from tests.access.issuer import NOW, public_pem, token
from tests.frames import Heard
from tests.rows import rows
from tests.web.http_client import CONFIG, ChatServer, HttpClient, error


@pytest.fixture
def server(tmp_path: Path) -> ChatServer:
    path = tmp_path / "key"
    path.write_bytes(public_pem())
    token_verifier = TokenVerifier([str(path)])
    token_verifier.read()
    return ChatServer(token_verifier=token_verifier, now=lambda: NOW)


@pytest.fixture
def revoke(server: ChatServer, tmp_path: Path) -> Callable[[], None]:
    """Return a function that replaces the key, which revokes all tokens."""

    def revoke() -> None:
        (tmp_path / "key").write_bytes(public_pem("P-256"))
        server.token_verifier.read()
        server.connections.close_revoked()

    return revoke


def request(server: ChatServer, line: str, *headers: str, body: bytes = b"", sub: str = "ann", **claims: Any) -> Heard:
    """Send a request with a token that has these claims."""
    bearer = f"Authorization: Bearer {token(sub=sub, exp=NOW + 60, **claims)}"
    return HttpClient(server).request(line, bearer, *headers, body=body)


@rows(
    "line",
    ["GET /ops", "GET /ops?follow=1", "GET /ops/members", "GET /-/rooms", "POST /ops", "HEAD /ops"],
)
def test_a_request_without_token_is_401(server: ChatServer, line: str) -> None:
    answer = HttpClient(server).request(line, body=b"hi" if line.startswith("POST") else b"")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="chatd"'
    if not line.startswith("HEAD"):
        assert json.loads(answer.body) == {"error": "unauthorized", "message": "this server asks for a token"}


@rows(
    "line, headers, status",
    [
        *((f"GET {path}", [], 200) for path in ("/-/healthz", "/-/", "/-/metrics")),
        ("GET /ops", ["Accept: text/html"], 200),
        ("OPTIONS /ops", [], 204),
        (f"GET /ops?token={token(sub='ann')}", [], 200),
        ("GET /ops?token=a.b.c", [], 401),
    ],
)
def test_the_page_and_what_tells_nothing_of_rooms_need_no_header(
    server: ChatServer, line: str, headers: list[str], status: int
) -> None:
    assert HttpClient(server).request(line, *headers).status == status


def test_a_token_allows_what_its_rooms_claim_says(server: ChatServer) -> None:
    rooms = {"ops": "rw", "news": "r", "drop": "w"}
    assert request(server, "POST /ops", body=b"hi", rooms=rooms).status == 201
    assert request(server, "GET /ops", rooms=rooms).body == b"ann: hi\n"
    assert request(server, "GET /news", rooms=rooms).status == 200
    assert request(server, "POST /drop", body=b"hi", rooms=rooms).status == 201
    refused = [
        request(server, "POST /news", body=b"hi", rooms=rooms),
        *(request(server, f"GET /drop{rest}", rooms=rooms) for rest in ("", "?follow=1", "/members")),
        request(server, "GET /drop", "Accept: text/event-stream", rooms=rooms),
    ]
    assert [error(answer) for answer in refused] == [(403, "forbidden")] * 5


def test_a_follower_whose_token_is_revoked_is_closed_with_4001(server: ChatServer, revoke: Callable[[], None]) -> None:
    client = HttpClient(server)
    client.send(f"GET /ops?token={token(sub='ann', exp=NOW + 60)}", "Accept: text/event-stream")
    revoke()
    assert b'{"type":"bye","code":4001,"reason":"the token was revoked"}' in client.received
    assert client.received.endswith(b"0\r\n\r\n")


def test_a_follower_whose_token_is_revoked_while_it_joins_is_401(
    server: ChatServer, revoke: Callable[[], None]
) -> None:
    server.bus.confirm_at_once = False
    client = HttpClient(server)
    client.send(f"GET /ops?follow=1&token={token(sub='ann', exp=NOW + 60)}")
    revoke()
    assert client.answer.status == 401


def test_only_rooms_that_may_be_read_are_listed(server: ChatServer) -> None:
    server.publish("hi", room="ops")
    server.publish("hi", room="board")
    listed = json.loads(request(server, "GET /-/rooms", rooms={"ops": "r", "board": "w"}).body)["rooms"]
    assert [entry["room"] for entry in listed] == ["ops"]


def test_the_nick_of_the_token_replaces_the_requested_one(server: ChatServer) -> None:
    request(server, "POST /ops?nick=root", body=b"one")
    request(server, "POST /ops", "Content-Type: application/json", body=b'{"text": "two", "nick": "root"}')
    request(server, "POST /ops?nick=root", body=b"three", nick="anna")
    assert request(server, "GET /ops").body == b"ann: one\nann: two\nanna: three\n"


def test_tokens_of_one_subject_have_one_sender_id_of_their_own(server: ChatServer) -> None:
    request(server, "POST /ops", body=b"one", nick="x")
    request(server, "POST /ops", body=b"two", nick="y")
    request(server, "POST /ops", body=b"three", nick="x", sub="bob")
    one, two, three = [message.session for _, messages in server.bus.published for message in messages]
    assert one == two != three


@rows("line", ["GET /ops", "POST /ops", "GET /-/rooms", "GET /-/metrics", "GET /-/assets/chat.js"])
def test_another_host_name_is_refused_except_for_health(line: str) -> None:
    server = ChatServer(replace(CONFIG, allowed_host=("chat.example.org",)))
    body = b"hi" if line.startswith("POST") else b""
    for host in ("evil.example", "127.0.0.1:3000"):
        assert error(HttpClient(server).request(line, host=host, body=body)) == (403, "forbidden")
        assert HttpClient(server).request("GET /-/healthz", host=host).status == 200
    assert HttpClient(server).request("GET /ops", host="chat.example.org:3000").status == 200
