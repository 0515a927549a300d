from collections.abc import Iterator

import pytest

from tests.supervisor.children import Said


@pytest.fixture
def said() -> Iterator[Said]:
    """What a test makes chatd say in the server's own log."""
    heard = Said()
    yield heard
    heard.close()
