"""A worker's HTTP side, and a client of it."""

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from tests.web.asker import Asker, House


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def asker(house: House) -> Asker:
    return Asker(house)


@pytest.fixture
def reactor() -> Iterator[Any]:
    """Give a reactor of the test's own, which it turns by hand."""
    reactor: Any = EPollReactor()
    yield reactor
    reactor.removeAll()
    for reader in list(reactor._internalReaders):
        reactor._internalReaders.discard(reader)
        reader.connectionLost(Failure(ConnectionError()))
    reactor._poller.close()
