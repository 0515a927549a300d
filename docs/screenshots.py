"""Take the pictures of the chat page: ``python docs/screenshots.py`` writes docs/page-*.png, of a daemon of its own."""

import http.client
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser.chromium import Window, Windows, chromium  # noqa: E402 - of this checkout
from tests.system.daemon import Daemon  # noqa: E402

SAID = (
    ("ann", "Good morning! Has the deploy of last night gone through?"),
    ("ben", "Yes, at 02:14. See https://ci.example.org/builds/81 for the log."),
    (
        "ben",
        "The only thing that stood out:\n```\nworker 2 is gone: killed by SIGKILL\nits replacement comes in 0.1 s\n```",
    ),
    ("ann", "And nobody noticed?"),
    ("ben", "Nobody. `chatd verify` says that all is accounted for."),
    ("deploy-bot", "build 82 passed in 244 s"),
)
SIZES: dict[str, dict[str, object]] = {
    "desktop": {"viewport": {"width": 1100, "height": 640}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1100, "height": 640}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 780}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}


def post(daemon: Daemon, room: str, nick: str, text: str) -> None:
    """Say something."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    connection.request("POST", f"/{room}?nick={quote(nick)}", text.encode(), {"Content-Type": "text/plain"})
    assert connection.getresponse().status == 201
    connection.close()


def take(window: Window, daemon: Daemon, name: str) -> None:
    """Take one picture."""
    window.open("dev")
    window.wait_for_count(len(SAID))
    if name == "phone":
        window.page.get_by_label("Your name").fill("zoe")
        window.page.keyboard.press("Enter")
    else:
        window.name("zoe")
        window.page.get_by_label("Join a room").fill("releases")
        window.page.keyboard.press("Enter")
        window.page.locator("#open-rooms").get_by_role("link", name="dev").click()
        post(daemon, "releases", "ann", "1.0 is out")
        window.page.locator("#open-rooms .unread:visible").wait_for()
    window.say("Then I make the next one now.")
    window.page.mouse.move(0, 0)
    window.page.screenshot(path=Path(__file__).with_name(f"page-{name}.png"))


def main() -> None:
    """Take all of them, each in a daemon of its own."""
    for name, options in SIZES.items():
        with tempfile.TemporaryDirectory() as folder, Daemon(Path(folder) / "chatd") as daemon, chromium() as browser:
            windows = Windows(browser, daemon.url(scheme="http").rstrip("/"))
            for nick, text in SAID:
                post(daemon, "dev", nick, text)
            with daemon.connect("dev?nick=ann"), daemon.connect("dev?nick=ben"), daemon.connect("dev?nick=deploy-bot"):
                take(windows.new(device_scale_factor=1.5, **options), daemon, name)
            windows.close()


if __name__ == "__main__":
    main()
