"""What the port says to HTTP: the tree of URLs, and the connections that ask for them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site as WebSite

from chatd.client.factory import ConnectionFactory
from chatd.client.outflow import CHOKED, Weighed, taken
from chatd.closing import OUR_FAULT
from chatd.gate.limits import Crowd
from chatd.meter import Meter
from chatd.metrics import REFUSED
from chatd.room.shards import Shards
from chatd.single_flight import SingleFlight
from chatd.timers import Timer
from chatd.transports import address_of, hand_over
from chatd.web.answer import answer, done, later, refuse
from chatd.web.asker import asker_address, head_of, header
from chatd.web.cors import allow_in_advance, share
from chatd.web.page import Page
from chatd.web.refusal import Refusal
from chatd.web.rooms import Rooms
from chatd.web.status import healthz, metrics, readyz
from chatd.wire.events import longest_json
from chatd.wire.handshake import (
    Head,
    Refused,
    bad_request,
    check_framing,
    check_line,
    full_house,
    head_too_large,
    internal,
    room_name,
    split_target,
    too_late,
)
from chatd.wire.http import EVENTS, choose_form, media_type

log = Logger()

_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_ASSETS = b"/-/assets/"
_PROBES = (b"/-/healthz", b"/-/readyz")
"""Asked for by an address, whatever the server is called; there is nothing in the answer for a page to read."""
_METRICS = b"/-/metrics"
_MEMBERS = re.compile(rb"/(?!-/)([^/]*)/members")


def about(host: str) -> str:
    """Say what this is and how to connect; host is what the asker called us."""
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

    def __init__(self, shards: Shards, probe: SingleFlight[list[str]], rooms: Rooms, page: Page, meter: Meter) -> None:
        super().__init__()
        self._page = page
        self._rooms = rooms
        self._own: dict[bytes, Method] = {
            b"/-/": self._about,
            b"/-/healthz": healthz,
            b"/-/readyz": lambda request: later(request, readyz(request, shards, probe)),
            _METRICS: lambda request: later(request, metrics(request, meter)),
            b"/-/rooms": lambda request: later(request, rooms.rooms(request)),
        }

    def render(self, request: Any) -> Any:
        """Give the body, or NOT_DONE_YET."""
        request.responseHeaders.removeHeader(b"server")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        request.setHeader(b"cross-origin-resource-policy", b"same-origin")
        if (seconds := request.channel.site.config.hsts) and request.isSecure():
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
            log.failure("a request could not be answered")
            return refuse(request, internal(OUR_FAULT.reason))

    def _answer(self, request: Any) -> Answer:
        channel: Channel = request.channel
        if not channel.admitted:
            try:
                channel.admit(head_of(request))
            except Refused as refused:
                channel.refuse(refused)
                return NOT_DONE_YET
        if request.requestHeaders.hasHeader(b"upgrade") and (head := head_of(request)).upgrades:
            request.charged = True  # as every handshake is
            channel.upgrade(head)
            return NOT_DONE_YET
        connections = channel.site.connections
        share(request, connections.origins)
        _charge(request)
        path = split_target(request.uri)[0]
        if path not in _PROBES:
            connections.hosts.check(header(request, "host"), loopback=request.channel.loopback)
            connections.bans.check(asker_address(request))
        methods = self._methods(path)
        method = methods.get(request.method.decode("ascii", "replace"))
        if method is None:
            allowed = ", ".join(methods)
            raise Refused(405, "bad_request", f"only {allowed}", (("Allow", allowed),))
        return method(request)

    def _methods(self, path: bytes) -> Mapping[str, Method]:
        """Give what may be done with a path. Raises Refused: 404."""
        if own := self._own.get(path):
            return _methods(own)
        if path.startswith(_ASSETS):
            name = path[len(_ASSETS) :].decode("ascii", "replace")
            return _methods(lambda request: self._page.asset(request, name))
        if found := _MEMBERS.fullmatch(path):
            room = room_name(found[1])
            return _methods(lambda request: later(request, self._rooms.members(request, room)))
        room_name(path[1:])
        return _methods(self._rooms.show, POST=self._rooms.publish)

    def _about(self, request: WebRequest) -> bytes:
        host = header(request, "host") or ""
        return answer(request, about(host if _HOST.fullmatch(host) else "localhost:3000"))


def _is_probe(target: bytes) -> bool:
    try:
        return split_target(target)[0] in _PROBES
    except Refused:
        return False


def _charge(request: Any) -> None:
    """Take a request from the limit of the asker's address. Raise Refused: 429.

    A browser whose stream of events broke off asks for what it missed, and never again after an error.
    """
    request.charged = True
    limits = request.channel.site.connections.limits
    limits.request(
        asker_address(request),
        exposed=request.channel.exposed,
        probe=_is_probe(request.uri),
        recovers=_recovers(request),
    )


def _recovers(request: Any) -> bool:
    """Return whether a request asks for a stream from where an earlier one ended."""
    if request.method != b"GET" or not _is_room(request.uri):
        return False
    comes_back = request.requestHeaders.hasHeader(b"last-event-id") or b"resume=" in request.uri
    return comes_back and (b"follow=1" in request.uri or choose_form(header(request, "accept")) == EVENTS)


def _methods(get: Method, **others: Method) -> Mapping[str, Method]:
    """Give all that may be done where something is to be got."""
    methods: dict[str, Method] = {"GET": get, "HEAD": get, **others}

    def options(request: WebRequest) -> Answer:
        request.setHeader(b"allow", ", ".join(methods).encode("ascii"))
        allow_in_advance(request)
        return done(request, 204)

    methods["OPTIONS"] = options
    return methods


class Request(WebRequest):
    """A request whose body is bounded in size and time, and refused by its headers where they suffice."""

    channel: Any

    charged = False
    """Whether the address of the asker was charged for it."""
    _most = 0
    _taken = 0
    _refused = False
    _late: Timer | None = None

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is too large or of a bad kind before it comes; None is one without end, or none at all."""
        super().gotLength(0)  # it is kept in memory: a file would be made for a longer one
        channel, site = self.channel, self.channel.site
        # Twisted says so when the body is there.
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self._most = longest_json(site.config.max_message)
        try:
            check_framing(head_of(self))
            self._check_size(length or 0)
            if self.method == b"POST" and _is_room(self.uri):
                media_type(header(self, "content-type"))
        except Refused as refused:
            self._refuse(refused)
            return
        if length or self.requestHeaders.hasHeader(b"transfer-encoding"):
            late = site.config.body_seconds
            self._late = site.connections.timers.callLater(late, self._refuse, too_late())

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body; keep it if a resource may want it."""
        self._taken += len(data)
        try:
            self._check_size(self._taken)
        except Refused as refused:
            self._refuse(refused)
            return
        if self.method == b"POST":
            super().handleContentChunk(data)

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise Refused(413, "too_large", f"the body is longer than {self._most} bytes")

    def _refuse(self, refused: Refused) -> None:
        if not self._refused:
            self._refused = True
            self._stop_clock()
            self.requestHeaders.removeHeader(b"expect")  # it is not to continue
            self.channel.refuse(refused)

    def process(self) -> None:
        """Answer."""
        self._stop_clock()
        if not self._refused:
            super().process()

    def connectionLost(self, reason: Failure) -> None:
        """Learn that the client is gone."""
        self._stop_clock()
        super().connectionLost(reason)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()


def _is_room(target: bytes) -> bool:
    """Whether a request target names a room."""
    try:
        room_name(split_target(target)[0][1:])
    except Refused:
        return False
    return True


class Channel(Weighed, HTTPChannel):
    """One connection that speaks HTTP, counted: it may stay open between requests.

    It answers one request after the other, a few in a turn, and none while the client leaves the answers before it
    unread. These count in what waits for all clients. The head of each request has the size and the time that the door
    gives the first one.
    """

    site: "Site"
    exposed = False
    """Whether others than this host can connect where this connection did."""
    loopback = False
    """Whether it came to a TCP port on a loopback address."""
    admitted = False
    """Whether a request other than a probe has come, and so the connection counts like any other."""
    _head_size = 0
    _late: Timer | None = None
    """The end of the time that the request's head has."""
    _unread: Timer | None = None
    """When to look whether the client still reads."""
    _slice = 0
    """How many more requests are answered before others have a turn."""
    _queued = False
    _backlog = 0

    def connectionMade(self) -> None:
        """Begin, on a transport that the door hands over."""
        super().connectionMade()
        self.MAX_LENGTH = self.site.config.head_bytes  # of a line
        peer = address_of(self.transport)
        self.site.channels.add(self, self.site.connections.proxies.counted(peer))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: the socket is gone."""
        self._stop_waiting()
        self._end_backlog()
        self.site.channels.discard(self)
        super().connectionLost(reason)

    def _stop_waiting(self) -> None:
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        self._late = self._unread = None
        self._queued = False

    # The head of a request

    def dataReceived(self, data: bytes) -> None:
        """Take what came; a head that is begun has to end in time."""
        if not self._busyReceiving:
            self._slice = self.site.config.slice_requests
        super().dataReceived(data)
        begun = self.line_mode and not self.paused and (self._head_size or self._buffer)
        if begun and self._late is None:
            seconds = self.site.config.head_seconds
            self._late = self.site.connections.timers.callLater(seconds, self.refuse, too_late())

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a head: as strictly as the door takes the first one of a connection."""
        first = not self._head_size
        self._head_size += len(line) + len(self.delimiter)
        try:
            if self._head_size > self.site.config.head_bytes:
                raise head_too_large(self.site.config.head_bytes)
            if line:
                check_line(line, first=first)
        except Refused as refused:
            self.refuse(refused)
            return
        if not line:
            self._slice -= self._head_size // self.site.config.slice_bytes
            self._head_size = 0
            if self._late is not None:
                self._late.cancel()
                self._late = None
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that is longer than a head may be."""
        self.refuse(head_too_large(self.site.config.head_bytes))

    def allHeadersReceived(self) -> None:
        """Begin with the body. Refuse trailers: Twisted reads them in another way than a proxy may."""
        decoder: Any = self._transferDecoder
        if self.length is None:  # it comes in chunks
            decoder._maxTrailerHeadersSize = len(self.delimiter)  # Twisted 26.10 has no public way
        super().allHeadersReceived()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse what Twisted can't read."""
        self.refuse(bad_request("the request can't be read"))

    # One request after the other

    def requestDone(self, request: Any) -> None:
        """Go on with the next request, but not before the client has read what waits for it, and others had a turn."""
        full = self._waitingForTransport
        self._slice -= 1
        stops = self.paused = full or self._slice <= 0  # then what has been read of the next ones stays unanswered
        super().requestDone(request)
        if not stops or not self.persistent:
            return
        if full:
            self._networkProducer.pauseProducing()
            self._savedTimeOut = self.setTimeout(None)
            self._watch()
        elif self._buffer:
            self._wait_for_turn()
        else:
            self.paused = False

    def rawDataReceived(self, data: bytes) -> None:
        """Take a piece of the body: one in chunks little by little, because a chunk costs the same however small."""
        chunked = self.length is None and not self._handlingRequest
        size = self.site.config.slice_bytes if chunked else len(data)
        super().rawDataReceived(data[:size])
        if len(data) > size:
            self._buffer += data[size:]
            self._slice -= 1
            if self._slice <= 0 and not (self.paused or self._handlingRequest):
                self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self.paused = self._queued = True
        self._networkProducer.pauseProducing()
        self.site.connections.turns.wait(self)

    def handle_slice(self) -> bool:
        """Go on where others had to have a turn; what comes now counts as no message."""
        if self._queued:
            self._queued = False
            if not self._waitingForTransport:
                self._networkProducer.resumeProducing()
            self._go_on()
        return False

    def pauseProducing(self) -> None:
        """Count what waits for the client: it does not keep up in reading."""
        if self in CHOKED:
            self.weigh()
        else:
            self._begin_backlog()
        super().pauseProducing()

    def _end_backlog(self) -> None:
        self._forget_backlog()
        self._backlog = 0

    def resumeProducing(self) -> None:
        """Go on: all that waited for the client is on its way."""
        self._end_backlog()
        super().resumeProducing()
        if self._queued:
            self._networkProducer.pauseProducing()
        elif self.paused:
            self._stop_waiting()
            self.setTimeout(self._savedTimeOut)
            self._go_on()

    def _go_on(self) -> None:
        self.paused = False
        self.dataReceived(b"")

    # A client that asks or reads nothing

    def timeoutConnection(self) -> None:
        """Close the connection: nothing was asked for a while."""
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close the connection once the client has read all answers."""
        self._watch()
        super().loseConnection()

    def _watch(self) -> None:
        """Drop the connection if the client takes nothing more of what waits for it."""
        if self._unread is not None:
            self._unread.cancel()
        self._look_later(taken(self.transport), self.site.reactor.seconds())

    def _look_later(self, before: int, since: float) -> None:
        """Look whether the client takes something; since then it has taken nothing."""
        config = self.site.config
        wait = min(config.http_unread_look_seconds, since + config.http_unread_seconds - self.site.reactor.seconds())
        self._unread = self.site.connections.timers.callLater(wait, self._look, before, since)

    def _look(self, before: int, since: float) -> None:
        now, has = self.site.reactor.seconds(), taken(self.transport)
        if has > before:
            self._look_later(has, now)
        elif now < since + self.site.config.http_unread_seconds:
            self._look_later(before, since)
        else:
            REFUSED["unread"].value += self.paused
            transport: Any = self.transport
            transport.abortConnection()

    # Others that take over the connection

    def leave(self) -> None:
        """Let another protocol have the connection."""
        self.setTimeout(None)
        self._stop_waiting()
        self._end_backlog()
        self.site.channels.discard(self)
        self.paused = True  # what came behind the request is for nobody
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.resumeProducing()

    def admit(self, head: Head, peer: str = "") -> None:
        """Let the connection in with its first request that is no probe. Raise Refused: 403, 429, 503.

        A full worker still answers probes, and metrics, which are a request but no reason to stay.
        """
        if _is_probe(head.target) and not head.upgrades:
            return
        passes = head.target == _METRICS
        if not passes and self.site.full():
            raise full_house()
        if not head.upgrades:  # a WebSocket is let in by itself
            self.site.connections.admit(head, peer or address_of(self.transport), exposed=self.exposed)
            self.admitted = not passes

    def upgrade(self, head: Head) -> None:
        """Let a WebSocket have the connection: proxies ask for one where they have asked for pages. Raises Refused."""
        where = {"exposed": self.exposed, "loopback": self.loopback}
        connection = self.site.connections.let_in(head, address_of(self.transport), **where)
        rest = self.clearLineBuffer()
        self.leave()
        hand_over(self.transport, connection)
        if rest:
            connection.dataReceived(rest)

    def charge(self, request: Request | None = None) -> None:
        """Charge an address for a request that is refused, unless it was charged; without one for half a head."""
        if request is not None and request.charged:
            return
        peer = self.site.connections.proxies.counted(address_of(self.transport))
        address = asker_address(request) if request is not None else peer
        self.site.connections.limits.charge(address, 1, exposed=self.exposed)

    def refuse(self, refused: Refused) -> None:
        """Say why a request is not taken, and take nothing more."""
        if self not in self.site.channels:  # one that is refused already may turn out to be worse
            return
        self.charge(self.requests[-1] if self.requests else None)
        self.leave()
        site = self.site
        refusal = Refusal(refused, site.connections.timers, site.config.close_seconds, site.channels)
        hand_over(self.transport, refusal)


class Site(WebSite):
    """The HTTP side of the port, for the door to hand connections to, and who is there."""

    noisy = False
    displayTracebacks = False
    protocol: type[Channel] = Channel  # type: ignore[assignment]

    def __init__(self, reactor: Any, shards: Shards, connections: ConnectionFactory, meter: Meter) -> None:
        """Take who is in the rooms, which readiness asks, the worker's connections, and its metrics."""
        self.connections = connections
        self.config = connections.config
        page = Page()
        probe = SingleFlight(reactor, shards.probe, self.config.ready_kept_seconds)
        answers = Answers(shards, probe, Rooms(shards, connections, page), page, meter)
        super().__init__(
            answers,
            requestFactory=Request,
            timeout=self.config.http_idle_seconds,
            reactor=reactor,
            parsePOSTFormSubmission=False,  # nobody wants it, and multipart takes 1 ms for each 1.5 KB of it
        )
        self.channels: Crowd[Any] = Crowd(connections.limits)
        self.draining = False
        self.full: Callable[[], bool] = lambda: False
        """Tells whether there are too many connections, the one that asks included."""

    def drain(self) -> None:
        """Let each connection end with its next answer, or when it has said nothing for a while."""
        self.draining = True

    def log(self, request: object) -> None:
        """Keep no access log."""
