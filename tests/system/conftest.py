"""The daemon that the tests of a module share, and terminals."""

from collections.abc import Iterator

import pytest

from tests.system.daemon import Daemon, Terminal


@pytest.fixture(scope="module")
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run chatd for a module with its ``OPTIONS``, ``FILES`` and ``WORKERS``; each test uses rooms of its own."""
    folder = tmp_path_factory.mktemp("chatd")
    for name, content in getattr(request.module, "FILES", {}).items():
        (folder / name).write_bytes(content)
    options, workers = getattr(request.module, "OPTIONS", ()), getattr(request.module, "WORKERS", 2)
    with Daemon(folder, *options, workers=workers) as running:
        yield running


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Return a list; the terminals that a test adds to it are closed in the end."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.end()
