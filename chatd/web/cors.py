"""Pages of other origins that may talk to us: their browser hears so, or keeps our answers from them (Fetch, 3.2)."""

from twisted.web.server import Request

from chatd.access.origins import Origins
from chatd.web.asker import head_of, header

MAY_ASK = b"GET, HEAD, POST"
MAY_SEND = b"Authorization, Content-Type, Last-Event-ID"
KEPT_SECONDS = 7200
"""How long a browser need not ask again; none keeps it for longer."""


def share(request: Request, origins: Origins) -> None:
    """Let a page have the answer, where it is one of another origin that may. Raises Refused: 403."""
    origins.check(head_of(request))
    origin, host = header(request, "origin"), header(request, "host")
    request.responseHeaders.addRawHeader(b"vary", b"Origin")
    if origin is not None and origins.allows_elsewhere(origin, host):
        request.setHeader(b"access-control-allow-origin", origin.encode("latin-1"))
        request.setHeader(b"access-control-expose-headers", b"Link, Retry-After, WWW-Authenticate")


def allow_in_advance(request: Request) -> None:
    """Say what such a page may ask for, to a browser that wants to know before it asks."""
    headers = request.responseHeaders
    if headers.hasHeader(b"access-control-allow-origin"):
        headers.setRawHeaders(b"access-control-allow-methods", [MAY_ASK])
        headers.setRawHeaders(b"access-control-allow-headers", [MAY_SEND])
        headers.setRawHeaders(b"access-control-max-age", [b"%d" % KEPT_SECONDS])
