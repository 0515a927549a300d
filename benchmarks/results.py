"""What a run means: medians, ratios, which bounds hold, whether messages were right; all of it as ``RESULTS.md``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Subject
from benchmarks.record import Run
from benchmarks.rows import CURVES, ROWS, Curve, Row

OURS = "chatd"
LIMIT = 0.85
"""From how busy on the generator may have been what limited a figure."""


@dataclass(frozen=True)
class Spread:
    """The middle of some values, the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Make it of the values themselves; raises ValueError where there are none."""
        if not values:
            raise ValueError("a spread of nothing")
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        """Give it as the tables show it."""
        return f"{number(self.median)} ({number(self.least)} … {number(self.most)})"


def number(value: float) -> str:
    """Write a figure with three digits that count."""
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def figures(run: Run, part: str, subject: Subject, figure: str, x: float | None = None) -> list[float]:
    """Give one figure of one subject, a round each."""
    return list(_by_round(run, part, subject, figure, x).values())


def _by_round(run: Run, part: str, subject: Subject, figure: str, x: float | None = None) -> dict[int, float]:
    samples = run.samples(part, subject.title, x)
    return {round: each.figures[figure] for round, each in samples.items() if figure in each.figures}


def judged(run: Run, row: Row) -> Spread | None:
    """Give what a row's bounds are held against: chatd's figure, or its ratio to the first peer's of the same round.

    None where a measurement is missing.
    """
    ours = _by_round(run, row.name, row.ours, row.figure)
    if row.absolute:
        return Spread.of([*ours.values()]) if ours else None
    theirs = _by_round(run, row.name, row.peers[0], row.figure)
    if not ours or ours.keys() != theirs.keys() or not all(theirs.values()):
        return None
    return Spread.of([ours[each] / theirs[each] for each in ours])


def holds(row: Row, value: float, bound: float) -> bool:
    """Whether a value is on the good side of a row's bound."""
    return value >= bound if row.more else value <= bound


def wrong_messages(run: Run) -> list[str]:
    """List, in sentences, the measurements of chatd that failed or in which a message went wrong."""
    found = []
    for each in run.entries:
        where = f"{each.part}{'' if each.x is None else f' at {each.x:,.0f}'}, round {each.round}"
        if each.candidate == OURS and each.failure:
            found.append(f"{where}: {each.failure}")
        elif each.candidate == OURS and each.sample and each.sample.faults:
            found.append(f"{where}: {_words(each.sample.faults)}")
    return found


def broken_bounds(run: Run) -> list[str]:
    """List, in sentences, the rows whose bound does not hold, or can't be judged since the peer failed."""
    found = []
    for row in ROWS:
        got = judged(run, row)
        if got and not holds(row, got.median, row.bound):
            found.append(f"{row.name}: {_amount(row, got.median)}, not {_bound(row, row.bound)}")
        elif not got and _tried(run, row):
            found.append(f"{row.name}: there is nothing to hold it against")
    return found


def _tried(run: Run, row: Row) -> bool:
    """Whether all that a row's bound needs was to be measured."""
    there = {each.title for each in run.entries if each.part == row.name} | run.left_out.keys()
    return {row.ours.title, *(each.title for each in row.peers[:1] if not row.absolute)} <= there


def render(run: Run) -> str:
    """Write a run down as Markdown."""
    return "\n".join([*_head(run), *_summary(run), *_correctness(run), *_rows(run), *_curves(run), *_how(run)]) + "\n"


def _words(found: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.items())


def _amount(row: Row, value: float) -> str:
    return f"{number(value)} {row.unit}" if row.absolute else f"{number(value)} times"


def _bound(row: Row, bound: float) -> str:
    return f"{'at least' if row.more else 'at most'} {_amount(row, bound)}"


def _measured(run: Run, names: Sequence[str]) -> bool:
    return any(each.part in names for each in run.entries)


def _head(run: Run) -> Iterator[str]:
    yield "# How fast chatd is"
    yield ""
    yield (
        f"Measured on {run.date} by `make bench`, in {run.took_seconds / 60:.0f} minutes. Rounds: {run.rounds}; in "
        f"each of them all servers, one after the other, {run.seconds:g} s of load each. Figures are medians of the "
        "rounds, with the least and the greatest in brackets. The raw figures are in [results.json](results.json). "
        "What is measured more often in a round, for it scatters: "
        f"{', '.join(f'{row.name}, {row.times} times' for row in ROWS if row.times > 1)}."
    )


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _summary(run: Run) -> Iterator[str]:
    def lines() -> Iterator[Sequence[str]]:
        for row in ROWS:
            got = judged(run, row)
            if not got:
                continue
            bounds = [f"{_bound(row, bound)}: {_yes(holds(row, got.median, bound))}" for bound in (row.bound, row.aim)]
            against = "" if row.absolute else row.peers[0].title
            ours = str(Spread.of(figures(run, row.name, row.ours, row.figure)))
            yield row.work, f"{ours} {row.unit}", against, "" if row.absolute else str(got), *bounds

    yield from _table(("work", "chatd", "against", "ratio", "must hold", "aim"), lines())


def _yes(true: bool) -> str:
    return "holds" if true else "**does not hold**"


def _correctness(run: Run) -> Iterator[str]:
    ours = [each for each in run.entries if each.candidate == OURS and each.sample]
    deliveries = sum(each.sample.figures.get("expected", 0) for each in ours if each.sample)
    wrong = wrong_messages(run)
    yield "## Was every message right?"
    yield ""
    yield (
        f"In the {len(ours)} measurements of chatd {deliveries:,.0f} deliveries were due. Each receiver checks every "
        "message: whole, each sender's once and in order, none missing at the end."
    )
    yield ""
    if wrong:
        yield "**What is wrong:**"
        yield ""
        yield from (f"* {line}" for line in wrong)
    else:
        yield "Every one of them came once, whole and in order."
    yield ""


def _rows(run: Run) -> Iterator[str]:
    for row in ROWS:
        if _measured(run, [row.name]):
            yield f"## {row.work}"
            if row.remark:
                yield ""
                yield row.remark
            yield from _table(("server", *_columns(run, row)), (_line(run, row, each) for each in row.subjects()))


COLUMNS = {
    "deliveries_per_s": "deliveries/s",
    "messages_per_s": "messages/s",
    "connects_per_s": "connections/s",
    "memory_bytes": "bytes a connection",
    "cpu_us": "µs CPU a delivery",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p99.9_ms": "p99.9 ms",
    "worker_us": "µs CPU of the worker a connection",
    "join_us": "µs CPU a connection",
    "grown_bytes": "bytes the workers grew by",
    "page_us": "µs CPU of the worker a page",
    "start_s": "start s",
}
IDLE_ONLY = ("connects_per_s", "memory_bytes", "worker_us", "join_us")
"""What is shown only where the clients do nothing but connect."""


def _shown(run: Run, row: Row) -> list[str]:
    """Give the figures that belong in a row's table: the one that counts first."""
    samples = [sample for each in row.subjects() for sample in run.samples(row.name, each.title).values()]
    known = {name for sample in samples for name in sample.figures}
    idle = "cpu_us" not in known
    rest = [
        name
        for name in COLUMNS
        if name in known and (name in IDLE_ONLY) == idle and name not in (row.figure, "start_s")
    ]
    return [row.figure] if row.figure == "start_s" else [row.figure, *rest]


def _columns(run: Run, row: Row) -> list[str]:
    return [*(COLUMNS[name] for name in _shown(run, row)), "generator busy", "messages"]


def _line(run: Run, row: Row, subject: Subject) -> Sequence[str]:
    title = subject.title + (f", {subject.workers} worker{'s' * (subject.workers > 1)}" if subject.kind.scales else "")
    samples = run.samples(row.name, subject.title).values()
    shown = _shown(run, row)
    if not samples:
        failed = [each.failure for each in run.entries if (each.part, each.title) == (row.name, subject.title)]
        return title, *["-"] * (len(shown) + 1), (failed or [run.left_out.get(subject.title, "not measured")])[0]
    cells = [str(Spread.of(values)) if (values := figures(run, row.name, subject, name)) else "-" for name in shown]
    wrong: dict[str, int] = {}
    for sample in samples:
        for name, count in sample.faults.items():
            wrong[name] = wrong.get(name, 0) + count
    busiest = max((max(sample.busy, default=0) for sample in samples), default=0)
    limit = " **the limit**" if busiest > LIMIT else ""
    return title, *cells, f"{busiest:.0%}{limit}", _words(wrong) or "all right"


def _curves(run: Run) -> Iterator[str]:
    measured = [curve for curve in CURVES if _measured(run, [curve.name])]
    if measured:
        yield "## As things grow"
        yield ""
        yield "![growth curves](../docs/growth.svg)"
        yield ""
        cores = run.machine.get("cores", "?")
        yield f"One round each, so there is no spread. All of it on {cores} cores, the generator and the broker too."
        yield ""
    for curve in measured:
        yield f"### {curve.title}"
        yield ""
        yield f"{curve.unit}. {curve.remark}"
        yield from _table((curve.axis, *titles(curve)), _points(run, curve))


def titles(curve: Curve) -> list[str]:
    """Give the names of a curve's lines, in their order."""
    return list(dict.fromkeys(subject.title for _, subject in curve.points))


def line(run: Run, curve: Curve, title: str) -> list[tuple[float, float]]:
    """Give the points of one line of a curve that were measured: x, median."""
    found = []
    for x, subject in curve.points:
        if subject.title == title and (values := figures(run, curve.name, subject, curve.figure, x)):
            found.append((x, median(values)))
    return found


def _points(run: Run, curve: Curve) -> Iterator[Sequence[str]]:
    lines = [dict(line(run, curve, title)) for title in titles(curve)]
    for x in dict.fromkeys(x for x, _ in curve.points):
        yield f"{x:,.0f}", *(number(each[x]) if x in each else "-" for each in lines)


def _how(run: Run) -> Iterator[str]:
    others = [each.sample.figures["others"] for each in run.entries if each.sample and "others" in each.sample.figures]
    yield "## How it was measured"
    yield ""
    yield from (f"* {line}" for line in HOW)
    if others:
        spread = Spread.of(others)
        yield (
            f"* Whatever else ran on the machine kept {spread.median:.0%} of a core busy in the middle measurement, "
            f"{spread.most:.0%} in the worst. The more it is, the less the figures are worth."
        )
    yield from (f"* {title} is left out: {why}." for title, why in run.left_out.items())
    yield ""
    yield "## On what"
    yield from _table(("machine", ""), ((name, value) for name, value in run.machine.items()))
    yield from _table(("version", ""), ((name, value) for name, value in run.versions.items()))


HOW = (
    "Server and generator share the machine. Where a row says so, the server is pinned to core 0 and the generator to "
    "core 1; else the kernel places both, for all servers alike.",
    "chatd is started as a user would: `twistd -n chatd` on a port of its own, with room for 20,000 connections a "
    "worker, its own Valkey beside it, history on where a row does not say otherwise, its chat log on disk. CPU and "
    "memory count all processes of a server, parent, workers, broker, where a row does not say otherwise. The Node "
    "peer with 2 workers has the same Valkey as its broker, on a unix socket as well; it writes a chat log too, and "
    "does not wait for it.",
    "Autobahn and uWebSockets are one process with neither log nor broker. Nchan has as many workers as chatd, no log. "
    "uWebSockets is driven from Python by socketify; its fan-out is C++ alone.",
    "Open loop: a message's latency counts from the moment it was due, however late it could be sent. Closed loop: a "
    "message is on its way until the last receiver has it.",
    "What went wrong with messages is counted over all rounds. Missing is what had not come 10 s after the last "
    "message was sent, gaps are messages that a later one of the same sender overtook for good.",
    "A second of load comes before what is measured, so that just-in-time compilers are warm. Messages are "
    "not compressed.",
    "Generator busy: the part of the measured time that its busiest process ran, in the busiest round. Where it is "
    "called the limit, the server may be faster than the figure says. A server that writes each message alone makes "
    "the generator work more for each.",
    "Ratios are taken within a round; the spread is that of the rounds.",
)
