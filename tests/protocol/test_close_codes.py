import re
from pathlib import Path

import pytest

from chatd.protocol import close_codes
from chatd.protocol.close_codes import CloseCode
from tests.rows import rows

EVERY = [each for each in vars(close_codes).values() if isinstance(each, CloseCode)]
EVERY += [close_codes.too_slow(1), close_codes.too_slow(2**63)]

SENDABLE = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
"""What an endpoint may put in a Close frame: RFC 6455, sections 7.4.1 and 7.4.2, and IANA's 1012 to 1014."""


def test_there_are_reasons_to_hang_up() -> None:
    assert len(EVERY) >= 7


@rows("each", EVERY)
def test_a_close_code_may_be_sent(each: CloseCode) -> None:
    assert each.code in SENDABLE


@rows("each", EVERY)
def test_a_reason_fits_in_a_close_frame(each: CloseCode) -> None:
    assert 1 <= len(each.reason.encode()) <= 123


@rows("each", EVERY)
def test_a_reason_is_one_line_for_a_person(each: CloseCode) -> None:
    assert each.reason.isprintable()


def test_no_reason_stands_twice() -> None:
    assert len({each.reason for each in EVERY}) == len(EVERY)


@rows(
    ("each", "code"),
    [
        *((close_codes.STOPPING, 1001), (close_codes.LEAVING, 1000), (close_codes.NOT_TEXT, 1003)),
        *((close_codes.TOO_LARGE, 1009), (close_codes.BAD_CODE, 1002), (close_codes.BAD_REASON, 1007)),
        *((close_codes.OUR_FAULT, 1011), (close_codes.BUS_AWAY, 1013), (close_codes.LOG_AWAY, 1013)),
        (close_codes.too_slow(3), 1013),
    ],
)
def test_a_reason_has_the_code_that_clients_are_promised(each: CloseCode, code: int) -> None:
    assert each.code == code


def test_what_a_close_frame_says_is_a_closing() -> None:
    assert close_codes.frame_says(1001, close_codes.STOPPING.reason.encode()) == close_codes.STOPPING
    assert close_codes.frame_says(1002, None) == CloseCode(1002, "")


def test_a_slow_reader_is_told_how_many_messages_it_missed() -> None:
    assert " 12345 " in close_codes.too_slow(12345).reason


def test_any_code_that_may_be_sent_is_taken_and_no_other() -> None:
    taken = {code for code in range(65_536) if close_codes.fault_in_close(code, None) is None}
    assert taken == SENDABLE
    assert close_codes.fault_in_close(1005, b"") is close_codes.BAD_CODE


def test_a_close_frame_may_say_nothing() -> None:
    assert close_codes.fault_in_close(None, None) is None


def test_a_reason_must_be_utf_8() -> None:
    assert close_codes.fault_in_close(1000, "grüß".encode()) is None
    assert close_codes.fault_in_close(1000, b"\xc3") is close_codes.BAD_REASON


def test_a_closing_is_frozen() -> None:
    with pytest.raises(AttributeError):
        close_codes.STOPPING.code = 1000  # type: ignore[misc]


def test_no_other_module_makes_a_closing() -> None:
    package = Path(close_codes.__file__).parents[1]
    makers = [path.name for path in package.rglob("*.py") if re.search(r"\bCloseCode\(", path.read_text())]
    assert makers == ["close_codes.py"]
