import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chatd.protocol.message import LATEST, Batch, Message, StreamPosition, again, decode, encode, rfc3339_ms
from tests.rows import rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1)
MESSAGE = st.builds(
    Message,
    id=WORD,
    time=st.integers(0, LATEST),
    session=WORD,
    text=TEXT,
    nick=TEXT,
    action=st.booleans(),
    dedup_id=TEXT,
)
MESSAGES = st.lists(MESSAGE, min_size=1)
NUMBER = st.integers(1, 2**53)
BATCHES = st.builds(Batch, TEXT, WORD, NUMBER, WORD, NUMBER, MESSAGES.map(tuple))
POSITIONS = st.builds(StreamPosition, WORD, NUMBER)

HELLO = Message(id="s-1", time=1_700_000_000_000, session="s", text="hello")


@given(BATCHES)
def test_any_batch_travels_unchanged(batch: Batch) -> None:
    head = f"{batch.epoch} {batch.first} {batch.publisher} {batch.sequence}\n"
    data = head.encode() + encode(batch.messages)
    assert decode(batch.room, data) == replace(batch, size=len(data))


@rows("text", ["007", "1_000", "1.50", "", "a\nb", "é\0"])
def test_a_text_stays_text(text: str) -> None:
    message = msgspec.structs.replace(HELLO, text=text)
    assert decode("ops", b"e 1 w 1\n" + encode([message])).messages == (message,)


def test_messages_travel_without_the_names_of_their_fields() -> None:
    assert msgspec.msgpack.decode(encode([HELLO])) == [["s-1", 1_700_000_000_000, "s", "hello", "", False, "", ""]]


def test_a_message_of_a_newer_chatd_may_hold_more() -> None:
    newer = msgspec.msgpack.encode([["s-1", 1_700_000_000_000, "s", "hello", "", False, "", "", "more"]])
    assert decode("ops", b"e 1 w 1\n" + newer).messages == (HELLO,)


def test_a_message_of_an_older_chatd_may_hold_less() -> None:
    older = msgspec.msgpack.encode([["s-1", 1_700_000_000_000, "s", "hello"]])
    assert decode("ops", b"e 1 w 1\n" + older).messages == (HELLO,)


@rows("count", [1, 3])
def test_the_last_offset_of_a_batch_is_that_of_its_newest_message(count: int) -> None:
    batch = Batch("ops", "e", 5, "w", 1, (HELLO,) * count)
    assert batch.last == 5 + count - 1


@rows(
    "data",
    [
        b"",
        b"hello",
        b"e 1 w 1",
        b"e 1 w 1\n",
        b"e 1 w\n" + encode([HELLO]),
        b"e 1 w 1 2\n" + encode([HELLO]),
        b"e x w 1\n" + encode([HELLO]),
        b"e 1 w x\n" + encode([HELLO]),
        b"e  w 1\n" + encode([HELLO]),
        b"\xff 1 w 1\n" + encode([HELLO]),
        b"e 1 w 1\n" + encode([HELLO])[:-1],
        b"e 1 w 1\n" + encode([HELLO]) + b"x",
        b"e 1 w 1\n" + msgspec.msgpack.encode("hello"),
        b"e 1 w 1\n" + msgspec.msgpack.encode([["s-1", "noon", "s", "hello"]]),
        b"e 1 w 1\n" + msgspec.msgpack.encode([["s-1", 1, "s"]]),
        b"e 1 w 1\n" + msgspec.msgpack.encode([["s-1", 1, "s", "hello", None]]),
        b"e 1 w 1\n" + msgspec.msgpack.encode([["s-1", 1, "s", "hello", "ann", 1]]),
    ],
)
def test_what_is_no_batch_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode("ops", data)


@given(st.binary())
def test_any_bytes_are_a_batch_or_a_value_error(data: bytes) -> None:
    for each in (data, b"e 1 w 1\n" + data):
        try:
            decode("ops", each)
        except ValueError:
            continue


@given(BATCHES, POSITIONS, POSITIONS)
def test_what_is_published_again_says_where_it_stood_first_however_often(
    batch: Batch, before: StreamPosition, later: StreamPosition
) -> None:
    head = f"{batch.epoch} {batch.first} {batch.publisher} {batch.sequence}\n"
    payload = again(encode(batch.messages), before)
    assert again(payload, later) == payload
    data = head.encode() + payload
    assert decode(batch.room, data) == replace(batch, before=before, size=len(data))


@rows("mark", [b"!", b"!\n", b"!e\n", b"!e x\n", b"!e 1 2\n", b"!\xff 1\n"])
def test_a_mark_that_names_no_position_is_a_value_error(mark: bytes) -> None:
    with pytest.raises(ValueError):
        decode("ops", b"e 1 w 1\n" + mark + encode([HELLO]))


def test_the_first_ones_and_the_rest_are_the_batch() -> None:
    messages = tuple(msgspec.structs.replace(HELLO, id=f"s-{number}") for number in range(5))
    batch = Batch("ops", "e", 11, "w", 1, messages, StreamPosition("d", 7))
    first, rest = batch.first_ones(2), batch.without_first(2)
    assert (first.first, first.last, first.messages, first.before) == (11, 12, messages[:2], StreamPosition("d", 7))
    assert (rest.first, rest.last, rest.messages, rest.before) == (13, 15, messages[2:], StreamPosition("d", 9))
    assert replace(batch, before=None).without_first(2).before is None


def test_a_time_is_rfc_3339_in_utc_with_milliseconds() -> None:
    rows = [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_795_379_625_123, "2026-11-22T20:33:45.123Z"),
        (LATEST, "9999-12-31T23:59:59.999Z"),
    ]
    assert [(time, text) for time, text in rows if rfc3339_ms(time) != text] == []


def test_a_message_with_a_time_after_year_9999_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode("ops", b"e 1 p 1\n" + encode([msgspec.structs.replace(HELLO, time=LATEST + 1)]))
