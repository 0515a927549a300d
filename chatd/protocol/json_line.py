r"""JSON for clients: always one line, also for readers that end a line at other characters than newline.

JSON itself escapes the controls below U+0020, but not U+0085, U+2028 and U+2029. Some readers end a line there
(Python's ``str.splitlines``), so that a message could forge the lines that follow it. Here they come out as
``\u0085``, ``\u2028`` and ``\u2029``, which means the same to every reader of JSON.
"""

from typing import Any

import msgspec

_ESCAPES = {f"\\u{number:04x}".encode(): chr(number).encode() for number in (0x85, 0x2028, 0x2029)}
_encode = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    """Return the JSON of a value, in UTF-8 and without a newline."""
    data = _encode(value)
    # The three characters begin with one of these two bytes, and few others do. One byte is found ten times as fast as
    # two or three.
    if data.isascii() or not (0xE2 in data or 0xC2 in data):
        return data
    # In UTF-8 no other character holds their bytes, and in JSON they occur in strings only.
    for escaped, character in _ESCAPES.items():
        data = data.replace(character, escaped)
    return data
