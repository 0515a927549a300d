"""The blocks of code in README.md, CONTRIBUTING.md and docs/: what a reader copies, and how each is tested.

A line before each block says how, as a comment that no reader sees::

    <!-- test: NAME -->         a test runs what ``block(NAME)`` gives it
    <!-- transcript: NAME -->   docs/transcripts.py prints it
    <!-- file: NAME -->         it is that file, which has tests of its own
    <!-- no test: REASON -->    it can't run in a test

A block of TOML needs none: one test reads all of them as files of options. One of text or JSON is shown, not copied.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("text", "json")
"""Languages of blocks that nobody copies."""
_MARK = re.compile(r"<!-- (test|transcript|file|no test): (.+) -->")


@dataclass(frozen=True)
class Block:
    """One block."""

    place: str
    """Page and line."""
    language: str
    """Empty where it is not fenced, or the fence names none."""
    mark: str
    name: str
    text: str

    def commands(self) -> list[str]:
        """Return what is typed at a prompt."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]

    def fault(self) -> str:
        """Return what is wrong with the block, empty if nothing is."""
        if not self.language:
            return f"{self.place}: fence it, and name its language"
        if self.mark or self.language in (*SHOWN, "toml"):
            return ""
        return f"{self.place}: say how it is tested, with one of the comments in tests/blocks.py"


def read(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a page."""
    lines = iter(enumerate(text.splitlines(), 1))
    mark = name = ""
    before = ""
    for number, line in lines:
        place = f"{page}:{number}"
        if line.startswith("```"):
            inside = []
            for _, each in lines:
                if each == "```":
                    break
                inside.append(f"{each}\n")
            yield Block(place, line[3:], mark, name, "".join(inside))
        elif re.match(r"(?: {4}|\t)\S", line) and not before:
            yield Block(place, "", "", "", line.lstrip())
        found = _MARK.fullmatch(line)
        mark, name = found.groups() if found else ("", "")
        before = line


@cache
def blocks() -> tuple[Block, ...]:
    """Return all blocks of the documentation."""
    pages = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")])
    return tuple(each for page in pages for each in read(str(page.relative_to(ROOT)), page.read_text()))


def block(name: str) -> Block:
    """Return the block that a test runs."""
    [found] = [each for each in blocks() if (each.mark, each.name) == ("test", name)]
    return found


def named_in_tests() -> set[str]:
    """Return the names with which tests ask for blocks."""
    sources = [path.read_text() for path in (ROOT / "tests").glob("**/test_*.py")]
    return {name for source in sources for name in re.findall(r"\bblock\([\"']([^\"']+)[\"']\)", source)}
