"""The rows and curves are sound: their names differ, their bounds lie the right way, their peers do the same work."""

import pytest

from benchmarks.candidates import CANDIDATES
from benchmarks.rows import CURVES, ROWS, Curve, Row
from tests.benchmarks.canned import FIGURES


def test_every_row_and_curve_has_a_name_of_its_own() -> None:
    names = [each.name for each in (*ROWS, *CURVES)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_sound(row: Row) -> None:
    assert row.figure in FIGURES
    assert row.aim > row.bound if row.more else row.aim < row.bound
    assert row.absolute or row.peers
    titles = [each.title for each in row.subjects()]
    assert len(set(titles)) == len(titles)
    assert row.ours.candidate == "chatd"


OTHER_LOADS = ("json", "mixed", "sse", "rooms", "join-last", "slow")
"""Rows that hold one load against another."""


@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in OTHER_LOADS], ids=lambda row: row.name)
def test_all_servers_of_a_row_get_the_same_load(row: Row) -> None:
    assert {each.load for each in row.peers} <= {row.ours.load}
    assert {each.pinned for each in row.peers} <= {row.ours.pinned}
    assert {each.workers for each in row.peers} <= {row.ours.workers}


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_curve_is_sound(curve: Curve) -> None:
    assert curve.figure in FIGURES
    places = [(x, each.title) for x, each in curve.points]
    assert len(set(places)) == len(places)
    assert {each.candidate for _, each in curve.points} <= CANDIDATES.keys()
