"""The address of a client: that of the other end of its connection, or the one that a trusted proxy reports.

A proxy reports it in ``X-Forwarded-For``, or with the PROXY protocol on a port that expects it. A proxy that connects
through a unix socket is trusted only if its user or group may be a proxy (``transports.UNIX_PROXY``).

Each proxy appends the address of its own peer to ``X-Forwarded-For``. The list is therefore read from the right, as
long as the proxy that appended the entry is trusted. Entries further left can be forged by the client and are ignored.

IPv4 addresses that are written as IPv6 are treated as IPv4 everywhere.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from chatd.config.values import BadValue, quoted
from chatd.runtime.transports import UNIX, UNIX_PROXY

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FORWARDED_MOST = 32
"""Maximum addresses that are read from ``X-Forwarded-For``, from the right."""

_NETWORK = re.compile(r"[0-9A-Fa-f:./]+")
_HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}|([0-9A-Fa-f:.]+)")
"""An entry of the header. A scope (``fe80::1%eth0``) may be any text, which would reach the chat log: it is refused."""


@lru_cache(maxsize=4096)
def read_address(text: str) -> Address | None:
    """Return an address (``192.0.2.1``, ``2001:db8::1``, ``::ffff:192.0.2.1``); None if the text is not one."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def unmapped(network: Network) -> Network:
    """Return the IPv4 network that an IPv6 one (``::ffff:192.0.2.0/120``) stands for; any other network as it is."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return IPv4Network((int(mapped), network.prefixlen - 96))
    return network


class TrustedProxies:
    """The proxies that are trusted."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        """Store addresses, networks in CIDR, and ``unix`` for proxies that use a unix socket. Raise BadValue."""
        self._unix = UNIX in networks
        self._networks = [_read_network(network) for network in networks if network != UNIX]

    def client(self, peer: str, forwarded_for: str | None) -> str:
        """Return the address of a client; forwarded_for is the header, several of them joined by commas."""
        address = read_address(peer)
        client = _plain(peer) if address is None else str(address)
        if forwarded_for is None or not self.trusts(peer):
            return client
        for hop in reversed(forwarded_for.rsplit(",", FORWARDED_MOST)[-FORWARDED_MOST:]):
            if not (hop := hop.strip(" \t")):  # no element of the list (RFC 9110, section 5.6.1)
                continue
            found = _HOP.fullmatch(hop)
            address = read_address(found[found.lastindex or 0]) if found else None
            if address is None:
                break
            client = str(address)
            if not self._trusts(address):
                break
        return client

    def trusts(self, peer: str) -> bool:
        """Return whether a peer is a trusted proxy: its address is not that of a client."""
        return self._unix if peer == UNIX_PROXY else self._trusts(read_address(peer))

    def may_announce(self, peer: str) -> bool:
        """Return whether PROXY headers of a peer are accepted: those of trusted proxies, or all if none is named."""
        return not (self._unix or self._networks) or self.trusts(peer)

    def counted(self, peer: str) -> str:
        """Return the address that a connection counts for: none if it is that of a proxy, which has many clients."""
        return "" if self.trusts(peer) else _plain(peer)

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _plain(peer: str) -> str:
    return UNIX if peer == UNIX_PROXY else peer


def _read_network(text: str) -> Network:
    try:
        network = ip_network(text if _NETWORK.fullmatch(text) else "")
    except ValueError:
        raise BadValue(
            f"--trusted-proxy: {quoted(text)} is not an IP address or network; "
            f"use for example 192.0.2.10, 10.0.0.0/8 or {UNIX}"
        ) from None
    return unmapped(network)
