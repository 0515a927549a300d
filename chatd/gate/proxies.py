"""Where a client really comes from: what the proxies before us say, as far as ``--trusted-proxy`` believes them.

Each proxy adds at the right end of ``X-Forwarded-For`` who it was that connected to it. So the list is read from the
right, for as long as who said it is trusted; what stands further left anybody may have written.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from chatd.config import FORWARDED_MOST, BadValue

UNIX = "unix"
"""The address of whoever comes through a unix socket."""

_NETWORK = re.compile(r"[0-9A-Fa-f:./]+")
_HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}|([0-9A-Fa-f:.]+)")
"""Without a scope (``fe80::1%eth0``): behind the ``%`` anything may stand, and this ends up in the chat log."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Proxies:
    """The proxies that are trusted."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        """Take addresses, networks in CIDR, and ``unix`` for whoever comes through a unix socket. Raises BadValue."""
        self._unix = UNIX in networks
        self._networks = [_read_network(each) for each in networks if each != UNIX]

    def client(self, peer: str, forwarded_for: str | None) -> str:
        """Give the address of a client; forwarded_for is the header, joined by commas where there were several."""
        address = _read(peer)
        client = peer if address is None else str(address)
        if forwarded_for is None or not self.believes(client):
            return client
        for hop in reversed(forwarded_for.rsplit(",", FORWARDED_MOST)[-FORWARDED_MOST:]):
            found = _HOP.fullmatch(hop.strip(" \t"))
            address = _read(found[found.lastindex or 0]) if found else None
            if address is None:
                break
            client = str(address)
            if not self._trusts(address):
                break
        return client

    def believes(self, peer: str) -> bool:
        """Whether it is a proxy that is trusted: its address is not that of a client."""
        return self._unix if peer == UNIX else self._trusts(_read(peer))

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


@lru_cache(maxsize=4096)
def _read(text: str) -> Address | None:
    """Read an address; of an IPv4 one written as IPv6 (``::ffff:192.0.2.1``) give what it is."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _read_network(text: str) -> Network:
    try:
        network = ip_network(text if _NETWORK.fullmatch(text) else "")
    except ValueError:
        raise BadValue(
            "--trusted-proxy must be an IP address, a network that begins where it says (10.0.0.0/8), "
            f"or {UNIX}, not {text!r}"
        ) from None
    return unmapped(network)


def unmapped(network: Network) -> Network:
    """Give a network of IPv4 addresses that is written as one of IPv6 (``::ffff:192.0.2.0/120``) as what it is."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return IPv4Network((int(mapped), network.prefixlen - 96))
    return network
