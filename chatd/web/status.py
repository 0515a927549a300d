"""Health, readiness and metrics: ``/-/healthz``, ``/-/readyz``, ``/-/metrics``, as machines and people ask for them."""

from twisted.web.server import Request

from chatd.meter import Meter, NotKept
from chatd.room.shards import Shards
from chatd.web.answer import answer
from chatd.wire.handshake import Refused

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def healthz(request: Request) -> bytes:
    """Answer 200: the process serves."""
    return answer(request, "ok\n")


async def readyz(request: Request, shards: Shards) -> bytes:
    """Answer 200 once a probe published through each bus came back. Raises Refused: 503, and which link is broken."""
    if troubles := await shards.probe():
        raise Refused(503, "unavailable", f"message bus: {'; '.join(troubles)}")
    return answer(request, "ready\n")


async def metrics(request: Request, meter: Meter) -> bytes:
    """Answer with what all workers have counted, for Prometheus. Raises Refused: 503, where nothing is."""
    try:
        return answer(request, await meter.exposed(), EXPOSITION)
    except NotKept:
        raise Refused(503, "unavailable", "there are no metrics; the log says why") from None
