"""The house keeps its order: every import under ``chatd/`` is held against the map in ``chatd/__init__.py``."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

import chatd

FOLDER = Path(chatd.__file__).parent

PARENT_MAY = {
    "chatd",
    "chatd.closing",
    "chatd.config",
    "chatd.endpoints",
    "chatd.exposition",
    "chatd.headcount",
    "chatd.lifeline",
    "chatd.message",
    "chatd.meter",
    "chatd.logfields",
    "chatd.logfile",
    "chatd.loglock",
    "chatd.metrics",
    "chatd.openfiles",
    "chatd.single_flight",
    "chatd.timers",
    "chatd.tls",
}
"""What the parent and the workers share."""

OWNERS = {
    "txredisapi": ("chatd.room.link",),
    "autobahn": ("chatd.client.connection", "chatd.client.deflate", "chatd.client.factory"),
    "twisted.internet.tcp": ("chatd.client.outflow", "chatd.transports"),
}
"""Libraries, and parts of one that look into Twisted's own buffers, that these modules alone know."""

NEVER = {"benchmarks", "tests"}
"""What looks at chatd from outside, and is not installed with it."""

IMPURE = {"twisted", "socket", "ssl", "asyncio", "threading", "time", "datetime", "random", "secrets", "os"}
"""What brings in sockets, a clock, or anything else by which the same bytes could give other values."""


@dataclass(frozen=True)
class Row:
    """One line of the map."""

    place: str
    """The folder or top-level module that has a rank in the order."""
    module: str
    """The dotted name of what the line is about."""
    patterns: tuple[str, ...]
    """Files that are no modules and live in the same folder."""


def read_map(docstring: str) -> list[Row]:
    """Read the table of the docstring: one column of names, those inside a folder indented."""
    _, table, _ = re.split(r"^=+  =+$", docstring, flags=re.MULTILINE)
    rows: list[Row] = []
    folder = ""
    for line in table.strip("\n").splitlines():
        found = re.fullmatch(r"``( *)(\w+)(/?)`` +(\S.*)", line)
        assert found, f"a line of the map that can't be read: {line}"
        inside, name, is_folder, text = found.groups()
        if not inside:
            folder = name if is_folder else ""
        assert folder or not inside, f"indented, but in no folder: {line}"
        place = folder if inside else name
        module = f"chatd.{folder}.{name}" if inside else f"chatd.{name}"
        rows.append(Row(place, module, tuple(re.findall(r"``([^` ]*\*[^` ]*)``", text))))
    return rows


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    name: str
    line: int
    at_once: bool
    """Whether it happens when the module itself is imported."""


@cache
def imports(source: str, module: str, is_package: bool) -> tuple[Import, ...]:
    """List all imports of a module, those in functions too, each with its absolute name."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    found: list[Import] = []
    while todo:
        node, at_once = todo.pop()
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join(filter(None, [*home, node.module or ""]))
            found += [Import(f"{base}.{alias.name}", node.lineno, at_once) for alias in node.names]
        within = at_once and not isinstance(node, functions)
        todo += [(child, within) for child in ast.iter_child_nodes(node)]
    return tuple(found)


TEXT = {"open": 1, "read_text": 0, "write_text": 1}
"""Where text is read or written: by which argument of the call one sees that it says what bytes mean."""


@cache
def locale_bound(source: str) -> tuple[int, ...]:
    """List the lines that read or write text in the encoding of the locale."""
    found: list[int] = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name not in TEXT or (name == "open") != isinstance(call.func, ast.Name):
            continue
        telling = call.args[TEXT[name] :][:1]
        binary = name == "open" and any(isinstance(each, ast.Constant) and "b" in str(each.value) for each in telling)
        named = (telling and name != "open") or any(each.arg == "encoding" for each in call.keywords)
        found += [] if binary or named else [call.lineno]
    return tuple(found)


def module_of(path: str) -> str:
    """Name the module in a file: ``room/bus.py`` is chatd.room.bus, ``room/__init__.py`` chatd.room."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(["chatd", *(part for part in parts if part != "__init__")])


def place(module: str) -> str:
    """Name the folder or top-level module that a module is in; chatd itself is in none."""
    return module.split(".")[1] if "." in module else ""


class House:
    """All modules by name with their source, and the order they are to keep."""

    def __init__(self, rows: Sequence[Row], sources: Mapping[str, str]) -> None:
        """Take the map, and the sources by path under ``chatd/``."""
        self.rows = rows
        self.ranks = {place: rank for rank, place in enumerate(dict.fromkeys(row.place for row in rows))}
        self.paths = {module_of(path): path for path in sources}
        self.sources = sources

    def imports(self, module: str) -> tuple[Import, ...]:
        """Give the imports of a module."""
        path = self.paths[module]
        return imports(self.sources[path], module, path.endswith("__init__.py"))

    def target(self, name: str) -> str:
        """Give the module of chatd in which an imported name is found; the name itself where there is none."""
        return next((each for each in (name, name.rpartition(".")[0]) if each in self.paths), name)

    def within(self, module: str) -> list[tuple[str, Import]]:
        """Give the modules of chatd that one imports."""
        ours = [each for each in self.imports(module) if each.name.split(".")[0] == "chatd"]
        return [(self.target(each.name), each) for each in ours]

    def rank(self, module: str) -> int:
        """Give the place of a module in the order; chatd itself stands above all, what is in no map below."""
        return self.ranks.get(place(module), len(self.ranks)) if place(module) else -1

    def faults(self) -> list[str]:
        """List everything that breaks a rule."""
        found = [*self._unknown(), *self._cycles()]
        for module in self.paths:
            found += self._against_the_order(module)
            found += self._against_the_rules(module)
        return found

    def _unknown(self) -> Iterator[str]:
        named = {row.module for row in self.rows} | {"chatd"}
        yield from (f"{module} does not stand in the map" for module in self.paths if module not in named)
        yield from (f"{module} stands in the map, but is not there" for module in named if module not in self.paths)

    def _against_the_order(self, module: str) -> Iterator[str]:
        for target, each in self.within(module):
            if target not in self.paths:
                yield f"{module}:{each.line} imports {target}, which is not there"
            elif self.rank(target) > self.rank(module):
                yield f"{module}:{each.line} imports {target}, which stands below it"
            elif place(target) == "parent" and place(module) not in ("parent", "tap", "cli"):
                yield f"{module}:{each.line} imports {target}, but is no part of the parent"
            elif place(module) == "parent" and place(target) != "parent" and target not in PARENT_MAY:
                yield f"{module}:{each.line} imports {target}, but the parent needs nothing that a worker runs on"

    def _against_the_rules(self, module: str) -> Iterator[str]:
        for each in self.imports(module):
            library = each.name.split(".")[0]
            for owned, owners in OWNERS.items():
                if f"{each.name}.".startswith(f"{owned}.") and module not in owners:
                    yield f"{module}:{each.line} imports {owned}, which is for {', '.join(owners)}"
            if library in NEVER:
                yield f"{module}:{each.line} imports {library}, which is not installed with chatd"
            if each.at_once and each.name.startswith("twisted.internet.reactor"):
                yield f"{module}:{each.line} imports the reactor as soon as it is imported"
            if place(module) in ("wire", "gate") and library in IMPURE:
                yield f"{module}:{each.line} imports {library}, but {place(module)}/ knows neither sockets nor clocks"

        for line in locale_bound(self.sources[self.paths[module]]):
            yield f"{module}:{line} reads or writes text in the encoding of whatever locale it runs in"

    def _cycles(self) -> Iterator[str]:
        """Take away, again and again, what imports nothing that is left; what stays goes round."""
        left = {module: {target for target, _ in self.within(module) if target in self.paths} for module in self.paths}
        while free := {module for module, targets in left.items() if not targets & left.keys()}:
            left = {module: targets for module, targets in left.items() if module not in free}
        if left:
            yield f"these import one another in a circle, or what does: {', '.join(sorted(left))}"


def real_files() -> list[str]:
    files = (each.relative_to(FOLDER) for each in FOLDER.rglob("*") if each.is_file())
    return sorted(each.as_posix() for each in files if "__pycache__" not in each.parts)


def real_sources() -> dict[str, str]:
    return {path: (FOLDER / path).read_text() for path in real_files() if path.endswith(".py")}


def the_map() -> list[Row]:
    return read_map(chatd.__doc__ or "")


def house_with(path: str = "", lines: str = "") -> House:
    """Build the real house, with lines added at the end of one module (or as a new one)."""
    sources = real_sources()
    if path:
        sources[path] = f"{sources.get(path, '')}\n{lines}\n"
    return House(the_map(), sources)


def new_faults(path: str, lines: str) -> set[str]:
    """List what adding lines to a module breaks."""
    return set(house_with(path, lines).faults()) - set(house_with().faults())


def test_the_house_keeps_its_order() -> None:
    assert house_with().faults() == []


def test_every_other_file_under_chatd_stands_in_the_map() -> None:
    patterns = ["py.typed", *(f"{row.place}/{pattern}" for row in the_map() for pattern in row.patterns)]
    others = [path for path in real_files() if not path.endswith(".py")]
    assert [path for path in others if not any(fnmatch(path, pattern) for pattern in patterns)] == []


def test_the_map_is_read_in_its_order() -> None:
    table = """
==========  =====
``alone``   first
``rooms/``  second
``  deep``  with ``data/*.txt``
``last``    third
==========  =====
"""
    assert read_map(table) == [
        Row("alone", "chatd.alone", ()),
        Row("rooms", "chatd.rooms", ()),
        Row("rooms", "chatd.rooms.deep", ("data/*.txt",)),
        Row("last", "chatd.last", ()),
    ]


@pytest.mark.parametrize(
    ("path", "lines", "told"),
    [
        ("wire/text.py", "from chatd.room.hub import Hub", "imports chatd.room.hub, which stands below it"),
        ("wire/text.py", "import chatd.room.hub", "imports chatd.room.hub, which stands below it"),
        ("wire/text.py", "from chatd.room import hub", "imports chatd.room.hub, which stands below it"),
        ("wire/text.py", "from chatd import room", "imports chatd.room, which stands below it"),
        ("wire/text.py", "from ..room.hub import Hub", "imports chatd.room.hub, which stands below it"),
        ("wire/text.py", "from .. import room", "imports chatd.room, which stands below it"),
        ("wire/text.py", "def later():\n    import chatd.door", "imports chatd.door, which stands below it"),
        ("wire/text.py", "if TYPE_CHECKING:\n    import chatd.door", "imports chatd.door, which stands below it"),
        ("wire/__init__.py", "from ..room import hub", "imports chatd.room.hub, which stands below it"),
        ("closing.py", "from chatd.config import Config", "imports chatd.config, which stands below it"),
        ("__init__.py", "from chatd.config import Config", "imports chatd.config, which stands below it"),
        ("worker.py", "from chatd.parent import fleet", "imports chatd.parent.fleet, which stands below it"),
        ("parent/fleet.py", "from chatd.room.bus import Bus", "the parent needs nothing that a worker runs on"),
        ("parent/fleet.py", "from chatd.wire import text", "the parent needs nothing that a worker runs on"),
        ("parent/fleet.py", "from chatd.worker import Worker", "the parent needs nothing that a worker runs on"),
        ("room/hub.py", "from chatd.room.gone import it", "imports chatd.room.gone.it, which is not there"),
        ("room/hub.py", "import txredisapi", "imports txredisapi, which is for chatd.room.link"),
        ("client/session.py", "from autobahn.websocket import types", "which is for chatd.client.connection"),
        ("door.py", "from twisted.internet.tcp import Server", "which is for chatd.client.outflow"),
        ("door.py", "from twisted.internet import tcp", "which is for chatd.client.outflow"),
        ("timers.py", "from chatd.wire import text", "imports chatd.wire.text, which stands below it"),
        ("client/outflow.py", "import autobahn", "which is for chatd.client.connection"),
        ("client/outflow.py", "from chatd.client.connection import Connection", "in a circle, or what does: chatd."),
        ("door.py", "from twisted.internet import reactor", "imports the reactor as soon as it is imported"),
        ("door.py", "import twisted.internet.reactor", "imports the reactor as soon as it is imported"),
        ("door.py", "try:\n    from twisted.internet import reactor\nfinally: pass", "imports the reactor as soon as"),
        ("door.py", "class A:\n    from twisted.internet import reactor", "imports the reactor as soon as"),
        ("wire/frames.py", "from twisted.internet import defer", "wire/ knows neither sockets nor clocks"),
        ("wire/frames.py", "import time", "wire/ knows neither sockets nor clocks"),
        ("gate/proxies.py", "import socket", "gate/ knows neither sockets nor clocks"),
        ("gate/origin.py", "from chatd.room import hub", "imports chatd.room.hub, which stands below it"),
        ("room/link.py", "from chatd.room.hub import Hub", "in a circle, or what does: chatd."),
        ("room/__init__.py", "from chatd.room.hub import Hub\nimport chatd.room", "in a circle, or what does: chatd."),
        ("verify/logs.py", "from chatd.parent.valkey import find_sockets", "but is no part of the parent"),
        ("worker.py", "import chatd.cli", "imports chatd.cli, which stands below it"),
        ("tap.py", "from benchmarks.rows import ROWS", "imports benchmarks, which is not installed with chatd"),
        ("tap.py", "def late():\n    import tests.fakes", "imports tests, which is not installed with chatd"),
        ("door.py", "Path('x').read_text()", "reads or writes text in the encoding of whatever locale"),
        ("door.py", "Path('x').write_text('y')", "reads or writes text in the encoding of whatever locale"),
        ("door.py", "open('x', 'w')", "reads or writes text in the encoding of whatever locale"),
        ("extra.py", "", "chatd.extra does not stand in the map"),
        ("room/extra.py", "", "chatd.room.extra does not stand in the map"),
    ],
)
def test_a_bad_import_is_caught(path: str, lines: str, told: str) -> None:
    assert any(told in fault for fault in new_faults(path, lines))


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("room/hub.py", "from chatd.wire import text"),
        ("room/hub.py", "import chatd"),
        ("room/hub.py", "from . import bus"),
        ("room/hub.py", "from chatd.timers import TimerWheel"),
        ("room/hub.py", "from chatd import __version__"),
        ("parent/fleet.py", "from chatd.closing import STOPPING"),
        ("door.py", "def late():\n    from twisted.internet import reactor"),
        ("tap.py", "from chatd.parent.fleet import Fleet"),
    ],
)
def test_a_good_import_is_let_be(path: str, lines: str) -> None:
    assert new_faults(path, lines) == set()


def test_the_parent_stays_apart_even_where_the_map_puts_it_first() -> None:
    rows = sorted(the_map(), key=lambda row: row.place != "parent")
    sources = real_sources()
    sources["worker.py"] += "\nfrom chatd.parent.fleet import Fleet\n"
    assert any("chatd.worker" in fault and "no part of the parent" in fault for fault in House(rows, sources).faults())


def test_a_module_that_went_away_leaves_the_map_too() -> None:
    sources = {path: source for path, source in real_sources().items() if path != "tap.py"}
    assert "chatd.tap stands in the map, but is not there" in House(the_map(), sources).faults()
