"""The prose check of ``make lint``: the rules for text in CONTRIBUTING.md that a program can check.

* Lines of documentation have at most 100 columns, except in tables and blocks of code.
* No sentence of documentation opens with Who, What or Where as its subject.
* A docstring opens with a standard verb: not Give, Say, Tell, Learn, Take, Let or Hear.
* No sentence of a docstring in chatd/ opens with Who, What or Where as its subject, nor does the text of an attribute.
* The subject of a commit has at most 72 characters.

``tests/prose-todo.txt`` lists the files that do not follow the rules yet. The list can only shrink: a file without
faults has to leave it, which ``python -m tests.prose --shrink`` does.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TODO = ROOT / "tests" / "prose-todo.txt"
COLUMNS = 100
SUBJECT = 72
FIRST = "139d4ba"
"""If there is no tag, subjects are checked after this commit, which came before the check."""
OPENING = re.compile(r"(?:Who|What|Where)\b(?!ver)")
VERBS = re.compile(r"(?:Give|Say|Tell|Learn|Take|Let|Hear)s?\b")


def in_documentation(text: str) -> Iterator[str]:
    """Find the faults of a Markdown file."""
    paragraph: list[str] = []
    fenced = False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        prose = not (fence or fenced or line.startswith("    ") or line.lstrip().startswith(("|", "#", "<", "![")))
        if prose and len(line) > COLUMNS:
            yield f"{number}: {len(line)} columns, more than {COLUMNS}"
        if prose and line.strip() and not re.match(r"\s*(?:[*-]|\d+\.) ", line):
            paragraph.append(line.strip())
            continue
        yield from in_sentences(" ".join(paragraph), number - len(paragraph))
        paragraph = [re.sub(r"^\s*(?:[*-]|\d+\.) ", "", line)] if prose and line.strip() else []


def in_sentences(paragraph: str, number: int) -> Iterator[str]:
    """Find the sentences of a paragraph that open with the wrong subject; questions may."""
    for sentence in re.split(r"(?<=[.!?]) +", paragraph):
        if OPENING.match(sentence) and not sentence.endswith("?"):
            yield f"{number}: a sentence opens with {sentence[:40]!r}"


def in_docstrings(source: str) -> Iterator[str]:
    """Find the docstrings of a module that open with the wrong verb."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if VERBS.match(docstring):
                yield f"{node.lineno}: the docstring of {node.name} opens with {docstring.split()[0]!r}"


def in_texts(source: str) -> Iterator[str]:
    """Find the sentences in docstrings of a module, and in texts of attributes, that open with the wrong subject."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from in_sentences(" ".join(node.value.value.split()), node.lineno)


def faults(path: Path) -> list[str]:
    """Return the faults of a file."""
    text = path.read_text()
    if path.suffix == ".md":
        return list(in_documentation(text))
    return [*in_docstrings(text), *(in_texts(text) if ROOT / "chatd" in path.parents else ())]


def files() -> list[Path]:
    """Return the files that are checked."""
    folders = [ROOT / name for name in ("chatd", "twisted", "docs", "benchmarks", "tests", ".ci")]
    return sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(path for at in folders for path in at.rglob("*.py"))]
    )


def subjects() -> list[str]:
    """Return the subjects of the commits since the last tag that are too long; none outside a full clone."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    since = git("describe", "--tags", "--abbrev=0") or FIRST
    return [
        line for line in git("log", "--no-merges", "--format=%s", f"{since}..HEAD").splitlines() if len(line) > SUBJECT
    ]


def main() -> int:
    """Print all faults outside the list; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description="Check the prose rules.")
    parser.add_argument("--shrink", action="store_true", help="remove files without faults from the list")
    todo = TODO.read_text().splitlines()
    found = {name: faults(path) for path in files() if faults(path) and (name := path.relative_to(ROOT).as_posix())}
    if parser.parse_args().shrink:
        todo = [name for name in todo if name in found]
        TODO.write_text("".join(f"{name}\n" for name in todo))
    said = [f"{name}:{fault}" for name, all_faults in found.items() if name not in todo for fault in all_faults]
    said += [f"{name} has no faults: run python -m tests.prose --shrink" for name in todo if name not in found]
    said += [f"a commit subject has more than {SUBJECT} characters: {subject}" for subject in subjects()]
    print(*said, sep="\n", end="\n" if said else "")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
