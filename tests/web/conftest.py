"""A worker's HTTP side, and a client of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import reactor_by_hand
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
    with reactor_by_hand() as reactor:
        yield reactor
