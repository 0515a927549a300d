"""Health and readiness: ``/-/healthz`` and ``/-/readyz``, as load balancers and people ask for them."""

from twisted.web.server import Request

from chatd.room.bus import Bus
from chatd.room.outbox import NotPublished
from chatd.web.answer import answer
from chatd.wire.handshake import Refused


def healthz(request: Request) -> bytes:
    """Answer 200: the process serves."""
    return answer(request, "ok\n")


async def readyz(request: Request, bus: Bus) -> bytes:
    """Answer 200 once a probe published through the bus came back. Raises Refused: 503, and which link is broken."""
    try:
        await bus.probe()
    except NotPublished as error:
        raise Refused(503, "unavailable", f"message bus: {error}") from None
    return answer(request, "ready\n")
