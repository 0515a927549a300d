import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.message import Message
from chatd.wire.text import TooLarge, bare, read_line

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("payload", [b"hello\n", b"hello\r\n", b"hello"])
def test_one_line_end_is_dropped(payload: bytes) -> None:
    assert read_line(payload, 100) == "hello"


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (b"a\n\n", "a\n"),
        (b"a\r\n\r\n", "a\r\n"),
        (b"a\n\r\n", "a\n"),
        (b"a\r\r\n", "a\r"),
        (b"a\r", "a\r"),
        (b"\na", "\na"),
        (b"a\nb", "a\nb"),
        (b" a \t\n", " a \t"),
        (b"a\x0b\n", "a\x0b"),
    ],
)
def test_nothing_but_one_line_end_is_dropped(payload: bytes, line: str) -> None:
    assert read_line(payload, 100) == line


@pytest.mark.parametrize("payload", [b"", b"\n", b"\r\n"])
def test_what_holds_nothing_but_a_line_end_is_empty(payload: bytes) -> None:
    assert read_line(payload, 100) == ""


@pytest.mark.parametrize("text", ["007", "1_000", "1.50", "null", '{"type":"publish"}', "/help", "\x1b[31m", "\0"])
def test_a_line_that_looks_like_something_else_stays_text(text: str) -> None:
    assert read_line(text.encode(), 100) == text


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_may_be_as_long_as_the_limit_without_its_line_end(end: bytes) -> None:
    assert read_line(b"x" * 10 + end, 10) == "x" * 10


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r"])
def test_a_line_over_the_limit_is_too_large(end: bytes) -> None:
    with pytest.raises(TooLarge):
        read_line(b"x" * 11 + end, 10)


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert read_line("é".encode(), 2) == "é"
    with pytest.raises(TooLarge):
        read_line("é".encode(), 1)


@given(TEXT)
def test_any_line_comes_out_as_it_went_in(text: str) -> None:
    assert read_line(f"{text}\r\n".encode(), 10_000) == text


@given(TEXT)
def test_a_bare_client_sees_a_message_as_it_is(text: str) -> None:
    assert bare(Message(id="s-1", time=0, session="s", text=text)) == text
