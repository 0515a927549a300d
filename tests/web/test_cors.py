"""Requests from pages of other origins: which are allowed, and which CORS headers the answers have."""

import pytest

from chatd.config.settings import Config
from tests.rows import rows
from tests.web.http_client import ChatServer, HttpClient, error

FRIEND, STRANGER = "Origin: https://friend.example", "Origin: https://stranger.example"
TARGETS = ["GET /ops", "GET /ops?follow=1", "GET /ops/members", "GET /-/rooms", "GET /-/healthz", "OPTIONS /ops"]


@pytest.fixture
def server() -> ChatServer:
    return ChatServer(Config(allowed_origin=("https://friend.example",), flush_interval=0))


@rows("target", TARGETS)
@rows("origin", [STRANGER, "Origin: null", "Origin: nonsense"])
def test_another_origin_is_refused(server: ChatServer, target: str, origin: str) -> None:
    answer = HttpClient(server).request(target, origin)
    assert error(answer) == (403, "forbidden")
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_needs_no_cors_header(client: HttpClient) -> None:
    answer = client.request("POST /ops", "Origin: http://chat.example:3000", body=b"hello")
    assert answer.status == 201
    assert "access-control-allow-origin" not in answer.headers


@rows("target, statuses", [*((target, {200, 204}) for target in TARGETS), ("GET /a/b", {404})])
def test_an_answer_or_error_is_shared_with_an_allowed_origin(
    server: ChatServer, target: str, statuses: set[int]
) -> None:
    answer = HttpClient(server).request(target, FRIEND)
    assert answer.status in statuses
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in answer.headers


def test_a_cached_answer_is_not_for_another_origin(client: HttpClient) -> None:
    client.send("GET /-/rooms")
    assert b"\r\nVary: Origin\r\n" in client.received


def test_a_preflight_request_gets_methods_and_headers(client: HttpClient) -> None:
    answer = client.request("OPTIONS /ops", FRIEND, "Access-Control-Request-Method: POST")
    assert answer.status == 204
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type, Last-Event-ID"
    assert answer.headers["access-control-max-age"] == "7200"
    assert not [name for name in client.request("OPTIONS /ops").headers if name.startswith("access-control")]


# Requests without an Origin, as browsers send them for images, stylesheets and links

BROWSER = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
CROSS = (BROWSER, "Sec-Fetch-Site: cross-site")
IMAGE = (*CROSS, "Sec-Fetch-Mode: no-cors")
LINK = (*CROSS, "Sec-Fetch-Mode: navigate", "Accept: text/html,*/*;q=0.8")
NAMED = ["GET /ops?follow=1&nick=evil", "GET /ops?follow=1&resume=0123456789"]


@rows(
    "target, headers",
    [
        *((target, [*IMAGE, "Content-Length: 0"]) for target in (*TARGETS, *NAMED, "HEAD /ops?follow=1", "GET /-/")),
        ("GET /ops?nick=evil", [*IMAGE, "Accept: text/event-stream"]),
        *((target, LINK) for target in ("GET /ops?follow=1", *NAMED)),
        *((target, [BROWSER]) for target in NAMED),
    ],
)
def test_another_site_joins_nothing(server: ChatServer, target: str, headers: list[str]) -> None:
    answer = HttpClient(server).request(target, *headers)
    assert answer.status == 403
    if headers == [BROWSER]:  # which does not say which page sends the request
        assert b"use https or a WebSocket" in answer.body
    assert not server.hub.rooms


@rows("headers", [[STRANGER], IMAGE, LINK])
def test_another_site_publishes_nothing(server: ChatServer, headers: list[str]) -> None:
    assert HttpClient(server).error("POST /ops", *headers, body=b"hello") == (403, "forbidden")
    assert server.chat_log.entries == []


def test_a_link_on_another_site_opens_the_page(client: HttpClient, server: ChatServer) -> None:
    page = client.request("GET /ops?nick=evil", *LINK)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not server.hub.rooms


@rows(
    "target, headers",
    [
        *((target, [BROWSER, f"Sec-Fetch-Site: {site}"]) for target in NAMED for site in ("same-origin", "none")),
        *((target, []) for target in NAMED),
        ("GET /ops?follow=1&nick=friend", [FRIEND, *IMAGE]),
        ("GET /ops", [FRIEND, *IMAGE]),
    ],
)
def test_own_pages_typed_addresses_programs_and_allowed_origins_follow_under_a_nick(
    target: str, headers: list[str]
) -> None:
    server = ChatServer(Config(allowed_origin=("https://friend.example",), flush_interval=0))
    client = HttpClient(server)
    client.send(target, *headers)
    assert client.received.startswith(b"HTTP/1.1 200 ")
    assert ("ops" in server.hub.rooms) == ("follow" in target)
