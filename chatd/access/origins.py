"""Whose pages may talk to this server: its own, and those that ``--origin`` names.

A browser lets any page connect to any server, with what the user may see there, and tells in ``Origin`` (RFC 6454)
which page it is. A program tells none, and is not concerned. A page is our own where its host and port are those that
its request is for (``Host``). The scheme does not count: behind a proxy that speaks TLS we see another than the page.

A browser leaves ``Origin`` out of a GET for an image, a stylesheet or a new page. It then says in ``Sec-Fetch-Site``
(Fetch Metadata) whether another site sends the request, but only to https and to loopback addresses. To a plain-http
name it sends neither header, so such a browser can not follow a room under a name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address

from chatd.config.values import BadValue
from chatd.protocol.http_head import RequestHead, forbidden

ALL = "*"
"""As a value of ``--origin``: the pages of everybody."""

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
class _Page:
    """Where a page is from."""

    scheme: str
    host: str
    port: int
    """0 where its scheme is not the web's and it names none."""


class Origins:
    """The rule, for all who come."""

    def __init__(
        self, allowed: tuple[str, ...], tell: Callable[[str, str], None] = lambda page, option: None, most: int = 0
    ) -> None:
        """Take what may come beside our own pages.

        ``https://chat.example.org`` with or without a port, ``https://*.example.org`` for all below a domain, ``*``
        for all. Raises BadValue.

        Tell is called for each refused origin, once and for so many at most, with the page and the value of --origin
        that would allow it: a browser tells its page no reason, so the operator has to hear it.
        """
        self._tell = tell
        self._most_told = most
        self._told: set[str] = set()
        self._all = ALL in allowed
        self._exact: set[_Page] = set()
        self._below: set[_Page] = set()
        for each in allowed:
            if each != ALL:
                whole = each.replace("://*.", "://", 1)
                page = _read(whole)
                if page is None:
                    raise BadValue(
                        "--origin must be like https://chat.example.org, https://chat.example.org:8443, "
                        f"https://*.example.org (all below it), or * for all, not {each!r}"
                    )
                (self._exact if whole == each else self._below).add(page)

    def check(self, head: RequestHead) -> None:
        """Let a request in. Raises Refused: 403."""
        origin, host = head.headers.get("origin"), head.headers.get("host")
        if origin is None:
            if _is_from_elsewhere(head) and not _opens_page(head):
                raise forbidden("a page of another site may not send this request")
            return
        page = _read(origin)
        if _is_ours(page, host) or self._allows(origin, page):
            return
        if origin == "null":
            self._tell_once("a page without an origin (opened from a file, or in a sandbox)", f"'{ALL}'")
            raise forbidden("a page without an origin of its own may not talk to this server")
        if page is None:
            raise forbidden("Origin must be like https://chat.example.org")
        self._tell_once(f"a page from {origin}", origin)
        raise forbidden(f"a page from {origin} may not talk to this server")

    def _tell_once(self, page: str, option: str) -> None:
        if page not in self._told and len(self._told) < self._most_told:
            self._told.add(page)
            self._tell(page, option)

    def allows_elsewhere(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of another origin sends it, which is allowed to: the browser wants to hear so (CORS)."""
        if origin is None:
            return False
        page = _read(origin)
        return self._allows(origin, page) and not _is_ours(page, host)

    def _allows(self, origin: str, page: _Page | None) -> bool:
        if page is None:
            return self._all and origin == "null"
        return self._all or page in self._exact or any(_is_below(page, each) for each in self._below)


def check_follower(head: RequestHead, *, named: bool) -> None:
    """Raise Refused (403) for a request to follow a room that a page of another site may have caused.

    Named: it brings a nick or a resume key. The browser says nothing of the page to a plain-http name.
    """
    if "origin" in head.headers:  # it was checked
        return
    if _is_from_elsewhere(head):
        raise forbidden("a link from another site may not follow a room; type or paste the address instead")
    if named and "sec-fetch-site" not in head.headers and head.headers.get("user-agent", "").startswith(_BROWSER):
        raise forbidden(
            "a browser that sends neither Origin nor Sec-Fetch-Site may not use nick or resume here; "
            "use https or a WebSocket; a program needs a User-Agent that does not start with Mozilla/"
        )


def _is_from_elsewhere(head: RequestHead) -> bool:
    """Whether the browser says that another site caused the request; ``none`` is the user, who typed the address."""
    return head.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _opens_page(head: RequestHead) -> bool:
    """Whether the user follows a link, which shows something and changes nothing."""
    return head.method == "GET" and head.headers.get("sec-fetch-mode") == "navigate"


def _read(origin: str) -> _Page | None:
    """Read an origin as browsers write it (RFC 6454, section 6.2), ours too in capitals or with a dot at the end."""
    found = _ORIGIN.fullmatch(origin.lower()) if origin.isascii() else None
    if found is None:
        return None
    place = read_authority(found[2], _PORTS.get(found[1], 0))
    return _Page(found[1], *place) if place else None


def read_authority(text: str, default: int) -> tuple[str, int] | None:
    """Read a host and port, the default one where there is none."""
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


def _is_ours(page: _Page | None, host: str | None) -> bool:
    if page is None or host is None or page.scheme not in _PORTS or not host.isascii():
        return False
    return read_authority(host.lower(), _PORTS[page.scheme]) == (page.host, page.port)


def _is_below(page: _Page, domain: _Page) -> bool:
    return (page.scheme, page.port) == (domain.scheme, domain.port) and page.host.endswith(f".{domain.host}")
