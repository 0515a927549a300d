"""JSON as it goes out: one line to every reader, and the same value as before."""

import json

from hypothesis import given
from hypothesis import strategies as st

from chatd.protocol.http_head import Refused
from chatd.protocol.json_line import encode
from chatd.protocol.json_v1 import change_json, message_json
from chatd.protocol.message import Message, PresenceEvent
from tests.rows import rows

LINE_ENDS = "".join(each for each in map(chr, range(0x110000)) if len(f"{each}x".splitlines()) > 1)
"""The characters at which Python's ``str.splitlines`` ends a line."""
WILD = st.text(st.one_of(st.sampled_from(LINE_ENDS + '\\"'), st.characters(exclude_categories=["Cs"])))


def test_all_characters_that_end_a_line_somewhere_come_out_as_escapes() -> None:
    assert {"\u0085", "\u2028", "\u2029"} < set(LINE_ENDS)
    assert encode("\u0085\u2028\u2029") == rb'"\u0085\u2028\u2029"'
    for character in LINE_ENDS:
        assert encode(f"a{character}b").isascii()


@given(WILD)
def test_any_text_is_one_line_and_comes_back_as_it_was(text: str) -> None:
    written = encode({text: [text]})
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written) == {text: [text]}


@rows("text", ["größe", "\U0001f600", "\u2027\u202a", "\u0084\u0086", "“”…"])
def test_other_characters_stay_as_they_are(text: str) -> None:
    assert encode(text).decode() == f'"{text}"'


@rows("character", LINE_ENDS)
def test_messages_changes_and_errors_are_written_so(character: str) -> None:
    text = f"a{character}b"
    for written in (
        message_json(Message("i", 0, "s", text, text), text, "k3f9", 1),
        change_json(text, PresenceEvent("nick", "s", text, text)),
        Refused(400, "bad_request", text).body(),
    ):
        assert len(written.decode().splitlines()) == 1
