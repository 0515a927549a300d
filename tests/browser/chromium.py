"""The chat page in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    WebSocket,
    expect,
    sync_playwright,
)

PATIENCE = 20_000
"""Milliseconds after which what should have happened did not."""

_ARGUMENTS = (
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",  # names that are not loopback's, for plain http
)


@contextmanager
def chromium(path: str | None = None) -> Iterator[Browser]:
    """Run the browser, or a program that runs it."""
    expect.set_options(timeout=PATIENCE)
    path = path or shutil.which("chromium")
    assert path, "Chromium is not installed: sudo apt install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


class Window:
    """One tab with the page in it, and what went wrong there."""

    def __init__(self, page: Page, base: str, expected: tuple[str, ...] = ()) -> None:
        self.page = page
        self.base = base
        self._expected = expected
        self.faults: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("dialog", self._dialog)
        page.on("request", lambda request: self._request(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        network = ("WebSocket connection to", "Failed to load resource: net::")  # a server that is away is none
        if message.type in ("error", "warning") and not message.text.startswith((*network, *self._expected)):
            self.faults.append(f"console: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, url: str) -> None:
        if not url.startswith((self.base, self.base.replace("http", "ws"))):
            self.faults.append(f"request: {url}")

    def open(self, room: str = "") -> "Window":
        """Go to a room, and wait until it is connected."""
        self.page.goto(f"{self.base}/{room}")
        self.online()
        return self

    def online(self) -> None:
        """Wait until it says that it is connected."""
        expect(self.page.locator("#status")).to_have_attribute("data-state", "online")

    def go_offline(self, profile: BrowserContext) -> None:
        """Cut its profile off from the network, and wait until it says so."""
        profile.set_offline(True)
        expect(self.page.locator("#status")).to_have_attribute("data-state", "offline")

    def name(self, nick: str) -> None:
        """Take a name, and see that one has it."""
        self.page.get_by_label("Your name").fill(nick)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#members")).to_contain_text(f"{nick} (you)")

    def say(self, text: str, *, wait: bool = True) -> None:
        """Type a message, and wait until it is sent."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")
        if wait:
            expect(self.page.locator("#messages .message").last).to_have_attribute("data-state", "sent")

    def texts(self) -> list[str]:
        """Give all texts that are shown, from top to bottom."""
        texts: list[str] = self.page.locator("#messages").evaluate(
            "log => [...log.querySelectorAll('.text')].map(each => each.textContent)"
        )
        return texts

    def wait_for(self, text: str) -> None:
        """Wait until a text is the last one that is shown."""
        expect(self.page.locator("#messages .text").last).to_have_text(text)

    def wait_for_count(self, count: int) -> None:
        """Wait until so many messages are shown."""
        expect(self.page.locator("#messages .text")).to_have_count(count)


def count_dials(page: Page) -> list[WebSocket]:
    """Give a list of all connections that the page makes from now on."""
    dials: list[WebSocket] = []

    def note(dialled: WebSocket) -> None:
        dials.append(dialled)

    page.on("websocket", note)
    return dials


class Windows:
    """The tabs of one test, each in a profile of its own where it is not asked for in another's."""

    def __init__(self, browser: Browser, base: str, expected: tuple[str, ...] = ()) -> None:
        """Take where they are, and how messages in the console begin that are no faults."""
        self.browser = browser
        self.base = base
        self._expected = expected
        self.windows: list[Window] = []
        self._contexts: list[BrowserContext] = []

    def profile(self, **options: Any) -> BrowserContext:
        """Make a profile: a viewport, a colour scheme, …"""
        context = self.browser.new_context(**options)
        self._contexts.append(context)
        return context

    def new(self, profile: BrowserContext | None = None, **options: Any) -> Window:
        """Open a tab."""
        return self.add((profile or self.profile(**options)).new_page())

    def add(self, page: Page) -> Window:
        """Watch a tab that opened by itself."""
        window = Window(page, self.base, self._expected)
        self.windows.append(window)
        return window

    def close(self) -> None:
        """Close all of them; what went wrong in any is a failure."""
        for context in self._contexts:
            context.close()
        faults = [fault for window in self.windows for fault in window.faults]
        assert faults == [], faults
