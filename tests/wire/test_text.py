import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.message import Message
from chatd.wire.frames import text_frame
from chatd.wire.text import BARE, Dress, bare, read_line, utf8_size

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def message(text: str) -> Message:
    return Message(id="s-1", time=0, session="s", text=text)


@pytest.mark.parametrize("text", ["hello\n", "hello\r\n", "hello"])
def test_one_line_end_is_dropped(text: str) -> None:
    assert read_line(text) == "hello"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n\n", "a\n"),
        ("a\r\n\r\n", "a\r\n"),
        ("a\n\r\n", "a\n"),
        ("a\r\r\n", "a\r"),
        ("a\r", "a\r"),
        ("\r", "\r"),
        ("\na", "\na"),
        ("a\nb", "a\nb"),
        (" a \t\n", " a \t"),
        ("a\x0b\n", "a\x0b"),
        ("a\u2028\n", "a\u2028"),
    ],
)
def test_nothing_but_one_line_end_is_dropped(text: str, line: str) -> None:
    assert read_line(text) == line


@pytest.mark.parametrize("text", ["", "\n", "\r\n"])
def test_what_holds_nothing_but_a_line_end_is_empty(text: str) -> None:
    assert read_line(text) == ""


@pytest.mark.parametrize("text", ["007", "1_000", "1.50", "null", '{"type":"publish"}', "/help", "\x1b[31m", "\0"])
def test_a_line_that_looks_like_something_else_stays_text(text: str) -> None:
    assert read_line(text) == text


@given(TEXT)
def test_any_line_comes_out_as_it_went_in(text: str) -> None:
    assert read_line(f"{text}\r\n") == text


@given(TEXT)
def test_a_size_is_that_of_the_utf_8(text: str) -> None:
    assert utf8_size(text) == len(text.encode())


@given(TEXT)
def test_a_bare_client_sees_a_message_as_it_is(text: str) -> None:
    assert bare(message(text)) == text
    assert BARE.frames([message(text)]) == [text_frame(text.encode())]


def test_a_dress_gives_each_message_a_frame_in_their_order() -> None:
    loud = Dress(lambda each: each.text.upper(), lambda payload: b"<" + payload + b">")
    assert loud.frames([message("one"), message("å")]) == [b"<ONE>", "<Å>".encode()]
    assert loud.frames([]) == []
