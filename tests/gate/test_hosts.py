"""What this server is called, and who asks for another."""

import pytest

from chatd.config import BadValue
from chatd.gate.hosts import Hosts
from chatd.wire.handshake import Refused

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


@pytest.mark.parametrize("name", ["", "chat.example.org:3000", "https://chat.example.org", "a b", "*.example.org", "é"])
def test_what_is_no_name_is_told(name: str) -> None:
    with pytest.raises(BadValue, match="--host must be a name or an address without a port"):
        Hosts((name,))
