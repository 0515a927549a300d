"""Everybody can use the page: with a keyboard alone, with a screen reader, on a telephone, in the dark."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.chromium import Window, Windows
from tests.system.daemon import Daemon

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
ZOOMED: dict[str, Any] = {"viewport": {"width": 320, "height": 256}}  # 1280 by 1024 at 400 %


def talked_in(windows: Windows, daemon: Daemon, room: str, **options: Any) -> Window:
    """Give the page of a room in which everything is to be seen that there can be."""
    window = windows.new(**options)
    with daemon.connect(f"{room}?nick=ben") as ben, daemon.connect(room) as bare:
        for number in range(4):
            ben.send(f"hello `code` https://example.org/{number} {'long' * 40}")
        bare.send("```\nsome code\n```")
        window.open(room)
        window.wait_for_count(5)
        window.name("ann")
        window.say("mine")
    return window


def serious(window: Window) -> list[str]:
    """Give what axe-core finds that is serious or worse."""
    found = Axe().run(window.page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(windows: Windows, daemon: Daemon, size: dict[str, Any], scheme: str) -> None:
    window = talked_in(windows, daemon, f"axe-{scheme}-{size['viewport']['width']}", color_scheme=scheme, **size)
    assert serious(window) == []
    if size is PHONE:
        for button in ("Rooms", "Here now"):
            window.page.get_by_role("button", name=button).click()
            assert serious(window) == []
            window.page.keyboard.press("Escape")


@pytest.mark.parametrize("size", [PHONE, ZOOMED], ids=["phone", "zoomed"])
def test_a_small_page_does_not_scroll_sideways_and_hides_nothing(
    windows: Windows, daemon: Daemon, size: dict[str, Any]
) -> None:
    window = talked_in(windows, daemon, f"small-{size['viewport']['width']}", **size)
    page = window.page
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#messages").evaluate("log => log.scrollWidth <= log.clientWidth")
    for field in (page.get_by_label("Your name"), page.get_by_label("Message", exact=True), page.locator("#send")):
        field.scroll_into_view_if_needed()
        expect(field).to_be_in_viewport()


def test_on_a_telephone_rooms_and_people_are_one_touch_away(windows: Windows, daemon: Daemon) -> None:
    page = windows.new(**PHONE).open("touch").page
    rooms = page.get_by_role("button", name="Rooms")
    expect(page.locator("#rooms")).to_be_hidden()
    rooms.tap()
    expect(rooms).to_have_attribute("aria-expanded", "true")
    page.get_by_label("Join a room").fill("touch-too")
    page.get_by_role("button", name="Join", exact=True).tap()
    expect(page.get_by_role("heading", level=1)).to_have_text("touch-too")
    expect(page.locator("#rooms")).to_be_hidden()
    page.get_by_role("button", name="Here now").tap()
    expect(page.locator("#here")).to_be_visible()
    page.locator("#messages").tap(position={"x": 20, "y": 300})
    expect(page.locator("#here")).to_be_hidden()


def test_targets_are_large_enough(windows: Windows, daemon: Daemon) -> None:
    page = talked_in(windows, daemon, "targets", **DESKTOP).page
    sizes = page.locator("button:visible, input:visible, textarea:visible, nav a:visible").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect()).map(({ width, height }) => Math.min(width, height))"
    )
    assert min(sizes) >= 24


def test_a_keyboard_is_enough(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open("keys")
    page, press = window.page, window.page.keyboard.press
    expect(page.get_by_label("Your name")).to_be_focused()
    page.keyboard.type("ann")
    press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("one line")
    press("Shift+Enter")
    page.keyboard.type("and another")
    press("Enter")
    window.wait_for("one line\nand another")
    page.get_by_label("Join a room").focus()
    page.keyboard.type("keys-too")
    press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("keys-too")
    press("Alt+ArrowUp")
    expect(page.get_by_role("heading", level=1)).to_have_text("keys")
    press("Alt+ArrowDown")
    expect(page.get_by_role("heading", level=1)).to_have_text("keys-too")
    skip = page.get_by_role("link", name="To the message field")
    assert page.locator("a, button, input").first.text_content() == skip.text_content(), "it comes first"
    skip.focus()
    expect(skip).to_be_in_viewport()
    press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_all_that_can_be_used_is_reached_by_tab(windows: Windows, daemon: Daemon) -> None:
    page = talked_in(windows, daemon, "tabs", **DESKTOP).page
    page.evaluate("() => document.activeElement.blur()")
    reached: set[str] = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {"messages", "room", "nick", "text", "send", "A"} <= reached


def test_a_screen_reader_hears_what_is_new_but_not_what_is_old(windows: Windows, daemon: Daemon) -> None:
    daemon.say("aloud", "before")
    page = windows.new()
    page.page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            const log = document.getElementById("messages");
            window.aloud = [];
            new MutationObserver((changes) => {
              for (const { addedNodes } of changes) {
                for (const each of addedNodes) {
                  if (log.getAttribute("aria-live") === "polite") aloud.push(each.textContent);
                }
              }
            }).observe(log, { childList: true, subtree: true });
        });"""
    )
    page.open("aloud").wait_for("before")
    expect(page.page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    daemon.say("aloud", "now")
    page.wait_for("now")
    aloud = "".join(page.page.evaluate("() => aloud"))
    assert "now" in aloud
    assert "before" not in aloud


def test_who_wants_less_motion_gets_none(windows: Windows, daemon: Daemon) -> None:
    page = windows.new(reduced_motion="reduce", **PHONE).open("still").page
    assert page.locator("#rooms").evaluate("each => getComputedStyle(each).transitionDuration") == "0s"
