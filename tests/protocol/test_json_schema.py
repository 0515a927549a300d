import json
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from chatd.protocol.json_v1 import BadRequest, Event, Request, message_json, read_request
from chatd.protocol.message import Message
from docs.schema import schema
from tests.protocol.dialogue import EVENTS, NO_REFERENCES, NO_REQUESTS, REQUESTS
from tests.rows import rows

PAGE = Path(__file__).parents[2] / "docs" / "chatd.v1.schema.json"
SCHEMA = schema()


def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{kind}"})


ANY, REQUEST, EVENT = Draft202012Validator(SCHEMA), validator("Request"), validator("Event")


def test_the_schema_in_the_documentation_is_what_the_types_say() -> None:
    assert json.loads(PAGE.read_text()) == SCHEMA, "python docs/schema.py writes it"


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@rows(("text", "_"), REQUESTS)
def test_every_request_of_the_contract_is_valid(text: str, _: Request) -> None:
    REQUEST.validate(json.loads(text))
    ANY.validate(json.loads(text))


@rows(("_", "text"), EVENTS)
def test_every_event_is_valid(_: Event, text: str) -> None:
    EVENT.validate(json.loads(text))
    ANY.validate(json.loads(text))


@rows("text", [text for text, _, _ in NO_REQUESTS])
def test_what_is_no_request_is_not_valid(text: str) -> None:
    assert not REQUEST.is_valid(json.loads(text))


@rows("ref", [ref for ref, _ in NO_REFERENCES])
def test_what_is_no_reference_is_not_valid(ref: str) -> None:
    assert not REQUEST.is_valid({"type": "ping", "ref": json.loads(ref)})


SOMETIMES = {
    "error": "retry_after",
    "bye": "reconnect_after",
    "presence": "was",
    "ack": "duplicate",
    "message": "action",
}
"""The fields of events that may be left out, beside the reference."""


@rows(("_", "text"), EVENTS)
def test_an_event_without_one_of_its_fields_is_not_valid(_: Event, text: str) -> None:
    event = json.loads(text)
    for name in event:
        rest = {each: value for each, value in event.items() if each != name}
        assert EVENT.is_valid(rest) == (name in ("ref", SOMETIMES.get(event["type"]))), name


JUNK = st.none() | st.booleans() | st.text(max_size=3) | st.just(1.5) | st.lists(st.integers(), max_size=2)
NUMBERS = st.sampled_from([-1, 0, 1, 20, 1000, 1001, 2**53 - 1, 2**53, -(2**53), 10**30])
WORDS = st.text(max_size=3) | st.sampled_from(["", "k3f9", "e\n", "e f", "x" * 64, "x" * 65, "\U0001f600" * 64])
SINCE = st.fixed_dictionaries({}, optional={"epoch": WORDS | JUNK, "offset": NUMBERS | JUNK, "last": NUMBERS | JUNK})
NEARLY = st.fixed_dictionaries(
    {"type": st.sampled_from([json.loads(text)["type"] for text, _ in REQUESTS]) | JUNK},
    optional={
        **dict.fromkeys(["room", "text", "id", "nick", "token"], WORDS | JUNK),
        **dict.fromkeys(["before", "limit"], NUMBERS | JUNK),
        "ref": NUMBERS | WORDS | JUNK,
        "since": SINCE | JUNK,
        "x": JUNK,
    },
)
CHANGED = st.builds(
    lambda text, more: json.loads(text) | more, st.sampled_from([text for text, _ in REQUESTS]), NEARLY.map(dict)
)


@given(NEARLY | CHANGED | JUNK)
def test_what_is_valid_is_read_and_nothing_else(value: object) -> None:
    try:
        read_request(json.dumps(value))
    except BadRequest:
        assert not REQUEST.is_valid(value)
    else:
        REQUEST.validate(value)


WORD = st.text("abc0123456789.-", min_size=1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = st.builds(
    Message, WORD, st.integers(0, 2**47), WORD, TEXT, nick=TEXT, action=st.booleans(), dedup_id=WORD | st.just("")
)


@given(MESSAGES, st.integers(1, 2**53 - 1))
def test_any_message_is_told_in_a_valid_event(message: Message, offset: int) -> None:
    EVENT.validate(msgspec.json.decode(message_json(message, "ops", "k3f9", offset)))
