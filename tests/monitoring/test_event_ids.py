"""Every log event of chatd has an id of its own, and docs/operations.md explains it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import chatd

FOLDER = Path(chatd.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
LEVELS = {
    **{level: level for level in ("debug", "info", "warn", "error", "critical")},
    "failure": "critical",
    "failuresHandled": "critical",
}
"""The methods of a Logger that log an event, and the level of that event. ``emit`` relays those of workers."""
LOGGERS = {"log", "self._log"}


@dataclass(frozen=True)
class LoggedEvent:
    """An event that a module logs."""

    place: str
    level: str
    text: str
    id: str
    """Empty if the call has none."""


def _logged(call: ast.Call) -> tuple[str, ast.expr] | None:
    """Return level and text of the event that a call logs: by itself, as a ``partial``, or as a LogRecord."""
    function, arguments = call.func, call.args
    if isinstance(function, ast.Name) and function.id == "LogRecord" and isinstance(arguments[0], ast.Constant):
        return str(arguments[0].value), arguments[1]
    if isinstance(function, ast.Name) and function.id == "partial":
        function, arguments = arguments[0], arguments[1:]
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) in LOGGERS and function.attr in LEVELS:
        return LEVELS[function.attr], arguments[0]
    return None


def logged_events(source: str, name: str) -> Iterator[LoggedEvent]:
    """Return all events that the source of a module logs."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (logged := _logged(node)) is not None:
            level, text = logged
            given = next((keyword.value for keyword in node.keywords if keyword.arg == "event"), None)
            event = str(given.value) if isinstance(given, ast.Constant) else ""
            yield LoggedEvent(f"{name}:{node.lineno}", level, ast.unparse(text), event)


EVENTS = [
    event
    for path in sorted(FOLDER.rglob("*.py"))
    for event in logged_events(path.read_text(), str(path.relative_to(FOLDER)))
]


def explained(page: str) -> set[str]:
    """Return the ids that a page names: in the first column of a table, or in a list of ids."""
    ids = set()
    for line in page.splitlines():
        column = line.split("|")[1] if line.startswith("| `") else line
        ids |= set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", column))
    return ids


def test_each_event_has_an_id() -> None:
    assert len(EVENTS) > 100
    assert not [event for event in EVENTS if not re.fullmatch(r"[a-z]+(_[a-z]+)+", event.id)]


def test_each_id_has_one_level_and_text() -> None:
    meanings = defaultdict(set)
    for event in EVENTS:
        meanings[event.id].add((event.level, event.text))
    assert not {id: found for id, found in meanings.items() if len(found) > 1}


def test_the_page_explains_all_events() -> None:
    needed = {event.id for event in EVENTS if event.level != "debug"}
    assert not needed - explained(PAGE.read_text())


def test_the_table_names_no_event_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `([a-z]+(?:_[a-z]+)+)`(?:, `([a-z_]+)`)* \| `", PAGE.read_text(), flags=re.MULTILINE)
    assert rows
    assert not {id for row in rows for id in row if id} - {event.id for event in EVENTS}


@pytest.mark.parametrize(
    ("call", "level"),
    [
        ('log.warn("text", event="an_id")', "warn"),
        ('self._log.info("text", event="an_id")', "info"),
        ('log.failure("text", failure, event="an_id")', "critical"),
        ('partial(log.warn, "text", event="an_id")', "warn"),
        ('LogRecord("warn", "text", event="an_id")', "warn"),
    ],
)
def test_it_finds_every_way_to_log_an_event(call: str, level: str) -> None:
    assert list(logged_events(call, "module")) == [LoggedEvent("module:1", level, "'text'", "an_id")]
    [without] = logged_events(re.sub(r", event=[^)]*", "", call), "module")
    assert without.id == ""


def test_every_logger_has_a_name_that_it_knows() -> None:
    names = {
        ast.unparse(target)
        for path in FOLDER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Logger(")
        for target in node.targets
    }
    assert names == {"log", "chat"}, "chat is the Logger of the chat log"
