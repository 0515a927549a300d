"""A chat server of its own for each test of rooms."""

import pytest

from tests.fakes import FakeBus
from tests.rooms.server import PACED, TURNS, ChatServer, make_server


@pytest.fixture
def server() -> ChatServer:
    """Return one that flushes at each turn."""
    return make_server(TURNS, FakeBus())


@pytest.fixture
def paced() -> ChatServer:
    """Return one that waits between two flushes."""
    return make_server(PACED, FakeBus())
