"""A browser for all tests of the page, a daemon for those of a module."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.chromium import Windows, chromium
from tests.system.daemon import Daemon


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run a chatd with two workers; a test has rooms of its own."""
    with Daemon(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def windows(browser: Browser, daemon: Daemon) -> Iterator[Windows]:
    opened = Windows(browser, daemon.url(scheme="http").rstrip("/"))
    yield opened
    opened.close()
