"""Pages of other origins: which may ask, and what their browsers are told."""

import pytest

from chatd.config import Config
from tests.web.asker import Asker, House, error

HOST = "Host: chat.example:3000"
FRIEND, STRANGER = "Origin: https://friend.example", "Origin: https://stranger.example"
TARGETS = ["GET /ops", "GET /ops?follow=1", "GET /ops/members", "GET /-/rooms", "GET /-/healthz", "OPTIONS /ops"]


@pytest.fixture
def house() -> House:
    return House(Config(origin=("https://friend.example",), flush_interval=0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("origin", [STRANGER, "Origin: null", "Origin: nonsense"])
def test_a_strangers_page_is_refused(asker: Asker, target: str, origin: str) -> None:
    answer = asker.ask(target, origin)
    assert error(answer) == (403, "forbidden")
    assert "access-control-allow-origin" not in answer.headers


def test_a_strangers_page_says_nothing(asker: Asker, house: House) -> None:
    assert asker.error("POST /ops", STRANGER, "Content-Length: 5", body=b"hello") == (403, "forbidden")
    assert house.chat_log.entries == []


def test_our_own_page_may_and_is_told_nothing_of_it(asker: Asker) -> None:
    answer = asker.ask("POST /ops", "Origin: http://chat.example:3000", "Content-Length: 5", body=b"hello")
    assert answer.status == 201
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("target", TARGETS)
def test_a_friends_page_may_and_its_browser_hears_so(asker: Asker, target: str) -> None:
    answer = asker.ask(target, FRIEND)
    assert answer.status in (200, 204)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in answer.headers


def test_an_answer_that_was_kept_is_not_for_another_origin(asker: Asker) -> None:
    asker.send("GET /-/rooms")
    assert b"\r\nVary: Origin\r\n" in asker.transport.value()


def test_a_friends_browser_that_asks_in_advance_hears_what_it_may(asker: Asker) -> None:
    answer = asker.ask("OPTIONS /ops", FRIEND, "Access-Control-Request-Method: POST")
    assert answer.status == 204
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type, Last-Event-ID"
    assert answer.headers["access-control-max-age"] == "7200"


def test_who_is_no_page_hears_nothing_of_that(asker: Asker) -> None:
    assert not [name for name in asker.ask("OPTIONS /ops").headers if name.startswith("access-control")]


def test_an_error_is_shared_too(asker: Asker) -> None:
    answer = asker.ask("GET /a/b", FRIEND)
    assert answer.status == 404
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
