"""A worker's HTTP side, and a client of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import reactor_by_hand
from tests.web.http_client import ChatServer, HttpClient


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


@pytest.fixture
def http_client(server: ChatServer) -> HttpClient:
    return HttpClient(server)


@pytest.fixture
def reactor() -> Iterator[Any]:
    """Give a reactor of the test's own, which it turns by hand."""
    with reactor_by_hand() as reactor:
        yield reactor
