"""The drawings of a run: ``speed.svg``, the main row, and ``growth.svg``, the curves.

The same run gives the same bytes.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.record import Run
from benchmarks.results import OURS, Spread, figures, line, number, titles
from benchmarks.rows import CURVES, ROWS, Curve

COLOURS = {OURS: "#1f6feb"}
OTHERS = "#8c959f"
STYLE: Any = {
    "svg.hashsalt": "chatd",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def draw(run: Run, folder: Path) -> None:
    """Write both drawings into a folder; what was not measured is not drawn."""
    with mpl.rc_context(STYLE):
        _save(_speed(run), folder / "speed.svg")
        _save(_growth(run), folder / "growth.svg")


def _save(figure: Figure | None, path: Path) -> None:
    if figure:
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _speed(run: Run) -> Figure | None:
    row = ROWS[0]
    bars = [(each, figures(run, row.name, each, row.figure)) for each in row.subjects()]
    spreads = [(each.title, Spread.of(values)) for each, values in bars if values]
    if not spreads:
        return None
    spreads.sort(key=lambda bar: bar[1].median)
    figure = Figure(figsize=(8, 0.5 * len(spreads) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = [title for title, _ in spreads]
    middles = [spread.median for _, spread in spreads]
    reach = [
        [spread.median - spread.least for _, spread in spreads],
        [spread.most - spread.median for _, spread in spreads],
    ]
    axes.barh(
        names, middles, xerr=reach, color=[COLOURS.get(name, OTHERS) for name in names], ecolor="#57606a", capsize=3
    )
    for place, (_, spread) in enumerate(spreads):
        axes.annotate(
            number(spread.median), (spread.most, place), (6, 0), textcoords="offset points", verticalalignment="center"
        )
    figure.suptitle(f"{row.unit}: {row.work}", x=0.01, horizontalalignment="left", fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.12)
    axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _growth(run: Run) -> Figure | None:
    drawn = [curve for curve in CURVES if any(line(run, curve, title) for title in titles(curve))]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.subplots(2, 2).flat
    for axes, curve in zip(grid, drawn, strict=False):
        _curve(axes, run, curve)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    return figure


def _curve(axes: Any, run: Run, curve: Curve) -> None:
    for title in titles(curve):
        points = line(run, curve, title)
        axes.plot(*zip(*points, strict=True), marker="o", label=title, color=COLOURS.get(title, OTHERS))
    if max(x for x, _ in curve.points) > 100:
        axes.set_xscale("log")
    else:
        axes.set_xticks(sorted({x for x, _ in curve.points}))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(curve.axis)
    axes.set_title(f"{curve.title}: {curve.unit}", loc="left", fontsize=10)
    axes.grid(color="#d0d7de", linewidth=0.6)
    axes.legend(frameon=False)
