"""A browser for all tests of the page; the daemon of a module is that of the system tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.chromium import Windows, chromium
from tests.system.conftest import daemon
from tests.system.daemon import Daemon

__all__ = ["daemon"]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def windows(browser: Browser, daemon: Daemon) -> Iterator[Windows]:
    opened = Windows(browser, daemon.url(scheme="http").rstrip("/"))
    yield opened
    opened.close()
