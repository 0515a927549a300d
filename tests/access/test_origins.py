"""Whose web pages may talk to the server: its own, those of allowed origins, and none that only looks like them."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.access.origins import ALL, HOST_LENGTH, Origins, check_follower
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused, RequestHead

OWN = Origins(())
HOST = "chat.example.org"

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
PORT = st.integers(1, 65535)


CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/144.0.0.0 Safari/537.36"


def head(method: str = "GET", /, **headers: str | None) -> RequestHead:
    """Make the head of a request with these headers, their names written with underscores."""
    given = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    return RequestHead(method, b"/ops", given)


def lets(check: Callable[[], None]) -> bool:
    """Return whether a check lets a request in; else it is 403 with a short message."""
    try:
        check()
    except Refused as refused:
        assert (refused.status, refused.code) == (403, "forbidden")
        assert refused.message.isprintable()
        assert len(refused.message) < 400
        return False
    return True


def passes(origins: Origins, origin: str | None, host: str | None = HOST) -> bool:
    return lets(lambda: origins.check(head(origin=origin, host=host)))


# What is told


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        ("http://localhost:8000", ["http://localhost:8000"]),
        ("null", ["'*'"]),
        ("nonsense\x1b", []),  # no browser, and nothing that could be allowed
        ("https://friend.example", []),
    ],
)
def test_a_refused_origin_is_told_once_with_the_option_that_allows_it(origin: str, options: list[str]) -> None:
    told: list[str] = []
    origins = Origins(("https://friend.example",), lambda page, option: told.append(option), most=2)
    for _ in range(3):
        passes(origins, origin)
    assert told == options
    assert all(passes(Origins((option.strip("'"),)), origin) for option in told)


def test_no_more_refused_origins_are_told_than_that() -> None:
    told: list[str] = []
    origins = Origins((), lambda page, option: told.append(option), most=2)
    for number in range(9):
        assert not passes(origins, f"https://{number}.example")
    assert len(told) == 2


# Programs, and our own pages


@pytest.mark.parametrize("host", [HOST, "", None])
def test_who_tells_no_origin_is_a_program_and_passes(host: str | None) -> None:
    assert passes(OWN, None, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:3000", "localhost:3000"),
        ("https://localhost:3000", "localhost:3000"),
        ("https://chat.example.org", "chat.example.org"),
        ("https://chat.example.org", "chat.example.org:443"),
        ("https://chat.example.org:443", "chat.example.org"),
        ("http://chat.example.org", "chat.example.org:80"),
        ("http://chat.example.org:80", "chat.example.org"),
        ("https://chat.example.org:8443", "chat.example.org:8443"),
        ("https://chat.example.org", "CHAT.Example.Org"),
        ("HTTPS://Chat.Example.org", "chat.example.org"),
        ("https://chat.example.org.", "chat.example.org"),
        ("https://chat.example.org", "chat.example.org."),
        ("https://chat.example.org.:8443", "chat.example.org:8443"),
        ("http://127.0.0.1:3000", "127.0.0.1:3000"),
        ("http://[::1]:3000", "[::1]:3000"),
        ("http://[::1]", "[0:0:0:0:0:0:0:1]:80"),
        ("http://[2001:DB8::7]", "[2001:db8::7]"),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("https://under_score.example", "under_score.example"),
    ],
)
def test_our_own_page_passes(origin: str, host: str) -> None:
    assert passes(OWN, origin, host)
    assert not OWN.allows_elsewhere(origin, host)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://example.org",
        "https://a.chat.example.org",
        "https://chat.example.org.attacker.example",
        "https://chat.example.orgx",
        "https://xchat.example.org",
        "https://chat-example.org",
        "https://chat.example.org..",
        "https://.chat.example.org",
        "https://chat..example.org",
        "https://chat.example.org@evil.example",
        "https://evil.example@chat.example.org",
        "https://ann:secret@chat.example.org",
        "https://evil.example/chat.example.org",
        "https://chat.example.org/",
        "https://chat.example.org/page",
        "https://chat.example.org?",
        "https://chat.example.org#",
        "https://chat.example.org\\.evil.example",
        "https://evil.example,https://chat.example.org",
        "https://evil.example https://chat.example.org",
        "https://chat.example.org https://evil.example",
        " https://chat.example.org",
        "https://chat.example.org ",
        "https://chat.example.org\n",
        "https://chat.example.org:3000",
        "https://chat.example.org:80",
        "http://chat.example.org:443",
        "https://chat.example.org:",
        "https://chat.example.org:0",
        "https://chat.example.org:00",
        "https://chat.example.org:65979",  # 443 and 65536
        "https://chat.example.org:443443",
        "https://chat.example.org:-443",
        "https://chat.example.org:\uff14\uff14\uff13",
        "https://chat.example.org%2eevil.example",
        "https://chat。example。org",
        "https://ﬃ.chat.example.org",
        "https://chat.example.orĝ",
        "https:chat.example.org",
        "https:/chat.example.org",
        "https:///chat.example.org",
        "//chat.example.org",
        "chat.example.org",
        "ftp://chat.example.org",
        "app://chat.example.org",
        "https://[::1]",
        "https://[chat.example.org]",
        "https://*",
        "https://*.example.org",
        "https://" + "a" * 10_000,
        "null",
        "NULL",
        "*",
        "",
    ],
)
def test_any_other_page_is_refused(origin: str) -> None:
    assert not passes(OWN, origin)


@pytest.mark.parametrize("host", [None, "", "chat.example.org,chat.example.org", "@chat.example.org", "[::1", "*", "ß"])
def test_without_a_good_host_no_page_is_our_own(host: str | None) -> None:
    assert not passes(OWN, "https://chat.example.org", host)


@pytest.mark.parametrize("host", ["[fe80::1%eth0]", "[::1]x", "[]", "::1", "[1.2.3.4]", "[:::1]"])
def test_a_bad_ipv6_host_is_nobodys(host: str) -> None:
    assert not passes(OWN, f"http://{host}", host)


@pytest.mark.parametrize(("origin", "host"), [("http://\u212a", "k"), ("http://k", "\u212a")])
def test_what_is_a_letter_only_once_it_is_in_lower_case_is_none(origin: str, host: str) -> None:
    assert not passes(OWN, origin, host)


@given(NAME, PORT, st.sampled_from(["http", "https"]))
def test_whatever_the_name_and_port_our_own_page_passes(name: str, port: int, scheme: str) -> None:
    assert passes(OWN, f"{scheme}://{name}:{port}", f"{name}:{port}")


@given(NAME, NAME, PORT, PORT)
def test_another_name_or_another_port_is_another_page(name: str, other: str, port: int, elsewhere: int) -> None:
    assert passes(OWN, f"https://{name}:{port}", f"{other}:{elsewhere}") == ((name, port) == (other, elsewhere))


@given(st.text(), st.none() | st.text())
def test_any_text_is_refused_or_let_in_and_breaks_nothing(origin: str, host: str | None) -> None:
    passes(OWN, origin, host)
    OWN.allows_elsewhere(origin, host)


# Requests of browsers that carry no Origin


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none,cross-site", "", "nonsense"])
@pytest.mark.parametrize(
    ("method", "mode"), [("GET", "no-cors"), ("GET", "cors"), ("GET", None), ("HEAD", "no-cors"), ("POST", "navigate")]
)
def test_another_site_sends_nothing_without_an_origin(site: str, method: str, mode: str | None) -> None:
    request = head(method, host=HOST, sec_fetch_site=site, sec_fetch_mode=mode, user_agent=CHROME)
    assert not lets(lambda: Origins((ALL,)).check(request))


@pytest.mark.parametrize("site", ["same-origin", "none", None])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_our_own_page_and_who_types_the_address_need_no_origin(site: str | None, method: str) -> None:
    request = head(method, host=HOST, sec_fetch_site=site, sec_fetch_mode="no-cors", user_agent=CHROME)
    assert lets(lambda: OWN.check(request))
    if site is not None:
        check_follower(request, named=True)


def test_a_link_on_another_site_opens_a_page_and_follows_no_room() -> None:
    request = head(host=HOST, sec_fetch_site="cross-site", sec_fetch_mode="navigate", user_agent=CHROME)
    assert lets(lambda: OWN.check(request))
    assert not lets(lambda: check_follower(request, named=False))


def test_an_allowed_origin_counts_whatever_else_the_browser_says() -> None:
    request = head(host=HOST, origin="https://a.example", sec_fetch_site="cross-site", user_agent=CHROME)
    assert lets(lambda: Origins(("https://a.example",)).check(request))
    check_follower(request, named=True)


def test_a_browser_that_says_nothing_of_the_page_follows_under_no_name() -> None:
    silent = head(host=HOST, user_agent=CHROME)
    assert not lets(lambda: check_follower(silent, named=True))
    check_follower(silent, named=False)


@pytest.mark.parametrize("agent", [None, "curl/8.5.0", "Python-urllib/3.11", "", "libwww Mozilla/5.0"])
def test_a_program_follows_under_a_name(agent: str | None) -> None:
    check_follower(head(host=HOST, user_agent=agent), named=True)


# More that is allowed


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://app.example.org", "https://app.example.org"),
        ("https://app.example.org", "https://app.example.org:443"),
        ("https://app.example.org:443", "https://app.example.org"),
        ("https://APP.example.org", "https://app.example.org"),
        ("https://app.example.org:8443", "https://app.example.org:8443"),
        ("http://192.0.2.7:8080", "http://192.0.2.7:8080"),
        ("http://[2001:db8:0::7]", "http://[2001:db8::7]"),
        ("app://localhost", "app://localhost"),
        ("https://*.example.com", "https://a.example.com"),
        ("https://*.example.com", "https://c.b.a.example.com"),
        ("https://*.example.com:8443", "https://a.example.com:8443"),
        ("https://*.example.com", "https://a.example.com."),
        ("https://*.example.com.", "https://a.example.com"),
        (ALL, "https://anything.example:1"),
        (ALL, "null"),
    ],
)
def test_an_allowed_page_passes_and_is_from_elsewhere(allowed: str, origin: str) -> None:
    origins = Origins(("https://first.example", allowed))
    assert passes(origins, origin)
    assert origins.allows_elsewhere(origin, HOST)


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://app.example.org", "http://app.example.org"),
        ("https://app.example.org", "https://app.example.org:8443"),
        ("https://app.example.org", "https://a.app.example.org"),
        ("https://app.example.org", "https://app.example.org.attacker.example"),
        ("https://app.example.org", "https://app.example.org@evil.example"),
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://.example.com"),
        ("https://*.example.com", "https://..example.com"),
        ("https://*.example.com", "https://a..example.com"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://*.example.com", "https://evilexample.com"),
        ("https://*.example.com", "https://a.example.com.attacker.example"),
        ("https://*.example.com", "https://evil.example/.example.com"),
        ("https://*.example.com", "https://evil.example#.example.com"),
        ("https://*.example.com", "https://evil.example\\.example.com"),
        ("https://*.example.com", "https://evil.example@a.example.com"),
        ("https://*.example.com", "https://a.example.com:8443"),
        ("https://*.example.com", "http://a.example.com"),
        ("https://*.example.com", "https://ä.example.com"),
        ("https://app.example.org", "null"),
        (ALL, "nonsense"),
        (ALL, "https://"),
        (ALL, "https://a.example\x01"),
        (ALL, ""),
    ],
)
def test_what_only_looks_like_an_allowed_page_is_refused(allowed: str, origin: str) -> None:
    origins = Origins((allowed,))
    assert not passes(origins, origin)
    assert not origins.allows_elsewhere(origin, HOST)


@given(NAME, st.lists(LABEL, max_size=3))
def test_below_a_domain_is_what_has_labels_before_it(domain: str, labels: list[str]) -> None:
    origins = Origins((f"https://*.{domain}",))
    assert passes(origins, f"https://{'.'.join([*labels, domain])}", "other.host") == bool(labels)


def test_our_own_page_that_is_allowed_too_is_not_from_elsewhere() -> None:
    assert not Origins((ALL,)).allows_elsewhere("https://chat.example.org", HOST)


def test_a_program_is_from_nowhere() -> None:
    assert not Origins((ALL,)).allows_elsewhere(None, HOST)


def test_the_longest_name_is_taken_and_none_longer() -> None:
    name = ".".join(["a" * 63] * 4)[:HOST_LENGTH]
    assert passes(OWN, f"https://{name}", name)
    assert not passes(OWN, f"https://{name}a", f"{name}a")


# What an operator may have typed


@pytest.mark.parametrize(
    "allowed",
    [
        *("", "null", "chat.example.org", "https://", "https://chat.example.org/", "https://chat.example.org:0"),
        *("https://*", "https://*.", "https://*example.org", "https://a.*.example.org", "https://*.*.example.org"),
        *("*.example.org", "**", "https://ann@chat.example.org", "https://bücher.example", "https://[::1"),
    ],
)
def test_what_is_no_origin_cannot_be_allowed(allowed: str) -> None:
    values: Any = ("https://first.example", allowed)
    with pytest.raises(BadValue, match=r"^--origin must be like [^\n]*$"):
        Origins(values)
