"""What the tests of rooms share."""

from collections.abc import Iterator

import pytest
from twisted.logger import globalLogPublisher

from tests.fakes import Events


@pytest.fixture
def events() -> Iterator[Events]:
    """Hear what the server's own log is told."""
    events = Events()
    globalLogPublisher.addObserver(events)
    yield events
    globalLogPublisher.removeObserver(events)
