"""Text is only ever text, whoever wrote it and wherever it is shown; and the page does nothing but what it came for."""

import json
import urllib.parse
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect

from tests.browser.chromium import Windows
from tests.system.daemon import Daemon

NASTY = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "<style>*{display:none}</style>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "&lt;b&gt; &amp; &#60;",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "javascript:alert(1)",
    "[click](javascript:alert(1))",
    "data:text/html,<script>alert(1)</script>",
    'https://example.org/"onmouseover=alert(1)',
    "http://example.org/<script>alert(1)</script>",
    "`<b>code</b>` ```\n<script>alert(1)</script>\n```",
    "\u202egnihton si siht\u202c \u2066and this",
    "\x1b[2J\x07\x00",
    "W" * 5000,
    "a\u0300" * 500,
)


def test_no_message_is_run_or_rendered(windows: Windows, daemon: Daemon) -> None:
    page = windows.new(viewport={"width": 800, "height": 600}).open("nasty")
    with daemon.connect("nasty") as talker:
        for text in NASTY:
            talker.send(text)
    page.wait_for_count(len(NASTY))
    log = page.page.locator("#messages")
    shown = {name.lower() for name in log.evaluate("log => [...log.querySelectorAll('*')].map(each => each.tagName)")}
    assert shown <= {"p", "div", "span", "time", "a", "code", "pre"}
    links = log.evaluate("log => [...log.querySelectorAll('a')].map(each => [each.href, each.rel, each.target])")
    assert links == [
        ["https://example.org/", "noopener noreferrer nofollow", "_blank"],
        ["http://example.org/", "noopener noreferrer nofollow", "_blank"],
    ]
    assert page.texts()[:4] == list(NASTY[:4])
    assert log.evaluate("log => log.scrollWidth <= log.clientWidth"), "no word is wider than the page"
    page.page.reload()  # once more, from history
    page.wait_for_count(len(NASTY))


@pytest.mark.parametrize("nick", ["<img/src=x>", "<b>ann</b>", "javascript", "\"'><s>"])
def test_no_nick_is_rendered(windows: Windows, daemon: Daemon, nick: str) -> None:
    with daemon.connect(f"nicks?nick={urllib.parse.quote(nick)}") as talker:
        page = windows.new().open("nicks")
        talker.send("hello")
        expect(page.page.locator("#members")).to_contain_text(nick)
        expect(page.page.locator(".author").last).to_have_text(nick)


@pytest.mark.parametrize("room", ["<script>alert(1)<", "<img+onerror=alert(1)>", "\"'&", "größe", "..;", "%41"])
def test_no_name_of_a_room_is_rendered(windows: Windows, daemon: Daemon, room: str) -> None:
    room = room.replace("/", "")
    page = windows.new().open(urllib.parse.quote(room, safe=""))
    expect(page.page.get_by_role("heading", level=1)).to_have_text(room)
    expect(page.page.locator("#open-rooms .name")).to_have_text(room)
    page.say("hello")
    page.page.reload()
    page.wait_for("hello")


def test_addresses_can_be_followed_and_end_where_they_end(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("links")
    with daemon.connect("links") as talker:
        talker.send("see https://example.org/a_(b), or (http://example.org/?q=1&r=2). Not ftp://example.org/x")
    page.wait_for_count(1)
    assert page.page.locator("#messages a").all_inner_texts() == [
        "https://example.org/a_(b)",
        "http://example.org/?q=1&r=2",
    ]


HOSTILE = (
    "http://x" + ")" * 16_000,
    "http://x" + "([{" * 2000 + "}])" * 3000,
    "http://" * 2000,
    "`" * 16_000,
    "```a" * 4000,
    "http://x/." * 1600,
    "e" + "\u0301" * 2000,
)


def test_no_line_is_expensive_to_draw(windows: Windows, daemon: Daemon) -> None:
    """Trimming an address once cost 1.6 s for each of the first lines: all of them, longer than a test waits."""
    daemon.say("heavy", *[HOSTILE[0]] * 24, *HOSTILE[1:], "the end")
    page = windows.new().open("heavy")
    page.wait_for("the end")
    page.wait_for_count(24 + len(HOSTILE))


def test_an_address_has_2048_characters_at_most(windows: Windows, daemon: Daemon) -> None:
    start = "https://example.org/"
    longest = start + "a" * (2048 - len(start))
    daemon.say("longest", longest, longest + "a")
    page = windows.new().open("longest")
    page.wait_for_count(2)
    assert page.page.locator("#messages a").all_inner_texts() == [longest]


def test_an_older_browser_shows_all_lines(windows: Windows, daemon: Daemon) -> None:
    """Safari 16 and Firefox 114 lack URL.canParse; Firefox 118 lacks the ARIA properties of elements."""
    daemon.say("older", "see https://example.org/", "and so on")
    page = windows.new()
    page.page.add_init_script(
        """delete URL.canParse;
        for (const name of ["ariaCurrent", "ariaHidden", "ariaLabel"]) delete Element.prototype[name];"""
    )
    page.open("older")
    page.wait_for("and so on")
    expect(page.page.locator("#messages a")).to_have_text("https://example.org/")
    expect(page.page.locator("#open-rooms a")).to_have_attribute("aria-current", "page")


def test_an_address_that_names_no_room_is_said_to_name_none(windows: Windows, daemon: Daemon) -> None:
    page = windows.new()
    page.page.goto(f"{page.base}/%zz")
    expect(page.page.locator("#why")).to_contain_text("This address names no room: /%zz.")
    expect(page.page.locator("#status")).to_have_text("Not connected")
    page.page.get_by_role("link", name="Go to the lobby").click()
    page.online()


def test_the_policy_holds(windows: Windows, daemon: Daemon) -> None:
    page = windows.new().open("policy")
    blocked = page.page.evaluate(
        """async () => {
            const blocked = [];
            document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            const style = document.createElement("style");
            style.textContent = "body { display: none }";
            document.head.append(style);
            try { document.body.innerHTML += "<b>x</b>"; } catch (error) { blocked.push(error.name); }
            try { await fetch("https://example.org/"); } catch { blocked.push("fetch"); }
            await new Promise((resolve) => setTimeout(resolve, 50));
            return blocked;
        }"""
    )
    assert set(blocked) == {"style-src-elem", "TypeError", "fetch", "connect-src", "require-trusted-types-for"}
    assert len(page.faults) >= 2, "the browser complained"
    page.faults.clear()


TALK = """async ([http, ws]) => {
    const told = [];
    const socket = new WebSocket(ws);
    told.push(await new Promise((resolve) => {
      socket.onopen = () => resolve("open");
      socket.onclose = () => resolve("closed");
    }));
    const post = { method: "POST", body: "x" };
    for (const options of [{ ...post, mode: "no-cors" }, post, {}]) {
      try { told.push(String((await fetch(http, options)).status)); } catch (error) { told.push(error.name); }
    }
    return told;
}"""


@pytest.mark.parametrize("welcome", [False, True], ids=["a stranger", "a friend"])
def test_a_page_of_another_origin_talks_here_only_where_it_may(
    windows: Windows, daemon: Daemon, tmp_path: Path, *, welcome: bool
) -> None:
    other = windows.new()
    other.base = "http://127.0.0.1"  # another port is another origin
    other.page.goto(daemon.url("-/", "http"))
    options = ("--allowed-origin", daemon.url(scheme="http").rstrip("/")) if welcome else ()
    with Daemon(tmp_path / "guarded", *options) as guarded:
        told = other.page.evaluate(TALK, [guarded.url("guarded", "http"), guarded.url("guarded")])
        # Without CORS a page hears nothing of an answer, which is for our own origin (CORP).
        assert told == [
            "open" if welcome else "closed",
            "TypeError",
            *(["201", "200"] if welcome else ["TypeError"] * 2),
        ]
        assert guarded.texts() == (["x", "x"] if welcome else [])
    other.faults.clear()


def test_what_the_page_remembers_is_harmless_where_it_is_wrong(windows: Windows, daemon: Daemon) -> None:
    profile = windows.profile()
    nonsense = json.dumps({"chatd.nick": '{"', "chatd.rooms": '["ok", "b/d"]', "chatd.pending": "[1]"})
    profile.add_init_script(
        f"for (const [name, value] of Object.entries({nonsense}))"
        " { localStorage[name] = sessionStorage[name] = value; }"
    )
    page = windows.new(profile)
    try:
        page.open("remembered")
    except Error as error:  # pragma: no cover - only where it fails
        raise AssertionError(page.faults) from error
    page.say("hello")
