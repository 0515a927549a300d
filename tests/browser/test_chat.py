"""The main job in a browser: people and programs talk, whatever happens to the page and to the server under it."""

import http.client
import json
import os
import signal

from playwright.sync_api import expect

from tests.browser.chromium import Windows, count_dials
from tests.system.daemon import Daemon, Websocat
from tests.waiting import until


def post(daemon: Daemon, room: str, text: str, nick: str = "") -> None:
    """Say something over HTTP, again where a worker dies meanwhile: with one id it is said once."""
    body = json.dumps({"text": text, "id": f"id-{text}", **({"nick": nick} if nick else {})})

    def try_it() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
        try:
            connection.request("POST", f"/{room}", body, {"Content-Type": "application/json"})
            return connection.getresponse().status == 201
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    until(try_it, f"{text!r} to be said")


def test_two_pages_and_a_terminal_hear_one_another(windows: Windows, daemon: Daemon) -> None:
    ann, ben = windows.new().open("three"), windows.new().open("three")
    ann.name("ann")
    ben.name("ben")
    terminal = Websocat(daemon.url("three?nick=zoe"))
    try:
        expect(ann.page.locator("#members")).to_contain_text("zoe")
        ann.say("hello from ann")
        ben.wait_for("hello from ann")
        ben.say("hello from ben")
        terminal.type("hello from a terminal")
        for window in (ann, ben):
            window.wait_for("hello from a terminal")
            assert window.texts() == ["hello from ann", "hello from ben", "hello from a terminal"]
            assert window.page.locator(".author").all_inner_texts() == ["ann", "ben", "zoe"]
            assert window.page.locator("#members li").count() == 3
        assert terminal.wait_for(2)[-2:] == ["ann: hello from ann", "ben: hello from ben"]
    finally:
        terminal.end()
    expect(ann.page.locator("#members li")).to_have_count(2)


def test_a_page_in_which_nobody_has_a_name_can_read_and_talk(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("nameless")
    with daemon.connect("nameless") as bare:
        bare.send("from a pipe")
        page.wait_for("from a pipe")
        page.say("from nobody")
        assert bare.recv(20) == "from nobody"
    expect(page.page.locator(".author")).to_have_text(["somebody", "you"])


def test_a_name_is_remembered(windows: Windows, daemon: Daemon) -> None:
    profile = windows.profile()
    windows.new(profile).open("names").name("ann")
    again = windows.new(profile).open("names-too")
    expect(again.page.get_by_label("Your name")).to_have_value("ann")
    expect(again.page.locator("#members")).to_have_text("ann (you)")


def test_who_wants_a_name_that_another_has_is_told(windows: Windows, daemon: Daemon) -> None:
    windows.new().open("taken").name("ann")
    other = windows.new().open("taken")
    other.page.get_by_label("Your name").fill("ann")
    other.page.keyboard.press("Enter")
    expect(other.page.locator("#hint")).to_have_text("ann is taken: you are ann*2.")
    expect(other.page.locator("#members li")).to_have_text(["ann", "ann*2 (you)"])


def test_a_bad_name_is_refused_with_the_reason(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("bad-names")
    page.page.get_by_label("Your name").fill("a:b")
    page.page.keyboard.press("Enter")
    expect(page.page.locator("#hint")).to_have_text('nick: a nick must not hold ":"')


def test_messages_of_one_author_and_minute_stand_together(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("groups")
    page.page.clock.install(time=1_790_000_000)
    for text in ("one", "two"):
        post(daemon, "groups", text, "ann")
    post(daemon, "groups", "three", "ben")
    page.wait_for("three")
    groups = page.page.locator("#messages .head")
    assert groups.count() in (2, 3), "three where a minute ended between one and two"
    assert page.page.locator(".author").all_inner_texts()[-1] == "ben"
    assert page.page.locator("#messages time").first.get_attribute("datetime") is not None


def test_a_reload_loses_and_doubles_nothing(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("reload")
    page.name("ann")
    page.say("mine")
    page.page.get_by_label("Message", exact=True).fill("half a thou")
    for number in range(20):
        post(daemon, "reload", f"r{number}")
    page.page.evaluate("() => { location.reload(); }")
    for number in range(20, 40):
        post(daemon, "reload", f"r{number}")
    page.wait_for("r39")
    page.wait_for_count(41)
    assert page.texts() == ["mine", *(f"r{number}" for number in range(40))]
    expect(page.page.locator(".message").first).to_have_attribute("data-state", "sent")
    expect(page.page.get_by_label("Message", exact=True)).to_have_value("half a thou")
    expect(page.page.locator("#members")).to_have_text("ann (you)")


def test_workers_that_are_killed_cost_no_message_and_double_none(windows: Windows, daemon: Daemon) -> None:
    pages = [windows.new().open("killed") for _ in range(2)]
    for number in range(60):
        if number in (20, 40):
            victim = daemon.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            pages[0].say(f"k{number} of the page", wait=False)
        post(daemon, "killed", f"k{number}")
    posted = [f"k{number}" for number in range(60)]
    for page in pages:
        page.wait_for_count(62)
        assert [each for each in page.texts() if not each.endswith("page")] == posted
        assert sorted(each for each in page.texts() if each.endswith("page")) == ["k20 of the page", "k40 of the page"]
    assert pages[0].texts() == pages[1].texts()
    until(lambda: len(daemon.worker_pids()) == 2, "both workers to be back")


def test_a_tab_that_is_duplicated_is_another_client(windows: Windows, daemon: Daemon) -> None:
    first = windows.new().open("copies")
    first.name("ann")
    with first.page.expect_popup() as opened:
        first.page.evaluate("() => { open(location.href); }")  # takes what the tab remembers along
    second = windows.add(opened.value)
    second.online()
    expect(first.page.locator("#members li")).to_have_count(2)
    first.online()
    first.say("from the first")
    second.wait_for("from the first")
    second.say("from the second")
    first.wait_for("from the second")
    assert first.texts() == second.texts() == ["from the first", "from the second"]


def test_a_long_history_is_read_by_scrolling_up(windows: Windows, daemon: Daemon) -> None:
    daemon.say("long", *(f"line {number}" for number in range(1000)))
    page = windows.new().open("long")
    page.wait_for("line 999")
    page.wait_for_count(50)
    log = page.page.locator("#messages")
    while (shown := page.texts())[0] != "line 0":
        log.evaluate("log => { log.scrollTop = 0; }")
        page.page.wait_for_function("count => document.querySelectorAll('.text').length > count", arg=len(shown))
    assert page.texts() == [f"line {number}" for number in range(1000)]
    page.page.get_by_role("button", name="To the newest").click()
    expect(page.page.locator(".text").last).to_be_in_viewport()


def test_a_flood_is_shown_without_the_page_freezing(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("flood")
    page.page.evaluate(
        """() => {
            window.longest = 0;
            new PerformanceObserver((list) => {
              for (const each of list.getEntries()) longest = Math.max(longest, each.duration);
            }).observe({ type: "longtask" });
        }"""
    )
    with daemon.connect("flood") as talker:
        for number in range(1000):
            talker.send(f"line {number}")
    page.wait_for("line 999")
    assert page.texts()[-900:] == [f"line {number}" for number in range(100, 1000)]
    expect(page.page.locator(".text").last).to_be_in_viewport()
    assert page.page.evaluate("() => longest") < 2000, "milliseconds in which the page does nothing else"


def test_reading_what_is_old_is_not_disturbed_by_what_is_new(windows: Windows, daemon: Daemon) -> None:
    daemon.say("old", *(f"line {number}" for number in range(60)))
    page = windows.new().open("old")
    page.wait_for_count(50)
    log = page.page.locator("#messages")
    log.evaluate("log => { log.scrollTop = log.scrollHeight / 3; }")
    page.page.wait_for_function("() => !document.getElementById('newest').hidden")
    before = log.evaluate("log => log.scrollTop")
    daemon.say("old", "something new")
    page.wait_for("something new")
    assert log.evaluate("log => log.scrollTop") == before
    page.page.get_by_role("button", name="To the newest").click()
    expect(page.page.locator(".text").last).to_be_in_viewport()


# Several rooms


def test_several_rooms_are_open_at_once_and_count_what_is_new(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("one-room")
    page.page.get_by_label("Join a room").fill("another")
    page.page.keyboard.press("Enter")
    expect(page.page.get_by_role("heading", level=1)).to_have_text("another")
    assert page.page.url.endswith("/another")
    page.page.wait_for_function("() => document.querySelectorAll('#open-rooms li').length === 2")
    page.say("in the other one")
    post(daemon, "one-room", "n1")
    post(daemon, "one-room", "n2")
    expect(page.page.locator("#open-rooms .unread:visible")).to_have_text("2 new")
    expect(page.page).to_have_title("(2) another - chatd")
    page.page.locator("#open-rooms").get_by_role("link", name="one-room").click()
    page.wait_for("n2")
    expect(page.page).to_have_title("one-room - chatd")
    assert page.texts() == ["n1", "n2"]
    page.page.go_back()
    page.wait_for("in the other one")
    page.page.get_by_role("button", name="Leave another").click()
    expect(page.page.get_by_role("heading", level=1)).to_have_text("one-room")
    expect(page.page.locator("#open-rooms li")).to_have_count(1)


def test_where_one_left_off_is_marked(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("marked")
    post(daemon, "marked", "read")
    page.wait_for("read")
    page.page.get_by_label("Join a room").fill("elsewhere")
    page.page.keyboard.press("Enter")
    expect(page.page.get_by_role("heading", level=1)).to_have_text("elsewhere")
    post(daemon, "marked", "unread")
    expect(page.page.locator("#open-rooms .unread:visible")).to_have_text("1 new")
    page.page.locator("#open-rooms").get_by_role("link", name="marked").click()
    page.wait_for("unread")
    order = page.page.locator("#messages").evaluate(
        "log => [...log.querySelectorAll('.text, .new')].map(each => each.textContent)"
    )
    assert order == ["read", "New", "unread"]


def test_open_rooms_survive_a_reload(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("kept-one")
    page.page.get_by_label("Join a room").fill("kept-two")
    page.page.keyboard.press("Enter")
    page.say("here")
    page.page.reload()
    page.online()
    expect(page.page.locator("#open-rooms .name")).to_have_text(["kept-one", "kept-two"])
    page.wait_for("here")
    post(daemon, "kept-one", "there")
    expect(page.page.locator("#open-rooms .unread:visible")).to_have_text("1 new")


def test_the_resume_key_is_in_no_address(windows: Windows) -> None:
    window = windows.new()
    dials = count_dials(window.page)
    window.open("key")
    key = window.page.evaluate("() => JSON.parse(sessionStorage['chatd.key'])")
    window.say("hello")
    window.page.reload()
    window.online()
    assert len(dials) == 2
    assert not [dial.url for dial in dials if key in dial.url or "resume" in dial.url]
    expect(window.page.locator("[data-state=sent]")).to_have_count(1)  # the same author is back
