"""The addresses of ``--listen``: plain ones become endpoint strings, and the parts of endpoint strings are checked.

Twisted parses endpoint strings when ports are bound (``supervisor/sockets``). Its errors name its own functions, so the
parts are checked here before. Kinds of other plugins are left to Twisted.
"""

import contextlib
import difflib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import takewhile

from twisted.internet import endpoints
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from chatd.config.values import BadValue, quoted

_PARTS: Mapping[str, tuple[str, ...]] = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        "port",
        "privateKey",
        "certKey",
        "sslmethod",
        "interface",
        "backlog",
        "extraCertChain",
        "dhParameters",
    ),
    "tls": ("path", "port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
"""The parts of each kind in the order in which they may stand without their names. The first one is needed, but for
systemd, whose sockets ``supervisor/sockets`` looks for."""

_NUMBERS = {"port": (10, 65_535), "backlog": (10, 2**31 - 1), "index": (10, 2**31 - 1), "mode": (8, 0o777)}
"""Parts that are numbers: their base, and the most that they may be."""

_DOMAINS = ("", "INET", "INET6", "UNIX")
"""The accepted values of ``domain=``. They change nothing: a socket that systemd passed knows its own family."""

_MEANT = {
    "host": "interface",
    "address": "interface",
    "ip": "interface",
    "bind": "interface",
    "path": "address",
    "cert": "certKey",
    "certificate": "certKey",
    "key": "privateKey",
    "chain": "extraCertChain",
    "family": "domain",
}
"""Names that other programs have for a part."""

_PORT = 3000

_EXAMPLES = f"for example :{_PORT}, 127.0.0.1:{_PORT} (this host only), [::1]:{_PORT} or unix:/run/chatd.sock"

_PROXY_WRAPPER = "haproxy"
"""The prefix of an endpoint string whose connections begin with a PROXY header."""


_ADDRESS = re.compile(r"(?:(?P<host>\*|localhost|[0-9]+(?:\.[0-9]+){3}|\[[0-9A-Fa-f:.%\w]+\])?:)?(?P<port>[0-9]{1,5})")
"""A plain address: ``3000``, ``:3000``, ``127.0.0.1:3000``, ``[::1]:3000``, ``localhost:3000``."""


def is_address(text: str) -> bool:
    """Return whether a text is a plain address, not an endpoint string."""
    return _ADDRESS.fullmatch(text) is not None


def endpoints_of(addresses: Sequence[str], tls_cert: str, tls_key: str) -> tuple[str, ...]:
    """Return the endpoint strings of some addresses; with TLS, of the loopback addresses if there are none.

    A port without a host means all addresses of this host. Raise BadValue.
    """
    if tls_key and not tls_cert:
        raise BadValue("--tls-key: --tls-cert is missing; use both")
    if tls_cert and not addresses:
        addresses = (f"localhost:{_PORT}",)
    return tuple(endpoint for address in addresses for endpoint in _endpoints(address, tls_cert, tls_key or tls_cert))


def _endpoints(address: str, tls_cert: str, tls_key: str) -> Iterator[str]:
    found = _ADDRESS.fullmatch(address)
    if not found:
        yield address
        return
    host, port = (found["host"] or "*").strip("[]"), found["port"]
    for interface in _INTERFACES.get(host, (host,)):
        if ":" in interface and host in _INTERFACES and not has_ipv6():
            continue
        kind, files = "tcp", ""
        if tls_cert:
            kind, files = "ssl", f":privateKey={_escaped(tls_key)}:certKey={_escaped(tls_cert)}"
        yield f"{kind}:{port}{files}" + (f":interface={_escaped(interface)}" if interface != _ANY else "")


_ANY = "0.0.0.0"  # noqa: S104 - what the operator asks for
_INTERFACES = {"*": (_ANY, "::"), "localhost": ("127.0.0.1", "::1")}
"""Hosts of plain addresses that mean two addresses. IPv6 is left out on hosts without it."""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace(":", r"\:")


def has_ipv6() -> bool:
    """Return whether this host has IPv6."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def split_endpoint(endpoint: str) -> tuple[list[str], str, list[str], dict[str, str]]:
    """Return an endpoint string's wrappers, its kind, its arguments by position, and those by name.

    Raise ValueError if it cannot be parsed.
    """
    try:
        words, named = endpoints._parse(endpoint)
    except RuntimeError as error:  # a StopIteration in a generator of Twisted's
        raise ValueError("a backslash at its end escapes nothing") from error
    wrappers = [*takewhile(_PROXY_WRAPPER.__eq__, words)]
    kind, *positional = words[len(wrappers) :] or [""]
    return wrappers, kind, positional, named


def expects_proxy_header(endpoint: str) -> bool:
    """Return whether every connection to an endpoint must begin with a PROXY header."""
    return endpoint.startswith(f"{_PROXY_WRAPPER}:")


def check_endpoint(text: str, option: str = "--listen") -> None:
    """Check the form of an endpoint string of an option. Raise BadValue with one that was probably meant."""
    try:
        _, kind, values, named = split_endpoint(text)
    except ValueError:  # a backslash at the end, the name of a part that is not ASCII
        kind, values, named = text, [], {}
    if kind not in _PARTS:
        if not _is_plugin(kind):
            raise BadValue(f"{option}: {quoted(text)} is not an address; use {suggestion(text) or _EXAMPLES}")
        return
    try:
        _check_parts(kind, values, named)
    except BadValue as error:
        meant = suggestion(text)
        raise BadValue(f"{option}: {quoted(text)}: {error}{f'; use {meant}' if meant else ''}") from None


def _is_plugin(kind: str) -> bool:
    return any(plugin.prefix.lower() == kind.lower() for plugin in getPlugins(IStreamServerEndpointStringParser))


def _check_parts(kind: str, values: list[str], named: Mapping[str, str]) -> None:
    parts = _PARTS[kind]
    takes = f"{kind} takes {', '.join(f'{part}=' for part in parts)}"
    for name in named:
        if name not in parts:
            meant = _MEANT.get(name, "")
            like = [meant] if meant in parts else difflib.get_close_matches(name, parts, 1)
            raise BadValue(f"{kind} has no {name}=" + (f"; {like[0]}= may be meant" if like else f"; {takes}"))
    if len(values) > len(parts):
        raise BadValue(f"{takes}, and no more; a colon within one is \\:")
    given = dict(zip(parts, values, strict=False))
    if twice := next((name for name in given if name in named), ""):
        raise BadValue(f"{twice}= is given twice; a colon within it is \\:")
    given |= named
    for name, (base, most) in _NUMBERS.items():
        if name in given:
            _check_number(name, given[name], base, most)
    if kind == "systemd":
        _check_systemd(given)
    elif not given.get(parts[0]):
        raise BadValue(f"{kind} needs {parts[0]}=")
    if kind == "ssl" and "privateKey" not in given and not os.path.exists("server.pem"):  # Twisted's default
        raise BadValue("ssl needs privateKey= and certKey=, the files (PEM) of its key and its certificates")


def _check_systemd(given: Mapping[str, str]) -> None:
    if (domain := given.get("domain", "")) not in _DOMAINS:
        raise BadValue(f"domain must be INET, INET6 or UNIX, not {quoted(domain)}; it may be left out")
    if ("index" in given) == ("name" in given):
        raise BadValue("systemd needs either name= or index=")


def _check_number(name: str, text: str, base: int, most: int) -> None:
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        number = f"an octal number from 0 to {most:o}" if base == 8 else f"a number from 0 to {most}"
        raise BadValue(f"{name} must be {number}, not {quoted(text)}")


def is_local(text: str) -> bool | None:
    """Whether only this host can connect to an endpoint; None if only the socket tells."""
    _, kind, values, named = split_endpoint(text)
    if kind == "unix":
        return True
    given = dict(zip(_PARTS.get(kind, ()), values, strict=False)) | named
    if kind not in _PARTS or kind == "systemd":
        return None
    try:
        return ip_address(given.get("interface") or "::").is_loopback
    except ValueError:  # a name
        return given["interface"] == "localhost" or None


# What was meant

_PLACES = (
    r"(?P<port>[0-9]{1,5})(?:/tcp)?",
    r"\[(?P<host>[0-9A-Fa-f:.]+)\](?::(?P<port>[0-9]{1,5}))?",
    r"(?P<host>[0-9A-Za-z_.*-]*):(?P<port>[0-9]{1,5})",
    r"(?P<host>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)",
    r"(?P<host>localhost|\*|[0-9A-Za-z_*-]+(?:\.[0-9A-Za-z_-]+)+)",
)
"""How a place to listen is written elsewhere."""

_SCHEME = re.compile(r"(https|wss|ssl|tls|http|ws|tcp6|tcp)(://|:)(.*)", re.IGNORECASE | re.DOTALL)
_INTERFACE = re.compile(r"(tcp6?|ssl):([0-9]{1,5}):(?:interface=|host=|address=|ip=|bind=)?(\[?[0-9A-Za-z:.*_-]+\]?)")


def suggestion(text: str) -> str:
    """Return the endpoint string that was probably meant, as it can be typed into a shell; empty if nobody knows."""
    text = text.strip().replace("\\:", ":")
    if expects_proxy_header(text):
        inner = suggestion(text.removeprefix(f"{_PROXY_WRAPPER}:")).replace("'", "")
        return f"'{_PROXY_WRAPPER}:{inner}'" if "\\" in inner else inner and f"{_PROXY_WRAPPER}:{inner}"
    if found := _INTERFACE.fullmatch(text):
        return _endpoint(found[3].strip("[]"), found[2], secure=found[1] == "ssl")
    if text.startswith("/"):
        return f"unix:{text}" if re.fullmatch(r"(?:/[0-9A-Za-z_.-]+)+", text) else ""
    scheme, slashes, rest = found.groups() if (found := _SCHEME.fullmatch(text)) else ("", "", text)
    secure = scheme.lower() in ("https", "wss", "ssl", "tls")
    if slashes == "://":
        rest = rest.partition("/")[0]
    for pattern in _PLACES:
        if found := re.fullmatch(pattern, rest):
            groups = found.groupdict()
            default = "" if not slashes.endswith("/") or scheme.startswith("tcp") else "443" if secure else "80"
            return _endpoint(groups.get("host") or "", groups.get("port") or default or str(_PORT), secure=secure)
    return ""


def _endpoint(host: str, port: str, *, secure: bool) -> str:
    """Write an endpoint string for a place; empty if there is no such place."""
    if int(port) > _NUMBERS["port"][1]:
        return ""
    files = ":privateKey=KEY.pem:certKey=CERTIFICATES.pem" if secure else ""
    kind = "ssl" if secure else "tcp"
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:  # a name of this server, or all its addresses
        return f"{kind}:{port}{files}"
    if address.is_unspecified:
        return f"{kind}{'6' * (address.version == 6 and not secure)}:{port}{files}"
    escaped = str(address).replace(":", r"\:")
    found = f"{kind}:{port}{files}:interface={escaped}"
    return f"'{found}'" if escaped != str(address) else found
