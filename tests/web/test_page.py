"""The chat page: its files as browsers get them."""

import gzip
import re
from pathlib import Path

import pytest

import chatd
from tests.rows import rows
from tests.web.http_client import HttpClient

FOLDER = Path(chatd.__file__).parent / "web" / "page"
HTML = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
def assets(client: HttpClient) -> dict[str, Path]:
    """Return the URL paths that the page names, and the file of each."""
    paths = re.findall(r'(?:src|href)="(/-/assets/[^"]+)"', client.request("GET /ops", HTML).body.decode())
    return {path: FOLDER / re.sub(r"-[0-9a-f]{16}", "", path.rpartition("/")[2]) for path in paths}


@rows("path", ["/", "/ops", "/gr%C3%B6%C3%9Fe", "/ops?last=3"])
def test_a_browser_gets_the_page_of_any_room(client: HttpClient, path: str) -> None:
    answer = client.request(f"GET {path}", HTML)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!doctype html>")


def test_a_browser_that_follows_a_room_gets_lines(client: HttpClient) -> None:
    assert client.request("GET /ops?follow=1", HTML).headers["content-type"] == "text/plain; charset=utf-8"


def test_a_bad_room_has_no_page(client: HttpClient) -> None:
    assert client.request("GET /a/b", HTML).status == 404


def test_the_page_may_only_load_files_of_the_server_and_cannot_be_framed(
    client: HttpClient, assets: dict[str, Path]
) -> None:
    headers = client.request("GET /ops", HTML).headers
    policy = headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert not re.search(r"unsafe|http|\*", headers["content-security-policy"])
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} < set(policy)
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    for path in assets:
        assert client.request(f"GET {path}").headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_has_nothing_that_its_policy_forbids_and_makes_no_markup_of_text() -> None:
    html, script = (FOLDER / "index.html").read_text(), (FOLDER / "chat.js").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)|https?://", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_its_files_are_named_by_their_content_and_may_be_kept_for_ever(
    client: HttpClient, assets: dict[str, Path]
) -> None:
    types = {}
    for path, file in assets.items():
        answer = client.request(f"GET {path}")
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.body == file.read_bytes()
        types[file.name] = answer.headers["content-type"]
    assert len(types) == len(assets)
    assert types == {
        "chat.css": "text/css; charset=utf-8",
        "chat.js": "text/javascript; charset=utf-8",
        "icon.svg": "image/svg+xml",
    }


def test_the_page_itself_is_revalidated(client: HttpClient) -> None:
    answer = client.request("GET /ops", HTML)
    assert answer.headers["cache-control"] == "no-cache"
    unchanged = client.request("GET /ops", HTML, f"If-None-Match: {answer.headers['etag']}")
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert client.request("GET /ops", HTML, 'If-None-Match: "another"').status == 200


def test_files_are_compressed_if_the_client_accepts_gzip(client: HttpClient, assets: dict[str, Path]) -> None:
    size = 0
    for path in ("/ops", *assets):
        plain = client.request(f"GET {path}", HTML)
        zipped = client.request(f"GET {path}", HTML, "Accept-Encoding: br, gzip")
        assert zipped.headers["content-encoding"] == "gzip"
        assert gzip.decompress(zipped.body) == plain.body
        assert zipped.headers["etag"] != plain.headers["etag"]
        assert len(zipped.body) < len(plain.body)
        size += len(zipped.body)
        refused = client.request(f"GET {path}", HTML, "Accept-Encoding: gzip;q=0, x-gzip;q=0")
        assert "content-encoding" not in refused.headers
        assert refused.body == plain.body
    assert size <= 32 * 1024


def test_head_gets_the_headers_only(client: HttpClient, assets: dict[str, Path]) -> None:
    for path in ("/ops", *assets):
        got, head = client.request(f"GET {path}", HTML), client.request(f"HEAD {path}", HTML)
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) == len(got.body)


@rows("name", ["", "chat.js", "chat-0000000000000000.js", "../page.py", "%2e%2e/page.py"])
def test_another_name_is_404(client: HttpClient, name: str) -> None:
    assert client.error(f"GET /-/assets/{name}") == (404, "not_found")
