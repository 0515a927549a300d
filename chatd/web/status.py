"""Health, readiness and metrics: ``/-/healthz``, ``/-/readyz``, ``/-/metrics``."""

from twisted.web.server import Request

from chatd.monitoring.prometheus import Meter, NoMetrics
from chatd.protocol.http_head import Refused
from chatd.rooms.sharding import Shards
from chatd.runtime.single_flight import SingleFlight
from chatd.web.responses import answer

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def healthz(request: Request) -> bytes:
    """Answer 200: the process serves."""
    return answer(request, "ok\n")


async def readyz(request: Request, shards: Shards, probe: SingleFlight[list[str]]) -> bytes:
    """Answer 200 once a probe published through a bus came back. Raise Refused: 503, with the broken connection.

    All requests at the same time share one probe. If one of several brokers is away, the answer names it with 200:
    otherwise one dead broker would take every host out of its proxy, and stop the rooms of all.
    """
    if troubles := await probe.get():
        text = f"message bus: {'; '.join(troubles)}"
        if len(troubles) == len(list(shards)):
            raise Refused(503, "unavailable", text)
        return answer(request, f"ready, but for {text}\n")
    return answer(request, "ready\n")


async def metrics(request: Request, meter: Meter) -> bytes:
    """Answer with what all workers have counted, for Prometheus. Raise Refused: 503, where nothing is."""
    try:
        return answer(request, await meter.exposed(), EXPOSITION)
    except NoMetrics:
        raise Refused(503, "unavailable", "there are no metrics; the log says why") from None
