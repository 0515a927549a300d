"""The page while others talk: what one presses, reads or has selected stays where it is; what is kept is bounded."""

from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.chromium import Window, Windows
from tests.system.daemon import Daemon

KEPT = 1000
"""How many messages of a room the page keeps (``SHOWN``)."""


def enter(window: Window, room: str) -> None:
    window.page.get_by_label("Join a room").fill(room)
    window.page.keyboard.press("Enter")
    expect(window.page.get_by_role("heading", level=1)).to_have_text(room)


def hold(page: Page, what: Locator) -> None:
    """Press the mouse on something, and keep it pressed."""
    what.hover()
    page.mouse.down()


def lines(first: int, end: int) -> list[str]:
    return [f"line {number}" for number in range(first, end)]


def tag(log: Locator) -> None:
    """Put a mark on the last row, which is on another element when the row is made anew."""
    log.evaluate("log => { log.lastElementChild.tagged = true; }")


def tagged(log: Locator) -> list[str]:
    found: list[str] = log.evaluate(
        "log => [...log.children].filter(row => row.tagged).map(row => row.querySelector('.text').textContent)"
    )
    return found


def place(line: Locator) -> float:
    """Give how far below the upper edge of the page a line is."""
    box: Any = line.bounding_box()
    return float(box["y"])


def test_a_press_on_a_room_works_though_a_message_comes_meanwhile(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open("busy-one")
    page, rooms = window.page, window.page.locator("#open-rooms")
    enter(window, "busy-two")
    enter(window, "busy-three")
    hold(page, rooms.get_by_role("link", name="busy-two"))
    daemon.say("busy-one", "while the button is down")
    expect(rooms.locator(".unread:visible")).to_have_text("1 new")
    page.mouse.up()
    expect(page.get_by_role("heading", level=1)).to_have_text("busy-two")
    hold(page, rooms.get_by_role("button", name="Leave busy-three"))
    daemon.say("busy-one", "and once more")
    expect(rooms.locator(".unread:visible")).to_have_text("2 new")
    page.mouse.up()
    expect(rooms.locator(".name")).to_have_text(["busy-one", "busy-two"])


def test_the_row_of_a_member_stays_when_others_come_and_go(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open("rows")
    window.name("mia")
    members = window.page.locator("#members")
    members.evaluate("list => { list.firstElementChild.tagged = true; }")
    with ExitStack() as others:
        for nick in ("zoe", "ann"):
            others.enter_context(daemon.connect(f"rows?nick={nick}"))
        expect(members.locator("li")).to_have_text(["ann", "mia (you)", "zoe"])
    expect(members.locator("li")).to_have_text(["mia (you)"])
    assert members.evaluate("list => list.firstElementChild.tagged")


def test_what_is_selected_stays_when_the_window_loses_the_focus_and_when_more_is_read(
    windows: Windows, daemon: Daemon
) -> None:
    daemon.say("selected", *lines(0, 120))
    window = windows.new().open("selected")
    window.wait_for_count(50)
    page = window.page
    page.locator(".text", has_text="line 75").evaluate("text => getSelection().selectAllChildren(text)")
    page.evaluate("() => { dispatchEvent(new Event('blur')); }")
    daemon.say("selected", "another")
    window.wait_for("another")
    page.locator("#messages").evaluate("log => { log.scrollTop = 0; }")
    window.wait_for_count(101)
    assert page.evaluate("() => String(getSelection())") == "line 75"


def test_a_flood_takes_old_rows_away_and_makes_no_other_anew(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open("trimmed")
    log = window.page.locator("#messages")
    daemon.say("trimmed", *lines(0, 600))
    window.wait_for("line 599")
    tag(log)
    daemon.say("trimmed", *lines(600, 1300))
    window.wait_for("line 1299")
    assert window.texts() == lines(300, 1300)
    assert tagged(log) == ["line 599"]


def test_what_is_kept_is_bounded_for_who_reads_further_up_and_the_rest_is_read_by_scrolling(
    windows: Windows, daemon: Daemon
) -> None:
    daemon.say("above", *lines(0, 60))
    window = windows.new().open("above")
    window.wait_for_count(50)
    page, log = window.page, window.page.locator("#messages")
    log.evaluate("log => { log.scrollTop = 0; }")
    window.wait_for_count(60)
    read = page.locator(".text", has_text="line 20").first
    read.evaluate("text => text.scrollIntoView()")
    newest = page.get_by_role("button", name="To the newest")
    expect(newest).to_be_visible()
    before = place(read)
    with daemon.connect("above") as talker:
        for text in lines(60, 1200):
            talker.send(text)
        page.wait_for_function("() => document.title.startsWith('(1140)')")
    window.wait_for(f"line {KEPT - 1}")
    assert window.texts() == lines(0, KEPT)
    assert place(read) == pytest.approx(before, abs=1)

    while window.texts()[-1] != "line 1199":  # down to the end, a page of history at a time
        last = window.texts()[-1]
        log.evaluate("log => { log.scrollTop = log.scrollHeight; }")
        page.wait_for_function("last => [...document.querySelectorAll('.text')].at(-1).textContent !== last", arg=last)
    assert window.texts() == lines(1200 - KEPT, 1200)
    log.evaluate("log => { log.scrollTop = log.scrollHeight; }")
    expect(newest).to_be_hidden()
    daemon.say("above", "said now")
    window.wait_for("said now")
    expect(page.locator(".text").last).to_be_in_viewport()


def test_who_reads_far_above_is_back_at_the_newest_with_one_press(windows: Windows, daemon: Daemon) -> None:
    daemon.say("back", *lines(0, 60))
    window = windows.new().open("back")
    window.wait_for_count(50)
    page, log = window.page, window.page.locator("#messages")
    log.evaluate("log => { log.scrollTop = 0; }")
    window.wait_for_count(60)
    log.evaluate("log => { log.scrollTop = 0; }")
    with daemon.connect("back") as talker:
        for text in lines(60, 3000):
            talker.send(text)
        page.wait_for_function("() => document.title.startsWith('(2940)')")
    assert log.locator(".text").count() <= KEPT
    page.get_by_role("button", name="To the newest").click()
    window.wait_for("line 2999")
    expect(page.locator(".text").last).to_be_in_viewport()
    expect(page).to_have_title("back - chatd")
    window.say("and I am here")
    assert window.texts()[-2:] == ["line 2999", "and I am here"]


def test_a_line_that_can_not_be_drawn_is_shown_as_text_and_the_next_ones_too(windows: Windows, daemon: Daemon) -> None:
    window = windows.new()
    window.page.add_init_script(
        """const matchAll = String.prototype.matchAll;
        String.prototype.matchAll = function (...those) {
          if (this.includes("poison")) throw new Error("poison");
          return matchAll.apply(this, those);
        };"""
    )
    window.open("poisoned")
    daemon.say("poisoned", "before", "poison", "after")
    window.wait_for("after")
    assert window.texts() == ["before", "poison", "after"]
    assert [fault.startswith("console: Error: poison") for fault in window.faults] == [True]
    window.faults.clear()
