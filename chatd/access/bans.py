"""The ban list: addresses and networks in a file that may not connect.

Each line has one, ``#`` begins a comment: ``192.0.2.7``, ``198.51.100.0/24``, ``2001:db8::/32``. An IPv4 address that
is written as IPv6 (``::ffff:192.0.2.7``) is treated as IPv4.
"""

from ipaddress import ip_network

from chatd.access.client_address import read_address, unmapped
from chatd.access.list_file import read_list
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused


class BanList:
    """The list, which may be read anew at any time."""

    def __init__(self, path: str) -> None:
        """Store the path of the file; empty: the list is empty."""
        self._path = path
        self._networks: dict[tuple[int, int], set[int]] = {}  # by version and bits that do not matter
        self._whole = False

    def read(self) -> None:
        """Read the file. Raise BadValue, one line that names it; the list is then the one that was read last.

        If no list was read before, it is the valid part of this one.
        """
        lines = read_list("--ban-list", self._path).splitlines()
        found: dict[tuple[int, int], set[int]] = {}
        bad = ""
        for number, line in enumerate(lines, 1):
            if text := line.partition("#")[0].strip():
                try:
                    network = unmapped(ip_network(text))
                except ValueError:
                    what = f"{text!r} is not an address, or a network without host bits such as 198.51.100.0/24"
                    bad = bad or f"--ban-list {self._path}, line {number}: {what}"
                    continue
                rest = network.max_prefixlen - network.prefixlen
                found.setdefault((network.version, rest), set()).add(int(network.network_address) >> rest)
        if not (bad and self._whole):
            self._networks = found
        if bad:
            raise BadValue(bad)
        self._whole = True

    def has(self, address: str) -> bool:
        """Return whether an address, or a network that it is in, is on the list."""
        if not self._networks:
            return False
        found = read_address(address)
        if found is None:  # a unix socket
            return False
        number, version = int(found), found.version
        return any(of == version and number >> rest in known for (of, rest), known in self._networks.items())

    def check(self, address: str) -> None:
        """Raise Refused (403) for an address on the list."""
        if self.has(address):
            raise Refused(403, "banned", "this address is banned")
