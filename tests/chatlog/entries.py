"""Entries of a chat log for its tests, and the lines that they become."""

from hypothesis import strategies as st

from chatd.chatlog.line import LogEntry
from chatd.protocol.message import Message

ANY_TEXT = st.text(st.characters())
"""Lone surrogates too, which a plain ``st.text()`` leaves out."""

FORBIDDEN = (
    {chr(number) for number in [*range(0x20), *range(0x7F, 0xA0)]}
    | set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    | {chr(number) for number in range(0xD800, 0xE000)}
)

TIME = 1_795_379_625_123  # 2026-11-22T20:33:45.123Z


def entry(text: str = "hello", id: str = "s.1", room: str = "ops") -> LogEntry:
    return LogEntry(room, "192.0.2.1", [Message(id, TIME, "s", text)])


def line(text: str = "hello", id: str = "s.1", room: str = "ops") -> str:
    return f"2026-11-22T20:33:45.123Z {room} -@192.0.2.1 {id} {text}\n"
