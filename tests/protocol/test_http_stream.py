"""The streams of rooms over HTTP, read back by parsers of the formats."""

import json
from typing import Any

from chatd.protocol.close_codes import STOPPING, TAKEN_OVER
from chatd.protocol.http_api import EVENTS, JSON, TEXT
from chatd.protocol.http_stream import LAST_CHUNK, stream
from chatd.protocol.message import Batch, Message, OffsetGap, PresenceEvent
from tests.rows import rows

TEXTS = (
    *("hello", "two\nlines", "a\r\nb\rc", "id: 1\n\ndata: x", "\u2028 \u2029 \x85", "größe \U0001f600", "\x1b[2J"),
    *(" ", ":", "\ufeff"),
)
LINE_ENDS = [number for number in range(0x110000) if len(f"{chr(number)}x".splitlines()) > 1]
"""The characters at which Python's ``str.splitlines`` ends a line."""
MESSAGES = tuple(Message(f"i{number}", 1_790_000_000_000, "s", text, "ann") for number, text in enumerate(TEXTS))
BATCH = Batch("ops", "k3f9", 7, "w", 1, MESSAGES)
JOIN, NAMELESS = PresenceEvent("join", "s2", "ben", ""), PresenceEvent("join", "s3", "", "")


def unchunked(data: bytes) -> bytes:
    """Read a body in chunks (RFC 9112, section 7.1)."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert length or data == b"\r\n", "nothing comes behind the last one"
        body += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
    return body


def events_in(data: bytes) -> list[dict[str, str]]:
    """Read a stream of events as a browser does (WHATWG HTML, section 9.2.6)."""
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    text = data.decode().replace("\r\n", "\n").replace("\r", "\n")
    assert text.endswith("\n")
    for line in text.split("\n")[:-1]:
        name, _, value = line.partition(":")
        if not line:
            if event:
                found.append(event)
            event = {}
        elif name:
            assert name not in event
            event[name] = value.removeprefix(" ")
    assert not event, "the last one is whole"
    return found


def sent(form: str, *, presence: bool = True) -> bytes:
    """Return all messages, a gap, a presence event and the end, in chunks."""
    shown = stream(form, chunked=True, presence=presence)
    messages = shown.format.frames([BATCH])
    events = [shown.lost("ops", OffsetGap("k3f9", 20, 3)), shown.format.change("ops", JOIN)]
    heartbeat = shown.heartbeat if form == EVENTS else b""
    return b"".join([shown.beginning(2.5), *messages, *events, heartbeat, shown.close_code(STOPPING, 1.5), shown.end])


def test_lines_are_shown_as_in_a_terminal() -> None:
    lines = unchunked(sent(TEXT)).decode().split("\n")
    assert lines == [
        *("ann: hello", "ann: two\\x0alines", "ann: a\\x0d\\x0ab\\x0dc", "ann: id: 1\\x0a\\x0adata: x"),
        *("ann: \\u2028 \\u2029 \\x85", "ann: größe \U0001f600", "ann: \\x1b[2J", "ann:  ", "ann: :", "ann: \ufeff"),
        *("* 3 lines lost", "* ben joined", "* closing: the server stops", ""),
    ]


@rows("form", [TEXT, JSON, EVENTS])
def test_no_text_ends_a_line_for_any_reader(form: str) -> None:
    hostile = "".join(map(chr, LINE_ENDS)).join(["hi", "boss: transfer approved", "id: zzz-1", "retry: 99999999"])
    shown = stream(form, chunked=False, presence=True)
    message, change = Message("i", 0, "s", hostile, "ann"), PresenceEvent("join", "s2", "ben", "")
    batch = Batch("ops", "k3f9", 1, "w", 1, (message,))
    text = b"".join([*shown.format.frames([batch]), shown.format.change("ops", change)]).decode()
    assert text.splitlines() == text.split("\n")[:-1]


def test_json_lines_are_events_of_programs() -> None:
    objects = [json.loads(line) for line in unchunked(sent(JSON)).split(b"\n")[:-1]]
    assert [each["text"] for each in objects[: len(TEXTS)]] == list(TEXTS)
    assert [each["type"] for each in objects[len(TEXTS) :]] == ["gap", "presence", "bye"]
    assert objects[-1]["reconnect_after"] == 1.5


def test_events_hold_any_text_and_have_positions() -> None:
    retry, *events = events_in(unchunked(sent(EVENTS)))
    assert retry == {"retry": "2500"}
    messages, rest = events[: len(TEXTS)], events[len(TEXTS) :]
    assert [each["id"] for each in messages] == [f"k3f9-{offset}" for offset in range(7, 7 + len(TEXTS))]
    assert {each["event"] for each in messages} == {"message"}
    assert [json.loads(each["data"])["text"] for each in messages] == list(TEXTS)
    assert [(each["event"], each.get("id")) for each in rest] == [("gap", "k3f9-20"), ("presence", None), ("bye", None)]
    assert json.loads(rest[0]["data"]) == {"type": "gap", "room": "ops", "epoch": "k3f9", "from": 18, "to": 20}


@rows("form", [TEXT, JSON, EVENTS])
def test_each_message_is_a_frame_of_its_own(form: str) -> None:
    for chunked in (False, True):
        frames = stream(form, chunked=chunked, presence=True).format.frames([BATCH, BATCH])
        assert len(frames) == 2 * len(TEXTS)
        assert all(frames)


@rows("form", [TEXT, JSON, EVENTS])
def test_without_chunks_it_is_the_same(form: str) -> None:
    whole, chunked = stream(form, chunked=False, presence=True), stream(form, chunked=True, presence=True)
    assert (whole.end, chunked.end) == (b"", LAST_CHUNK)
    assert whole.format.frames([BATCH]) == [unchunked(each) for each in chunked.format.frames([BATCH])]
    assert whole.close_code(TAKEN_OVER, None) == unchunked(chunked.close_code(TAKEN_OVER, None))
    assert whole.heartbeat == unchunked(chunked.heartbeat)


@rows("form", [TEXT, JSON, EVENTS])
def test_presence_events_are_optional_and_lines_have_none_without_a_nick(form: str) -> None:
    assert stream(form, chunked=True, presence=False).format.change("ops", JOIN) == b""
    assert stream(TEXT, chunked=True, presence=True).format.change("ops", NAMELESS) == b""


def test_a_gap_may_have_an_unknown_size() -> None:
    gap = OffsetGap("k4", 3, None)
    assert stream(TEXT, chunked=False, presence=False).lost("ops", gap) == b"* some lines may be lost\n"
    [event] = events_in(stream(EVENTS, chunked=False, presence=False).lost("ops", gap))
    data: dict[str, Any] = json.loads(event["data"])
    assert (event["id"], data["from"], data["to"]) == ("k4-3", None, None)


def test_a_final_close_code_has_no_reconnect_delay() -> None:
    [event] = events_in(stream(EVENTS, chunked=False, presence=False).close_code(TAKEN_OVER, None))
    assert "reconnect_after" not in json.loads(event["data"])


def test_a_heartbeat_is_an_empty_line_or_a_comment_and_text_has_none_by_default() -> None:
    assert stream(TEXT, chunked=False, presence=True).heartbeat == b"\n"
    assert stream(JSON, chunked=False, presence=True).heartbeat == b"\n"
    assert events_in(stream(EVENTS, chunked=False, presence=True).heartbeat) == []
    assert [stream(form, chunked=True, presence=True).beats for form in (TEXT, JSON, EVENTS)] == [False, True, True]


def test_streams_of_one_format_are_shared() -> None:
    assert stream(EVENTS, chunked=True, presence=False) is stream(EVENTS, chunked=True, presence=False)
    format = stream(EVENTS, chunked=True, presence=False).format
    assert format.deflated is format
