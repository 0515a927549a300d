"""The page where its address has asked for too much: it asks again by itself, and nothing is missing in the end."""

from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import Windows
from tests.browser.test_chat import post
from tests.system.daemon import Daemon
from tests.waiting import until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run a chatd that lets an address ask twice a second, after 20 times at once."""
    with Daemon(tmp_path_factory.mktemp("limits"), "--limit-requests", "2", workers=1) as running:
        yield running


@pytest.fixture
def windows(browser: Browser, daemon: Daemon) -> Iterator[Windows]:
    told = "Failed to load resource: the server responded with a status of 429"  # the rooms that it would suggest
    opened = Windows(browser, daemon.url(scheme="http").rstrip("/"), (told,))
    yield opened
    opened.close()


def refuses(daemon: Daemon) -> bool:
    """Ask for something; return whether that was too often."""
    try:
        with urlopen(daemon.url("elsewhere", "http")):
            return False
    except HTTPError as error:
        with error:
            return error.code == 429


def test_who_is_here_and_what_was_said_are_asked_for_again_when_it_was_too_much(
    windows: Windows, daemon: Daemon
) -> None:
    post(daemon, "quiet", "said before")
    page = windows.new().open("first")
    page.name("ann")
    until(lambda: refuses(daemon), "the limit")
    page.page.get_by_label("Join a room").fill("quiet")
    page.page.keyboard.press("Enter")
    page.wait_for("said before")
    expect(page.page.locator("#members")).to_contain_text("ann (you)")
    page.say("here I am")
    assert page.texts() == ["said before", "here I am"]
