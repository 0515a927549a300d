"""Origins and host names: which web pages may talk to the server, and under which names."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.access.origins import ALL, HOST_LENGTH, Hosts, Origins, check_follower
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused, RequestHead
from tests.rows import rows

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


# Reports


@rows(
    ("origin", "options"),
    [
        ("http://localhost:8000", ["http://localhost:8000"]),
        ("null", ["'*'"]),
        ("nonsense\x1b", []),  # no browser, and nothing that could be allowed
        ("https://friend.example", []),
    ],
)
def test_a_refused_origin_is_reported_once_with_the_option_that_allows_it(origin: str, options: list[str]) -> None:
    reported: list[str] = []
    origins = Origins(("https://friend.example",), lambda page, option: reported.append(option), most=2)
    for _ in range(3):
        passes(origins, origin)
    assert reported == options
    assert all(passes(Origins((option.strip("'"),)), origin) for option in reported)


def test_no_more_refused_origins_are_reported_than_that() -> None:
    reported: list[str] = []
    origins = Origins((), lambda page, option: reported.append(option), most=2)
    for number in range(9):
        assert not passes(origins, f"https://{number}.example")
    assert len(reported) == 2


# Programs and own pages


@rows("host", [HOST, "", None])
def test_a_request_without_an_origin_passes(host: str | None) -> None:
    assert passes(OWN, None, host)


def test_the_own_page_passes() -> None:
    rows = [
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
    ]
    for origin, host in rows:
        assert passes(OWN, origin, host), (origin, host)
        assert not OWN.allows_cross_origin(origin, host), (origin, host)


def test_any_other_page_is_refused() -> None:
    rows = [
        *("https://evil.example", "https://example.org", "https://a.chat.example.org"),
        *("https://chat.example.org.attacker.example", "https://chat.example.orgx", "https://xchat.example.org"),
        *("https://chat-example.org", "https://chat.example.org..", "https://.chat.example.org"),
        *("https://chat..example.org", "https://chat.example.org@evil.example"),
        *("https://evil.example@chat.example.org", "https://ann:secret@chat.example.org"),
        *("https://evil.example/chat.example.org", "https://chat.example.org/", "https://chat.example.org/page"),
        *("https://chat.example.org?", "https://chat.example.org#", "https://chat.example.org\\.evil.example"),
        *("https://evil.example,https://chat.example.org", "https://evil.example https://chat.example.org"),
        *("https://chat.example.org https://evil.example", " https://chat.example.org", "https://chat.example.org "),
        *("https://chat.example.org\n", "https://chat.example.org:3000", "https://chat.example.org:80"),
        *("http://chat.example.org:443", "https://chat.example.org:", "https://chat.example.org:0"),
        *("https://chat.example.org:00", "https://chat.example.org:65979", "https://chat.example.org:443443"),
        *("https://chat.example.org:-443", "https://chat.example.org:\uff14\uff14\uff13"),
        *("https://chat.example.org%2eevil.example", "https://chat。example。org", "https://ﬃ.chat.example.org"),
        *("https://chat.example.orĝ", "https:chat.example.org", "https:/chat.example.org"),
        *("https:///chat.example.org", "//chat.example.org", "chat.example.org", "ftp://chat.example.org"),
        *("app://chat.example.org", "https://[::1]", "https://[chat.example.org]", "https://*"),
        *("https://*.example.org", "https://" + "a" * 10_000, "null", "NULL", "*", ""),
    ]
    assert [origin for origin in rows if passes(OWN, origin)] == []


def test_without_a_valid_host_no_page_is_the_own_one() -> None:
    rows = [None, "", "chat.example.org,chat.example.org", "@chat.example.org", "[::1", "*", "ß"]
    assert [host for host in rows if passes(OWN, "https://chat.example.org", host)] == []


def test_a_bad_ipv6_host_or_a_name_that_is_ascii_only_in_lower_case_is_no_own_page() -> None:
    hosts = ["[fe80::1%eth0]", "[::1]x", "[]", "::1", "[1.2.3.4]", "[:::1]"]
    rows = [*((f"http://{host}", host) for host in hosts), ("http://\u212a", "k"), ("http://k", "\u212a")]
    assert [(origin, host) for origin, host in rows if passes(OWN, origin, host)] == []


@given(NAME, PORT, st.sampled_from(["http", "https"]))
def test_the_own_page_passes_with_any_name_and_port(name: str, port: int, scheme: str) -> None:
    assert passes(OWN, f"{scheme}://{name}:{port}", f"{name}:{port}")


@given(NAME, NAME, PORT, PORT)
def test_another_name_or_another_port_is_another_page(name: str, other: str, port: int, elsewhere: int) -> None:
    assert passes(OWN, f"https://{name}:{port}", f"{other}:{elsewhere}") == ((name, port) == (other, elsewhere))


@given(st.text(), st.none() | st.text())
def test_any_text_is_refused_or_accepted(origin: str, host: str | None) -> None:
    passes(OWN, origin, host)
    OWN.allows_cross_origin(origin, host)


# Requests of browsers that carry no Origin


@rows("site", ["cross-site", "same-site", "none,cross-site", "", "nonsense"])
@rows(
    ("method", "mode"), [("GET", "no-cors"), ("GET", "cors"), ("GET", None), ("HEAD", "no-cors"), ("POST", "navigate")]
)
def test_another_site_sends_nothing_without_an_origin(site: str, method: str, mode: str | None) -> None:
    request = head(method, host=HOST, sec_fetch_site=site, sec_fetch_mode=mode, user_agent=CHROME)
    assert not lets(lambda: Origins((ALL,)).check(request))


@rows("site", ["same-origin", "none", None])
@rows("method", ["GET", "HEAD", "POST"])
def test_the_own_page_and_a_typed_address_need_no_origin(site: str | None, method: str) -> None:
    request = head(method, host=HOST, sec_fetch_site=site, sec_fetch_mode="no-cors", user_agent=CHROME)
    assert lets(lambda: OWN.check(request))
    if site is not None:
        check_follower(request, named=True)


def test_a_link_on_another_site_opens_a_page_and_follows_no_room() -> None:
    request = head(host=HOST, sec_fetch_site="cross-site", sec_fetch_mode="navigate", user_agent=CHROME)
    assert lets(lambda: OWN.check(request))
    assert not lets(lambda: check_follower(request, named=False))


def test_an_allowed_origin_counts_whatever_sec_fetch_site_says() -> None:
    request = head(host=HOST, origin="https://a.example", sec_fetch_site="cross-site", user_agent=CHROME)
    assert lets(lambda: Origins(("https://a.example",)).check(request))
    check_follower(request, named=True)


def test_a_browser_without_origin_and_sec_fetch_site_may_not_follow_under_a_name() -> None:
    silent = head(host=HOST, user_agent=CHROME)
    assert not lets(lambda: check_follower(silent, named=True))
    check_follower(silent, named=False)


@rows("agent", [None, "curl/8.5.0", "Python-urllib/3.11", "", "libwww Mozilla/5.0"])
def test_a_program_follows_under_a_name(agent: str | None) -> None:
    check_follower(head(host=HOST, user_agent=agent), named=True)


# Allowed origins


def test_an_allowed_page_passes_and_is_cross_origin() -> None:
    rows = [
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
    ]
    for allowed, origin in rows:
        origins = Origins(("https://first.example", allowed))
        assert passes(origins, origin) and origins.allows_cross_origin(origin, HOST), (allowed, origin)


def test_a_page_that_only_looks_like_an_allowed_one_is_refused() -> None:
    rows = [
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
    ]
    for allowed, origin in rows:
        origins = Origins((allowed,))
        assert not (passes(origins, origin) or origins.allows_cross_origin(origin, HOST)), (allowed, origin)


@given(NAME, st.lists(LABEL, max_size=3))
def test_a_wildcard_allows_names_below_the_domain_only(domain: str, labels: list[str]) -> None:
    origins = Origins((f"https://*.{domain}",))
    assert passes(origins, f"https://{'.'.join([*labels, domain])}", "other.host") == bool(labels)


@rows("origin", ["https://chat.example.org", None])
def test_the_own_page_and_a_request_without_an_origin_are_not_cross_origin(origin: str | None) -> None:
    assert not Origins((ALL,)).allows_cross_origin(origin, HOST)


def test_the_longest_name_is_accepted_and_none_longer() -> None:
    name = ".".join(["a" * 63] * 4)[:HOST_LENGTH]
    assert passes(OWN, f"https://{name}", name)
    assert not passes(OWN, f"https://{name}a", f"{name}a")


@rows(
    "allowed",
    [
        *("", "null", "chat.example.org", "https://", "https://chat.example.org/", "https://chat.example.org:0"),
        *("https://*", "https://*.", "https://*example.org", "https://a.*.example.org", "https://*.*.example.org"),
        *("*.example.org", "**", "https://ann@chat.example.org", "https://bücher.example", "https://[::1"),
    ],
)
def test_an_invalid_origin_option_is_refused(allowed: str) -> None:
    values: Any = ("https://first.example", allowed)
    with pytest.raises(BadValue, match=r"^--allowed-origin: [^\n]* is not an origin; use [^\n]*$"):
        Origins(values)


# Host names

OURS = Hosts(("chat.example.org", "192.0.2.1", "2001:db8::1", "[::1]", "Localhost"))


def test_every_name_of_the_server_is_accepted() -> None:
    rows = [
        *("chat.example.org", "chat.example.org:3000", "CHAT.example.org.", "192.0.2.1:80", "[2001:db8::1]"),
        *("[2001:DB8:0::1]:3000", "[::1]:3000", "localhost"),
    ]
    assert [host for host in rows if not lets(partial(OURS.check, host))] == []


def test_other_names_are_refused() -> None:
    rows = [
        *(None, "", "evil.example", "chat.example.org.evil.example", "xchat.example.org", "example.org", "192.0.2.2"),
        *("2001:db8::1", "chat.example.org:x", "chat.example.org,evil.example", "user@chat.example.org"),
        *("chat.example.org/", "chat.ex\u0430mple.org", "127.0.0.1"),
    ]
    assert [host for host in rows if lets(partial(OURS.check, host))] == []


def test_without_configured_names_every_name_is_accepted() -> None:
    for host in (None, "", "anything"):
        Hosts(()).check(host)


def test_the_refusal_names_the_option_that_serves_that_name() -> None:
    message = r"^Host evil\.example is not served here: .*; to serve it, give --allowed-host evil\.example$"
    with pytest.raises(Refused, match=message):
        OURS.check("Evil.example:3000")


# On a loopback address

LOOPBACK = Hosts((), machine="Box.lan")


def test_a_loopback_address_serves_the_names_of_this_host() -> None:
    rows = [
        None,
        *("localhost", "LOCALHOST:3000", "localhost.", "chat.localhost:3000", "a.b.localhost"),
        *("127.0.0.1", "127.0.0.1:3000", "127.1.2.3:80", "[::1]", "[::1]:3000", "[0:0:0:0:0:0:0:1]:3000"),
        *("[::ffff:127.0.0.1]:3000", "[::ffff:7f00:1]", "box.lan", "BOX.lan.:3000"),
    ]
    assert [host for host in rows if not lets(partial(LOOPBACK.check, host, loopback=True))] == []


def test_a_loopback_address_serves_no_other_name() -> None:
    rows = [
        *("evil.example:3000", "localhost.evil.example", "evillocalhost", "127.0.0.1.evil.example", "127.0.0.1.nip.io"),
        *("192.0.2.1", "0.0.0.0", "[::]", "[::ffff:192.0.2.1]", "10.127.0.1", "127.1", "2130706433"),
        *("", "box", "a.box.lan", "localhost,evil.example", "evil.example@localhost", "\u017flocalhost"),
    ]
    assert [host for host in rows if lets(partial(LOOPBACK.check, host, loopback=True))] == []
    assert [host for host in rows if not lets(partial(LOOPBACK.check, host))] == []
    with pytest.raises(Refused, match=r"give --allowed-host .*, or --trusted-proxy ADDRESS behind a proxy"):
        LOOPBACK.check("evil.example", loopback=True)


def test_behind_a_trusted_proxy_and_with_names_a_loopback_address_serves_others() -> None:
    Hosts((), proxied=True).check("chat.example.org", loopback=True)
    Hosts(("chat.example.org",)).check("chat.example.org", loopback=True)
    for hosts, host in ((Hosts(("chat.example.org",)), "localhost"), (Hosts((), machine=""), "")):
        with pytest.raises(Refused):
            hosts.check(host, loopback=True)


@rows("name", ["", "chat.example.org:3000", "https://chat.example.org", "a b", "*.example.org", "é"])
def test_an_invalid_host_option_is_refused(name: str) -> None:
    with pytest.raises(BadValue, match="is not a name or address without a port"):
        Hosts((name,))


@rows("name", ["0.0.0.0", "0.0.0.0:8080", "0", "*", "*:8080", "::", "[::]", "[::]:8080", "0:0::0"])
def test_a_wildcard_address_is_no_host_option(name: str) -> None:
    with pytest.raises(BadValue) as caught:
        Hosts([name])
    port = "8080" if name.endswith("8080") else "3000"
    assert str(caught.value) == (
        f'--allowed-host: "{name}" is not a name or address by which clients call this server; '
        f"to listen on all addresses, use --listen :{port}"
    )


@rows("name", ["127.0.0.1", "192.0.2.7", "::1", "2001:db8::7", "fe80::1", "0a.example.org"])
def test_an_address_may_be_a_host_option(name: str) -> None:
    Hosts([name]).check(f"[{name}]" if ":" in name else name)
