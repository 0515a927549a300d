"""The head of an HTTP request: checked, parsed or refused; and the room that its target names.

The opening handshake of a WebSocket is parsed and answered here. The head of a plain HTTP request is only checked:
twisted.web then parses the same bytes itself. Bytes that it would parse differently than a proxy before it (RFC 9112,
section 11.2) never reach it.
"""

import re
import unicodedata
from base64 import b64encode
from functools import lru_cache
from hashlib import sha1
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chatd.protocol.json_line import encode
from chatd.protocol.nick import BadNick, read_nick, shows

HEAD_END = b"\r\n\r\n"
EMPTY_LINE = b"\r\n"
"""An empty line before a request, as some clients send it after a body (RFC 9112, section 2.2)."""

CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Bytes that no head may hold: some programs end a header at one of them, and others do not."""
_CONTROL_IN_REQUEST_LINE = re.compile(rb"[\x00-\x1f\x7f]")
_CONTROL_IN_FIELD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f\x85]")
"""0x85 ends a line for ``str.splitlines``. In a request line it is part of a character, and ``quote_target`` encodes
it."""
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/(1\.[01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
_KEY = re.compile(r"[+/0-9A-Za-z]{21}[AQgw]==")  # 16 bytes in base64
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455, section 1.3
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_RESUME_KEY = re.compile(rb"[A-Za-z0-9._~-]{8,64}")  # unreserved in a URL (RFC 3986, section 2.3)
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)

PROTOCOL = "chatd.v1"
"""The one subprotocol."""
BEARER = "bearer."
"""The prefix of a subprotocol that carries a token: browsers can send one in no other header."""
RESUME = "resume."
"""The prefix of a subprotocol that carries a resume key: proxies log URLs, but not this header."""

LOBBY = "lobby"
ROOM_LENGTH = 64


class Refused(Exception):
    """A request that gets an error for an answer."""

    content_type = "application/json"

    def __init__(
        self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = (), *, reason: str = ""
    ) -> None:
        """Store the HTTP status, a short code for programs, one line for people, and further headers.

        The reason is for the metrics, if it differs from the code.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers
        self.reason = reason or code

    @property
    def retry_after(self) -> int | None:
        """After how many seconds the same request may be answered; None where it helps nothing to wait."""
        return next((int(value) for name, value in self.headers if name == "Retry-After"), None)

    def body(self) -> bytes:
        """Return the error as JSON, newline included."""
        return encode({"error": self.code, "message": self.message}) + b"\n"

    def response(self) -> bytes:
        """Return the whole response; the connection closes after it."""
        body = self.body()
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Cross-Origin-Resource-Policy: same-origin",
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
    return Refused(408, "bad_request", "the request did not come in time", reason="late")


def unavailable(message: str, *, reason: str = "") -> Refused:
    """Refuse for now."""
    return Refused(503, "unavailable", message, (("Retry-After", "5"),), reason=reason)


def forbidden(message: str) -> Refused:
    """Return the error for a request that is not allowed."""
    return Refused(403, "forbidden", message)


def server_full() -> Refused:
    """Refuse one connection too many."""
    return unavailable("too many connections; try again later", reason="full")


def internal(message: str) -> Refused:
    """Refuse because of a fault of ours."""
    return Refused(500, "internal", message)


class RequestHead(Struct, frozen=True):
    """A request line and its headers, the names in lower case; a repeated one's values are joined by commas."""

    method: str
    target: bytes
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    version: str = "1.1"

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket (RFC 6455, section 4.2.1)."""
        return "websocket" in self.listed("upgrade")

    def listed(self, name: str) -> list[str]:
        """Return the values of a header that is a list, in lower case."""
        return [name.strip() for name in self.headers.get(name, "").lower().split(",")]


def read_head(data: bytes) -> RequestHead:
    """Read a head, its closing empty line included. Raise Refused."""
    first, *rest = data.removesuffix(HEAD_END).split(b"\r\n")
    request = match_line(first, first=True)
    headers: dict[str, str] = {}
    for line in rest:
        header = match_line(line, first=False)
        name, value = header[1].decode("ascii").lower(), header[2].strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return RequestHead(request[1].decode("ascii"), request[2], headers, request[3].decode("ascii"))


def match_line(line: bytes, *, first: bool) -> re.Match[bytes]:
    """Return the parts of one line of a head: of the request line, or of a header. Raise Refused: 400."""
    if (_CONTROL_IN_REQUEST_LINE if first else _CONTROL_IN_FIELD).search(line):
        raise bad_request("a control character in the request line or headers")
    found = (_REQUEST_LINE if first else _FIELD).fullmatch(line)
    if found is None:
        raise bad_request("not an HTTP/1.1 request" if first else "a header line that is none")
    return found


def quote_target(line: bytes) -> bytes:
    """Percent-encode what is not ASCII in a request line: some clients leave that to the server."""
    return _NOT_ASCII.sub(lambda found: b"%%%02X" % found[0][0], line)


def check_framing(head: RequestHead) -> None:
    """Check that a request defines the end of its body in one way only (RFC 9112, section 6.3). Raise Refused: 400."""
    coding = head.headers.get("transfer-encoding")
    if coding is None:
        return
    if coding.lower() != "chunked" or head.version != "1.1":
        raise bad_request("Transfer-Encoding must be chunked")
    if "content-length" in head.headers:
        raise bad_request("a body has a length or comes in chunks")


class Upgrade(Struct, frozen=True):
    """A client's opening handshake, which may be answered with 101."""

    key: str
    extensions: str = ""
    """The extensions that the client offers, as in its header."""
    protocol: str = ""
    """The subprotocol that is spoken; empty: none was offered."""


def read_upgrade(head: RequestHead) -> Upgrade:
    """Check the opening handshake of a client (RFC 6455, section 4.2.1). Raise Refused: 400, 405, 426 or 505."""
    headers = head.headers
    if head.method != "GET":
        raise Refused(405, "bad_request", "a WebSocket handshake is a GET", (("Allow", "GET"),))
    if head.version != "1.1":
        raise Refused(505, "bad_request", "a WebSocket handshake is HTTP/1.1")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise bad_request("a WebSocket handshake has no body")  # it would be read as frames
    if headers.get("host", ",").count(","):
        raise bad_request("there must be one Host header")
    if "upgrade" not in head.listed("connection"):
        raise bad_request("Connection: Upgrade is missing")
    if headers.get("sec-websocket-version") != "13":
        wanted = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
        raise Refused(426, "bad_request", "Sec-WebSocket-Version must be 13", wanted)
    key = headers.get("sec-websocket-key", "")
    if not _KEY.fullmatch(key):
        raise bad_request("Sec-WebSocket-Key must be 16 bytes in base64")
    return Upgrade(key, headers.get("sec-websocket-extensions", ""), _protocol(headers.get("sec-websocket-protocol")))


def _protocol(offered: str | None) -> str:
    """Choose a subprotocol (RFC 6455, sections 1.9 and 4.2.2). Raise Refused: 400, where it knows none of those."""
    if offered is None:
        return ""
    if PROTOCOL in _offered(offered):
        return PROTOCOL
    raise bad_request(f"no such subprotocol: {PROTOCOL} is spoken here, or none")


def _offered(protocols: str) -> list[str]:
    return [name.strip() for name in protocols.split(",")]


def _carried(offered: str | None, prefix: str) -> set[str]:
    """Return the rest of the subprotocols that have a prefix."""
    return {name.removeprefix(prefix) for name in _offered(offered or "") if name.startswith(prefix)}


def bearer_of_protocols(offered: str | None) -> str:
    """Return the token among the subprotocols that a client offers; empty where there is none."""
    tokens = _carried(offered, BEARER)
    if len(tokens) > 1:
        raise bad_request("there are several tokens; one is enough")
    return tokens.pop() if tokens else ""


def accept(upgrade: Upgrade, extensions: str = "") -> bytes:
    """Return the response that opens the WebSocket (RFC 6455, section 4.2.2), with the accepted extensions."""
    proof = b64encode(sha1(upgrade.key.encode("ascii") + _GUID, usedforsecurity=False).digest())
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {proof.decode()}",
        *([f"Sec-WebSocket-Protocol: {upgrade.protocol}"] if upgrade.protocol else ()),
        *([f"Sec-WebSocket-Extensions: {extensions}"] if extensions else ()),
    ]
    return "\r\n".join(lines).encode("ascii") + HEAD_END


class RoomTarget(Struct, frozen=True):
    """The room of a client's URL, and its parameters there."""

    room: str
    echo: bool = False
    """Whether the client receives its own messages."""
    last: int = 0
    """How many earlier messages it wants."""
    resume: str = ""
    """The key under which its position is stored; empty: none."""
    nick: str = ""
    """The name it wants to have; empty: it stays bare."""


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request target, which may be absolute (RFC 9112, section 3.2). Raise Refused: 400."""
    absolute = _AUTHORITY.match(target)
    path, _, query = target[absolute.end() if absolute else 0 :].partition(b"?")
    if not path.startswith(b"/") and not (absolute and not path):
        raise bad_request("the request target must be a path")
    return path or b"/", query


def read_target(target: bytes, last: int = 0) -> RoomTarget:
    """Parse the room and the parameters of a request target (``/ops?echo=1``). Raise Refused: 404 or 400.

    Last is the number of earlier messages if the target has none.
    """
    path, query = split_target(target)
    room = room_name(path[1:])
    parameters = _parameters(query)
    echo = parameters.get(b"echo", b"0")
    if echo not in (b"0", b"1"):
        raise bad_request("echo must be 0 or 1")
    number = parameters.get(b"last", b"%d" % last)
    if not _NUMBER.fullmatch(number):
        raise bad_request("last must be a number of messages")
    resume = _resume_key(parameters[b"resume"]) if b"resume" in parameters else ""
    nick = _nick(parameters[b"nick"]) if b"nick" in parameters else ""
    return RoomTarget(room, echo == b"1", int(number), resume, nick)


def read_upgrade_target(head: RequestHead) -> RoomTarget:
    """Read the URL of a WebSocket's handshake, and the resume key that may be among its subprotocols.

    Raise Refused: 404 or 400.
    """
    place = read_target(head.target)
    carried = _carried(head.headers.get("sec-websocket-protocol"), RESUME)
    keys = {_resume_key(key.encode("latin-1")) for key in carried} | ({place.resume} - {""})
    if len(keys) > 1:
        raise bad_request("there are several resume keys; one is enough")
    return replace(place, resume=keys.pop()) if keys else place


def _resume_key(value: bytes) -> str:
    if not _RESUME_KEY.fullmatch(value):
        raise bad_request("resume must be 8 to 64 letters, digits or any of - . _ ~")
    return value.decode("ascii")


def room_name(path: bytes) -> str:
    """Read the name of a room from a path without its first slash; an empty one is the lobby. Raise Refused: 404."""
    if path.startswith(b"-/"):
        raise Refused(404, "not_found", "nothing here; paths under /-/ are the server's own")
    try:
        return read_room(unquote_to_bytes(path).decode() or LOBBY)
    except UnicodeDecodeError:
        raise Refused(404, "bad_room", "the name of a room must be UTF-8") from None


def compose_room(text: str) -> str:
    """Compose the name of a room (NFC), which may be written in several ways. Raise Refused: 404 for a long one."""
    if len(text) > 4 * ROOM_LENGTH:  # too long even in NFC, which takes seconds for endless marks
        raise Refused(404, "bad_room", f"the name of a room has at most {ROOM_LENGTH} characters")
    return unicodedata.normalize("NFC", text)


@lru_cache(maxsize=1024)
def read_room(text: str) -> str:
    """Read the name of a room. Raise Refused: 404."""
    name = compose_room(text)
    if not name:
        raise Refused(404, "bad_room", "the name of a room must not be empty")
    if len(name) > ROOM_LENGTH:
        raise Refused(404, "bad_room", f"the name of a room has at most {ROOM_LENGTH} characters")
    if name.startswith("-"):
        raise Refused(404, "bad_room", "the name of a room must not start with -")
    if any(character == "/" or character.isspace() or unicodedata.category(character) == "Cc" for character in name):
        raise Refused(404, "bad_room", "the name of a room must not hold a slash, white space or control characters")
    if hidden := next((character for character in name if not shows(character)), ""):
        named = f"U+{ord(hidden):04X} (invisible or unassigned)"
        raise Refused(404, "bad_room", f"the name of a room must not hold {named}; earlier versions allowed it")
    return name


def _nick(value: bytes) -> str:
    try:
        return read_nick(value.decode())
    except UnicodeDecodeError:
        raise bad_request("a nick must be UTF-8") from None
    except BadNick as bad:
        raise bad_request(str(bad)) from None


def follows(target: bytes) -> bool:
    """Return whether a request target asks to follow the room (``/ops?follow=1``). Raise Refused: 400."""
    follow = parameter(target, b"follow") or b"0"
    if follow not in (b"0", b"1"):
        raise bad_request("follow must be 0 or 1")
    return follow == b"1"


def parameter(target: bytes, name: bytes) -> bytes | None:
    """Return a parameter of a request target. Raise Refused: 400."""
    return _parameters(split_target(target)[1]).get(name)


def tokens_of_target(target: bytes) -> list[str]:
    """Return the tokens in a request target (``/ops?token=…``): one, none, or several."""
    return [value.decode("latin-1") for name, value in _pairs(split_target(target)[1]) if name == b"token"]


def _parameters(query: bytes) -> dict[bytes, bytes]:
    return dict(_pairs(query))


def _pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    pairs = (pair.partition(b"=") for pair in query.split(b"&") if pair)
    return [(unquote_to_bytes(name), unquote_to_bytes(value.replace(b"+", b" "))) for name, _, value in pairs]
