"""Requests and responses on twisted.web: head, client address and token of a request; bodies, errors, CORS headers.

An error is sent through twisted.web, or by a ``Refusal`` if the connection can not be used for HTTP any more.
"""

from collections.abc import Coroutine, Sequence
from http import HTTPStatus
from secrets import SystemRandom
from typing import Any

from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from chatd.access.client_address import TrustedProxies
from chatd.access.origins import Origins
from chatd.access.rate_limits import ConnectionsByAddress
from chatd.clients.send_buffer import SendBuffer
from chatd.clients.token_lifetime import TokenLifetime
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.http_api import JSON, LINES
from chatd.protocol.http_head import Refused, RequestHead, internal
from chatd.protocol.http_stream import refused_to
from chatd.protocol.json_line import encode
from chatd.runtime.timers import Timer, TimerWheel
from chatd.runtime.transports import address_of

log = Logger()
uniform = SystemRandom().uniform

CORS_METHODS = b"GET, HEAD, POST"
CORS_HEADERS = b"Authorization, Content-Type, Last-Event-ID"
CORS_SECONDS = 7200
"""How long a browser may keep the answer to a preflight request; no browser keeps it longer."""


# The request


def head_of(request: Request) -> RequestHead:
    """Return the head of a request in the form in which the listener parses the first one of a connection."""
    raw = request.requestHeaders.getAllRawHeaders()
    headers = {name.decode("latin-1").lower(): b",".join(values).decode("latin-1") for name, values in raw}
    version = request.clientproto.decode("latin-1").removeprefix("HTTP/")
    return RequestHead(request.method.decode("latin-1"), request.uri, headers, version)


def header(request: Request, name: str) -> str | None:
    """Return a header of a request, decoded as latin-1; several are joined by commas. None if there is none."""
    values = request.requestHeaders.getRawHeaders(name.encode("ascii"))
    return b",".join(values).decode("latin-1") if values else None


def client_address(request: Any) -> str:
    """Return the address of the client of a request: a proxy may send requests of many on one connection."""
    proxies: TrustedProxies = request.channel.site.connections.proxies
    return proxies.client(address_of(request.channel.transport), header(request, "x-forwarded-for"))


def token_lifetime_of(request: Any) -> TokenLifetime:
    """Return what the client of a request may do. Raise Refused (401) if a token is required and missing."""
    lifetime: TokenLifetime = request.channel.site.connections.token_lifetime(head_of(request))
    return lifetime


# The response


def answer(request: Request, body: str | bytes, content_type: str = LINES) -> bytes:
    """Set the headers of a response, return its body."""
    data = body.encode() if isinstance(body, str) else body
    request.setHeader(b"content-type", content_type.encode("ascii"))
    request.setHeader(b"content-length", b"%d" % len(data))
    return b"" if request.method == b"HEAD" else data


def answer_json(request: Request, value: Struct | Sequence[Struct]) -> bytes:
    """Set the headers of a response in JSON, return its body."""
    return answer(request, encode(value) + b"\n", JSON)


def answer_empty(request: Request, status: int) -> int:
    """Finish the request with a status that needs no body: 204, 304."""
    request.setResponseCode(status, HTTPStatus(status).phrase.encode())
    request.finish()
    return NOT_DONE_YET


def refuse(request: Any, refused: Refused) -> bytes:
    """Set the status and headers of an error, return its body."""
    if refused.retry_after is not None:
        refused = spread_retry(head_of(request), refused, request.channel.site.config)
    REFUSED[refused.reason].value += 1
    request.setResponseCode(refused.status, HTTPStatus(refused.status).phrase.encode())
    for name, value in refused.headers:
        request.setHeader(name.encode(), value.encode())
    return answer(request, refused.body(), refused.content_type)


def answer_later(request: Request, body: Coroutine[Any, Any, bytes]) -> int:
    """Finish the request when its body is there; Refused becomes an error of the client, others a 500.

    The work is cancelled if the client disconnects before.
    """
    pending = Deferred.fromCoroutine(body)
    request.notifyFinish().addErrback(lambda _: pending.cancel())

    def failed(failure: Failure) -> bytes | None:
        if failure.check(CancelledError):
            return None
        if isinstance(failure.value, Refused):
            return refuse(request, failure.value)
        log.failure("answering an HTTP request failed", failure, event="http_request_failed")
        return refuse(request, internal(OUR_FAULT.reason))

    def finish(data: bytes | None) -> None:
        if data is not None:
            request.write(data)
            request.finish()

    pending.addErrback(failed).addCallback(finish)
    return NOT_DONE_YET


# CORS (Fetch, section 3.2)


def check_origin(request: Request, origins: Origins) -> None:
    """Set the headers that let a page of an allowed origin read the response. Raise Refused (403) for others."""
    origins.check(head_of(request))
    origin, host = header(request, "origin"), header(request, "host")
    request.responseHeaders.addRawHeader(b"vary", b"Origin")
    if origin is not None and origins.allows_cross_origin(origin, host):
        request.setHeader(b"access-control-allow-origin", origin.encode("latin-1"))
        request.setHeader(b"access-control-expose-headers", b"Link, Retry-After, WWW-Authenticate")


def allow_preflight(request: Request) -> None:
    """Set the headers that answer a browser's preflight request, if its page's origin is allowed."""
    headers = request.responseHeaders
    if headers.hasHeader(b"access-control-allow-origin"):
        headers.setRawHeaders(b"access-control-allow-methods", [CORS_METHODS])
        headers.setRawHeaders(b"access-control-allow-headers", [CORS_HEADERS])
        headers.setRawHeaders(b"access-control-max-age", [b"%d" % CORS_SECONDS])


# The error that ends a connection


def spread_retry(head: RequestHead, refused: Refused, config: Config) -> Refused:
    """Return the error for the client of a request; clients that retry by themselves do so at random times."""
    return refused_to(head, refused, lambda: uniform(0, config.retry_after))


@implementer(IHalfCloseableProtocol)
class Refusal(SendBuffer, Protocol):
    """The end of a connection: it sends an error, closes its half and waits for the client to close the other."""

    transport: Any

    def __init__(self, refused: Refused, timers: TimerWheel, seconds: float, among: ConnectionsByAddress[Any]) -> None:
        """Store the error, how long to wait, and the set of connections in which this one counts until its end.

        On a full server the connection closes as soon as the error is written.
        """
        self._refused = refused
        self._timers = timers
        self._seconds = seconds
        self._among = among
        self._drop: Timer | None = None

    def connectionMade(self) -> None:
        """Send the error."""
        REFUSED[self._refused.reason].value += 1
        self._among.add(self, "")
        self.attach()
        self.write(self._refused.response())
        if self._refused.reason != "full":
            self._drop = self.hang_up(self._timers, self._seconds)
        else:
            self.transport.loseConnection()
            self._drop = self._timers.callLater(self._seconds, self.transport.abortConnection)

    def dataReceived(self, data: bytes) -> None:
        """Discard the data."""

    def readConnectionLost(self) -> None:
        """Close the connection once all is written: the client has closed its half."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this half is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remove the connection from the count."""
        self._among.discard(self)
        if self._drop is not None:
            self._drop.cancel()
