"""Pages of another origin in a real browser: none of the requests that carry no Origin joins a room."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Request
from websockets.sync.client import ClientConnection

from tests.browser.chromium import Windows
from tests.system.daemon import Daemon, hear
from tests.waiting import PATIENCE, until

WAYS = {
    "image": "url => { new Image().src = url; }",
    "stylesheet": """url => {
        document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: url }));
    }""",
    "script": "url => { document.head.append(Object.assign(document.createElement('script'), { src: url })); }",
    "fetch": "url => { fetch(url, { mode: 'no-cors' }).catch(() => {}); }",
    "events": """url => {
        fetch(url, { mode: "no-cors", headers: { Accept: "text/event-stream" } }).catch(() => {});
    }""",
    "frame": "url => { document.body.append(Object.assign(document.createElement('iframe'), { src: url })); }",
    "tab": "url => { open(url); }",
    "navigation": "url => { setTimeout(() => { location = url; }); }",
}
"""How a page sends a GET without an Origin."""


# Browsers send no Sec-Fetch headers for the two names that are not loopback's.
NAMES = ("127.0.0.1", "localhost", "chat.test", "evil.test")
OPTIONS = [word for name in NAMES for word in ("--allowed-host", name)]


def present(watcher: ClientConnection) -> str:
    """Return the names of everybody in the room, and everything that the watcher was told before."""
    watcher.send("/who")
    told = ""
    while "* here: " not in told:
        told += str(watcher.recv(PATIENCE)) + "\n"
    return told


def send(page: Page, way: str, url: str) -> None:
    """Let a page send a request, and wait until the browser has its answer or gives it up."""

    def is_it(request: Request) -> bool:
        return bool(request.url == url)

    context = page.context
    done: list[str] = []
    context.on("response", lambda response: done.append(response.url))
    context.on("requestfailed", lambda request: done.append(request.url))
    with context.expect_event("request", is_it):
        page.evaluate(WAYS[way], url)

    def is_done() -> bool:
        context.pages[0].wait_for_timeout(1)  # lets Playwright note what happened
        return url in done

    until(is_done, f"an answer to {url}")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("localhost", "127.0.0.1"), ("127.0.0.1", "localhost"), ("evil.test", "chat.test")],
    ids=["address", "name", "plain http"],
)
def test_a_page_of_another_site_joins_no_room_under_a_name(
    windows: Windows, daemon: Daemon, theirs: str, ours: str
) -> None:
    profile = windows.profile()
    with daemon.connect(f"{ours}?nick=watcher") as watcher:
        for way in WAYS:
            page = profile.new_page()
            page.goto(f"http://{theirs}:{daemon.port}/-/")
            send(page, way, f"http://{ours}:{daemon.port}/{ours}?follow=1&nick=evil-{way}")
        assert present(watcher) == "* here: watcher\n"


def test_a_page_of_another_port_joins_no_room(windows: Windows, daemon: Daemon, tmp_path: Path) -> None:
    profile = windows.profile()
    with Daemon(tmp_path / "other") as other, daemon.connect("port?nick=watcher") as watcher:
        for way in WAYS:
            page = profile.new_page()
            page.goto(other.url("-/", "http"))
            send(page, way, daemon.url(f"port?follow=1&nick=evil-{way}", "http"))
        assert present(watcher) == "* here: watcher\n"


def test_a_link_on_another_site_opens_the_chat_page(windows: Windows, daemon: Daemon) -> None:
    page = windows.profile().new_page()
    page.goto(f"http://localhost:{daemon.port}/-/")
    with page.expect_navigation():
        page.evaluate(WAYS["navigation"], daemon.url("linked?nick=evil", "http"))
    assert page.get_by_role("heading", level=1).text_content() == "linked"


def test_our_own_page_follows_a_room_under_a_name(windows: Windows, daemon: Daemon) -> None:
    page = windows.profile().new_page()
    page.goto(daemon.url("-/", "http"))
    with daemon.connect("own?nick=watcher") as watcher:
        page.evaluate("url => { events = new EventSource(url); }", daemon.url("own?nick=ann", "http"))
        hear(watcher, "* ann joined")


def test_who_types_the_address_follows_a_room_under_a_name(windows: Windows, daemon: Daemon) -> None:
    page = windows.profile().new_page()
    with daemon.connect("typed?nick=watcher") as watcher:
        page.goto(daemon.url("typed?follow=1&nick=ann", "http"), wait_until="commit")
        hear(watcher, "* ann joined")
