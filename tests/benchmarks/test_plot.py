"""The drawings: the same for the same run, and readable as text."""

from pathlib import Path

from benchmarks.plot import draw
from benchmarks.rows import ROWS
from tests.benchmarks.canned import everything, run


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        draw(everything(), folder)
        drawn.append([(folder / file).read_bytes() for file in ("speed.svg", "growth.svg")])
    assert drawn[0] == drawn[1]


def test_the_servers_and_curves_are_named(tmp_path: Path) -> None:
    draw(everything(), tmp_path)
    speed, growth = ((tmp_path / file).read_text() for file in ("speed.svg", "growth.svg"))
    assert all(each.title in speed for each in (ROWS[0].ours, ROWS[0].peers[0]))
    assert "Clients in one room" in growth
    assert "dc:date" not in speed + growth


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    draw(run([]), tmp_path)
    assert list(tmp_path.iterdir()) == []
