"""``python -m benchmarks``: measure, say each figure as it comes, write everything down.

Exit status 1 where a bound that must hold does not, or a message of chatd's went wrong.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import generator, machine, record, results
from benchmarks.candidates import CANDIDATES, NotReady
from benchmarks.generator import ROOT
from benchmarks.measure import Subject, measure
from benchmarks.record import Entry, Run
from benchmarks.rows import CURVES, ROWS

QUICK = ROOT / "build" / "quick"
"""Where a quick run goes: it is for looking, not for showing."""

DISTURBED = 0.15
"""What part of a core others may take until a measurement is called disturbed."""


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the process where it can't be read."""
    names = [each.name for each in (*ROWS, *CURVES)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure chatd side by side with its peers."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help=f"1 round, 1 s of load, no curves; results in {QUICK}")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3; curves have one)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each load is measured (default: 4)")
    parser.add_argument(
        "--only", metavar="SERVER", action="append", help=f"only these servers: {', '.join(CANDIDATES)}"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder to write to (default: benchmarks/, and docs/ for drawings)"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure nothing, write results.json's tables and drawings again"
    )
    given = parser.parse_args(words)
    if wrong := set(given.names) - set(names):
        parser.error(f"no such row or curve: {', '.join(sorted(wrong))}")
    if wrong := set(given.only or ()) - CANDIDATES.keys():
        parser.error(f"no such server: {', '.join(sorted(wrong))}")
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("there must be at least one round, and more than no time")
    if given.quick:
        given.rounds, given.seconds, given.out = 1, 1.0, given.out or QUICK
    elif given.out is None and (given.names or given.only):
        given.out = QUICK
    return given


def plan(given: argparse.Namespace) -> Iterator[tuple[str, Subject, int, float | None]]:
    """List what to measure, in order: part, subject, round, place on a curve."""

    def wanted(name: str, subject: Subject) -> bool:
        return (not given.names or name in given.names) and (not given.only or subject.candidate in given.only)

    for number in range(1, given.rounds + 1):
        for row in ROWS:
            yield from ((row.name, each, number, None) for each in row.subjects() if wanted(row.name, each))
            for again in range(1, 1 if given.quick else row.times):
                pair = (each for each in row.subjects()[:2] if wanted(row.name, each))
                yield from ((row.name, each, number + again * given.rounds, None) for each in pair)
    for curve in CURVES:
        if not given.quick or curve.name in given.names:
            yield from ((curve.name, each, 1, x) for x, each in curve.points if wanted(curve.name, each))


def run(given: argparse.Namespace) -> Run:
    """Measure everything; say each figure on stdout."""
    began = time.monotonic()
    where = machine.machine()
    left_out = {each.title: why for each in CANDIDATES.values() if (why := each.lacks())}
    figure = {each.name: each.figure for each in (*ROWS, *CURVES)}
    entries = []
    todo = [each for each in plan(given) if each[1].kind.title not in left_out]
    for done, (part, subject, number, x) in enumerate(todo, 1):
        entry = Entry(part, subject.candidate, subject.title, number, x)
        try:
            entry = replace(entry, sample=measure(subject, seconds=given.seconds, warmup=min(1.0, given.seconds)))
        except (NotReady, generator.Failed) as error:
            entry = replace(entry, failure=str(error))
        entries.append(entry)
        print(f"{time.monotonic() - began:5.0f} s {done:3}/{len(todo)} {told(entry, figure[part])}", flush=True)
    took = time.monotonic() - began
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return Run(date, took, given.rounds, given.seconds, where, machine.versions(), left_out, entries)


def told(entry: Entry, figure: str) -> str:
    """Say a measurement in one line."""
    place = "" if entry.x is None else f" at {entry.x:,.0f}"
    head = f"round {entry.round} {entry.part}{place}: {entry.title}: "
    if not entry.sample:
        return f"{head}failed: {entry.failure}"
    names = dict.fromkeys([figure, "cpu_us", "p99_ms"])
    figures = [f"{name} {results.number(entry.sample.figures[name])}" for name in names if name in entry.sample.figures]
    wrong = [f"{count} {name}" for name, count in entry.sample.faults.items()]
    busy = f"generator {max(entry.sample.busy, default=0):.0%}"
    others = entry.sample.figures.get("others", 0.0)
    disturbed = [f"DISTURBED by others, {others:.0%} of a core"] if others > DISTURBED else []
    return head + ", ".join([*figures, busy, *wrong, *disturbed])


def write(done: Run, folder: Path | None) -> None:
    """Write results.json, RESULTS.md and, where matplotlib is, the drawings."""
    tables, drawings = (folder, folder) if folder else (ROOT / "benchmarks", ROOT / "docs")
    tables.mkdir(parents=True, exist_ok=True)
    record.save(done, tables / "results.json")
    (tables / "RESULTS.md").write_text(results.render(done))
    from benchmarks.plot import draw  # noqa: PLC0415 - takes a second to import, and is of the extra `bench` only

    draw(done, drawings)
    print(f"written: {tables / 'RESULTS.md'}, {tables / 'results.json'}, drawings in {drawings}")


def main(words: Sequence[str]) -> int:
    """Do what the command line says; give the exit status."""
    given = arguments(words)
    if given.again:
        done = record.load((given.out or ROOT / "benchmarks") / "results.json")
    else:
        generator.build()
        done = run(given)
    write(done, given.out)
    wrong = results.wrong_messages(done) + results.broken_bounds(done)
    for line in wrong:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
