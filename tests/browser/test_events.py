"""A browser's EventSource: one that was refused for now comes back by itself."""

import json
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Browser

from tests.browser.chromium import Windows
from tests.system.daemon import Daemon
from tests.waiting import until

LISTEN = """url => {
    window.told = [];
    const events = new EventSource(url);
    for (const kind of ["message", "bye"]) {
        events.addEventListener(kind, ({ data }) => window.told.push(JSON.parse(data)));
    }
}"""


def test_one_that_was_refused_for_now_comes_back_and_hears_the_room(browser: Browser, tmp_path: Path) -> None:
    with Daemon(tmp_path, "--tuning", "worker_connections=8", workers=1) as daemon:
        followers = [urlopen(daemon.url("ops?follow=1", "http")) for _ in range(4)]
        windows = Windows(browser, daemon.url(scheme="http").rstrip("/"))
        page = windows.profile().new_page()
        page.goto(daemon.url("-/", "http"))
        page.evaluate(LISTEN, "/ops")

        def told(kind: str) -> list[dict[str, object]]:
            page.wait_for_timeout(1)
            return [each for each in page.evaluate("window.told") if each["type"] == kind]

        bye = until(lambda: told("bye"), "it to be refused")[0]
        assert bye["reason"] == "too many clients follow rooms over HTTP; try again later"
        for follower in followers:
            follower.close()

        def hears() -> bool:
            with urlopen(daemon.url("ops/members", "http")) as answer:
                return bool(json.load(answer)["count"] == 1)

        until(hears, "it to come back")
        urlopen(daemon.url("ops", "http"), b"welcome back").close()
        assert until(lambda: told("message"), "a message")[0]["text"] == "welcome back"
        windows.close()
