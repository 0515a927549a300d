"""A run comes back from its file as it went in."""

from pathlib import Path

from benchmarks import record
from benchmarks.record import Entry, Sample
from tests.benchmarks.canned import everything, run


def test_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    record.save(everything(), tmp_path / "results.json")
    assert record.load(tmp_path / "results.json") == everything()


def test_the_samples_of_a_subject_are_in_the_order_of_rounds() -> None:
    second, first = Sample({"cpu_us": 2.0}), Sample({"cpu_us": 1.0})
    found = [Entry("a", "chatd", "chatd", 2, sample=second), Entry("a", "chatd", "chatd", 1, sample=first)]
    others = [Entry("a", "seed", "seed", 1, sample=first), Entry("a", "chatd", "chatd", 1, x=3.0, sample=second)]
    failed = Entry("a", "chatd", "chatd", 3, failure="no")
    assert run([*found, *others, failed]).samples("a", "chatd") == {1: first, 2: second}
