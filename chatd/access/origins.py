"""The two checks against foreign web pages: the origin of a page, and the host name that a request is for.

**Origins.** A browser lets any page connect to any server with the rights of its user. It sends the page's origin in
``Origin`` (RFC 6454). Pages of this server and those that ``--allowed-origin`` names may connect; programs send no
origin and are not restricted. A page is this server's own if its host and port equal the request's ``Host``. The
scheme is not compared, because behind a proxy that terminates TLS it differs.

A browser omits ``Origin`` in a GET for an image, a stylesheet or a new page. It then sends ``Sec-Fetch-Site`` (Fetch
Metadata), but only to https and to loopback addresses. To a plain-http name it sends neither header, so such a browser
can not follow a room under a name.

**Hosts.** A page can point its own name to this server's address after it was loaded (DNS rebinding). ``Origin`` and
``Host`` then agree, and only the name shows that the request is not meant for this server. A listener on a loopback
address serves loopback names only, unless names or a trusted proxy are configured: every browser on this host can
reach that listener.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

from chatd.access.client_address import read_address
from chatd.config.values import BadValue, quoted
from chatd.protocol.http_head import Refused, RequestHead, forbidden

ALL = "*"
"""As a value of ``--allowed-origin``: the pages of everybody."""

HOST_LENGTH = 253
"""Of a host's name, in characters (RFC 1035, section 2.3.4)."""
SCHEME_LENGTH = 32

_ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]{{0,{SCHEME_LENGTH - 1}}})://(.+)")
_AUTHORITY = re.compile(r"((?:[a-z0-9_-]+\.)*[a-z0-9_-]+)\.?(?::([0-9]{1,5}))?")
_IPV6_AUTHORITY = re.compile(r"\[([0-9a-f:.]+)\](?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_BROWSER = "Mozilla/"
"""The beginning of every browser's ``User-Agent``, which no page can change without sending an ``Origin``."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """The origin of a page."""

    scheme: str
    host: str
    port: int
    """0 if its scheme is not the web's and it names none."""


class Origins:
    """The origins whose pages may talk to this server."""

    def __init__(
        self, allowed: tuple[str, ...], report: Callable[[str, str], None] = lambda page, option: None, most: int = 0
    ) -> None:
        """Store the origins that are allowed beside the server's own. Raise BadValue.

        They are ``https://chat.example.org`` with or without a port, ``https://*.example.org`` for all below a domain,
        ``*`` for all.

        Report is called once for each refused origin, with the page and the value of --allowed-origin that would allow
        it, and for ``most`` origins at most. The operator needs it, because a browser tells a page no reason.
        """
        self._report = report
        self._most_reported = most
        self._reported: set[str] = set()
        self._all = ALL in allowed
        self._exact: set[_Origin] = set()
        self._below: set[_Origin] = set()
        for text in allowed:
            if text != ALL:
                whole = text.replace("://*.", "://", 1)
                origin = _read_origin(whole)
                if origin is None:
                    raise BadValue(
                        f"--allowed-origin: {quoted(text)} is not an origin; use for example https://chat.example.org, "
                        "https://chat.example.org:8443, https://*.example.org (all below it), or * for all"
                    )
                (self._exact if whole == text else self._below).add(origin)

    def check(self, head: RequestHead) -> None:
        """Raise Refused (403) for a request of a page that may not talk to this server."""
        text, host = head.headers.get("origin"), head.headers.get("host")
        if text is None:
            if _is_cross_site(head) and not _is_navigation(head):
                raise forbidden("a page of another site may not send this request")
            return
        origin = _read_origin(text)
        if _is_own(origin, host) or self._allows(text, origin):
            return
        if text == "null":
            self._report_once("a page without an origin (opened from a file, or in a sandbox)", f"'{ALL}'")
            raise forbidden("a page without an origin of its own may not talk to this server")
        if origin is None:
            raise forbidden("Origin must be like https://chat.example.org")
        self._report_once(f"a page from {text}", text)
        raise forbidden(f"a page from {text} may not talk to this server")

    def _report_once(self, page: str, option: str) -> None:
        if page not in self._reported and len(self._reported) < self._most_reported:
            self._reported.add(page)
            self._report(page, option)

    def allows_cross_origin(self, text: str | None, host: str | None) -> bool:
        """Return whether this is the ``Origin`` of a foreign page that is allowed: the answer needs CORS headers."""
        if text is None:
            return False
        origin = _read_origin(text)
        return self._allows(text, origin) and not _is_own(origin, host)

    def _allows(self, text: str, origin: _Origin | None) -> bool:
        if origin is None:
            return self._all and text == "null"
        return self._all or origin in self._exact or any(_is_below(origin, domain) for domain in self._below)


def check_follower(head: RequestHead, *, named: bool) -> None:
    """Raise Refused (403) for a request to follow a room that a page of another site may have caused.

    Named: it has a nick or a resume key. To a plain-http name the browser sends nothing about the page.
    """
    if "origin" in head.headers:  # it was checked
        return
    if _is_cross_site(head):
        raise forbidden("a link from another site may not follow a room; type or paste the address instead")
    if named and "sec-fetch-site" not in head.headers and head.headers.get("user-agent", "").startswith(_BROWSER):
        raise forbidden(
            "a browser that sends neither Origin nor Sec-Fetch-Site may not use nick or resume here; "
            "use https or a WebSocket; a program needs a User-Agent that does not start with Mozilla/"
        )


def _is_cross_site(head: RequestHead) -> bool:
    """Return whether the browser reports that another site caused the request; ``none``: the user typed the address."""
    return head.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _is_navigation(head: RequestHead) -> bool:
    """Return whether the user follows a link, which shows something and changes nothing."""
    return head.method == "GET" and head.headers.get("sec-fetch-mode") == "navigate"


def _read_origin(text: str) -> _Origin | None:
    """Parse an origin as browsers write it (RFC 6454, section 6.2), also in capitals or with a dot at the end."""
    found = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if found is None:
        return None
    authority = read_authority(found[2], _PORTS.get(found[1], 0))
    return _Origin(found[1], *authority) if authority else None


def read_authority(text: str, default: int) -> tuple[str, int] | None:
    """Parse a host and port; without a port return the default one. None if it can't be parsed."""
    found = _AUTHORITY.fullmatch(text)
    if found and len(found[1]) <= HOST_LENGTH:
        host, port = found.groups()
    elif found := _IPV6_AUTHORITY.fullmatch(text):
        try:
            host, port = str(IPv6Address(found[1])), found[2]
        except ValueError:
            return None
    else:
        return None
    if port is None:
        return host, default
    return (host, int(port)) if 1 <= int(port) <= 65535 else None


def _is_own(origin: _Origin | None, host: str | None) -> bool:
    if origin is None or host is None or origin.scheme not in _PORTS or not host.isascii():
        return False
    return read_authority(host.lower(), _PORTS[origin.scheme]) == (origin.host, origin.port)


def _is_below(origin: _Origin, domain: _Origin) -> bool:
    return (origin.scheme, origin.port) == (domain.scheme, domain.port) and origin.host.endswith(f".{domain.host}")


class Hosts:
    """The names of this server. Without any, every name is accepted; on a loopback address, those of this machine."""

    def __init__(self, names: Sequence[str], *, machine: str = "", proxied: bool = False) -> None:
        """Store names and addresses, without ports. Raise BadValue.

        Machine is the host name of this machine; proxied: a proxy is trusted, so clients use names of the proxy.
        """
        self._names = frozenset(map(_read_host_option, names))
        self._machine = machine.lower()
        self._proxied = proxied

    def check(self, host: str | None, *, loopback: bool = False, metrics: bool = False) -> None:
        """Raise Refused (403) for a ``Host`` header with a foreign name, whatever port it has.

        Loopback: the request came to a TCP port on a loopback address. No browser omits the header. Metrics: it came to
        a listener of ``--metrics-listen``, where a scraper may use any name or address of the server.
        """
        name = _name_in(host or "")
        if self._names and not metrics:
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
    return forbidden(
        f"{shown} is not served here: {accepted}; to serve it, give --allowed-host {name or 'NAME'}{otherwise}"
    )


@lru_cache(maxsize=256)
def _name_in(host: str) -> str:
    """Return the name or address in a Host header; empty if it can't be parsed."""
    authority = read_authority(host.lower(), 0) if host.isascii() else None
    return authority[0] if authority else ""


_WITH_PORT = re.compile(r"(\*|[0-9.]+|\[.*\]):([0-9]{1,5})")


def _read_host_option(text: str) -> str:
    _check_not_wildcard(text)
    bracketed = f"[{text}]" if ":" in text and not text.startswith("[") else text
    authority = read_authority(bracketed.lower(), 0) if bracketed.isascii() else None
    if authority is None or authority[1] != 0:
        raise BadValue(
            f"--allowed-host: {quoted(text)} is not a name or address without a port; use for example chat.example.org"
        )
    return authority[0]


def _check_not_wildcard(text: str) -> None:
    """Raise BadValue for a value that means all addresses to listen on in other servers, with a port or without."""
    found = _WITH_PORT.fullmatch(text)
    host, port = found.groups() if found else (text, "3000")
    address = read_address(host.strip("[]"))
    if host in ("*", "0") or (address is not None and address.is_unspecified):
        raise BadValue(
            f"--allowed-host: {quoted(text)} is not a name or address by which clients call this server; "
            f"to listen on all addresses, use --listen :{port}"
        )
