"""The two forms of every answer: plain text, and an error as JSON with its status."""

from http import HTTPStatus

from twisted.web.server import Request

from chatd.wire.handshake import Refused


def answer(request: Request, text: str) -> bytes:
    """Set the headers of a plain-text answer, give its body."""
    return _finish(request, b"text/plain; charset=utf-8", text.encode())


def refuse(request: Request, refused: Refused) -> bytes:
    """Set the status and headers of an error, give its body."""
    request.setResponseCode(refused.status, HTTPStatus(refused.status).phrase.encode())
    for name, value in refused.headers:
        request.setHeader(name.encode(), value.encode())
    return _finish(request, b"application/json", refused.body())


def _finish(request: Request, content_type: bytes, body: bytes) -> bytes:
    request.responseHeaders.removeHeader(b"server")
    request.setHeader(b"content-type", content_type)
    request.setHeader(b"content-length", b"%d" % len(body))
    request.setHeader(b"cache-control", b"no-store")
    return b"" if request.method == b"HEAD" else body
