"""Answers: text, JSON, errors."""

import json
from typing import Any

import pytest
from twisted.web.http_headers import Headers
from twisted.web.test.requesthelper import DummyRequest

from chatd.protocol.http_head import Refused
from chatd.web.responses import answer, refuse


@pytest.fixture
def request_() -> Any:
    request: Any = DummyRequest([b""])
    request.responseHeaders = Headers()
    return request


def headers(request: Any) -> dict[bytes, bytes]:
    return {name.lower(): values[0] for name, values in request.responseHeaders.getAllRawHeaders()}


def test_text_is_utf_8_with_its_length(request_: Any) -> None:
    assert answer(request_, "grüße\n") == "grüße\n".encode()
    assert headers(request_) == {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": b"8",
    }


def test_an_error_is_json_with_its_status_and_headers(request_: Any) -> None:
    refused = Refused(405, "bad_request", "only GET", (("Allow", "GET"),))
    body = refuse(request_, refused)
    assert json.loads(body) == {"error": "bad_request", "message": "only GET"}
    assert request_.responseCode == 405
    assert headers(request_) == {
        b"allow": b"GET",
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(body),
    }


def test_head_gets_the_headers_only(request_: Any) -> None:
    request_.method = b"HEAD"
    assert answer(request_, "hello") == b""
    assert refuse(request_, Refused(404, "not_found", "nothing here")) == b""
    assert int(headers(request_)[b"content-length"]) > 0
