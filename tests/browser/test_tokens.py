"""The page at a server that asks for tokens: it takes them along, asks for them, and never shows one."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.access.issuer import public_pem, token
from tests.browser.chromium import Window, Windows, count_dials
from tests.browser.test_access import DESKTOP, PHONE, serious
from tests.system.daemon import Daemon

KEY = "auth.pem"
REVOKED = "revoked"
LONG = "\n".join(["a long text"] * 50)
TURNED_AWAY = tuple(
    f"Failed to load resource: the server responded with a status of {status} " for status in (401, 403)
)


OPTIONS = ("--auth-key", KEY, "--auth-revoked", REVOKED)
FILES = {KEY: public_pem(), REVOKED: b""}


@pytest.fixture
def windows(browser: Browser, daemon: Daemon) -> Iterator[Windows]:
    """Give tabs whose browser may complain that the server lets nobody in without a token."""
    opened = Windows(browser, daemon.url(scheme="http").rstrip("/"), TURNED_AWAY)
    yield opened
    opened.close()


def good(name: str = "ann", seconds: float = 600, **rooms: str) -> str:
    """Make a token; without rooms it is good for all of them."""
    claims: dict[str, Any] = {"rooms": rooms} if rooms else {}
    return token(sub=name, exp=int(time.time() + seconds), **claims)


def post(daemon: Daemon, room: str, text: str) -> None:
    """Say something over HTTP, as somebody else."""
    with urlopen(Request(daemon.url(room, "http"), text.encode(), {"Authorization": f"Bearer {good('ben')}"})) as said:
        assert said.status == 201


def refused(windows: Windows, room: str, text: str = "", **options: Any) -> Window:
    """Open a room from which one is turned away."""
    window = windows.new(**options)
    window.page.goto(f"{window.base}/{room}{f'#token={text}' if text else ''}")
    expect(field(window)).to_be_visible()
    return window


def field(window: Window) -> Locator:
    return window.page.get_by_label("Token", exact=True)


def question(window: Window) -> Locator:
    return window.page.get_by_role("group", name="This link brings another token.")


def why(window: Window) -> Locator:
    return window.page.locator("#why")


def bring(window: Window, text: str) -> None:
    """Paste a token."""
    field(window).fill(text)
    window.page.keyboard.press("Enter")


def run_out(window: Window) -> None:
    """Let the token of a page that has been warned end, however long it took to get here."""
    window.page.get_by_role("button", name="Paste a new token").click()
    bring(window, good(seconds=4))
    expect(why(window)).to_have_text("The token ran out.")


def remembered(window: Window, name: str) -> object:
    return json.loads(window.page.evaluate("name => sessionStorage[`chatd.${name}`]", name))


@pytest.mark.parametrize(
    ("room", "way"),
    [("hash", "#token="), ("query", "?token="), ("both", "?last=3&token="), ("more", "#nothing&token=")],
)
def test_a_token_in_the_address_lets_one_in_and_is_seen_nowhere(windows: Windows, room: str, way: str) -> None:
    window = windows.new()
    text, page, dials = good(), window.page, count_dials(window.page)
    window.open(f"{room}{way}{text}")
    for _ in range(2):
        expect(page.get_by_label("Your name")).to_have_value("ann")
        assert page.url == f"{window.base}/{room}"
        shown = page.evaluate("() => [...document.querySelectorAll('input')].map(each => each.value).join()")
        assert text not in page.content() + shown + page.evaluate("() => JSON.stringify(localStorage)")
        page.reload()
        window.online()
    assert not [each.url for each in dials if text in each.url]


def test_who_has_none_is_asked_for_one_and_nothing_else_happens_until_then(windows: Windows) -> None:
    window = windows.new()
    page, dials = window.page, count_dials(window.page)
    page.clock.install()
    page.goto(f"{window.base}/asked")
    expect(why(window)).to_have_text("This server asks for a token.")
    expect(field(window)).to_be_focused()
    expect(field(window)).to_have_attribute("type", "password")
    expect(page.locator("#status")).to_have_text("Closed: this server asks for a token")
    page.clock.run_for(600_000)
    page.evaluate("() => { dispatchEvent(new Event('online')); }")
    assert len(dials) == 1
    page.keyboard.type("what is that")
    page.keyboard.press("Enter")
    expect(why(window)).to_have_text("That is no token.")
    assert len(dials) == 1
    bring(window, token("P-256", sub="ann"))
    expect(why(window)).to_have_text("The token is signed by nobody whom this server knows.")
    bring(window, f" {good()[:20]}\n{good()[20:]} ")  # as terminals break lines
    window.online()
    expect(field(window)).to_be_hidden()
    expect(why(window)).to_be_empty()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    window.say("hello")
    assert len(dials) == 3


def test_what_is_being_written_is_not_interrupted(windows: Windows) -> None:
    window = windows.new().open(f"typing#token={good(seconds=45)}")
    window.page.get_by_label("Message", exact=True).fill("half a thou")
    run_out(window)
    expect(field(window)).to_be_visible()
    expect(window.page.get_by_label("Message", exact=True)).to_be_focused()
    assert window.page.locator("#why").evaluate(
        "why => why.compareDocumentPosition(document.activeElement) & Node.DOCUMENT_POSITION_FOLLOWING"
    ), "Shift+Tab leads there"


def test_a_room_that_the_token_does_not_open_says_so_and_others_are_open(windows: Windows) -> None:
    window = refused(windows, "shut", good(open="rw"))
    page, dials = window.page, count_dials(window.page)
    expect(why(window)).to_have_text("The token does not let you into this room.")
    expect(page.locator("#room-rule")).to_have_text(
        "You are not in this room: the token does not let you into this room."
    )
    page.get_by_label("Join a room").fill("open")
    page.keyboard.press("Enter")
    window.online()
    expect(why(window)).to_be_empty()
    expect(page.locator("#room-rule")).to_be_empty()
    window.say("hello")
    page.get_by_label("Join a room").fill("shut-too")
    page.keyboard.press("Enter")
    expect(page.locator("#room-rule")).to_have_text(
        "You are not in this room: the token does not let you into this room."
    )
    window.say("anybody?", wait=False)
    expect(page.locator(".reason")).to_have_text("Not sent: the token does not let you into this room")
    assert len(dials) == 1


def test_of_several_rooms_one_that_is_open_is_enough(windows: Windows) -> None:
    window = windows.new().open(f"first#token={good()}")
    window.page.get_by_label("Join a room").fill("second")
    window.page.keyboard.press("Enter")
    window.say("hello")
    window.page.goto(f"{window.base}/second#token={good(second='rw')}")
    window.page.get_by_role("button", name="Use the token of the link").click()
    window.wait_for("hello")
    window.online()
    window.page.locator("#open-rooms").get_by_role("link", name="first").click()
    expect(window.page.locator("#room-rule")).to_contain_text("You are not in this room")


def test_a_token_that_ends_soon_is_replaced_on_the_open_connection(windows: Windows) -> None:
    window = windows.new()
    page, dials = window.page, count_dials(window.page)
    window.open(f"renew#token={good(seconds=45)}")
    expect(why(window)).to_have_text(re.compile(r"Your token runs out at \d+:\d\d:\d\d"))
    expect(field(window)).to_be_hidden()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.get_by_role("button", name="Paste a new token").press("Enter")
    expect(field(window)).to_be_focused()
    bring(window, good("ben"))
    expect(why(window)).to_have_text("The token is somebody else's.")
    short = good(seconds=50)
    bring(window, short)
    expect(why(window)).to_have_text(re.compile("Your token runs out at"))
    assert remembered(window, "token") == short
    page.get_by_role("button", name="Paste a new token").press("Enter")
    text = good()
    bring(window, text)
    expect(why(window)).to_be_empty()
    expect(field(window)).to_be_hidden()
    assert remembered(window, "token") == text
    window.say("still here")
    assert len(dials) == 1


def test_with_a_new_token_one_is_back_where_one_was(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open(f"back#token={good(seconds=45)}")
    key = remembered(window, "key")
    post(daemon, "back", "before")
    window.wait_for("before")
    run_out(window)
    expect(window.page.locator("#status")).to_have_text("Closed: the token ran out")
    window.say("said meanwhile", wait=False)
    for number in range(3):
        post(daemon, "back", f"missed {number}")
    expect(window.page.locator(".message").last).to_have_attribute("data-state", "sending")
    bring(window, good())
    window.online()
    window.wait_for_count(5)
    expect(window.page.locator("[data-state=sent]")).to_have_count(1)
    assert window.texts() == ["before", "missed 0", "missed 1", "missed 2", "said meanwhile"]
    assert remembered(window, "key") == key
    expect(window.page.locator(".gap")).to_have_count(0)


def test_a_token_that_ran_out_while_the_page_was_closed_is_asked_for_anew(windows: Windows) -> None:
    window = refused(windows, "stale", token(sub="ann", exp=1))
    expect(why(window)).to_have_text("The token has run out.")
    bring(window, good())
    window.online()
    expect(window.page.get_by_label("Your name")).to_have_value("ann")


def test_a_link_with_another_token_asks_before_it_makes_somebody_else_of_the_page(windows: Windows) -> None:
    mine, others = good(), good("ben")
    window = windows.new().open(f"links#token={mine}")
    page, dials = window.page, count_dials(window.page)
    page.goto(f"{window.base}/links#token={others}")
    expect(question(window)).to_be_visible()
    assert page.url == f"{window.base}/links"
    assert others not in page.content()
    assert (remembered(window, "token"), len(dials)) == (mine, 0)
    expect(page.locator("#members")).to_have_text("ann (you)")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Keep my token").click()
    expect(question(window)).to_be_hidden()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert (remembered(window, "token"), len(dials)) == (mine, 0)

    page.goto(f"{window.base}/links#token={others}")
    page.get_by_role("button", name="Use the token of the link").click()
    expect(page.locator("#members")).to_contain_text("ben (you)")
    expect(question(window)).to_be_hidden()
    assert remembered(window, "token") == others


def test_a_link_that_opens_the_page_anew_asks_too_and_a_reload_forgets_its_token(windows: Windows) -> None:
    mine = good()
    window = windows.new().open(f"anew#token={mine}")
    window.open(f"other?token={good('ben')}")
    expect(question(window)).to_be_visible()
    expect(window.page.get_by_label("Your name")).to_have_value("ann")
    window.page.reload()
    window.online()
    expect(question(window)).to_be_hidden()
    assert remembered(window, "token") == mine


def test_the_same_token_and_a_first_one_are_taken_without_a_question(windows: Windows) -> None:
    window = refused(windows, "first")
    mine = good()
    window.page.goto(f"{window.base}/first#token={mine}")
    window.online()
    window.open(f"second?token={mine}")
    window.page.goto(f"{window.base}/second#token={mine}")
    expect(window.page.locator("#members")).to_contain_text("ann (you)")
    expect(question(window)).to_be_hidden()
    assert remembered(window, "token") == mine


def test_everybody_can_answer_the_question(windows: Windows) -> None:
    window = windows.new(**PHONE).open(f"answer#token={good()}")
    window.page.goto(f"{window.base}/answer#token={good('ben')}")
    expect(question(window)).to_be_visible()
    assert serious(window) == []
    assert window.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    expect(window.page.get_by_role("button", name="Use the token of the link")).to_be_in_viewport(ratio=1)


def test_the_name_is_that_of_the_token(windows: Windows) -> None:
    window = windows.new().open(f"names#token={good()}")
    name = window.page.get_by_label("Your name")
    name.fill("zoe")
    window.page.keyboard.press("Enter")
    expect(name).to_have_value("ann")
    expect(name).not_to_be_editable()
    expect(name).to_have_accessible_description("Your name comes with your token.")
    expect(window.page.locator("#nick-rule")).to_be_visible()
    assert window.page.evaluate("() => JSON.parse(localStorage['chatd.nick'])") == ""


def test_where_one_may_only_read_the_page_says_so(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open(f"news#token={good(seconds=45, news='r', talk='rw')}")
    post(daemon, "news", "read this")
    window.wait_for("read this")
    window.say("may I?", wait=False)
    expect(window.page.locator(".reason")).to_have_text("Not sent: the token does not let you speak in this room")
    message = window.page.get_by_label("Message", exact=True)
    expect(message).to_have_accessible_description("You may only read here.")
    window.page.get_by_label("Join a room").fill("talk")
    window.page.keyboard.press("Enter")
    expect(window.page.locator("#room-rule")).to_be_empty()
    window.say("here I may")
    window.page.get_by_role("link", name="news").click()
    expect(window.page.locator("#room-rule")).to_have_text("You may only read here.")
    window.page.get_by_role("button", name="Paste a new token").click()
    bring(window, good())
    expect(window.page.locator("#room-rule")).to_be_empty()
    window.page.get_by_role("button", name="Try again").click()
    expect(window.page.locator("[data-state=sent]")).to_have_text("may I?✓sent")


def test_what_is_refused_can_be_tried_again_and_deleted_while_others_talk(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open(f"refused#token={good(seconds=45, refused='r')}")
    page = window.page
    post(daemon, "refused", LONG)  # the log is full, and stays at its end
    for text in ("one", "two"):
        window.say(text, wait=False)
    expect(page.locator("[data-state=refused]")).to_have_count(2)
    page.get_by_role("button", name="Delete").last.hover()
    page.mouse.down()
    post(daemon, "refused", "while the button is down")
    expect(page.locator(".text")).to_have_text([LONG, "while the button is down", "one", "two"])
    page.mouse.up()
    expect(page.locator(".text")).to_have_text([LONG, "while the button is down", "one"])
    page.get_by_role("button", name="Paste a new token").click()
    bring(window, good())
    expect(page.locator("#room-rule")).to_be_empty()
    again = page.get_by_role("button", name="Try again")
    again.focus()
    post(daemon, "refused", "while it has the focus")
    expect(page.locator(".text")).to_have_text([LONG, "while the button is down", "while it has the focus", "one"])
    expect(again).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("[data-state=sent]")).to_have_text("one✓sent")


def test_a_new_token_may_close_a_room_and_the_next_one_opens_it_again(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open(f"kept#token={good(seconds=45)}")
    window.page.get_by_label("Join a room").fill("taken")
    window.page.keyboard.press("Enter")
    window.say("hello")
    window.page.get_by_role("button", name="Paste a new token").click()
    bring(window, good(seconds=50, kept="rw"))
    expect(window.page.locator("#room-rule")).to_contain_text("You are not in this room")
    post(daemon, "taken", "missed")
    window.page.get_by_role("button", name="Paste a new token").click()
    bring(window, good())
    window.wait_for("missed")
    expect(window.page.locator("#room-rule")).to_be_empty()
    assert window.texts() == ["hello", "missed"]


def test_rooms_are_suggested_to_those_who_may_read_them(windows: Windows, daemon: Daemon) -> None:
    post(daemon, "public", "hello")
    post(daemon, "private", "hello")
    window = windows.new().open(f"public#token={good(public='rw')}")
    window.page.get_by_label("Join a room").focus()
    options = window.page.locator("#known-rooms option")
    expect(options).to_have_count(1)
    expect(options).to_have_attribute("value", "public")


def test_when_the_token_is_revoked_the_page_asks_for_another(windows: Windows, daemon: Daemon) -> None:
    window = windows.new().open(f"revoked#token={good('carl')}")
    (daemon.folder / REVOKED).write_text("sub carl\n")
    expect(why(window)).to_have_text("The token was revoked.")
    expect(window.page.locator("#status")).to_have_text("Closed: the token was revoked")
    bring(window, good())
    window.online()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_bring_a_token(windows: Windows, size: dict[str, Any], scheme: str) -> None:
    room = f"axe-{scheme}-{size['viewport']['width']}"
    asked = refused(windows, room, color_scheme=scheme, **size)
    assert serious(asked) == []
    expect(asked.page.get_by_role("alert").first).to_have_text("This server asks for a token.")
    expect(field(asked)).to_have_accessible_description("This server asks for a token.")
    assert asked.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    button = asked.page.get_by_role("button", name="Use it")
    expect(button).to_be_in_viewport(ratio=1)
    bring(asked, good(seconds=45, **{room: "r"}))
    asked.online()
    asked.page.get_by_label("Your name").fill("zoe")
    asked.page.keyboard.press("Enter")
    expect(asked.page.locator("#nick-rule")).to_be_visible()
    asked.say("may I?", wait=False)
    expect(asked.page.locator("#room-rule")).to_be_visible()
    expect(asked.page.get_by_role("button", name="Paste a new token")).to_be_in_viewport(ratio=1)
    assert asked.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert serious(asked) == []


def test_a_server_that_only_is_away_is_not_asked_for_a_token(windows: Windows, daemon: Daemon) -> None:
    window = windows.new()
    window.page.route(re.compile(r"\?last=0$"), lambda route: route.fulfill(status=401, body="<h1>a proxy</h1>"))
    window.page.goto(f"{window.base}/proxy")
    expect(window.page.locator("#status")).to_have_text(re.compile("Offline: trying again"))
    expect(field(window)).to_be_hidden()
    with pytest.raises(HTTPError) as caught:
        urlopen(daemon.url("proxy", "http"))
    caught.value.close()
