"""The page where its address has asked for too much: it asks again by itself, and nothing is missing in the end."""

from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import Windows, count_dials
from tests.browser.test_chat import post
from tests.system.daemon import Daemon
from tests.waiting import until

# An address may send 2 requests a second, after a burst of 20, and a client 5 messages a second.
OPTIONS = ("--tuning", "request_rate=2", "--message-rate", "5")
WORKERS = 1


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


def test_what_was_written_while_offline_is_sent_as_fast_as_the_server_takes_it(
    windows: Windows, daemon: Daemon
) -> None:
    profile = windows.profile()
    page = windows.new(profile).open("offline")
    dials = count_dials(page.page)
    page.go_offline(profile)
    written = [f"written {number}" for number in range(14)]  # after 10 at once the server refuses some
    for text in written:
        page.say(text, wait=False)
    profile.set_offline(False)
    page.online()
    count = len(dials)
    expect(page.page.locator("[data-state=sent]")).to_have_count(14)
    assert page.texts() == written
    assert [text for text in daemon.texts() if text.startswith("written")] == written
    assert len(dials) == count, "nobody was closed for being too fast"
