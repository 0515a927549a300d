"""The HTTP site: the tree of URLs, and the checks that come before each request."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site as WebSite

from chatd.access.rate_limits import ConnectionsByAddress
from chatd.clients.factory import ConnectionFactory
from chatd.monitoring.prometheus import Meter
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.http_api import EVENTS, choose_form
from chatd.protocol.http_head import (
    Refused,
    internal,
    room_name,
    split_target,
)
from chatd.rooms.sharding import Shards
from chatd.runtime.single_flight import SingleFlight
from chatd.web.channel import METRICS, PROBES, Channel, Request, is_probe, is_room
from chatd.web.page import Page
from chatd.web.responses import (
    allow_preflight,
    answer,
    answer_empty,
    answer_later,
    check_origin,
    client_address,
    head_of,
    header,
    refuse,
)
from chatd.web.rooms import RoomPages
from chatd.web.status import healthz, metrics, readyz

log = Logger()

SERVED_WITH_METRICS = (METRICS, *PROBES)
"""The paths on a listener of ``--metrics-listen``."""
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_ASSETS = b"/-/assets/"
_MEMBERS = re.compile(rb"/(?!-/)([^/]*)/members")


def about(host: str) -> str:
    """Return the text of ``/-/about``, with the name of the server that the client used."""
    return (
        "This is chatd, a realtime chat daemon.\n\n"
        f"    websocat ws://{host}                          talk in the lobby\n"
        f"    websocat ws://{host}/ops                      talk in the room ops\n"
        f"    curl http://{host}/ops                        what was said there\n"
        f"    curl 'http://{host}/ops?follow=1'             and what is being said\n"
        f"    curl --data 'hello' http://{host}/ops         say something\n"
        f"    curl http://{host}/-/rooms                    the rooms that there are\n\n"
        f"In a browser, http://{host}/ops is a page to chat with.\n"
    )


Answer = bytes | int
Method = Callable[[WebRequest], Answer]


class Answers(Resource):
    """All that is answered, by path and method."""

    isLeaf = True

    def __init__(
        self, shards: Shards, probe: SingleFlight[list[str]], rooms: RoomPages, page: Page, meter: Meter
    ) -> None:
        super().__init__()
        self._page = page
        self._rooms = rooms
        self._own: dict[bytes, Method] = {
            b"/-/": self._about,
            b"/-/healthz": healthz,
            b"/-/readyz": lambda request: answer_later(request, readyz(request, shards, probe)),
            METRICS: lambda request: answer_later(request, metrics(request, meter)),
            b"/-/rooms": lambda request: answer_later(request, rooms.rooms(request)),
        }

    def render(self, request: Any) -> Any:
        """Return the body, or NOT_DONE_YET."""
        request.responseHeaders.removeHeader(b"server")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        request.setHeader(b"cross-origin-resource-policy", b"same-origin")
        if (seconds := request.channel.site.config.hsts_max_age) and request.isSecure():
            request.setHeader(b"strict-transport-security", f"max-age={seconds}".encode("ascii"))
        if request.channel.site.draining:
            request.channel.persistent = False
            request.setHeader(b"connection", b"close")
        try:
            return self._answer(request)
        except Refused as refused:
            request.channel.charge(request)
            return refuse(request, refused)
        except Exception:  # noqa: BLE001 - whatever went wrong, it is ours
            log.failure("answering an HTTP request failed", event="http_request_failed")
            return refuse(request, internal(OUR_FAULT.reason))

    def _answer(self, request: Any) -> Answer:
        channel: Channel = request.channel
        if not channel.admitted:
            head = head_of(request)
            try:
                channel.admit(head)
            except Refused as refused:
                channel.refuse(refused, head)
                return NOT_DONE_YET
        if not channel.metrics and request.requestHeaders.hasHeader(b"upgrade") and (head := head_of(request)).upgrades:
            request.charged = True  # as every handshake is
            channel.upgrade(head)
            return NOT_DONE_YET
        connections = channel.site.connections
        check_origin(request, connections.origins)
        _charge(request)
        path = split_target(request.uri)[0]
        if channel.metrics and path not in SERVED_WITH_METRICS:
            raise Refused(404, "not_found", "only /-/metrics, /-/healthz and /-/readyz are here")
        if path == METRICS and channel.site.config.metrics_listen and not channel.metrics:
            raise Refused(404, "not_found", "the metrics are on an address of their own")
        if path not in PROBES:
            host = header(request, "host")
            connections.hosts.check(host, loopback=channel.loopback, metrics=channel.metrics)
            connections.bans.check(client_address(request))
        methods = self._methods(path)
        method = methods.get(request.method.decode("ascii", "replace"))
        if method is None:
            allowed = ", ".join(methods)
            raise Refused(405, "bad_request", f"only {allowed}", (("Allow", allowed),))
        return method(request)

    def _methods(self, path: bytes) -> Mapping[str, Method]:
        """Return what may be done with a path. Raise Refused: 404."""
        if own := self._own.get(path):
            return _methods(own)
        if path.startswith(_ASSETS):
            name = path[len(_ASSETS) :].decode("ascii", "replace")
            return _methods(lambda request: self._page.asset(request, name))
        if found := _MEMBERS.fullmatch(path):
            room = room_name(found[1])
            return _methods(lambda request: answer_later(request, self._rooms.members(request, room)))
        room_name(path[1:])
        return _methods(self._rooms.show, POST=self._rooms.publish)

    def _about(self, request: WebRequest) -> bytes:
        host = header(request, "host") or ""
        return answer(request, about(host if _HOST.fullmatch(host) else "localhost:3000"))


def _charge(request: Any) -> None:
    """Charge the client's address for a request. Raise Refused: 429.

    A browser whose stream of events broke off recovers what it missed; after an error it would never ask again.
    """
    request.charged = True
    limits = request.channel.site.connections.limits
    limits.request(
        client_address(request),
        exposed=request.channel.exposed,
        probe=is_probe(request.uri),
        recovers=_recovers(request),
    )


def _recovers(request: Any) -> bool:
    """Return whether a request asks for a stream from where an earlier one ended."""
    if request.method != b"GET" or not is_room(request.uri):
        return False
    comes_back = request.requestHeaders.hasHeader(b"last-event-id") or b"resume=" in request.uri
    return comes_back and (b"follow=1" in request.uri or choose_form(header(request, "accept")) == EVENTS)


def _methods(get: Method, **others: Method) -> Mapping[str, Method]:
    """Return all that may be done where something is to be got."""
    methods: dict[str, Method] = {"GET": get, "HEAD": get, **others}

    def options(request: WebRequest) -> Answer:
        request.setHeader(b"allow", ", ".join(methods).encode("ascii"))
        allow_preflight(request)
        return answer_empty(request, 204)

    methods["OPTIONS"] = options
    return methods


class Site(WebSite):
    """The HTTP site, to which the listener hands connections over, and its open connections."""

    noisy = False
    displayTracebacks = False
    protocol: type[Channel] = Channel  # type: ignore[assignment]

    def __init__(self, reactor: Any, shards: Shards, connections: ConnectionFactory, meter: Meter) -> None:
        """Store the rooms, which the readiness check asks, the worker's connections, and its metrics."""
        self.connections = connections
        self.config = connections.config
        page = Page()
        probe = SingleFlight(reactor, shards.probe, self.config.readiness_ttl)
        answers = Answers(shards, probe, RoomPages(shards, connections, page), page, meter)
        super().__init__(
            answers,
            requestFactory=Request,
            timeout=self.config.http_keepalive_timeout,
            reactor=reactor,
            parsePOSTFormSubmission=False,  # not needed, and multipart takes 1 ms for each 1.5 KB of it
        )
        self.channels: ConnectionsByAddress[Any] = ConnectionsByAddress(connections.limits)
        self.draining = False
        """Whether each connection closes after its next answer, or when it is idle for a while."""
        self.full: Callable[[], bool] = lambda: False
        """Return whether there are too many connections, the current one included."""

    def log(self, request: object) -> None:
        """Keep no access log."""
