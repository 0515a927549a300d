"""The head of an HTTP request: checked, parsed, and refused where it must be; the room that its target names.

Only what the door needs to choose who takes the connection over; Autobahn and twisted.web then read the same
bytes for themselves. What one of them would read differently than a proxy before us (RFC 9112, section 11.2)
never reaches them.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import msgspec

HEAD_END = b"\r\n\r\n"

CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85]")
"""Bytes that no head may hold. Autobahn ends a header at \\x0b, \\x0c, \\x1c-\\x1e and \\x85, a proxy does not."""
_BARE_LINE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)

LOBBY = "lobby"
ROOM_LENGTH = 64


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Take the HTTP status, our short code for programs, one line for people, and further headers."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def body(self) -> bytes:
        """Give the JSON that says so, newline included."""
        return msgspec.json.encode({"error": self.code, "message": self.message}) + b"\n"

    def response(self) -> bytes:
        """Give the whole response; the connection closes after it."""
        body = self.body()
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode("ascii") + HEAD_END + body


def bad_request(message: str) -> Refused:
    """Refuse a request that can't be read."""
    return Refused(400, "bad_request", message)


def head_too_large(limit: int) -> Refused:
    """Refuse a head of more than limit bytes."""
    return Refused(431, "too_large", f"the request line and headers are longer than {limit} bytes")


def too_late() -> Refused:
    """Refuse a head that did not end in time."""
    return Refused(408, "bad_request", "the request did not come in time")


def full_house() -> Refused:
    """Refuse one connection too many."""
    return Refused(503, "unavailable", "too many connections; try again later", (("Retry-After", "5"),))


@dataclass(frozen=True, slots=True)
class Head:
    """A request line and its headers, the names in lower case; a repeated one's values are joined by commas."""

    method: str
    target: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket (RFC 6455, section 4.2.1)."""
        return "websocket" in [each.strip().lower() for each in self.headers.get("upgrade", "").split(",")]


def read_head(data: bytes) -> Head:
    """Read a head, its closing empty line included. Raises Refused."""
    if CONTROL.search(data) or _BARE_LINE_END.search(data):
        raise bad_request("a control character in the request line or headers")
    first, *rest = data.removesuffix(HEAD_END).split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    if request is None:
        raise bad_request("not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in rest:
        header = _FIELD.fullmatch(line)
        if header is None:
            raise bad_request("a header line that is none")
        name, value = header[1].decode("ascii").lower(), header[2].strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return Head(request[1].decode("ascii"), request[2], headers)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client's URL puts it, and how it wants to be there."""

    room: str
    echo: bool = False
    """Whether it hears its own messages too."""


def read_target(target: bytes) -> Place:
    """Read the room and the parameters from a request target (``/ops?echo=1``). Raises Refused: 404 or 400."""
    absolute = _AUTHORITY.match(target)
    path, _, query = target[absolute.end() if absolute else 0 :].partition(b"?")
    if not path.startswith(b"/") and not (absolute and not path):
        raise bad_request("the request target must be a path")
    room = room_name(path[1:])
    parameters = _parameters(query)
    echo = parameters.get(b"echo", b"0")
    if echo not in (b"0", b"1"):
        raise bad_request("echo must be 0 or 1")
    return Place(room, echo == b"1")


def room_name(path: bytes) -> str:
    """Read the name of a room from a path without its first slash; an empty one is the lobby. Raises Refused: 404."""
    if path.startswith(b"-/"):
        raise Refused(404, "not_found", "nothing here; paths under /-/ are the server's own")
    try:
        name = unicodedata.normalize("NFC", unquote_to_bytes(path).decode())
    except UnicodeDecodeError:
        raise Refused(404, "bad_room", "the name of a room must be UTF-8") from None
    if not name:
        return LOBBY
    if len(name) > ROOM_LENGTH:
        raise Refused(404, "bad_room", f"the name of a room has at most {ROOM_LENGTH} characters")
    if name.startswith("-"):
        raise Refused(404, "bad_room", "the name of a room must not start with -")
    if any(each == "/" or each.isspace() or unicodedata.category(each) == "Cc" for each in name):
        raise Refused(404, "bad_room", "the name of a room must not hold a slash, white space or control characters")
    return name


def _parameters(query: bytes) -> dict[bytes, bytes]:
    pairs = (each.partition(b"=") for each in query.split(b"&") if each)
    return {unquote_to_bytes(name): unquote_to_bytes(value.replace(b"+", b" ")) for name, _, value in pairs}
