"""The command line, the order of a run, what is said and written."""

import argparse
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.__main__ import QUICK, arguments, main, plan, told
from benchmarks.record import Entry, Sample
from benchmarks.rows import CURVES, ROWS
from tests.benchmarks.canned import FIGURES, entries, everything, run


def parts(given: argparse.Namespace) -> list[tuple[str, int]]:
    """List what a run measures, row by row: name and round."""
    return [key for key, _ in groupby((part, number) for part, _, number, _ in plan(given))]


def test_each_round_measures_every_row_and_the_curves_come_last() -> None:
    curves = [(curve.name, 1) for curve in CURVES]
    rows = [(row.name, number + 3 * again) for number in (1, 2, 3) for row in ROWS for again in range(row.times)]
    assert parts(arguments([])) == rows + curves


def test_a_row_that_scatters_is_measured_more_often_against_the_first_peer_alone() -> None:
    measured = [(subject, number) for _, subject, number, _ in plan(arguments(["steady", "--rounds", "1"]))]
    (row,) = [row for row in ROWS if row.name == "steady"]
    assert measured == [(each, 1) for each in row.subjects()] + [
        (each, number) for number in (2, 3) for each in row.subjects()[:2]
    ]


def test_all_servers_of_a_row_are_measured_side_by_side() -> None:
    subjects = [subject for part, subject, _, _ in plan(arguments(["fan-out"]))]
    assert subjects == list(ROWS[0].subjects()) * 3


def test_a_quick_run_is_one_round_without_curves_and_leaves_the_results_alone() -> None:
    given = arguments(["--quick"])
    assert parts(given) == [(row.name, 1) for row in ROWS]
    assert given.out == QUICK


def test_a_run_of_parts_leaves_the_results_alone() -> None:
    assert arguments(["fan-out"]).out == arguments(["--only", "chatd"]).out == QUICK
    assert arguments([]).out is None


def test_servers_and_parts_can_be_chosen() -> None:
    given = arguments(["--only", "chatd", "fan-out", "workers"])
    assert {subject.candidate for _, subject, _, _ in plan(given)} == {"chatd"}
    assert {part for part, *_ in plan(given)} == {"fan-out", "workers"}


@pytest.mark.parametrize("words", [["nothing"], ["--only", "nobody"], ["--rounds", "x"]])
def test_a_name_that_does_not_exist_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(words)


def test_a_measurement_is_said_in_a_line() -> None:
    sample = Sample(FIGURES, {"missing": 2}, [0.1, 0.5])
    said = told(Entry("clients", "chatd", "chatd", 1, 100.0, sample), "deliveries_per_s")
    assert said == (
        "round 1 clients at 100: chatd: deliveries_per_s 1,000, cpu_us 10, p99_ms 20, generator 50%, 2 missing"
    )
    disturbed = Sample({**FIGURES, "others": 0.5})
    assert "DISTURBED by others, 50% of a core" in told(
        Entry("start", "chatd", "chatd", 1, sample=disturbed), "start_s"
    )
    failed = Entry("start", "seed", "seed", 2, failure="no Node")
    assert told(failed, "start_s") == "round 2 start: seed: failed: no Node"


def test_results_are_written_again_from_what_was_measured(tmp_path: Path) -> None:
    record.save(everything(), tmp_path / "results.json")
    assert main(["--again", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "RESULTS.md").read_text().startswith("# How fast chatd is\n")
    assert (tmp_path / "speed.svg").exists()


def test_a_bound_that_does_not_hold_is_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.save(run(list(entries(ROWS[0], [100.0], [100.0]))), tmp_path / "results.json")
    assert main(["--again", "--out", str(tmp_path)]) == 1
    assert "FAILED: fan-out: 1 times, not at least 8 times" in capsys.readouterr().err
