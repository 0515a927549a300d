"""The packages keep their order: every import under ``chatd/`` is compared with the table in docs/architecture.md."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import chatd
from tests.rows import rows

FOLDER = Path(chatd.__file__).parent
TABLE = Path(__file__).parents[1] / "docs" / "architecture.md"

OWNERS = {
    "txredisapi": ("chatd.broker.connection",),
    "autobahn": ("chatd.clients.websocket", "chatd.clients.deflate", "chatd.clients.factory"),
    "twisted.internet.tcp": ("chatd.clients.send_buffer", "chatd.runtime.transports"),
}
"""Libraries, and parts of Twisted with private buffers, that only these modules import."""

OUTSIDE = {"benchmarks", "tests"}
"""Not installed with chatd."""

PURE = {"protocol", "access"}
IMPURE = {"twisted", "socket", "ssl", "asyncio", "threading", "time", "random", "secrets", "os"}
"""Libraries with sockets, a clock or randomness, which the pure packages do not import."""
CLOCKS = {"now", "utcnow", "today"}
"""Methods of ``datetime`` that read the clock, which the pure packages do not call."""


def read_table(text: str) -> dict[str, set[str]]:
    """Return what each package may import, in the order of the table."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|$", text, flags=re.MULTILINE)
    return {package: set(re.findall(r"`(\w+)`", imported)) for package, imported in rows}


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    name: str
    line: int
    at_once: bool
    """Whether it happens when the module itself is imported."""


@cache
def imports(source: str, module: str, is_package: bool) -> tuple[Import, ...]:
    """List all imports of a module, also those in functions, each with its absolute name."""
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


@cache
def clock_calls(source: str) -> tuple[int, ...]:
    """List the lines that name a method which reads the clock."""
    nodes = ast.walk(ast.parse(source))
    return tuple(node.lineno for node in nodes if isinstance(node, ast.Attribute) and node.attr in CLOCKS)


TEXT = {"open": 1, "read_text": 0, "write_text": 1}
"""Calls that read or write text, with the position of the argument that names a mode or an encoding."""


@cache
def locale_bound(source: str) -> tuple[int, ...]:
    """List the lines that read or write text in the encoding of the locale."""
    found: list[int] = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name not in TEXT or (name == "open") != isinstance(call.func, ast.Name):
            continue
        given = call.args[TEXT[name] :][:1]
        binary = name == "open" and any(isinstance(value, ast.Constant) and "b" in str(value.value) for value in given)
        named = (given and name != "open") or any(keyword.arg == "encoding" for keyword in call.keywords)
        found += [] if binary or named else [call.lineno]
    return tuple(found)


def module_of(path: str) -> str:
    """Return the module in a file: ``rooms/hub.py`` is chatd.rooms.hub, ``rooms/__init__.py`` chatd.rooms."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(["chatd", *(part for part in parts if part != "__init__")])


def package_of(module: str) -> str:
    """Return the package or top-level module that a module is in; empty for chatd itself."""
    return module.split(".")[1] if "." in module else ""


class Layers:
    """All modules by name with their source, and the table that they are compared with."""

    def __init__(self, table: Mapping[str, set[str]], sources: Mapping[str, str]) -> None:
        """Take the table, and the sources by path under ``chatd/``."""
        self.table = table
        self.sources = {module_of(path): source for path, source in sources.items()}
        self.packages = {module_of(path) for path in sources if path.endswith("__init__.py")}

    def imports(self, module: str) -> tuple[Import, ...]:
        """Return the imports of a module."""
        return imports(self.sources[module], module, module in self.packages)

    def within(self, module: str) -> list[tuple[str, Import]]:
        """Return the modules of chatd that a module imports."""
        ours = [found for found in self.imports(module) if found.name.split(".")[0] == "chatd"]
        return [(self._target(found.name), found) for found in ours]

    def _target(self, name: str) -> str:
        return next((known for known in (name, name.rpartition(".")[0]) if known in self.sources), name)

    def faults(self) -> list[str]:
        """List every broken rule."""
        found = [*self._table_faults(), *self._cycles()]
        for module in self.sources:
            found += self._order_faults(module)
            found += self._library_faults(module)
            found += [f"{module}:{line} depends on the locale" for line in locale_bound(self.sources[module])]
        return found

    def _table_faults(self) -> Iterator[str]:
        real = {package_of(module) for module in self.sources} - {""}
        yield from (f"{package} is not in the table" for package in sorted(real - self.table.keys()))
        yield from (f"{package} is in the table only" for package in sorted(self.table.keys() - real))
        above: set[str] = set()
        for package, allowed in self.table.items():
            yield from (f"{package} may import {other}, which is not above it" for other in sorted(allowed - above))
            above.add(package)
            used = {
                package_of(target)
                for module in self.sources
                for target, _ in self.within(module)
                if package_of(module) == package
            }
            yield from (f"{package} does not import {other}" for other in sorted(allowed - used))

    def _order_faults(self, module: str) -> Iterator[str]:
        package = package_of(module)
        allowed = {"", package} | self.table.get(package, set())
        for target, found in self.within(module):
            if target not in self.sources:
                yield f"{module}:{found.line} imports {target}, which does not exist"
            elif package_of(target) not in allowed:
                yield f"{module}:{found.line} imports {target}, which the table does not allow"

    def _library_faults(self, module: str) -> Iterator[str]:
        for found in self.imports(module):
            library = found.name.split(".")[0]
            for owned, owners in OWNERS.items():
                if f"{found.name}.".startswith(f"{owned}.") and module not in owners:
                    yield f"{module}:{found.line} imports {owned}, which only {', '.join(owners)} may"
            if library in OUTSIDE:
                yield f"{module}:{found.line} imports {library}, which is not installed with chatd"
            if found.at_once and found.name.startswith("twisted.internet.reactor"):
                yield f"{module}:{found.line} imports the reactor when it is imported"
            if package_of(module) in PURE and library in IMPURE:
                yield f"{module}:{found.line} imports {library}, but {package_of(module)} is pure"
        if package_of(module) in PURE:
            yield from (f"{module}:{line} reads the clock" for line in clock_calls(self.sources[module]))

    def _cycles(self) -> Iterator[str]:
        """Remove, again and again, the modules that import nothing that is left; a cycle remains."""
        left = {
            module: {target for target, _ in self.within(module) if target in self.sources} for module in self.sources
        }
        while free := {module for module, targets in left.items() if not targets & left.keys()}:
            left = {module: targets for module, targets in left.items() if module not in free}
        if left:
            yield f"a cycle: {', '.join(sorted(left))}"


def real_sources() -> dict[str, str]:
    return {path.relative_to(FOLDER).as_posix(): path.read_text() for path in sorted(FOLDER.rglob("*.py"))}


def layers_with(path: str = "", lines: str = "", table: Mapping[str, set[str]] | None = None) -> Layers:
    """Return the real modules, with lines added at the end of one of them (or as a new one)."""
    sources = real_sources()
    if path:
        sources[path] = f"{sources.get(path, '')}\n{lines}\n"
    return Layers(table or read_table(TABLE.read_text()), sources)


def test_the_packages_keep_their_order() -> None:
    assert layers_with().faults() == []


NEW_FAULTS = [
    ("protocol/text.py", "from chatd.rooms.hub import Hub", "imports chatd.rooms.hub, which the table does not allow"),
    ("protocol/text.py", "import chatd.rooms.hub", "imports chatd.rooms.hub, which the table does not allow"),
    ("protocol/text.py", "from chatd.rooms import hub", "imports chatd.rooms.hub, which the table does not allow"),
    ("protocol/text.py", "from chatd import rooms", "imports chatd.rooms, which the table does not allow"),
    ("protocol/text.py", "from ..rooms.hub import Hub", "imports chatd.rooms.hub, which the table does not allow"),
    ("protocol/text.py", "from .. import rooms", "imports chatd.rooms, which the table does not allow"),
    ("protocol/text.py", "def later():\n    import chatd.worker.listener", "which the table does not allow"),
    ("protocol/text.py", "if TYPE_CHECKING:\n    import chatd.worker.listener", "which the table does not allow"),
    ("protocol/__init__.py", "from ..rooms import hub", "imports chatd.rooms.hub, which the table does not allow"),
    (
        "worker/worker.py",
        "from chatd.supervisor import reload",
        "imports chatd.supervisor.reload, which the table does",
    ),
    ("supervisor/reload.py", "from chatd.broker.bus import Bus", "imports chatd.broker.bus, which the table does not"),
    ("rooms/hub.py", "from chatd.rooms.gone import it", "imports chatd.rooms.gone.it, which does not exist"),
    ("rooms/hub.py", "import txredisapi", "imports txredisapi, which only chatd.broker.connection may"),
    ("clients/pipe_session.py", "from autobahn.websocket import types", "which only chatd.clients.websocket"),
    ("clients/send_buffer.py", "import autobahn", "which only chatd.clients.websocket"),
    ("worker/listener.py", "from twisted.internet import tcp", "which only chatd.clients.send_buffer"),
    ("clients/send_buffer.py", "from chatd.clients.websocket import Connection", "a cycle: chatd."),
    ("rooms/__init__.py", "from chatd.rooms.hub import Hub\nimport chatd.rooms", "a cycle: chatd."),
    ("worker/listener.py", "import twisted.internet.reactor", "imports the reactor when it is imported"),
    ("worker/listener.py", "class A:\n    from twisted.internet import reactor", "imports the reactor when it is"),
    ("protocol/websocket_frames.py", "import time", "imports time, but protocol is pure"),
    ("access/origins.py", "import socket", "imports socket, but access is pure"),
    ("protocol/message.py", "datetime.now(UTC)", "reads the clock"),
    ("tap.py", "def late():\n    import tests.fakes", "imports tests, which is not installed with chatd"),
    ("tap.py", "Path('x').read_text()", "depends on the locale"),
    ("tap.py", "Path('x').write_text('y')", "depends on the locale"),
    ("tap.py", "open('x', 'w')", "depends on the locale"),
    ("extra.py", "", "extra is not in the table"),
]


@rows(("path", "lines", "fault"), NEW_FAULTS)
def test_a_bad_import_is_found(path: str, lines: str, fault: str) -> None:
    assert any(fault in found for found in layers_with(path, lines).faults())


@rows(
    ("path", "lines"),
    [
        ("rooms/hub.py", "from chatd.protocol import text"),
        ("rooms/hub.py", "import chatd"),
        ("rooms/hub.py", "from . import pacer"),
        ("worker/listener.py", "def late():\n    from twisted.internet import reactor"),
        ("tap.py", "open('x', 'rb')"),
    ],
)
def test_a_good_import_is_no_fault(path: str, lines: str) -> None:
    assert layers_with(path, lines).faults() == []


def test_the_table_must_name_real_imports_from_packages_above() -> None:
    table = read_table(TABLE.read_text()) | {"gone": set()}
    table["config"] = {"web"}
    table["supervisor"] = table["supervisor"] | {"access"}
    assert layers_with(table=table).faults() == [
        "gone is in the table only",
        "config may import web, which is not above it",
        "config does not import web",
        "supervisor does not import access",
    ]
