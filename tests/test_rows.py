"""A table as one test: every row is run, and every failure is reported with its row."""

import pytest

from tests.rows import rows

SEEN: list[tuple[int, str]] = []


@rows("number", [1, 2])
@rows(("text", "size"), [("a", 1), ("bb", 2)])
def test_each_combination_is_run(number: int, text: str, size: int, tmp_path: object) -> None:
    assert len(text) == size and tmp_path
    SEEN.append((number, text))


def test_all_combinations_were_run() -> None:
    assert SEEN == [(1, "a"), (1, "bb"), (2, "a"), (2, "bb")]


def test_every_failing_row_is_reported() -> None:
    @rows("number", range(4))
    def odd(number: int) -> None:
        assert number % 2

    with pytest.raises(ExceptionGroup, match="2 of 4 rows fail") as failed:
        odd()
    assert [failure.__notes__ for failure in failed.value.exceptions] == [
        ["row: {'number': 0}"],
        ["row: {'number': 2}"],
    ]
