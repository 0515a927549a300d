"""Addresses and networks, read in one way everywhere: an IPv4 one that is written as IPv6 is what it is."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@lru_cache(maxsize=4096)
def read_address(text: str) -> Address | None:
    """Read an address (``192.0.2.1``, ``2001:db8::1``, ``::ffff:192.0.2.1``); None for what is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def unmapped(network: Network) -> Network:
    """Give a network of IPv4 addresses that is written as one of IPv6 (``::ffff:192.0.2.0/120``) as what it is."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return IPv4Network((int(mapped), network.prefixlen - 96))
    return network
