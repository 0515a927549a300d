"""What this server is called: who asks for it under another name was brought here by somebody else's DNS.

A page may let its own name point to our address once it is loaded (DNS rebinding): to its browser we are then a
part of the page's own site, and ``Origin`` and ``Host`` agree. That ``Host`` is none of our names is all that tells.
"""

from chatd.config import BadValue
from chatd.gate.origin import read_authority
from chatd.wire.handshake import Refused, forbidden


class Hosts:
    """The names that are ours; without any, all are."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Take names and addresses, without ports. Raises BadValue."""
        self._names = frozenset(map(_read, names))

    def check(self, host: str | None) -> None:
        """Let a request with this header in, whatever port it names. Raises Refused: 403."""
        if not self._names:
            return
        place = read_authority((host or "").lower(), 0) if (host or "").isascii() else None
        if place is None or place[0] not in self._names:
            raise misdirected()


def misdirected() -> Refused:
    """Refuse a request that is for somebody else."""
    return forbidden("this server is not called that; see its --host")


def _read(name: str) -> str:
    text = f"[{name}]" if ":" in name and not name.startswith("[") else name
    place = read_authority(text.lower(), 0) if text.isascii() else None
    if place is None or place[1] != 0:
        raise BadValue(f"--host must be a name or an address without a port, like chat.example.org, not {name!r}")
    return place[0]
