"""The requests of HTTP clients: the format, the position, and what they publish."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.protocol.http_api import (
    EVENTS,
    HTML,
    JSON,
    JSON_LINES,
    TEXT,
    PublishBody,
    choose_form,
    read_event_id,
    read_publish_body,
    takes_gzip,
)
from chatd.protocol.http_head import Refused
from chatd.protocol.message import StreamPosition
from tests.rows import rows


def refusal(kind: str | None, body: bytes, most: int = 100) -> tuple[int, str]:
    """Return the status and message with which a body is refused."""
    with pytest.raises(Refused) as caught:
        read_publish_body(kind, body, most)
    return caught.value.status, caught.value.message


# The format


@rows(
    ("accept", "form"),
    [
        *((None, TEXT), ("", TEXT), ("*/*", TEXT), ("text/*", TEXT), ("application/*", TEXT), ("text/plain", TEXT)),
        *(("application/json", JSON), ("Application/JSON", JSON), ("text/event-stream", EVENTS), ("text/html", HTML)),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", HTML),
        ("application/json, text/plain, */*", JSON),
        ("text/plain, application/json", TEXT),
        ("text/plain;q=0.5, application/json;q=0.6", JSON),
        ("application/json;q=0, text/plain;q=0.1", TEXT),
        ("application/json; charset=utf-8; q=0.9, */*;q=0.1", JSON),
        ("*/*;q=0.9, text/event-stream", EVENTS),
        *(("application/json;q=2", JSON), ("image/png", TEXT), ("application/x-ndjson", JSON_LINES)),
        ("application/x-ndjson, application/json;q=0.9", JSON_LINES),
    ],
)
def test_the_preferred_format_is_chosen(accept: str | None, form: str) -> None:
    assert choose_form(accept) == form


@given(st.text())
def test_any_header_gives_a_format(accept: str) -> None:
    assert choose_form(accept) in (TEXT, JSON, JSON_LINES, EVENTS, HTML)


@rows(
    ("accept", "takes"),
    [
        *((accept, False) for accept in (None, "", "br", "identity", "gzipped", "gzip;q=0", "gzip; q=0.000")),
        *((accept, False) for accept in ("x-gzip;q=0", "*;q=0", "*, gzip;q=0", "identity;q=0.5, gzip;q=0.4")),
        *((accept, True) for accept in ("gzip", "x-gzip", "GZIP", "br, gzip", "*", "br;q=1.0, gzip;q=0.001")),
        *((accept, True) for accept in ("*;q=0, gzip", "identity;q=0, *", "identity, gzip")),
    ],
)
def test_gzip_is_used_if_it_is_accepted(accept: str | None, takes: bool) -> None:
    assert takes_gzip(accept) == takes


# The last event id


def test_the_id_of_an_event_is_a_position() -> None:
    assert read_event_id("k3f9-1042") == StreamPosition("k3f9", 1042)


@rows("text", ["", "-", "k3f9", "k3f9-", "-3", "k-3-4", "k3f9-x", "k 3-4", "k-1\n", "ä-1", "k-\u0661", "k" * 65 + "-1"])
def test_another_id_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        read_event_id(text)
    assert caught.value.status == 400


# Bodies


@rows(
    "kind",
    [
        *(None, "text/plain", "text/markdown", "text/plain; charset=utf-8", 'TEXT/PLAIN; Charset="UTF-8"'),
        *("application/x-www-form-urlencoded", "application/octet-stream"),
    ],
)
def test_a_body_is_the_text(kind: str | None) -> None:
    assert read_publish_body(kind, "a=b&c größe\n".encode(), 100) == PublishBody("a=b&c größe")


@rows(("body", "text"), [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a\nb\n", "a\nb"), (b" ", " ")])
def test_one_line_end_is_dropped(body: bytes, text: str) -> None:
    assert read_publish_body(None, body, 100).text == text
    assert read_publish_body(JSON, json.dumps({"text": body.decode()}).encode(), 100).text == text


def test_json_has_text_nick_and_id() -> None:
    body = b'{"text": "hi", "nick": "ann", "id": "c-1", "type": "message"}'
    assert read_publish_body("application/json; charset=utf-8", body, 100) == PublishBody("hi", "ann", "c-1")


def test_null_in_json_is_a_missing_field() -> None:
    assert read_publish_body(JSON, b'{"text": "hi"}', 100) == read_publish_body(
        JSON, b'{"text": "hi", "nick": null, "id": null}', 100
    )


@rows(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"text": 1}',
        b'{"text": null}',
        b'{"text": ""}',
        b'{"text": "\\n"}',
        b'{"text": "hi", "nick": 1}',
        b'{"text": "hi", "nick": ""}',
        b'{"text": "hi", "nick": "a b"}',
        b'{"text": "hi", "id": ""}',
        b'{"text": "hi", "id": "' + b"x" * 65 + b'"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_bad_json_is_refused(body: bytes) -> None:
    status, message = refusal(JSON, body)
    assert status == 400
    assert message.isprintable()


@rows("body", [b"", b"\n", b"\r\n", b"\xff", b"\xc3"])
def test_a_body_without_text_is_refused(body: bytes) -> None:
    assert refusal(None, body)[0] == 400


@rows(
    "kind",
    ["image/png", "multipart/form-data; boundary=x", "application/xml", "nonsense", "text/plain; charset=latin-1"],
)
def test_another_kind_of_body_is_refused(kind: str) -> None:
    assert refusal(kind, b"hello")[0] == 415


def test_a_text_is_bounded_in_bytes_of_utf_8() -> None:
    assert read_publish_body(None, "ä".encode() * 5 + b"\n", 10).text == "ä" * 5
    assert refusal(None, "ä".encode() * 5 + b"a", 10) == (413, "the text is longer than 10 bytes of UTF-8")
    assert refusal(JSON, b'{"text": "\\u00e4\\u00e4\\u00e4\\u00e4\\u00e4a"}', 10)[0] == 413


@given(st.binary(max_size=200), st.sampled_from([None, TEXT, JSON, "x", "text/plain; charset=utf-16"]))
def test_any_body_is_read_or_refused(body: bytes, kind: str | None) -> None:
    try:
        said = read_publish_body(kind, body, 50)
    except Refused as refused:
        assert refused.status in (400, 413, 415)
    else:
        assert 0 < len(said.text.encode()) <= 50
