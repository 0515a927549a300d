"""What this server is called: who asks for it under another name was brought here by somebody else's DNS.

A page may let its own name point to our address once it is loaded (DNS rebinding): to its browser we are then a
part of the page's own site, and ``Origin`` and ``Host`` agree. That ``Host`` is none of our names is all that tells.

A listener on a loopback address serves loopback names alone, unless the operator gives names or trusts a proxy: every
browser on this host reaches that listener, and nobody else needs another name for it.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from chatd.access.addresses import read_address
from chatd.access.origins import read_authority
from chatd.config.values import BadValue
from chatd.protocol.http_head import Refused, forbidden


class Hosts:
    """The names that are ours; without any, all are, and on a loopback address those of this host."""

    def __init__(self, names: Sequence[str], *, machine: str = "", proxied: bool = False) -> None:
        """Take names and addresses, without ports. Raises BadValue.

        Machine is what this host calls itself; proxied: a proxy is trusted, so clients use names of the proxy.
        """
        self._names = frozenset(map(_read, names))
        self._machine = machine.lower()
        self._proxied = proxied

    def check(self, host: str | None, *, loopback: bool = False) -> None:
        """Let a request with this header in, whatever port it names. Raises Refused: 403.

        Loopback: it came to a TCP port on a loopback address. No browser leaves the header out.
        """
        name = _name(host or "")
        if self._names:
            if name not in self._names:
                raise _misdirected(name, "this server has other names", "")
        elif loopback and not self._proxied and host is not None and not self._is_local(name):
            accepted = "this address is for localhost, loopback addresses and the name of this machine"
            raise _misdirected(name, accepted, ", or --trusted-proxy ADDRESS behind a proxy")

    def _is_local(self, name: str) -> bool:
        return _is_loopback(name) or name == self._machine != ""


@lru_cache(maxsize=256)
def _is_loopback(name: str) -> bool:
    if (address := read_address(name)) is not None:
        return address.is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _misdirected(name: str, accepted: str, otherwise: str) -> Refused:
    shown = f"Host {name}" if name else "this Host"
    return forbidden(f"{shown} is not served here: {accepted}; to serve it, give --host {name or 'NAME'}{otherwise}")


@lru_cache(maxsize=256)
def _name(host: str) -> str:
    """Return the name or address in a Host header; empty where it has none that can be read."""
    place = read_authority(host.lower(), 0) if host.isascii() else None
    return place[0] if place else ""


_WITH_PORT = re.compile(r"(\*|[0-9.]+|\[.*\]):([0-9]{1,5})")


def _check_means_a_name(name: str) -> None:
    """Raise BadValue for what other servers take for all addresses to listen on, with a port or without."""
    found = _WITH_PORT.fullmatch(name)
    place, port = found.groups() if found else (name, "3000")
    address = read_address(place.strip("[]"))
    if place in ("*", "0") or (address is not None and address.is_unspecified):
        raise BadValue(
            f"--host is a name or address by which clients call this server, not {name!r}; "
            f"to listen on all addresses, use --listen tcp:{port}"
        )


def _read(name: str) -> str:
    _check_means_a_name(name)
    text = f"[{name}]" if ":" in name and not name.startswith("[") else name
    place = read_authority(text.lower(), 0) if text.isascii() else None
    if place is None or place[1] != 0:
        raise BadValue(f"--host must be a name or an address without a port, like chat.example.org, not {name!r}")
    return place[0]
