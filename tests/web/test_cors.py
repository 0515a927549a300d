"""Pages of other origins: which may ask, and what their browsers are told."""

import pytest

from chatd.config.settings import Config
from tests.web.http_client import ChatServer, HttpClient, error

HOST = "Host: chat.example:3000"
FRIEND, STRANGER = "Origin: https://friend.example", "Origin: https://stranger.example"
TARGETS = ["GET /ops", "GET /ops?follow=1", "GET /ops/members", "GET /-/rooms", "GET /-/healthz", "OPTIONS /ops"]


@pytest.fixture
def server() -> ChatServer:
    return ChatServer(Config(allowed_origin=("https://friend.example",), flush_interval=0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("origin", [STRANGER, "Origin: null", "Origin: nonsense"])
def test_a_strangers_page_is_refused(http_client: HttpClient, target: str, origin: str) -> None:
    answer = http_client.ask(target, origin)
    assert error(answer) == (403, "forbidden")
    assert "access-control-allow-origin" not in answer.headers


def test_a_strangers_page_says_nothing(http_client: HttpClient, server: ChatServer) -> None:
    assert http_client.error("POST /ops", STRANGER, "Content-Length: 5", body=b"hello") == (403, "forbidden")
    assert server.chat_log.entries == []


def test_our_own_page_may_and_is_told_nothing_of_it(http_client: HttpClient) -> None:
    answer = http_client.ask("POST /ops", "Origin: http://chat.example:3000", "Content-Length: 5", body=b"hello")
    assert answer.status == 201
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("target", TARGETS)
def test_a_friends_page_may_and_its_browser_hears_so(http_client: HttpClient, target: str) -> None:
    answer = http_client.ask(target, FRIEND)
    assert answer.status in (200, 204)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in answer.headers


def test_an_answer_that_was_kept_is_not_for_another_origin(http_client: HttpClient) -> None:
    http_client.send("GET /-/rooms")
    assert b"\r\nVary: Origin\r\n" in http_client.transport.value()


def test_a_friends_browser_that_asks_in_advance_hears_what_it_may(http_client: HttpClient) -> None:
    answer = http_client.ask("OPTIONS /ops", FRIEND, "Access-Control-Request-Method: POST")
    assert answer.status == 204
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type, Last-Event-ID"
    assert answer.headers["access-control-max-age"] == "7200"


def test_who_is_no_page_hears_nothing_of_that(http_client: HttpClient) -> None:
    assert not [name for name in http_client.ask("OPTIONS /ops").headers if name.startswith("access-control")]


def test_an_error_is_shared_too(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /a/b", FRIEND)
    assert answer.status == 404
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"


# Requests without an Origin, as browsers send them for images, stylesheets and links

BROWSER = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
CROSS = (BROWSER, "Sec-Fetch-Site: cross-site")
IMAGE = (*CROSS, "Sec-Fetch-Mode: no-cors")
LINK = (*CROSS, "Sec-Fetch-Mode: navigate", "Accept: text/html,*/*;q=0.8")
NAMED = ["GET /ops?follow=1&nick=evil", "GET /ops?follow=1&resume=0123456789"]


@pytest.mark.parametrize("target", [*TARGETS, *NAMED, "HEAD /ops?follow=1", "GET /-/", "POST /ops"])
def test_another_site_gets_nothing_without_an_origin(http_client: HttpClient, server: ChatServer, target: str) -> None:
    assert http_client.ask(target, *IMAGE, "Content-Length: 0").status == 403
    assert not server.hub.rooms


def test_another_site_cannot_ask_for_events(http_client: HttpClient, server: ChatServer) -> None:
    assert http_client.error("GET /ops?nick=evil", *IMAGE, "Accept: text/event-stream") == (403, "forbidden")
    assert not server.hub.rooms


@pytest.mark.parametrize("target", ["GET /ops?follow=1", *NAMED])
def test_a_link_on_another_site_opens_the_page_and_joins_nothing(
    http_client: HttpClient, server: ChatServer, target: str
) -> None:
    assert http_client.error(target, *LINK) == (403, "forbidden")
    assert not server.hub.rooms
    page = http_client.ask("GET /ops?nick=evil", *LINK)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not server.hub.rooms


def test_a_form_on_another_site_says_nothing(http_client: HttpClient, server: ChatServer) -> None:
    assert http_client.error("POST /ops", *LINK, "Content-Length: 5", body=b"hello") == (403, "forbidden")
    assert server.chat_log.entries == []


@pytest.mark.parametrize("target", NAMED)
def test_a_browser_that_says_nothing_of_the_page_follows_under_no_name(
    http_client: HttpClient, server: ChatServer, target: str
) -> None:
    answer = http_client.ask(target, BROWSER)
    assert error(answer) == (403, "forbidden")
    assert b"use https or a WebSocket" in answer.body
    assert not server.hub.rooms


@pytest.mark.parametrize("who", [(BROWSER, "Sec-Fetch-Site: same-origin"), (BROWSER, "Sec-Fetch-Site: none"), ()])
@pytest.mark.parametrize("target", NAMED)
def test_our_own_page_who_types_the_address_and_a_program_follow_under_a_name(
    http_client: HttpClient, server: ChatServer, target: str, who: tuple[str, ...]
) -> None:
    http_client.send(target, *who)
    assert http_client.transport.value().startswith(b"HTTP/1.1 200 ")
    assert "ops" in server.hub.rooms


@pytest.mark.parametrize("target", ["GET /ops?follow=1&nick=friend", "GET /ops"])
def test_a_friends_page_follows_under_a_name(http_client: HttpClient, target: str) -> None:
    http_client.send(target, FRIEND, *IMAGE)
    assert http_client.transport.value().startswith(b"HTTP/1.1 200 ")
