"""The close codes: valid ones, with reasons that fit into a Close frame."""

import re
from pathlib import Path

import pytest

from chatd.protocol import close_codes
from chatd.protocol.close_codes import CloseCode
from tests.rows import rows

CLOSE_CODES = [value for value in vars(close_codes).values() if isinstance(value, CloseCode)]
CLOSE_CODES += [close_codes.too_slow(1), close_codes.too_slow(2**63)]

SENDABLE = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
"""What an endpoint may put in a Close frame: RFC 6455, sections 7.4.1 and 7.4.2, and IANA's 1012 to 1014."""


@rows("close_code", CLOSE_CODES)
def test_a_close_code_is_valid_and_its_reason_is_one_line_that_fits(close_code: CloseCode) -> None:
    assert close_code.code in SENDABLE
    assert 1 <= len(close_code.reason.encode()) <= 123
    assert close_code.reason.isprintable()


def test_reasons_are_unique() -> None:
    assert len({close_code.reason for close_code in CLOSE_CODES}) == len(CLOSE_CODES) >= 7


@rows(
    ("close_code", "code"),
    [
        *((close_codes.STOPPING, 1001), (close_codes.LEAVING, 1000), (close_codes.NOT_TEXT, 1003)),
        *((close_codes.TOO_LARGE, 1009), (close_codes.BAD_CODE, 1002), (close_codes.BAD_REASON, 1007)),
        *((close_codes.OUR_FAULT, 1011), (close_codes.BUS_AWAY, 1013), (close_codes.LOG_AWAY, 1013)),
        (close_codes.too_slow(3), 1013),
    ],
)
def test_a_reason_has_its_documented_code(close_code: CloseCode, code: int) -> None:
    assert close_code.code == code


def test_a_close_frame_is_read_into_a_close_code() -> None:
    assert close_codes.frame_says(1001, close_codes.STOPPING.reason.encode()) == close_codes.STOPPING
    assert close_codes.frame_says(1002, None) == CloseCode(1002, "")


def test_the_reason_of_a_slow_consumer_counts_its_missed_messages() -> None:
    assert " 12345 " in close_codes.too_slow(12345).reason


def test_a_close_frame_has_a_valid_code_or_none_and_a_reason_in_utf_8() -> None:
    accepted = {code for code in range(65_536) if close_codes.fault_in_close(code, None) is None}
    assert accepted == SENDABLE
    assert close_codes.fault_in_close(1005, b"") is close_codes.BAD_CODE
    assert close_codes.fault_in_close(None, None) is None
    assert close_codes.fault_in_close(1000, "grüß".encode()) is None
    assert close_codes.fault_in_close(1000, b"\xc3") is close_codes.BAD_REASON


def test_a_close_code_is_frozen() -> None:
    with pytest.raises(AttributeError):
        close_codes.STOPPING.code = 1000  # type: ignore[misc]


def test_no_other_module_creates_a_close_code() -> None:
    package = Path(close_codes.__file__).parents[1]
    makers = [path.name for path in package.rglob("*.py") if re.search(r"\bCloseCode\(", path.read_text())]
    assert makers == ["close_codes.py"]
