"""``docs/reliability.md``: every row names a test that there is, and options that there are."""

import ast
import re
from pathlib import Path

from chatd.config.settings import bounds, options
from tests.rows import rows

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "reliability.md").read_text().splitlines()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in LINES
    if line.startswith("| ") and not line.endswith("| test |")
]


def _tests_in(path: str) -> set[str]:
    """Give the names of the tests in a file, those in classes too."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def test_there_are_rows() -> None:
    assert len(ROWS) > 40
    assert {len(row) for row in ROWS} == {4}


@rows("row", ROWS)
def test_every_row_names_a_test_that_there_is(row: list[str]) -> None:
    path, _, name = row[3].partition("::")
    assert (ROOT / path).is_file()
    assert path == "tests/soak.py" or name in _tests_in(path)


def test_every_option_is_one() -> None:
    known = {f"--{option.flag}" for option in options()} | {bound.place for bound in bounds()} | {"--config"}
    named = {word for row in ROWS for word in re.findall(r"--[a-z-]+|\[tuning\] [a-z_]+", f"{row[1]} {row[2]}")}
    assert named <= known
