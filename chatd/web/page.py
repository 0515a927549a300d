"""The chat page: one HTML file, a stylesheet, a script and an icon, read once and kept in memory.

The HTML names the others by a hash of their content, so browsers may keep them for ever. It is itself never cached.
"""

import gzip
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from twisted.web.http import CACHED
from twisted.web.server import Request

from chatd.protocol.http_api import HTML, takes_gzip
from chatd.protocol.http_head import Refused
from chatd.web.responses import answer, header

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content Security Policy 3: the page may run and load its own files, and connect to its own server."""

_HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
}
_KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "html": f"{HTML}; charset=utf-8",
}
_ASSETS = ("chat.css", "chat.js", "icon.svg")


@dataclass(frozen=True)
class _File:
    """A file as it is answered."""

    kind: str
    tag: str
    """A strong validator (RFC 9110, section 8.8.3)."""
    plain: bytes
    zipped: bytes

    def answer(self, request: Request, caching: bytes) -> bytes:
        request.setHeader(b"cache-control", caching)
        request.responseHeaders.addRawHeader(b"vary", b"Accept-Encoding")
        zips = takes_gzip(header(request, "accept-encoding"))
        if request.setETag(f'"{self.tag}{"-gzip" if zips else ""}"'.encode()) is CACHED:
            return b""
        if zips:
            request.setHeader(b"content-encoding", b"gzip")
        return answer(request, self.zipped if zips else self.plain, self.kind)


def _file(name: str, data: bytes) -> _File:
    return _File(_KINDS[name.rpartition(".")[2]], _digest(data), data, gzip.compress(data, mtime=0))


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


class Page:
    """The page and what belongs to it."""

    def __init__(self) -> None:
        """Read the files."""
        folder = files("chatd.web").joinpath("page")
        html = folder.joinpath("index.html").read_text("utf-8")
        self._assets: dict[str, _File] = {}
        for name in _ASSETS:
            data = folder.joinpath(name).read_bytes()
            stem, _, ending = name.rpartition(".")
            named = f"{stem}-{_digest(data)}.{ending}"
            html = html.replace(f'"{name}"', f'"/-/assets/{named}"')
            self._assets[named] = _file(name, data)
        self._html = _file("index.html", html.encode())

    def render(self, request: Request) -> bytes:
        """Return the page; it is the same for every room, which it reads from its own address."""
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        return self._html.answer(request, b"no-cache")

    def asset(self, request: Request, name: str) -> bytes:
        """Return a file of the page. Raise Refused: 404."""
        if (file := self._assets.get(name)) is None:
            raise Refused(404, "not_found", "nothing here; reload the page")
        return file.answer(request, b"public, max-age=31536000, immutable")
