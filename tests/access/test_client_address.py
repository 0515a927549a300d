"""The address of a client: reported by trusted proxies only, whatever a client wrote into the list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.access.client_address import FORWARDED_MOST, TrustedProxies
from chatd.config.values import BadValue
from chatd.runtime.transports import UNIX, UNIX_PROXY
from tests.rows import rows

PROXY = "10.0.0.1"
NETWORKS = ("10.0.0.0/8", "2001:db8:1::/48", "unix")
PROXIES = TrustedProxies(NETWORKS)

OUTSIDE = st.ip_addresses(v=4).filter(lambda address: not str(address).startswith("10.")).map(str)
INSIDE = st.ip_addresses(network="10.0.0.0/8").map(str)


def client(forwarded_for: str | None, peer: str = PROXY) -> str:
    return PROXIES.client(peer, forwarded_for)


@rows("peer", ["192.0.2.7", "2001:db8::7", "11.0.0.1", "unix-like", "", UNIX])
def test_the_header_of_an_untrusted_peer_is_ignored(peer: str) -> None:
    assert client("203.0.113.9", peer) == peer


@rows("peer", [PROXY, UNIX, UNIX_PROXY])
def test_by_default_no_proxy_is_trusted(peer: str) -> None:
    untrusting = TrustedProxies(())
    assert untrusting.client(peer, "203.0.113.9") == untrusting.counted(peer) == peer.replace(UNIX_PROXY, UNIX)
    assert untrusting.may_announce(peer)


@rows("peer", [PROXY, "10.255.255.255", "2001:db8:1:ffff::7", UNIX_PROXY])
def test_the_header_of_a_trusted_proxy_counts(peer: str) -> None:
    assert client("203.0.113.9", peer) == "203.0.113.9"


def test_a_single_address_is_a_network_of_its_own() -> None:
    one = TrustedProxies(("192.0.2.1", "::1"))
    assert one.client("192.0.2.1", "203.0.113.9") == one.client("::1", "203.0.113.9") == "203.0.113.9"
    assert one.client("192.0.2.2", "203.0.113.9") == "192.0.2.2"


@rows(
    "forwarded_for, address",
    [
        (None, PROXY),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 10.1.1.1,2001:db8:1::5", "203.0.113.9"),
        ("10.3.3.3, 10.2.2.2, 10.1.1.1", "10.3.3.3"),
    ],
)
def test_the_client_is_the_last_untrusted_address_or_the_first_one(forwarded_for: str | None, address: str) -> None:
    assert client(forwarded_for) == address


def test_an_invalid_entry_ends_the_list_and_the_last_valid_one_counts() -> None:
    rows = [
        *("unknown", "_hidden", "unix", "unix:", "203.0.113", "203.0.113.256", "0203.0.113.9", "2001:db8::7::"),
        *("203.0.113.9 198.51.100.1", "203.0.113.9:", "203.0.113.9:x", "203.0.113.9:123456", "203.0.113.9/32"),
        *("[2001:db8::7", "2001:db8::7]", "[2001:db8::7]x", "[]:80", "fe80::1%eth0", "fe80::1%a b", "٢٠٣.0.113.9"),
        *('"203.0.113.9"', "for=203.0.113.9", "203.0.113.9\n", "3405803785"),
    ]
    assert [bad for bad in rows if client(f"198.51.100.1, {bad}, 10.1.1.1") != "10.1.1.1"] == []
    assert [bad for bad in rows if client(f"198.51.100.1, {bad}") != PROXY] == []


@rows("listed", ["203.0.113.9, ", "203.0.113.9,", "203.0.113.9, ,\t, 10.1.1.1,,", ",203.0.113.9"])
def test_empty_entries_are_skipped(listed: str) -> None:
    assert client(f"198.51.100.1,{listed}") == client(listed) == "203.0.113.9"


def test_an_address_may_be_written_in_several_ways() -> None:
    rows = [
        *(("203.0.113.9", "203.0.113.9"), ("203.0.113.9:40000", "203.0.113.9"), ("  203.0.113.9\t", "203.0.113.9")),
        *(("2001:db8::7", "2001:db8::7"), ("2001:DB8:0:0::7", "2001:db8::7"), ("[2001:db8::7]", "2001:db8::7")),
        *(("[2001:db8::7]:40000", "2001:db8::7"), ("::ffff:203.0.113.9", "203.0.113.9")),
        ("[::ffff:cb00:7109]:40000", "203.0.113.9"),
    ]
    assert [(hop, address) for hop, address in rows if client(f"198.51.100.1, {hop}") != address] == []


def test_ipv4_in_ipv6_is_the_same_peer() -> None:
    assert client("203.0.113.9", "::ffff:10.0.0.1") == "203.0.113.9"
    assert client("203.0.113.9", "::ffff:192.0.2.7") == "192.0.2.7"


@rows("network", ["::ffff:10.0.0.0/104", "::ffff:a00:1", "::ffff:0:0/96"])
def test_ipv4_in_ipv6_is_the_same_network(network: str) -> None:
    assert TrustedProxies((network,)).client(PROXY, "203.0.113.9") == "203.0.113.9"


@given(st.lists(OUTSIDE), OUTSIDE, st.lists(INSIDE, max_size=5))
def test_a_client_can_not_forge_its_address(written: list[str], client_address: str, hops: list[str]) -> None:
    assert client(",".join([*written, client_address, *hops])) == client_address


@given(st.text())
def test_any_list_gives_an_address(forwarded_for: str) -> None:
    assert " " not in client(forwarded_for)


def test_no_more_of_a_list_is_read_than_its_bound() -> None:
    hops = ["10.1.1.1", *["10.2.2.2"] * (FORWARDED_MOST - 1)]
    assert client(",".join(hops)) == "10.1.1.1"
    assert client(",".join([*hops, "10.3.3.3"])) == "10.2.2.2"


@rows(
    "network",
    [
        *("", "*", "proxy", "10.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "/8", "::1/129", "10.0.0.1:80"),
        *("[::1]", "fe80::1%eth0", "UNIX", "unix:/run/x.sock", "10.0.0.0/8,::1"),
    ],
)
def test_an_invalid_network_is_refused(network: str) -> None:
    with pytest.raises(BadValue, match=r"^--trusted-proxy: [^\n]* is not an IP address or network; use [^\n]*$"):
        TrustedProxies(("10.0.0.0/8", network))


@rows(("peer", "trusted"), [(PROXY, True), (UNIX_PROXY, True), (UNIX, False), ("192.0.2.7", False), ("", False)])
def test_the_addresses_of_proxies_are_trusted(peer: str, trusted: bool) -> None:
    assert PROXIES.trusts(peer) is trusted
    assert PROXIES.may_announce(peer) is trusted
    assert bool(PROXIES.counted(peer)) is (not trusted and bool(peer))
