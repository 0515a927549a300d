"""Pages of other origins, with real handshakes: refused before the upgrade, unless ``--allowed-origin`` allows them."""

import json
import subprocess

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.system.daemon import Daemon

ALLOWED = ("https://chat.example.org", "https://*.example.com:8443")


OPTIONS = [word for origin in ALLOWED for word in ("--allowed-origin", origin)]


def refusal(daemon: Daemon, origin: str) -> tuple[int, str, str]:
    """Give status, code and message with which a page is refused; nothing where it is let in."""
    try:
        with connect(daemon.url("ops"), origin=Origin(origin), compression=None):
            return 101, "", ""
    except InvalidStatus as error:
        said = json.loads(error.response.body or b"")
        return error.response.status_code, said["error"], said["message"]


@pytest.mark.parametrize("origin", ["https://chat.example.org", "https://b.a.example.com:8443"])
def test_a_page_of_an_allowed_origin_talks(daemon: Daemon, origin: str) -> None:
    with connect(daemon.url("talk"), origin=Origin(origin), compression=None) as page, daemon.connect("talk") as other:
        page.send(origin)
        assert other.recv(20) == origin


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_our_own_page_is_let_in_under_each_of_our_names(daemon: Daemon, host: str) -> None:
    url = f"{host}:{daemon.port}"
    with connect(f"ws://{url}/", origin=Origin(f"http://{url}"), compression=None) as page:
        assert page.response is not None
        assert page.response.status_code == 101


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1", "https://example.com:8443", "https://a.example.com"]
)
def test_any_other_page_is_told_why_not(daemon: Daemon, origin: str) -> None:
    assert refusal(daemon, origin) == (403, "forbidden", f"a page from {origin} may not talk to this server")


def test_the_server_log_names_the_option_that_lets_a_refused_page_in(daemon: Daemon) -> None:
    for number in range(20):  # on both workers
        refusal(daemon, "http://new.example:8000")
        refusal(daemon, f"http://{number % 2}.example")
    refused = "page_refused: refused a page from http://new.example:8000; "
    daemon.wait_for(rf"{refused}.* --allowed-origin http://new.example:8000\n")
    assert 1 <= daemon.log().count(refused) <= len(daemon.worker_pids())


def test_a_page_without_an_origin_of_its_own_is_refused(daemon: Daemon) -> None:
    assert refusal(daemon, "null")[:2] == (403, "forbidden")


def test_websocat_that_pretends_to_be_another_page_is_refused(daemon: Daemon) -> None:
    command = ["websocat", "--one-message", "--allowed-origin", "https://evil.example", daemon.url("pretend")]
    said = subprocess.run(command, input=b"hello\n", capture_output=True, check=False, timeout=20)
    assert said.returncode != 0
    assert "hello" not in daemon.texts()


def post(daemon: Daemon, origin: str, text: str) -> tuple[int, list[str]]:
    """Say something in a room, as a page does; give the status, and the headers in lower case."""
    command = ["curl", "--silent", "--include", "--header", f"Origin: {origin}", "--data", text]
    said = subprocess.run(
        [*command, daemon.url("post", "http")], capture_output=True, text=True, check=True, timeout=20
    )
    first, *headers = said.stdout.partition("\n\n")[0].lower().splitlines()
    return int(first.split()[1]), headers


def test_another_page_cannot_post_and_nothing_of_it_is_in_the_log(daemon: Daemon) -> None:
    assert post(daemon, "https://evil.example", "evil")[0] == 403
    assert "evil" not in daemon.texts()


def test_a_page_of_an_allowed_origin_posts_and_its_browser_hears_that_it_may(daemon: Daemon) -> None:
    status, headers = post(daemon, ALLOWED[0], "kind")
    assert status == 201
    assert f"access-control-allow-origin: {ALLOWED[0]}" in headers
    assert "kind" in daemon.texts()


def test_with_a_star_every_page_is_let_in(daemon: Daemon) -> None:
    with Daemon(daemon.folder / "all", "--allowed-origin", "*") as everybodys:
        assert [refusal(everybodys, each)[0] for each in ("https://evil.example", "null")] == [101, 101]
