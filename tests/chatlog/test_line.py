"""A line of the chat log: escapes, writing, reading back."""

import json

from hypothesis import given
from hypothesis import strategies as st

from chatd.chatlog.line import (
    LogEntry,
    LogLine,
    escape,
    message_lines,
    message_objects,
    outcome_lines,
    outcome_objects,
    read_line,
    unescape,
)
from chatd.protocol.message import Message
from tests.chatlog.entries import ANY_TEXT, FORBIDDEN, TIME, entry, line
from tests.rows import rows

# Escapes


@given(ANY_TEXT)
def test_any_text_can_be_read_back_from_its_escapes(text: str) -> None:
    assert unescape(escape(text)) == text


@given(ANY_TEXT)
def test_escaped_text_has_nothing_that_ends_a_line_or_moves_a_terminal(text: str) -> None:
    assert not FORBIDDEN & set(escape(text))


def test_every_forbidden_character_comes_out_escaped_and_can_be_read_back() -> None:
    for one in FORBIDDEN:
        assert escape(one).isascii() and escape(one).isprintable()
        assert unescape(escape(one)) == one


@given(ANY_TEXT)
def test_any_text_is_one_line_of_utf_8(text: str) -> None:
    encoded = message_lines(entry(text)).encode()
    decoded = encoded.decode()
    assert decoded.splitlines(keepends=True) == [decoded]
    assert unescape(decoded[:-1].split(" ", 4)[4]) == text


@rows(
    ("text", "escaped"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b", r"\x9b"),
        ("\x7f\0", r"\x7f\x00"),
        ("\u2028\u2029\u202e\u2066", r"\u2028\u2029\u202e\u2066"),
        ("\ud800", r"\ud800"),
        (r"C:\new", r"C:\\new"),
        (r"\x41", r"\\x41"),
        ("007 Å 👋 \u200d", "007 Å 👋 \u200d"),
    ],
)
def test_escapes_are_spelt_as_documented(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(ANY_TEXT)
def test_reading_back_takes_any_text(text: str) -> None:
    unescape(text)


# Lines


def test_a_message_is_time_room_who_id_and_text() -> None:
    assert message_lines(entry("the text")) == "2026-11-22T20:33:45.123Z ops -@192.0.2.1 s.1 the text\n"


def test_what_one_author_said_at_a_time_is_a_line_each() -> None:
    said = [Message("s.1", TIME, "s", "one"), Message("s.2", TIME + 1000, "s", "two\nlines")]
    both = LogEntry("ops", "192.0.2.1", said)
    second = line(r"two\nlines", "s.2").replace("45.123Z", "46.123Z")
    assert message_lines(both) == line("one") + second
    assert outcome_lines(both, "unknown", TIME).splitlines() == [
        f"2026-11-22T20:33:45.123Z ops ! {each.id} unknown" for each in said
    ]


def test_an_entry_without_messages_has_no_line() -> None:
    assert message_lines(LogEntry("ops", "192.0.2.1", [])) == ""


def test_a_room_is_escaped_like_text() -> None:
    assert message_lines(entry(room="a\u202eb")) == line(room=r"a\u202eb")


def test_an_outcome_is_a_second_line_with_the_same_id() -> None:
    assert outcome_lines(entry("secret"), "refused", TIME + 1877) == "2026-11-22T20:33:47.000Z ops ! s.1 refused\n"


@rows(
    ("nick", "action", "subject", "who"),
    [
        ("ann", False, "u-17", "ann:u-17@::1"),
        ("ann*2", True, "u-17", "*ann*2:u-17@::1"),
        ("a@b", False, "ann smith:c@d\n\x1b", r"a@b:ann\x20smith:c@d\n\x1b@::1"),
        ("-", False, "\\x20", r"\x2d:\\x20@::1"),
    ],
)
def test_the_subject_of_the_authors_token_stands_behind_the_nick_without_a_space(
    nick: str, action: bool, subject: str, who: str
) -> None:
    said = Message("s.1", TIME, "s", "hello", nick, action, subject=subject)
    written = message_lines(LogEntry("ops", "::1", [said]))
    assert written == f"2026-11-22T20:33:45.123Z ops {who} s.1 hello\n"
    read = read_line(written.encode()[:-1])
    assert read is not None
    named, _, address = read.who.rpartition("@")
    assert (named.partition(":")[0].removeprefix("*"), named.partition(":")[2], address) == (nick, subject, "::1")


# As JSON


def test_a_message_is_an_object() -> None:
    said = Message("s.1", TIME, "s", "hello", "ann", action=True)
    assert message_objects(LogEntry("ops", "192.0.2.1", [said])) == (
        '{"time":"2026-11-22T20:33:45.123Z","room":"ops","nick":"ann","address":"192.0.2.1","id":"s.1","text":"hello",'
        '"action":true}\n'
    )
    assert json.loads(message_objects(entry())) == {
        "time": "2026-11-22T20:33:45.123Z",
        "room": "ops",
        "nick": None,
        "address": "192.0.2.1",
        "id": "s.1",
        "text": "hello",
    }


def test_an_object_has_the_subject_of_the_authors_token_where_that_has_one() -> None:
    said = Message("s.1", TIME, "s", "hello", "ann", subject="auth0|17")
    assert json.loads(message_objects(LogEntry("ops", "192.0.2.1", [said])))["subject"] == "auth0|17"


def test_an_outcome_is_an_object_with_the_same_id() -> None:
    said = [Message("s.1", TIME, "s", "one"), Message("s.2", TIME, "s", "two")]
    assert outcome_objects(LogEntry("ops", "192.0.2.1", said), "refused", TIME) == (
        '{"time":"2026-11-22T20:33:45.123Z","room":"ops","id":"s.1","outcome":"refused"}\n'
        '{"time":"2026-11-22T20:33:45.123Z","room":"ops","id":"s.2","outcome":"refused"}\n'
    )


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_an_object_is_one_line_that_moves_no_terminal_whatever_is_said(text: str, room: str, subject: str) -> None:
    said = LogEntry(room, "192.0.2.1", [Message("s.1", TIME, "s", text, "ann", subject=subject)])
    (written,) = message_objects(said).encode().decode().splitlines()
    assert not FORBIDDEN & set(written)
    assert (json.loads(written)["text"], json.loads(written).get("subject", "")) == (text, subject)


@given(ANY_TEXT, ANY_TEXT, st.sampled_from(["", "ann", "-", "!"]), st.booleans(), ANY_TEXT)
def test_both_kinds_of_line_read_back_as_the_same(text: str, room: str, nick: str, action: bool, subject: str) -> None:
    if room == "" or " " in room or "\n" in text + room:
        return
    said = LogEntry(room, "192.0.2.1", [Message("s.1", TIME, "s", text, nick, action and bool(nick), subject=subject)])
    plain, packed = (read_line(each(said).encode()[:-1]) for each in (message_lines, message_objects))
    assert packed is not None
    if nick != "-":  # which a line of text has to write otherwise
        assert plain == packed


@rows("outcome", ["refused", "unknown", "duplicate"])
def test_both_kinds_of_second_line_read_back_as_the_same(outcome: str) -> None:
    one, other = (each(entry(), outcome, TIME).encode()[:-1] for each in (outcome_lines, outcome_objects))
    assert read_line(one) == read_line(other)


@rows(
    "line",
    [
        *(b"{", b"{}", b'{"time":1}', b"{" * 100_000, b'{"a":"\xff"}', b"{1:2}"),
        *(b'{"time":"x","room":"ops","id":"1"}', b'{"time":"x","room":"ops","id":"1","outcome":7}'),
    ],
)
def test_what_is_no_object_of_a_chat_log_is_none(line: bytes) -> None:
    assert read_line(line) is None


# Reading it


@given(st.text(st.characters(), min_size=1).filter(lambda room: " " not in room), ANY_TEXT)
def test_a_line_reads_back_as_what_was_written(room: str, text: str) -> None:
    [line] = message_lines(entry(text, room=room)).encode().split(b"\n")[:-1]
    assert read_line(line) == LogLine("2026-11-22T20:33:45.123Z", room, "-@192.0.2.1", "s.1", text)


@rows("outcome", ["refused", "unknown", "duplicate"])
def test_a_second_line_reads_back_as_an_outcome(outcome: str) -> None:
    line = read_line(outcome_lines(entry(), outcome, TIME).encode()[:-1])
    assert line == LogLine("2026-11-22T20:33:45.123Z", "ops", "!", "s.1", outcome)
    assert line.is_outcome


def test_a_message_is_no_outcome_whatever_it_says() -> None:
    line = read_line(message_lines(entry("refused")).encode()[:-1])
    assert line is not None
    assert not line.is_outcome


@rows(
    "line",
    [b"", b"hello", b"2026-11-22T20:33:45.123Z ops - id", b"2026-11-22 ops - id text", line().encode(), b"\xff"],
)
def test_what_is_no_line_of_a_chat_log_is_none(line: bytes) -> None:
    assert read_line(line) is None
