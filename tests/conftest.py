"""Fixtures of all tests: a real Valkey, and a rule that nothing is skipped."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from twisted.logger import globalLogPublisher

from chatd.supervisor.private_broker import find_server
from tests.authority import self_signed
from tests.depth import depth
from tests.fakes import Events
from tests.waiting import until


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """Run the real server for the whole session; give its URL. Tests keep apart by their ``redis_prefix``."""
    with tempfile.TemporaryDirectory(prefix="chatd-test-") as folder:
        path = Path(folder, "broker.sock")
        command = [find_server(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                until(path.exists, "the Valkey server's socket")
                yield f"unix://{path}"
            finally:
                server.terminate()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for localhost."""
    return self_signed(tmp_path_factory.mktemp("tls") / "localhost.pem")


@pytest.fixture
def events() -> Iterator[Events]:
    """Record log events."""
    events = Events()
    globalLogPublisher.addObserver(events)
    yield events
    globalLogPublisher.removeObserver(events)


@pytest.fixture(scope="class")
def broker(request: pytest.FixtureRequest, valkey_url: str) -> None:
    """Set the ``valkey_url`` attribute of a trial TestCase."""
    request.cls.valkey_url = valkey_url


ROOT = Path(__file__).parents[1]
QUICK = [line for line in (ROOT / "tests" / "quick.txt").read_text().splitlines() if line and not line.startswith("#")]
"""Folders, files and tests of ``make test``."""
NOT_QUICK = tuple(entry[1:] for entry in QUICK if entry.startswith("!"))
WITHIN_QUICK = tuple(entry + end for entry in QUICK for end in ("/", "::", "["))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the option that selects a part of the tests."""
    parser.addoption("--part", choices=("quick", "full"), help="run what tests/quick.txt lists, or everything else")


def _is_quick(name: str) -> bool:
    """Return whether a test, a file or a folder is in the list."""
    return (name in QUICK or name.startswith(WITHIN_QUICK)) and not name.startswith(NOT_QUICK)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only the files of the part: packages that the full part needs are missing where the quick one runs."""
    name = collection_path.relative_to(ROOT).as_posix()
    holds_quick = any(entry.startswith((f"{name}/", f"{name}::")) for entry in QUICK)
    match config.getoption("--part"):
        case "quick":
            ignored = not (_is_quick(name) or holds_quick)
        case "full":
            ignored = _is_quick(name) and not any(entry.startswith((f"{name}/", f"{name}::")) for entry in NOT_QUICK)
        case _:
            ignored = False
    return ignored or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other part."""
    if part := config.getoption("--part"):
        config.hook.pytest_deselected(items=[item for item in items if _is_quick(item.nodeid) != (part == "quick")])
        items[:] = [item for item in items if _is_quick(item.nodeid) == (part == "quick")]


def pytest_configure(config: pytest.Config) -> None:
    """Run from anywhere with this checkout's code, in child processes too."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a script's &; what we start would too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Seconds say nothing where others share the cores.
    settings.register_profile(
        "chatd", max_examples=depth(200), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("chatd")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Count a skipped test as failed: what it needs must be installed, or said how to get."""
    report = yield
    if report.skipped:  # type: ignore[attr-defined]
        report.outcome = "failed"  # type: ignore[attr-defined]
        report.longrepr = f"{item.nodeid} was skipped; nothing may be"  # type: ignore[attr-defined]
    return report
