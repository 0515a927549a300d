"""What the port says to HTTP: what this is, health, readiness; rooms are for WebSockets."""

import re
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site as WebSite

from chatd.config import Config
from chatd.room.bus import Bus
from chatd.web.answer import answer, refuse
from chatd.web.status import healthz, readyz
from chatd.wire.handshake import Refused, read_target

_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


def about(host: str) -> str:
    """Say what this is and how to connect; host is what the asker called us."""
    return (
        "This is chatd, a realtime chat daemon.\n\n"
        f"    websocat ws://{host}        talk in the lobby\n"
        f"    websocat ws://{host}/ops    talk in the room ops\n\n"
        "What you type goes to everybody else in the room.\n"
    )


class Request(WebRequest):
    """A request without a body: nothing here takes one."""

    def gotLength(self, length: int | None) -> None:
        """Refuse a body before it comes; None is for one without end, or for none at all."""
        super().gotLength(0)
        if length or self.requestHeaders.hasHeader(b"transfer-encoding"):
            transport: Any = self.channel.transport
            transport.write(Refused(413, "too_large", "nothing here takes a body").response())
            transport.loseConnection()


class Answers(Resource):
    """All that is answered, by path."""

    isLeaf = True

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self._bus = bus

    def render(self, request: WebRequest) -> Any:
        """Give the body, or NOT_DONE_YET."""
        if request.method not in (b"GET", b"HEAD"):
            return refuse(request, Refused(405, "bad_request", "only GET and HEAD", (("Allow", "GET, HEAD"),)))
        match request.path:
            case b"/":
                host = request.getHeader("host") or ""
                return answer(request, about(host if _HOST.fullmatch(host) else "localhost:3000"))
            case b"/-/healthz":
                return healthz(request)
            case b"/-/readyz":
                return readyz(request, self._bus)
        try:
            place = read_target(request.path)
        except Refused as refused:
            return refuse(request, refused)
        message = f"{place.room} is a room; rooms speak WebSocket: try websocat"
        return refuse(request, Refused(426, "bad_request", message, (("Upgrade", "websocket"),)))


class Channel(HTTPChannel):
    """One connection that speaks HTTP, counted: it may stay open between requests."""

    site: "Site"

    def connectionMade(self) -> None:
        """Begin, on a transport that the door hands over."""
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: the socket is gone."""
        self.site.channels.discard(self)
        super().connectionLost(reason)


class Site(WebSite):
    """The HTTP side of the port, for the door to hand connections to, and who is there."""

    noisy = False
    displayTracebacks = False
    protocol: type[Channel] = Channel  # type: ignore[assignment]

    def __init__(self, reactor: Any, bus: Bus, config: Config) -> None:
        """Take the bus, which readiness asks."""
        super().__init__(Answers(bus), requestFactory=Request, timeout=config.http_idle_seconds, reactor=reactor)
        self.channels: set[Channel] = set()

    def log(self, request: object) -> None:
        """Keep no access log."""
