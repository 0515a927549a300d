"""The load generator, compiled once."""

import pytest

from benchmarks import generator


@pytest.fixture(scope="session", autouse=True)
def _the_generator() -> None:
    generator.build()
