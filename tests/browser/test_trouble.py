"""The page when something goes wrong: what was typed is not lost in silence, and what was missed is told."""

import json
import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import WebSocket, expect

from tests.browser.chromium import Window, Windows, count_dials
from tests.browser.test_chat import post
from tests.system.daemon import Daemon, stopped
from tests.waiting import until

COUNTED_AGAIN = 30_000
"""Milliseconds after which the page counts the members of a large room again (``COUNTED``)."""


def let_pass(window: Window, dial: WebSocket, milliseconds: int) -> None:
    """Let the clock of a page go on, so far that it asks for a sign of life, and wait for that."""
    with dial.expect_event("framereceived", lambda frame: '"pong"' in frame):
        window.page.clock.fast_forward(milliseconds)


def here(daemon: Daemon, room: str) -> int:
    """Give how many members a room has."""
    with urlopen(f"http://127.0.0.1:{daemon.port}/-/rooms") as answer:
        return {each["room"]: int(each["members"]) for each in json.load(answer)["rooms"]}.get(room, 0)


OPTIONS = ("--history-size", "5", "--max-message-size", "1000", "--tuning", "presence_limit=3")
WORKERS = 1


def test_a_message_says_whether_it_is_sent_yet(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("states")
    with ExitStack() as frozen:
        for worker in daemon.worker_pids():
            frozen.enter_context(stopped(worker))
        page.say("hello", wait=False)
        expect(page.page.locator(".message")).to_have_attribute("data-state", "sending")
        expect(page.page.locator(".message .state")).to_have_text("sending …")
    expect(page.page.locator(".message")).to_have_attribute("data-state", "sent")
    assert page.texts() == ["hello"]
    expect(page.page.locator(".day")).to_have_count(1)


def test_what_is_too_long_is_kept_with_the_reason(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("too-long")
    page.say("ä" * 501, wait=False)
    expect(page.page.locator("#hint")).to_have_text("This message is too long: 1,002 bytes; 1,000 are allowed.")
    expect(page.page.get_by_label("Message", exact=True)).to_have_value("ä" * 501)
    page.say("ä" * 500)
    expect(page.page.locator("#hint")).to_be_empty()
    assert page.texts() == ["ä" * 500]


def test_what_the_server_can_not_take_yet_waits_and_is_sent_in_order(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("waits")
    delete = page.page.get_by_role("button", name="Delete")
    with stopped(daemon.broker_pid()):
        daemon.wait_for("broker_unavailable: ")
        for text in ("one", "two", "three"):
            page.say(text, wait=False)
        expect(page.page.locator(".reason")).to_have_text("Not sent yet: the message bus is away")
        delete.evaluate("it => { it.click(); it.click() }")
        expect(page.page.locator(".text")).to_have_text(["two", "three"])
    expect(page.page.locator("[data-state=sent]")).to_have_count(2)
    assert page.texts() == ["two", "three"]
    assert daemon.texts()[-2:] == ["two", "three"]


def test_it_says_when_it_is_offline_and_comes_back_by_itself(windows: Windows, daemon: Daemon) -> None:
    profile = windows.profile()
    page = windows.new(profile).open("offline")
    page.go_offline(profile)
    expect(page.page.locator("#status")).to_have_text("Offline: no network")
    page.say("said while offline", wait=False)
    expect(page.page.locator(".message")).to_have_attribute("data-state", "sending")
    post(daemon, "offline", "said by another")
    profile.set_offline(False)
    page.online()
    page.wait_for_count(2)
    expect(page.page.locator("[data-state=sent]")).to_have_count(1)
    assert page.texts() == ["said by another", "said while offline"]


def test_it_says_how_many_messages_are_lost(windows: Windows, daemon: Daemon) -> None:
    profile = windows.profile()
    page = windows.new(profile).open("lost")
    post(daemon, "lost", "l0")
    page.wait_for("l0")
    page.go_offline(profile)
    for number in range(1, 21):
        post(daemon, "lost", f"l{number}")
    profile.set_offline(False)
    page.wait_for("l20")
    expect(page.page.locator(".gap")).to_have_text("⚠ 15 messages lost")
    assert page.texts() == ["l0", *(f"l{number}" for number in range(16, 21))]


def test_it_says_when_nobody_knows_what_is_lost(windows: Windows, daemon: Daemon) -> None:
    profile = windows.profile()
    page = windows.new(profile).open("unknown")
    post(daemon, "unknown", "before")
    page.wait_for("before")
    page.go_offline(profile)
    after = len(daemon.log())
    os.kill(daemon.broker_pid(), signal.SIGKILL)  # and with it goes all that it knew
    daemon.wait_for("broker_available: ", after=after)
    post(daemon, "unknown", "after")
    profile.set_offline(False)
    page.wait_for("after")
    expect(page.page.locator(".gap")).to_have_text("⚠ Some messages may be lost")
    assert page.texts() == ["before", "after"]


def test_it_comes_back_though_the_last_thing_it_knows_is_that_something_is_lost(
    windows: Windows, daemon: Daemon
) -> None:
    profile = windows.profile()
    page = windows.new(profile).open("twice")
    post(daemon, "twice", "before")
    page.wait_for("before")
    page.go_offline(profile)
    after = len(daemon.log())
    os.kill(daemon.broker_pid(), signal.SIGKILL)
    daemon.wait_for("broker_available: ", after=after)
    profile.set_offline(False)
    expect(page.page.locator(".gap")).to_have_text("⚠ Some messages may be lost")
    page.go_offline(profile)
    profile.set_offline(False)
    page.online()
    post(daemon, "twice", "after")
    page.wait_for("after")
    expect(page.page.locator(".gap")).to_have_count(1)
    expect(page.page.locator("#hint")).to_be_empty()


def test_a_server_that_stops_is_waited_for(windows: Windows, tmp_path: Path) -> None:
    with Daemon(tmp_path / "stops") as other:
        page = windows.new()
        page.base = other.url(scheme="http").rstrip("/")
        page.open("stops")
        page.say("before")
        other.process.terminate()
        expect(page.page.locator("#status")).to_have_text(re.compile("Offline: trying again"))
        other.process.wait(20)
        page.say("unsent", wait=False)
        expect(page.page.locator(".message").last).to_have_attribute("data-state", "sending")


def test_the_members_of_a_large_room_are_counted_again(windows: Windows, daemon: Daemon) -> None:
    page = windows.new()
    page.page.clock.install()
    dials = count_dials(page.page)
    page.open("large").name("ann")
    members, count, summary = (page.page.locator(name) for name in ("#members li", "#count", "#nameless"))
    with ExitStack() as others:

        def come(number: int) -> None:
            for _ in range(number):
                others.enter_context(daemon.connect("large?nick=ben"))

        come(2)
        expect(members).to_have_text(["ann (you)", "ben", "ben*2"])
        come(2)  # too many: nobody is told
        for _ in range(4):  # so rarely is it asked whether that is so
            let_pass(page, dials[-1], COUNTED_AGAIN)
        expect(summary).to_have_text("5 members: too many to be listed")
        expect(members).to_have_count(0)
        come(1)
        let_pass(page, dials[-1], COUNTED_AGAIN)
        expect(summary).to_have_text("6 members: too many to be listed")
        expect(count).to_have_text("6")
    until(lambda: here(daemon, "large") == 1, "the others to be gone")
    let_pass(page, dials[-1], COUNTED_AGAIN)
    expect(members).to_have_text(["ann (you)"])
    expect(summary).to_be_empty()
    expect(count).to_have_text("1")
