"""Medians, ratios, bounds, and what stands in RESULTS.md."""

from dataclasses import replace

import pytest

from benchmarks import results
from benchmarks.record import Entry, Sample
from benchmarks.results import Spread, broken_bounds, holds, judged, number, render, wrong_messages
from benchmarks.rows import ROWS, Row
from tests.benchmarks.canned import FIGURES, entries, everything, run

BY_NAME = {row.name: row for row in ROWS}
FASTER, LEANER, SWIFT = BY_NAME["fan-out"], BY_NAME["steady"], BY_NAME["drowning"]


def test_a_spread_is_the_middle_the_least_and_the_greatest() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0]).median == 2.5
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.5"),
        (99.96, "100"),
        (999.0, "999"),
        (1234.0, "1,230"),
        (1234567, "1,230,000"),
    ],
)
def test_a_figure_has_three_digits_that_count(value: float, written: str) -> None:
    assert number(value) == written


def test_a_ratio_is_taken_within_each_round() -> None:
    spread = judged(run(list(entries(FASTER, [80.0, 90.0, 400.0], [10.0, 10.0, 40.0]))), FASTER)
    assert spread == Spread(9.0, 8.0, 10.0)


def test_rounds_that_failed_on_either_side_are_not_mixed() -> None:
    found = list(entries(FASTER, [80.0, 90.0, 400.0], [10.0, 10.0, 40.0]))
    ours, theirs = (FASTER.ours.title, 1), (FASTER.peers[0].title, 2)
    assert judged(run([each for each in found if (each.title, each.round) not in (ours, theirs)]), FASTER) is None


def test_an_absolute_bound_is_held_against_the_figure_itself() -> None:
    assert judged(run(list(entries(SWIFT, [40.0, 60.0, 50.0], []))), SWIFT) == Spread(50.0, 40.0, 60.0)


@pytest.mark.parametrize(("row", "value", "true"), [(FASTER, 8.0, True), (FASTER, 7.9, False), (LEANER, 0.9, False)])
def test_which_side_of_a_bound_is_good(row: Row, value: float, true: bool) -> None:
    assert holds(row, value, row.bound) is true


def test_a_good_run_has_nothing_wrong() -> None:
    done = everything()
    assert wrong_messages(done) == broken_bounds(done) == []
    assert "does not hold" not in render(done)
    assert "Every one of them came once, whole and in order." in render(done)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_bound_that_does_not_hold_is_told(row: Row) -> None:
    worse = row.bound * (0.9 if row.more else 1.1) * (1 if row.absolute else 100)
    done = run(list(entries(row, [worse], [100.0])))
    [told] = broken_bounds(done)
    assert told.startswith(f"{row.name}: ")
    assert render(done).count("**does not hold**") == 2


def test_only_the_aim_may_be_missed() -> None:
    done = run(list(entries(FASTER, [900.0], [100.0])))
    assert broken_bounds(done) == []
    assert "| at least 8 times: holds | at least 16 times: **does not hold** |" in render(done)


def test_a_peer_that_failed_leaves_nothing_to_hold_against() -> None:
    [ours, theirs] = entries(FASTER, [900.0], [100.0])
    done = run([ours, replace(theirs, sample=None, failure="it fell over")])
    assert broken_bounds(done) == ["fan-out: there is nothing to hold it against"]
    assert "it fell over" in render(done)


def test_a_peer_nobody_asked_for_is_not_missed() -> None:
    [ours, _] = entries(FASTER, [900.0], [100.0])
    assert broken_bounds(run([ours])) == []


def test_a_peer_this_machine_cannot_run_is_missed_and_said() -> None:
    [ours, theirs] = entries(FASTER, [900.0], [100.0])
    done = run([ours], **{theirs.title: "there is no Node"})
    assert broken_bounds(done) == ["fan-out: there is nothing to hold it against"]
    assert f"* {theirs.title} is left out: there is no Node." in render(done)


def test_a_message_of_chatd_that_went_wrong_is_told() -> None:
    [ours, theirs] = entries(FASTER, [900.0], [100.0])
    bad = Sample(FIGURES, {"missing": 3, "gaps": 1})
    done = run([replace(ours, sample=bad), theirs])
    assert wrong_messages(done) == ["fan-out, round 1: 3 missing, 1 gaps"]
    assert "* fan-out, round 1: 3 missing, 1 gaps" in render(done)
    assert "Every one of them" not in render(done)


def test_a_chatd_that_failed_is_told() -> None:
    done = run([Entry("clients", "chatd", "chatd", 1, 10_000.0, failure="it did not start")])
    assert wrong_messages(done) == ["clients at 10,000, round 1: it did not start"]


def test_what_a_peer_lost_is_shown_but_is_not_our_fault() -> None:
    [ours, theirs] = entries(FASTER, [900.0], [100.0])
    done = run([ours, replace(theirs, sample=Sample(FIGURES, {"missing": 3000}))])
    assert wrong_messages(done) == []
    assert "| 3,000 missing |" in render(done)


def test_the_tables_show_medians_spread_and_the_generator() -> None:
    done = run([each for row in (FASTER,) for each in entries(row, [900.0, 800.0, 1000.0], [100.0] * 3)])
    text = render(done)
    assert "| chatd, 2 workers | 900 (800 … 1,000) |" in text
    assert "| 25% | all right |" in text
    assert "| 9 (8 … 10) |" in text


def test_a_generator_that_was_the_limit_is_called_so() -> None:
    [ours, theirs] = entries(FASTER, [900.0], [100.0])
    done = run([ours, replace(theirs, sample=Sample(FIGURES, busy=[0.3, 0.99]))])
    assert "| 99% **the limit** | all right |" in render(done)


def test_the_curves_stand_side_by_side() -> None:
    text = render(everything())
    assert "| clients | chatd | Node: ws, ioredis |" in text
    assert "| 10,000 | 10,000,000 | 10,000,000 |" in text


def test_what_else_the_machine_did_is_said() -> None:
    assert "kept 2% of a core busy in the middle measurement, 2% in the worst" in render(everything())


def test_machine_and_versions_are_there() -> None:
    text = render(run([]))
    assert "| processor | Abacus |" in text
    assert "| Python | 3.11.7 |" in text


def test_no_line_of_a_table_is_broken() -> None:
    tables = [line for line in render(everything()).splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert results.render(everything()) == render(everything())
