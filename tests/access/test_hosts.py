"""What this server is called, and who asks for another."""

import pytest

from chatd.access.hosts import Hosts
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused

OURS = Hosts(("chat.example.org", "192.0.2.1", "2001:db8::1", "[::1]", "Localhost"))


@pytest.mark.parametrize(
    "host",
    [
        "chat.example.org",
        "chat.example.org:3000",
        "CHAT.example.org.",
        "192.0.2.1:80",
        "[2001:db8::1]",
        "[2001:DB8:0::1]:3000",
        "[::1]:3000",
        "localhost",
    ],
)
def test_who_asks_for_us_comes_in(host: str) -> None:
    OURS.check(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "chat.example.org.evil.example",
        "xchat.example.org",
        "example.org",
        "192.0.2.2",
        "2001:db8::1",
        "chat.example.org:x",
        "chat.example.org,evil.example",
        "user@chat.example.org",
        "chat.example.org/",
        "chat.ex\u0430mple.org",
        "127.0.0.1",
    ],
)
def test_who_asks_for_somebody_else_does_not(host: str | None) -> None:
    with pytest.raises(Refused) as caught:
        OURS.check(host)
    assert caught.value.status == 403


def test_without_names_everybody_comes_in() -> None:
    for host in (None, "", "anything"):
        Hosts(()).check(host)


def test_the_refusal_says_which_option_serves_that_name() -> None:
    with pytest.raises(
        Refused, match=r"^Host evil\.example is not served here: .*; to serve it, give --host evil\.example$"
    ):
        OURS.check("Evil.example:3000")


# On a loopback address

LOOPBACK = Hosts((), machine="Box.lan")


@pytest.mark.parametrize(
    "host",
    [
        None,
        *("localhost", "LOCALHOST:3000", "localhost.", "chat.localhost:3000", "a.b.localhost"),
        *("127.0.0.1", "127.0.0.1:3000", "127.1.2.3:80", "[::1]", "[::1]:3000", "[0:0:0:0:0:0:0:1]:3000"),
        *("[::ffff:127.0.0.1]:3000", "[::ffff:7f00:1]", "box.lan", "BOX.lan.:3000"),
    ],
)
def test_a_loopback_address_serves_the_names_of_this_host(host: str | None) -> None:
    LOOPBACK.check(host, loopback=True)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:3000", "localhost.evil.example", "evillocalhost", "127.0.0.1.evil.example", "127.0.0.1.nip.io"),
        *("192.0.2.1", "0.0.0.0", "[::]", "[::ffff:192.0.2.1]", "10.127.0.1", "127.1", "2130706433"),
        *("", "box", "a.box.lan", "localhost,evil.example", "evil.example@localhost", "\u017flocalhost"),
    ],
)
def test_a_loopback_address_serves_no_other_name(host: str) -> None:
    with pytest.raises(Refused, match=r"give --host .*, or --trusted-proxy ADDRESS behind a proxy") as caught:
        LOOPBACK.check(host, loopback=True)
    assert caught.value.status == 403
    LOOPBACK.check(host)


def test_behind_a_trusted_proxy_and_with_names_a_loopback_address_serves_others() -> None:
    Hosts((), proxied=True).check("chat.example.org", loopback=True)
    Hosts(("chat.example.org",)).check("chat.example.org", loopback=True)
    with pytest.raises(Refused):
        Hosts(("chat.example.org",)).check("localhost", loopback=True)


def test_a_machine_without_a_name_has_none() -> None:
    with pytest.raises(Refused):
        Hosts((), machine="").check("", loopback=True)


@pytest.mark.parametrize("name", ["", "chat.example.org:3000", "https://chat.example.org", "a b", "*.example.org", "é"])
def test_what_is_no_name_is_told(name: str) -> None:
    with pytest.raises(BadValue, match="--host must be a name or an address without a port"):
        Hosts((name,))


@pytest.mark.parametrize("name", ["0.0.0.0", "0.0.0.0:8080", "0", "*", "*:8080", "::", "[::]", "[::]:8080", "0:0::0"])
def test_all_addresses_are_no_name_of_a_server(name: str) -> None:
    with pytest.raises(BadValue) as caught:
        Hosts([name])
    port = "8080" if name.endswith("8080") else "3000"
    assert str(caught.value) == (
        f"--host is a name or address by which clients call this server, not {name!r}; "
        f"to listen on all addresses, use --listen tcp:{port}"
    )


@pytest.mark.parametrize("name", ["127.0.0.1", "192.0.2.7", "::1", "2001:db8::7", "fe80::1", "0a.example.org"])
def test_one_address_may_be_a_name_of_a_server(name: str) -> None:
    Hosts([name]).check(f"[{name}]" if ":" in name else name)
