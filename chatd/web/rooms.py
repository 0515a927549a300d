"""Rooms over HTTP: history, streams, the list of members, and publishing with one request."""

from hashlib import sha256
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.web.server import NOT_DONE_YET, Request

from chatd.access.origins import check_follower
from chatd.access.tokens import check_readable, check_writable, scope_resume_key
from chatd.broker.publish_queue import NotPublished
from chatd.clients.factory import ConnectionFactory
from chatd.clients.stream_session import StreamSession
from chatd.clients.subscription import listed
from chatd.clients.token_lifetime import TokenLifetime, origin
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED_MESSAGES, SEND_BUFFER_BYTES
from chatd.protocol import http_api, json_v1
from chatd.protocol.close_codes import BUS_AWAY, CloseCode, try_later
from chatd.protocol.http_head import Refused, RoomTarget, bad_request, follows, read_target, unavailable
from chatd.protocol.http_stream import stream
from chatd.protocol.json_line import encode
from chatd.protocol.message import Message, StreamPosition, rfc3339_ms
from chatd.protocol.text import named
from chatd.rooms.hub import Hub
from chatd.rooms.sharding import Shards
from chatd.runtime.transports import address_of
from chatd.web.page import Page
from chatd.web.responses import (
    answer,
    answer_json,
    answer_later,
    client_address,
    head_of,
    header,
    token_lifetime_of,
)
from chatd.web.streaming import StreamingResponse, describe

T = TypeVar("T")

IN_DOUBT = "the message bus does not answer; it may be published yet: try again with the same id"


class RoomPages:
    """The HTTP interface of rooms. Requests that can not be answered raise Refused."""

    def __init__(self, shards: Shards, connections: ConnectionFactory, page: Page) -> None:
        """Store the rooms, the worker's connections, to which followers belong, and the page for browsers."""
        self._page = page
        self._shards = shards
        self._connections = connections
        self._config = connections.config

    def show(self, request: Request) -> bytes | int:
        """Answer with the last messages in the form that the client accepts; a follower gets the following ones as
        well.
        """
        form = http_api.choose_form(header(request, "accept"))
        request.responseHeaders.addRawHeader(b"vary", b"Accept")
        heartbeat = http_api.read_heartbeat(request.uri)
        if form == http_api.EVENTS or follows(request.uri):
            if http_api.read_before(request.uri) is not None:
                raise bad_request(
                    "before is for messages of the past; a client that follows goes on behind Last-Event-ID"
                )
            return self._follow(request, form, heartbeat)
        if form == http_api.HTML:
            return self._page.render(request)
        target, before = read_target(request.uri, http_api.LAST), http_api.read_before(request.uri)
        check_readable(token_lifetime_of(request).permissions, target.room)
        return answer_later(request, self._last(request, target, before, form))

    async def _last(self, request: Request, target: RoomTarget, before: StreamPosition | None, form: str) -> bytes:
        hub = self._shards.hub(target.room)
        self._check_backlog()
        stretch = await self._asked(hub.read_recent(target.room, target.last, before), hub.bus.unreachable)
        self._read(request, stretch.size)
        self._check_backlog()  # many may have asked at the same time
        if stretch.more and stretch.start is not None:
            request.setHeader(b"link", http_api.link_to_older(stretch.start, target.last).encode("ascii"))
        if form in (http_api.JSON, http_api.JSON_LINES):
            events = [event for batch in stretch.batches for event in json_v1.message_events(batch)]
            if form == http_api.JSON:
                return answer_json(request, events)
            return answer(request, b"".join(encode(event) + b"\n" for event in events), form)
        return answer(
            request, "".join(f"{named(message)}\n" for batch in stretch.batches for message in batch.messages)
        )

    def _check_backlog(self) -> None:
        """Raise Refused (503) while too much waits for all clients of the worker: an answer may be large."""
        if SEND_BUFFER_BYTES.value > self._config.worker_send_buffers:
            raise unavailable("too much data waits for clients that do not read; try again later")

    def _follow(self, request: Any, form: str, heartbeat: float | None) -> bytes | int:
        last_id = header(request, "last-event-id") if form == http_api.EVENTS else None
        position = http_api.read_event_id(last_id) if last_id else None
        target = read_target(request.uri, 0 if form == http_api.EVENTS else http_api.LAST)
        check_follower(head_of(request), named=bool(target.nick or target.resume))
        token_lifetime = token_lifetime_of(request)
        check_readable(token_lifetime.permissions, target.room)
        form = http_api.TEXT if form == http_api.HTML else form
        shown = stream(form, chunked=request.clientproto == b"HTTP/1.1", presence=bool(target.nick))
        if request.method == b"HEAD":
            describe(request, shown)
            return b""
        if heartbeat is None:
            heartbeat = self._config.stream_heartbeat_interval if shown.beats else 0
        address = self._enter(request, target.room)
        self._connections.stay(address, address_of(request.channel.transport), exposed=request.channel.exposed)
        following = StreamingResponse(request, self._connections, shown, heartbeat)
        following.begin(
            StreamSession(
                self._shards.hub(target.room),
                self._config,
                self._connections.timers,
                following,
                id=self._connections.new_id(),
                target=scope_resume_key(token_lifetime.permissions, target),
                address=address,
                token_lifetime=token_lifetime,
                rate=self._connections.limits.client_rate(address, exposed=request.channel.exposed),
                stream=shown,
                since=position,
            )
        )
        return NOT_DONE_YET

    def publish(self, request: Any) -> int:
        """Publish a message; answer once it is in the chat log and has its offset."""
        target = read_target(request.uri)
        token_lifetime = token_lifetime_of(request)
        check_writable(token_lifetime.permissions, target.room)
        content = request.content.read() if request.content is not None else b""
        body = http_api.read_publish_body(header(request, "content-type"), content, self._config.max_message_size)
        address = self._enter(request, target.room)
        self._connections.limits.post(address, len(body.text.encode()), exposed=request.channel.exposed)
        sender = HttpSender(
            self._shards.hub(target.room),
            self._config,
            self._connections.timers,
            token_lifetime,
            id=self._connections.new_id(),
            nick=token_lifetime.permissions.nick or (target.nick if body.nick is None else body.nick),
            address=address,
        )
        return answer_later(request, self._publish(request, target.room, sender, body))

    def _enter(self, request: Any, room: str) -> str:
        """Check that the client may use a room; return its address. Raise Refused: 429."""
        address = client_address(request)
        self._connections.enter(address, room, exposed=request.channel.exposed)
        return address

    def _read(self, request: Any, size: int) -> None:
        """Charge the client's address for so many bytes that were read."""
        self._connections.limits.read(client_address(request), size, exposed=request.channel.exposed)

    async def _publish(self, request: Request, room: str, sender: "HttpSender", body: http_api.PublishBody) -> bytes:
        published = await sender.publish(room, body.text, body.id or "")
        request.setResponseCode(201, b"Created")
        return answer_json(request, published)

    async def members(self, request: Request, room: str) -> bytes:
        """Answer with the members of a room."""
        check_readable(token_lifetime_of(request).permissions, room)
        hub = self._shards.hub(room)
        members = await self._asked(hub.bus.presence.members(room), hub.bus.unreachable)
        return answer_json(request, http_api.PresenceAnswer(room, listed(members), members.count))

    async def rooms(self, request: Request) -> bytes:
        """Answer with the rooms that the client may read."""
        permissions = token_lifetime_of(request).permissions
        occupied, more = await self._asked(self._shards.list_rooms(), self._shards.unreachable)
        rooms = [
            http_api.ListedRoom(room.room, room.count, room.top.epoch, room.top.offset)
            for room in occupied
            if permissions.may_read(room.room)
        ]
        body = answer_json(request, http_api.RoomList(rooms, more))
        self._read(request, len(body))
        return body

    async def _asked(self, answer: "Deferred[T]", unreachable: str) -> T:
        """Return an answer of the broker. Raise Refused if it can't come, or does not come in time."""
        if unreachable:
            answer.addErrback(lambda _: None).cancel()
            raise unavailable(BUS_AWAY.reason)
        timers: Any = self._connections.timers
        try:
            return await answer.addTimeout(self._config.subscribe_timeout, timers)
        except (NotPublished, TimeoutError):
            raise unavailable(BUS_AWAY.reason) from None


class HttpSender:
    """The sender of one message over HTTP. It joins no room, so it causes no presence events."""

    def __init__(
        self, hub: Hub, config: Config, timers: Any, token_lifetime: TokenLifetime, *, id: str, nick: str, address: str
    ) -> None:
        """Store the token, a connection id (unique for ever), the wanted nick and the client's address.

        All messages over HTTP with tokens of one subject, or without a token under one nick, have one sender id. A
        message that is sent again over another connection is therefore recognized by its message id. Without a token
        a nick proves nothing, so a message id is recognized from the same address only.
        """
        self._hub = hub
        self._config = config
        self._timers = timers
        self._waiting: Deferred[None]
        permissions = token_lifetime.permissions
        self._identity = token_lifetime.identify(nick, address)
        self._dedup_scope = "" if permissions.name else origin(address)
        who = f"token {permissions.name}" if permissions.name else nick  # no nick has a space
        self.sender_id = f"http.{sha256(who.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}" if who else "http"
        self.id = id
        self.nick = nick
        self.subject = permissions.subject
        self.address = address

    async def publish(self, room: str, text: str, dedup_id: str) -> http_api.PublishAnswer:
        """Publish a message; return its stream position. Raise Refused: 409, 503."""
        await self._wait_until_open()
        if self.nick:
            self.nick = await self._find_nick(room)
            await self._wait_until_open()
        published: Deferred[http_api.PublishAnswer] = Deferred()
        receipt = _SenderReceipt(room, published)
        self._hub.publisher.publish(
            room, self, [text], dedup_id=dedup_id, dedup_scope=self._dedup_scope, receipt=receipt
        )
        try:
            return await published.addTimeout(self._config.publish_timeout, self._timers)
        except TimeoutError:
            raise unavailable(IN_DOUBT) from None

    async def _wait_until_open(self) -> None:
        publisher = self._hub.publisher
        while not publisher.open:
            if publisher.away:
                raise self._bus_away()
            self._waiting = Deferred(lambda _: publisher.stop_waiting(self))
            publisher.wait(self)
            try:
                await self._waiting.addTimeout(self._config.publish_timeout, self._timers)
            except TimeoutError:
                raise self._bus_away() from None

    async def _find_nick(self, room: str) -> str:
        """Return the nick if it is free in the room. Raise Refused: 409, 503."""
        found = self._hub.bus.presence.find_nick(room, self._identity)
        try:
            nick = await found.addTimeout(self._config.publish_timeout, self._timers)
        except TimeoutError:
            raise self._bus_away() from None
        if not nick:
            message = f"nick: {self.nick} is in use in this room; give another one, or a token that proves it"
            raise Refused(409, "nick_in_use", message)
        return nick

    def _bus_away(self) -> Refused:
        """Count a message that was not published, and return the error for it."""
        REFUSED_MESSAGES["bus_away"].value += 1
        return unavailable(try_later(self._hub.why_not_published()).reason)

    # The publisher calls

    def resume_publishing(self) -> None:
        """Check again: the publisher is open, or the broker is away."""
        self._waiting.callback(None)

    def bus_away(self) -> None:
        """Check again, as above."""
        self._hub.publisher.stop_waiting(self)
        self.resume_publishing()

    def publish_refused(self, close_code: CloseCode) -> None:
        """Do nothing: the message has a receipt."""


class _SenderReceipt:
    """The result of one message."""

    def __init__(self, room: str, published: "Deferred[http_api.PublishAnswer]") -> None:
        self._room = room
        self._published = published

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        if not self._published.called:
            id, time = message.dedup_id or message.id, rfc3339_ms(message.time)
            answer = http_api.PublishAnswer(self._room, position.epoch, position.offset, id, time, duplicate)
            self._published.callback(answer)

    def refused(self, message: Message, close_code: CloseCode) -> None:
        if not self._published.called:
            self._published.errback(unavailable(close_code.reason.removeprefix("not sent: ")))
