"""Health and readiness: ``/-/healthz`` and ``/-/readyz``, as load balancers and people ask for them."""

from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from chatd.room.bus import Bus
from chatd.web.answer import answer, refuse
from chatd.wire.handshake import Refused


def healthz(request: Request) -> bytes:
    """Answer 200: the process serves."""
    return answer(request, "ok\n")


def readyz(request: Request, bus: Bus) -> int:
    """Answer 200 once a probe published through the bus came back, else 503 and which link is broken."""
    asker_left: list[Failure] = []
    request.notifyFinish().addErrback(asker_left.append)

    def not_ready(failure: Failure) -> bytes:
        return refuse(request, Refused(503, "unavailable", f"message bus: {failure.getErrorMessage()}"))

    def finish(body: bytes) -> None:
        if not asker_left:
            request.write(body)
            request.finish()

    bus.probe().addCallbacks(lambda _: answer(request, "ready\n"), not_ready).addCallback(finish)
    return NOT_DONE_YET
