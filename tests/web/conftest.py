"""A worker's HTTP side, and a client of it."""

import pytest

from tests.web.asker import Asker, House


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def asker(house: House) -> Asker:
    return Asker(house)
