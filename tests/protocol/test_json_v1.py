import json
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from chatd.protocol.json_line import encode
from chatd.protocol.json_v1 import (
    BadRequest,
    Code,
    Error,
    Event,
    History,
    Join,
    Nick,
    Ping,
    Publish,
    Request,
    Since,
    message_json,
    read_request,
)
from chatd.protocol.message import Message, StreamPosition
from tests.protocol.dialogue import EVENTS, NO_REFERENCES, NO_REQUESTS, REQUESTS
from tests.rows import rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
)
TYPES = [json.loads(text)["type"] for text, _ in REQUESTS]
FIELDS = ["ref", "room", "text", "id", "since", "before", "limit", "nick", "token"]
DEEP = "[" * 10_000 + "]" * 10_000


def refused(text: str | bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read_request(text)
    return caught.value


# What comes in


@rows(("text", "request_"), REQUESTS)
def test_each_request_of_the_contract_is_read(text: str, request_: Request) -> None:
    assert read_request(text) == request_
    assert read_request(text.encode()) == request_


def test_there_is_an_example_of_every_request() -> None:
    assert {type(each) for _, each in REQUESTS} == set(get_args(Request))


def test_fields_that_nobody_knows_are_passed_over() -> None:
    assert read_request('{"x":[{"y":null}],"type":"ping","text":3,"ref":1}') == Ping(ref=1)


def test_of_a_field_that_comes_twice_the_last_counts() -> None:
    assert read_request('{"type":"nick","ref":1,"nick":"a","ref":2,"nick":"b"}') == Nick(ref=2, nick="b")


def test_a_type_that_comes_twice_must_be_the_same() -> None:
    assert read_request('{"type":"ping","type":"ping"}') == Ping()
    assert refused('{"type":"ping","ref":1,"type":"leave","room":"ops"}').message.startswith("type: expected one of ")


@rows("text", ["\0", "\x1b[31m", "a\nb", "\u2028", "é", "\U0001f600", "007", " "])
def test_any_text_that_is_not_empty_stays_as_it_is(text: str) -> None:
    for written in (json.dumps(text), json.dumps(text, ensure_ascii=True)):
        assert read_request(f'{{"type":"publish","room":"ops","text":{written}}}') == Publish("ops", text)


@rows("ref", [0, -1, 2**53 - 1, 1 - 2**53, "", "x" * 64, "é" * 64, "\U0001f600" * 64, "1"])
def test_a_reference_is_an_integer_or_a_short_string(ref: int | str) -> None:
    assert read_request(json.dumps({"type": "ping", "ref": ref})) == Ping(ref=ref)


@rows(("ref", "complaint"), NO_REFERENCES)
def test_anything_else_is_no_reference(ref: str, complaint: str) -> None:
    refusal = refused(f'{{"type":"ping","ref":{ref}}}')
    assert (refusal.ref, refusal.message) == (UNSET, f"ref: {complaint}")


@rows(("text", "ref", "complaint"), NO_REQUESTS)
def test_what_is_wrong_is_said_with_the_field_and_the_reference(text: str, ref: object, complaint: str) -> None:
    refusal = refused(text)
    assert (refusal.ref, refusal.message) == (ref, complaint)


@rows("limit", [1, 1000])
def test_a_page_of_history_may_have_as_many_messages_as_it_may(limit: int) -> None:
    assert read_request(f'{{"type":"history","room":"ops","limit":{limit}}}') == History("ops", limit=limit)


@rows(
    ("text", "complaint"),
    [
        ("[]", "expected object, got array"),
        ('"ping"', "expected object, got str"),
        ("null", "expected object, got null"),
        ("", "not JSON: input data was truncated"),
        ('{"type":"ping"', "not JSON: input data was truncated"),
        ("hello", "not JSON: invalid character (byte 0)"),
        ("NaN", "not JSON: invalid character (byte 0)"),
        ('{"type":"ping"} {}', "not JSON: trailing characters (byte 17)"),
    ],
)
def test_what_is_no_object_is_refused_without_a_reference(text: str, complaint: str) -> None:
    refusal = refused(text)
    assert (refusal.ref, refusal.message) == (UNSET, complaint)


@rows("half", ["\\ud83d", "\\ude00", "\\ud83dx", "\\ud83d\\ud83d", "\\ude00\\ud83d", "\ud83d"])
@rows("field", ["text", "id", "room", "x"])
def test_half_a_character_is_refused_and_its_field_named(half: str, field: str) -> None:
    refusal = refused(f'{{"type":"publish","ref":1,"room":"ops","text":"hi","{field}":"{half}"}}')
    assert (refusal.ref, refusal.message) == (1, f"{field}: half of a surrogate pair")


@rows("half", ["\\ud83d", "\ud83d"])
def test_a_name_that_is_half_a_character_is_refused(half: str) -> None:
    refusal = refused(f'{{"type":"ping","ref":1,"{half}":2}}')
    assert (refusal.ref, refusal.message) == (1, r"\ud83d: half of a surrogate pair")


@rows("text", ['{"ref":"\\ud83d"}', '{"ref":"\ud83d"}', '{"type":"ping","ref":"\\ude00"}'])
def test_half_a_character_never_comes_back_as_a_reference(text: str) -> None:
    assert refused(text).ref is UNSET


def test_a_reference_is_found_where_the_rest_is_nearly_json() -> None:
    assert refused('{"type":"ping","ref":5,"x":NaN}').ref == 5


@rows("text", [DEEP, f'{{"type":"ping","x":{DEEP}}}', f'{{"x":{DEEP},"type":"ping"}}', DEEP[:9000]])
def test_what_is_nested_too_deep_is_refused(text: str) -> None:
    assert refused(text).ref is UNSET


@rows("text", [b"\xff", b'{"type":"publish","room":"ops","text":"\xff"}', b"\xef\xbb\xbf{}"])
def test_bytes_that_are_no_utf_8_are_refused(text: bytes) -> None:
    assert refused(text).message.startswith("not JSON: ")


def is_read_or_refused(text: str | bytes) -> None:
    try:
        request = read_request(text)
    except BadRequest as refusal:
        assert refusal.message.isprintable()
        assert len(refusal.message) < 200
        answer = json.loads(encode(Error(ref=refusal.ref, code="bad_request", message=refusal.message)))
        assert answer.get("ref", UNSET) == refusal.ref
    else:
        assert isinstance(request, get_args(Request))


@given(st.binary() | st.text())
@example(b"[" * 16_384)
@example('{"type":"ping","' + "x" * 300 + '":"\\ud83d"}')
def test_any_bytes_are_a_request_or_refused(text: str | bytes) -> None:
    is_read_or_refused(text)


@given(JSON)
def test_any_json_is_a_request_or_refused(value: object) -> None:
    is_read_or_refused(json.dumps(value))


@given(
    st.fixed_dictionaries({"type": st.sampled_from(TYPES)}, optional=dict.fromkeys(FIELDS, JSON)),
    st.integers(0, 30),
    st.integers(0, 255),
)
def test_what_is_nearly_a_request_is_one_or_refused(fields: dict[str, object], place: int, byte: int) -> None:
    text = json.dumps(fields).encode()
    is_read_or_refused(text)
    is_read_or_refused(text[:place] + bytes((byte,)) + text[place + 1 :])
    is_read_or_refused(text[: len(text) - place])


@rows(
    ("since", "position", "last"),
    [
        (UNSET, None, 0),
        (Since(last=20), None, 20),
        (Since(epoch="k3f9", offset=0), StreamPosition("k3f9", 0), 0),
    ],
)
def test_who_joins_wants_what_came_after_a_position_or_the_last_so_many(
    since: Since, position: StreamPosition | None, last: int
) -> None:
    join = Join("ops", since)
    assert (join.position, join.last) == (position, last)


# What goes out


@rows(("event", "text"), EVENTS)
def test_each_event_is_written_as_the_contract_says(event: Event, text: str) -> None:
    assert encode(event).decode() == text


def test_there_is_an_example_of_every_event() -> None:
    assert {type(each) for each, _ in EVENTS} == set(get_args(Event))


def test_the_codes_of_errors_are_those_of_the_contract() -> None:
    told = "bad_request bad_room not_joined forbidden rate_limited too_large unavailable"
    assert list(get_args(Code)) == told.split()


MESSAGE = Message("s.1.7", 1_767_268_800_123, "s.1", "hi")


@rows(
    ("changes", "id", "nick", "rest"),
    [
        ({}, "s.1.7", None, {}),
        ({"nick": "ann"}, "s.1.7", "ann", {}),
        ({"dedup_id": "c-81"}, "c-81", None, {}),
        ({"nick": "ann", "action": True}, "s.1.7", "ann", {"action": True}),
    ],
)
def test_a_message_is_told_with_the_id_and_the_nick_that_its_author_gave(
    changes: dict[str, object], id: str, nick: str | None, rest: dict[str, object]
) -> None:
    message = msgspec.structs.replace(MESSAGE, **changes)
    assert json.loads(message_json(message, "ops", "k3f9", 1041)) == {
        "type": "message",
        "room": "ops",
        "epoch": "k3f9",
        "offset": 1041,
        "id": id,
        "time": "2026-01-01T12:00:00.123Z",
        "session": "s.1",
        "nick": nick,
        "text": "hi",
        **rest,
    }


@given(TEXT, TEXT)
def test_any_text_of_a_message_comes_out_as_it_went_in(room: str, text: str) -> None:
    told = json.loads(message_json(msgspec.structs.replace(MESSAGE, text=text), room, "k3f9", 1))
    assert (told["room"], told["text"]) == (room, text)
