"""Runs that never were: figures made up, so that what is made of them is known."""

from collections.abc import Iterator

from benchmarks.measure import Subject
from benchmarks.record import Entry, Run, Sample
from benchmarks.rows import CURVES, ROWS, Row

FIGURES = {
    "deliveries_per_s": 1000.0,
    "messages_per_s": 100.0,
    "connects_per_s": 3000.0,
    "memory_bytes": 5000.0,
    "cpu_us": 10.0,
    "p50_ms": 1.0,
    "p99_ms": 20.0,
    "p99.9_ms": 30.0,
    "max_ms": 40.0,
    "send_lag_ms": 0.1,
    "join_us": 300.0,
    "worker_us": 200.0,
    "grown_bytes": 1_000_000.0,
    "page_us": 300.0,
    "start_s": 1.0,
    "expected": 12_000.0,
    "others": 0.02,
}


def entries(row: Row, ours: list[float], theirs: list[float]) -> Iterator[Entry]:
    """Make a row's entries: the figure that counts for chatd and for the first peer, a round each."""
    values: list[tuple[Subject, list[float]]] = [(row.ours, ours), *((peer, theirs) for peer in row.peers[:1])]
    for subject, series in values:
        for number, value in enumerate(series, 1):
            sample = Sample({**FIGURES, row.figure: value}, busy=[0.25])
            yield Entry(row.name, subject.candidate, subject.title, number, sample=sample)


def good(row: Row) -> list[Entry]:
    """Make a row's entries so that its aim holds."""
    ours = row.aim if row.absolute else row.aim * 100
    return list(entries(row, [ours] * 3, [100.0] * 3))


def run(found: list[Entry], **left_out: str) -> Run:
    """Make a run of entries."""
    return Run("2026-01-31", 600.0, 3, 4.0, {"processor": "Abacus"}, {"Python": "3.11.7"}, left_out, found)


def everything() -> Run:
    """Make a run in which every row and curve is measured and every aim holds."""
    found = [entry for row in ROWS for entry in good(row)]
    for curve in CURVES:
        for x, subject in curve.points:
            sample = Sample({**FIGURES, curve.figure: 1000 * x}, busy=[0.1])
            found.append(Entry(curve.name, subject.candidate, subject.title, 1, x, sample))
    return run(found)
