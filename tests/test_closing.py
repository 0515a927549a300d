import re
from pathlib import Path

import pytest

from chatd import closing
from chatd.closing import Closing

EVERY = [each for each in vars(closing).values() if isinstance(each, Closing)]
EVERY += [closing.too_slow(1), closing.too_slow(2**63)]

SENDABLE = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
"""What an endpoint may put in a Close frame: RFC 6455, sections 7.4.1 and 7.4.2, and IANA's 1012 to 1014."""


def test_there_are_reasons_to_hang_up() -> None:
    assert len(EVERY) >= 7


@pytest.mark.parametrize("each", EVERY, ids=str)
def test_a_close_code_may_be_sent(each: Closing) -> None:
    assert each.code in SENDABLE


@pytest.mark.parametrize("each", EVERY, ids=str)
def test_a_reason_fits_in_a_close_frame(each: Closing) -> None:
    assert 1 <= len(each.reason.encode()) <= 123


@pytest.mark.parametrize("each", EVERY, ids=str)
def test_a_reason_is_one_line_for_a_person(each: Closing) -> None:
    assert each.reason.isprintable()


def test_no_reason_stands_twice() -> None:
    assert len({each.reason for each in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    ("each", "code"),
    [
        (closing.STOPPING, 1001),
        (closing.LEAVING, 1000),
        (closing.NOT_TEXT, 1003),
        (closing.TOO_LARGE, 1009),
        (closing.BAD_CODE, 1002),
        (closing.BAD_REASON, 1007),
        (closing.OUR_FAULT, 1011),
        (closing.BUS_AWAY, 1013),
        (closing.LOG_AWAY, 1013),
        (closing.too_slow(3), 1013),
    ],
    ids=str,
)
def test_a_reason_has_the_code_that_clients_are_promised(each: Closing, code: int) -> None:
    assert each.code == code


def test_what_a_close_frame_says_is_a_closing() -> None:
    assert closing.frame_says(1001, closing.STOPPING.reason.encode()) == closing.STOPPING
    assert closing.frame_says(1002, None) == Closing(1002, "")


def test_a_slow_reader_is_told_how_many_messages_it_missed() -> None:
    assert " 12345 " in closing.too_slow(12345).reason


def test_any_code_that_may_be_sent_is_taken_and_no_other() -> None:
    taken = {code for code in range(65_536) if closing.fault_in_close(code, None) is None}
    assert taken == SENDABLE
    assert closing.fault_in_close(1005, b"") is closing.BAD_CODE


def test_a_close_frame_may_say_nothing() -> None:
    assert closing.fault_in_close(None, None) is None


def test_a_reason_must_be_utf_8() -> None:
    assert closing.fault_in_close(1000, "grüß".encode()) is None
    assert closing.fault_in_close(1000, b"\xc3") is closing.BAD_REASON


def test_a_closing_is_frozen() -> None:
    with pytest.raises(AttributeError):
        closing.STOPPING.code = 1000  # type: ignore[misc]


def test_no_other_module_makes_a_closing() -> None:
    package = Path(closing.__file__).parent
    makers = [path.name for path in package.rglob("*.py") if re.search(r"\bClosing\(", path.read_text())]
    assert makers == ["closing.py"]
