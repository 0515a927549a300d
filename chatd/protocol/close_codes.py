"""The reasons for which the server closes a connection, with their close codes (RFC 6455, section 7.4).

Autobahn itself detects invalid frames (1002), invalid UTF-8 (1007) and frames that are announced too large (1009), with
its own texts. All other reasons are defined here. They are sent by ``clients.websocket.Connection``.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CloseCode:
    """A close code and the reason for the client (at most 123 bytes of UTF-8)."""

    code: int
    reason: str


def try_later(trouble: str) -> CloseCode:
    """Return the reason for a client that cannot be served for now, because of a trouble of the message bus."""
    return CloseCode(1013, f"{trouble}; try again later")


STOPPING = CloseCode(1001, "the server stops")
RESTARTING = CloseCode(1012, "the server restarts; come back")
LEAVING = CloseCode(1000, "you left")
NOT_TEXT = CloseCode(1003, "text messages only")
TOO_LARGE = CloseCode(1009, "the message is too large")
BAD_CODE = CloseCode(1002, "no such close code")
BAD_REASON = CloseCode(1007, "the close reason is not UTF-8")
OUR_FAULT = CloseCode(1011, "an error on our side; it is in our log")
TAKEN_OVER = CloseCode(1008, "another connection has come with this resume key")
READ_ONLY = CloseCode(1008, "the token does not let you speak in this room")
TOKEN_OUT = CloseCode(4001, "the token ran out")
TOKEN_REVOKED = CloseCode(4001, "the token was revoked")
FLOODING = CloseCode(4029, "too fast, in spite of warnings")
BANNED = CloseCode(1008, "this address is banned")
AWAY = "the message bus is away"
REFUSES_WRITES = "the message bus refuses writes"
BUS_AWAY = try_later(AWAY)
WRITES_REFUSED = CloseCode(1013, f"{REFUSES_WRITES}; without nick and resume you may read")
LOG_AWAY = CloseCode(1013, "not sent: the chat log cannot be written; try again later")


_COME_BACK = frozenset((1001, 1011, 1012, 1013, 4029))
"""After these the client is welcome again."""


def come_back_after(close_code: CloseCode, most: float, chance: Callable[[float, float], float]) -> float | None:
    """Return after how many seconds a client is to reconnect, each at another time; None if it may not.

    Chance returns a random number between two.
    """
    return round(chance(0.1, most), 1) if close_code.code in _COME_BACK else None


def too_slow(missed: int | None) -> CloseCode:
    """Return the reason for a client that read too slowly and missed so many messages; None: unknown."""
    count = "some" if missed is None else missed
    return CloseCode(1013, f"read too slowly: {count} messages were missed; try again later")


def frame_says(code: int | None, reason: bytes | None) -> CloseCode:
    """Return the close code that a Close frame of the server has."""
    return CloseCode(code or 1000, (reason or b"").decode())


_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))
"""The codes of a Close frame: RFC 6455, section 7.4, and those that IANA has registered since (1012 to 1014)."""


def fault_in_close(code: int | None, reason: bytes | None) -> CloseCode | None:
    """Return the fault in a client's Close frame, None if it is valid; code and reason may be missing."""
    if code is not None and code not in _CODES:
        return BAD_CODE
    try:
        (reason or b"").decode()
    except UnicodeDecodeError:
        return BAD_REASON
    return None
