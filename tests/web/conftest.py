"""The HTTP side of a worker, and a client of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import reactor_by_hand
from tests.web.http_client import ChatServer, HttpClient


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


@pytest.fixture
def client(server: ChatServer) -> HttpClient:
    return HttpClient(server)


@pytest.fixture
def reactor() -> Iterator[Any]:
    """Return a reactor that the test runs step by step."""
    with reactor_by_hand() as reactor:
        yield reactor
