"""What all tests share: a real Valkey, and a rule that nothing is skipped."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import globalLogPublisher

from chatd.parent.valkey import find_server
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


@pytest.fixture
def events() -> Iterator[Events]:
    """Hear what the server's own log is told."""
    events = Events()
    globalLogPublisher.addObserver(events)
    yield events
    globalLogPublisher.removeObserver(events)


@pytest.fixture(scope="class")
def broker(request: pytest.FixtureRequest, valkey_url: str) -> None:
    """Give a trial TestCase its ``valkey_url`` attribute."""
    request.cls.valkey_url = valkey_url


def pytest_configure(config: pytest.Config) -> None:
    """Run from anywhere with this checkout's code, in child processes too."""
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Count a skipped test as failed: what it needs must be installed, or said how to get."""
    report = yield
    if report.skipped:  # type: ignore[attr-defined]
        report.outcome = "failed"  # type: ignore[attr-defined]
        report.longrepr = f"{item.nodeid} was skipped; nothing may be"  # type: ignore[attr-defined]
    return report
