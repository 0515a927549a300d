"""Answers: text or JSON at once, or later; and an error as JSON with its status."""

from collections.abc import Awaitable, Sequence
from http import HTTPStatus
from typing import Any

from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from chatd.monitoring.metrics import REFUSED
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.http_api import JSON, LINES
from chatd.protocol.http_head import Refused, internal
from chatd.protocol.json_line import encode
from chatd.web.asker import head_of
from chatd.web.refusal import for_now

log = Logger()


def answer(request: Request, body: str | bytes, content_type: str = LINES) -> bytes:
    """Set the headers of an answer, give its body."""
    data = body.encode() if isinstance(body, str) else body
    request.setHeader(b"content-type", content_type.encode("ascii"))
    request.setHeader(b"content-length", b"%d" % len(data))
    return b"" if request.method == b"HEAD" else data


def answer_json(request: Request, value: Struct | Sequence[Struct]) -> bytes:
    """Set the headers of an answer in JSON, give its body."""
    return answer(request, encode(value) + b"\n", JSON)


def done(request: Request, status: int) -> int:
    """Finish the request with a status that says everything: 204, 304."""
    request.setResponseCode(status, HTTPStatus(status).phrase.encode())
    request.finish()
    return NOT_DONE_YET


def refuse(request: Any, refused: Refused) -> bytes:
    """Set the status and headers of an error, give its body."""
    if refused.retry_after is not None:
        refused = for_now(head_of(request), refused, request.channel.site.config)
    REFUSED[refused.reason].value += 1
    request.setResponseCode(refused.status, HTTPStatus(refused.status).phrase.encode())
    for name, value in refused.headers:
        request.setHeader(name.encode(), value.encode())
    return answer(request, refused.body(), refused.content_type)


def later(request: Request, body: Awaitable[bytes]) -> int:
    """Finish the request with a body that is still to come; what raises Refused is an error of the client's.

    Where the client leaves before, nobody works on it any more.
    """
    coming = Deferred.fromCoroutine(_await(body))
    request.notifyFinish().addErrback(lambda _: coming.cancel())

    def failed(failure: Failure) -> bytes | None:
        if failure.check(CancelledError):
            return None
        if isinstance(failure.value, Refused):
            return refuse(request, failure.value)
        log.failure("a request could not be answered", failure)
        return refuse(request, internal(OUR_FAULT.reason))

    def finish(data: bytes | None) -> None:
        if data is not None:
            request.write(data)
            request.finish()

    coming.addErrback(failed).addCallback(finish)
    return NOT_DONE_YET


async def _await(body: Awaitable[bytes]) -> bytes:
    return await body
