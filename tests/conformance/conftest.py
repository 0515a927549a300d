"""The testee, in a process of its own."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.raw import RawClient

Connect = Callable[[], RawClient]


@contextmanager
def running(*options: str) -> Iterator[tuple[str, int]]:
    """Run a testee; give where it listens. It ends with its standard input."""
    command = [sys.executable, "-m", "tests.conformance.testee", "0", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as testee:
        assert testee.stdin and testee.stdout
        said = testee.stdout.readline()
        assert said.startswith("listening on 127.0.0.1:"), said
        yield "127.0.0.1", int(said.rpartition(":")[2])
        testee.stdin.close()
        assert testee.wait(20) == 0


@pytest.fixture(scope="session")
def testee() -> Iterator[tuple[str, int]]:
    """Run the testee for all tests; give its address."""
    with running() as address:
        yield address


@pytest.fixture
def connect(testee: tuple[str, int]) -> Connect:
    """Give what opens a WebSocket to the testee."""
    return lambda: RawClient(testee)
