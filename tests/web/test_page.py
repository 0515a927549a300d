"""The chat page: its files as browsers get them."""

import gzip
import re
from pathlib import Path

import pytest

import chatd
from tests.web.http_client import HttpClient

FOLDER = Path(chatd.__file__).parent / "web" / "page"
HTML = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def assets(http_client: HttpClient) -> list[str]:
    """Give the paths that the page names."""
    return re.findall(r'(?:src|href)="(/-/assets/[^"]+)"', http_client.ask("GET /ops", HTML).body.decode())


@pytest.mark.parametrize("path", ["/", "/ops", "/gr%C3%B6%C3%9Fe", "/ops?last=3"])
def test_a_browser_gets_the_page_of_any_room(http_client: HttpClient, path: str) -> None:
    answer = http_client.ask(f"GET {path}", HTML)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.body.startswith(b"<!doctype html>")


def test_the_page_is_small_on_the_wire(http_client: HttpClient) -> None:
    paths = ["/ops", *assets(http_client)]
    answers = [http_client.ask(f"GET {path}", HTML, "Accept-Encoding: gzip") for path in paths]
    assert sum(len(answer.body) for answer in answers) <= 32 * 1024


def test_a_browser_that_follows_a_room_gets_lines(http_client: HttpClient) -> None:
    assert http_client.ask("GET /ops?follow=1", HTML).headers["content-type"] == "text/plain; charset=utf-8"


def test_a_bad_room_has_no_page(http_client: HttpClient) -> None:
    assert http_client.ask("GET /a/b", HTML).status == 404


def test_the_page_may_run_and_load_its_own_files_alone(http_client: HttpClient) -> None:
    policy = http_client.ask("GET /ops", HTML).headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert not [each for each in policy if "unsafe" in each or "http" in each or "*" in each]
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} < set(policy)


def test_the_page_shares_nothing_with_a_window_or_frame_of_another_origin(http_client: HttpClient) -> None:
    headers = http_client.ask("GET /ops", HTML).headers
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    for path in assets(http_client):
        assert http_client.ask(f"GET {path}").headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_has_nothing_that_its_policy_forbids() -> None:
    html = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)|https?://", html)


def test_the_script_makes_no_markup_of_text() -> None:
    script = (FOLDER / "chat.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_the_page_names_all_its_files_by_what_is_in_them(http_client: HttpClient) -> None:
    names = [re.sub(r"-[0-9a-f]{16}", "", each.rpartition("/")[2]) for each in assets(http_client)]
    assert sorted(names) == ["chat.css", "chat.js", "icon.svg"] == sorted({*names})


def test_its_files_may_be_kept_for_ever(http_client: HttpClient) -> None:
    kinds = set()
    for path in assets(http_client):
        answer = http_client.ask(f"GET {path}")
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.body == (FOLDER / re.sub(r"-[0-9a-f]{16}", "", path.rpartition("/")[2])).read_bytes()
        kinds.add(answer.headers["content-type"])
    assert kinds == {"text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"}


def test_the_page_itself_is_asked_for_anew(http_client: HttpClient) -> None:
    answer = http_client.ask("GET /ops", HTML)
    assert answer.headers["cache-control"] == "no-cache"
    again = http_client.ask("GET /ops", HTML, f"If-None-Match: {answer.headers['etag']}")
    assert (again.status, again.body) == (304, b"")
    assert http_client.ask("GET /ops", HTML, 'If-None-Match: "another"').status == 200


def test_they_go_zipped_where_that_is_accepted(http_client: HttpClient) -> None:
    for path in ("/ops", *assets(http_client)):
        plain, zipped = (
            http_client.ask(f"GET {path}", HTML),
            http_client.ask(f"GET {path}", HTML, "Accept-Encoding: br, gzip"),
        )
        assert zipped.headers["content-encoding"] == "gzip"
        assert gzip.decompress(zipped.body) == plain.body
        assert zipped.headers["etag"] != plain.headers["etag"]
        assert len(zipped.body) < len(plain.body)


def test_they_go_as_they_are_where_gzip_is_turned_down(http_client: HttpClient) -> None:
    plain, turned_down = (
        http_client.ask("GET /ops", HTML),
        http_client.ask("GET /ops", HTML, "Accept-Encoding: gzip;q=0, x-gzip;q=0"),
    )
    assert "content-encoding" not in turned_down.headers
    assert turned_down.body == plain.body


def test_head_gets_the_headers_only(http_client: HttpClient) -> None:
    for path in ("/ops", *assets(http_client)):
        got, head = http_client.ask(f"GET {path}", HTML), http_client.ask(f"HEAD {path}", HTML)
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) == len(got.body)


@pytest.mark.parametrize("name", ["", "chat.js", "chat-0000000000000000.js", "../page.py", "%2e%2e/page.py"])
def test_another_name_is_404(http_client: HttpClient, name: str) -> None:
    assert http_client.error(f"GET /-/assets/{name}") == (404, "not_found")
