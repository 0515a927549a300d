"""Where a client really comes from: what the proxies before us say, as far as ``--trusted-proxy`` believes them.

A proxy says it with ``X-Forwarded-For``, or with the PROXY protocol on a port that expects it. Through a unix socket
only those are believed whose user or group may be a proxy (``transports.UNIX_PROXY``).

Each proxy adds at the right end of ``X-Forwarded-For`` who it was that connected to it. So the list is read from the
right, for as long as who said it is trusted; what stands further left anybody may have written.
"""

import re
from ipaddress import ip_network

from chatd.access.addresses import Address, Network, read_address, unmapped
from chatd.config.tuning import FORWARDED_MOST
from chatd.config.values import BadValue
from chatd.runtime.transports import UNIX, UNIX_PROXY

_NETWORK = re.compile(r"[0-9A-Fa-f:./]+")
_HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}|([0-9A-Fa-f:.]+)")
"""Without a scope (``fe80::1%eth0``): behind the ``%`` anything may stand, and this ends up in the chat log."""


class TrustedProxies:
    """The proxies that are trusted."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        """Take addresses, networks in CIDR, and ``unix`` for proxies that use a unix socket. Raise BadValue."""
        self._unix = UNIX in networks
        self._networks = [_read_network(each) for each in networks if each != UNIX]

    def client(self, peer: str, forwarded_for: str | None) -> str:
        """Give the address of a client; forwarded_for is the header, joined by commas where there were several."""
        address = read_address(peer)
        client = _plain(peer) if address is None else str(address)
        if forwarded_for is None or not self.believes(peer):
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

    def believes(self, peer: str) -> bool:
        """Whether it is a proxy that is trusted: its address is not that of a client."""
        return self._unix if peer == UNIX_PROXY else self._trusts(read_address(peer))

    def may_announce(self, peer: str) -> bool:
        """Whether its PROXY headers are believed: those of trusted proxies, or of everybody if none is named."""
        return not (self._unix or self._networks) or self.believes(peer)

    def counted(self, peer: str) -> str:
        """Return the address that a connection counts for: none if it is that of a proxy, which has many clients."""
        return "" if self.believes(peer) else _plain(peer)

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _plain(peer: str) -> str:
    return UNIX if peer == UNIX_PROXY else peer


def _read_network(text: str) -> Network:
    try:
        network = ip_network(text if _NETWORK.fullmatch(text) else "")
    except ValueError:
        raise BadValue(
            "--trusted-proxy must be an IP address, a network that begins where it says (10.0.0.0/8), "
            f"or {UNIX}, not {text!r}"
        ) from None
    return unmapped(network)
