"""The session of a ``chatd.v1`` client: JSON both ways, several rooms on one connection, an answer to each request."""

from collections.abc import Callable, Sequence
from math import ceil
from random import uniform
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

import chatd
from chatd.access.token_bucket import ClientRate
from chatd.access.tokens import BadToken
from chatd.broker.presence_list import MemberList
from chatd.clients.pipe_session import ClientConnection
from chatd.clients.subscription import Ref, Subscription, listed
from chatd.clients.token_lifetime import UNLIMITED, TokenLifetime
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED, REFUSED_MESSAGES
from chatd.protocol import json_v1
from chatd.protocol.close_codes import FLOODING, READ_ONLY, TOKEN_OUT, CloseCode, come_back_after
from chatd.protocol.http_head import Refused, RoomTarget, read_room
from chatd.protocol.json_line import encode
from chatd.protocol.json_v1 import JSON, BadRequest, Request, read_request
from chatd.protocol.message import HistoryPage, Message, StreamPosition, rfc3339_ms
from chatd.protocol.nick import BadNick, read_nick
from chatd.protocol.text import Format, read_line, utf8_size
from chatd.protocol.websocket_frames import text_frame
from chatd.rooms.hub import Hub

log = Logger()

T = TypeVar("T")

NOT_FOR_YOU = "the token does not let you into this room"
BEING_JOINED = "room: it is being joined"
READ_AGAIN = 1.0
"""The least seconds after which a client is told to read again: all clients of its address wait for the same."""


class _Published:
    """The receipt of one request to publish."""

    __slots__ = ("_program", "_ref", "_room")

    def __init__(self, program: "JsonSession", room: str, ref: Ref) -> None:
        self._program = program
        self._room = room
        self._ref = ref

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        id, time = message.dedup_id or message.id, rfc3339_ms(message.time)
        self._program.send_event(
            json_v1.Ack(self._room, position.epoch, position.offset, id, time, duplicate, ref=self._ref)
        )

    def refused(self, message: Message, close_code: CloseCode) -> None:
        self._program.refuse(self._ref, "unavailable", close_code.reason.removeprefix("not sent: "), again=True)


class JsonSession:
    """One connection with the subprotocol ``chatd.v1``."""

    protocol = "json"
    accepts_binary = False

    __slots__ = (
        "_closed",
        "_early",
        "_enters",
        "_flushing",
        "_held",
        "_hub_of",
        "_outgoing",
        "_questions",
        "_rate",
        "_rooms",
        "_target",
        "_timers",
        "_waiting",
        "address",
        "config",
        "connection",
        "delivering",
        "format",
        "id",
        "nick",
        "sender_id",
        "token_lifetime",
        "wanted",
    )

    def __init__(
        self,
        hub_of: Callable[[str], Hub],
        config: Config,
        timers: Any,
        connection: ClientConnection,
        *,
        id: str,
        target: RoomTarget,
        address: str,
        token_lifetime: TokenLifetime = UNLIMITED,
        rate: ClientRate | None = None,
        enter: Callable[[str, str], None] = lambda address, room: None,
    ) -> None:
        """Store what a Session stores, but what returns the hub of a room; enter raises Refused for a room."""
        self._hub_of = hub_of
        self._target = target
        self._timers = timers
        self._rooms: dict[str, Subscription] = {}
        self._early: list[json_v1.Event] | None = []  # to be sent once the handshake is answered
        self._outgoing: list[bytes] = []
        self._flushing: Any = None
        self._held: list[Request | BadRequest] = []
        self._waiting: Subscription | None = None  # for which it waits for the publisher
        self._closed = False
        self._questions = 0
        self._rate = rate
        self._enters = enter
        self.config = config
        self.connection = connection
        self.id = self.sender_id = id
        self.address = address
        self.token_lifetime = token_lifetime
        self.nick = self.wanted = token_lifetime.permissions.nick or target.nick
        """The nick that the client asked for, or that of its token."""
        self.format: Format = JSON
        self.delivering: Subscription | None = None
        """The subscription for which frames are being written."""

    @property
    def echo(self) -> bool:
        """Whether the client receives its own messages."""
        return self._target.echo

    @property
    def key(self) -> str:
        """Its resume key; empty where it has none."""
        return self._target.resume

    # The connection calls

    def compress(self) -> None:
        """Compress messages to the client from now on."""
        self.format = self.format.deflated
        for subscription in self._rooms.values():
            subscription.format = self.format

    def join(self) -> "Deferred[None]":
        """Enter the room of the URL."""
        member = self._rooms[self._target.room] = Subscription(self, self._target.room, self._target.resume)
        member.last = self._target.last
        return self._hub_of(member.room).join(member.room, member)

    def why_not_joined(self) -> CloseCode:
        """Return the reason why it did not enter that room in time."""
        return self._hub_of(self._target.room).why_not_joined()

    def opened(self) -> None:
        """Send the welcome event, then the events since the client joined."""
        member = self._rooms[self._target.room]
        member.joined = True  # a client may speak at once, though history is still being read for it
        self.sender_id, self.nick = member.sender_id, member.nick
        per_second = self._rate.messages_per_second if self._rate is not None else None
        limits = json_v1.Limits(self.config.max_message_size, per_second, self.config.rooms_per_client)
        welcome = json_v1.Welcome(
            self.sender_id,
            self.nick or None,
            f"chatd {chatd.__version__}",
            limits,
            self.config.ping_interval,
            self.token_lifetime.permissions.subject or UNSET,
        )
        early, self._early = self._early or [], None
        for event in (welcome, *early):
            self.send_event(event)
        self.flush()
        self.token_lifetime.begin(self._token_ends, lambda: self.connection.close(TOKEN_OUT))

    def _token_ends(self, seconds: float) -> None:
        self.send_event(json_v1.token_ends(seconds))

    def received(self, texts: Sequence[str]) -> None:
        """Handle the text messages of one read, each of them a request."""
        self._do_all([_read(text) for text in texts])

    def _do_all(self, requests: Sequence[Request | BadRequest]) -> None:
        """Handle requests in order, as long as the publisher accepts messages and the client reads the answers."""
        for index, request in enumerate(requests):
            if self._held or self.connection.buffer_full:
                self._held += requests[index:]
                self.connection.pause()
                return
            self._do(request)

    def received_binary(self, payload: bytes) -> None:
        """Do nothing: the connection closes at the first frame of a binary message."""

    def farewell(self, close_code: CloseCode) -> bytes:
        """Return the last frame: why the connection closes, and when to reconnect, each client at another time."""
        self.flush()
        return text_frame(
            encode(json_v1.bye(close_code, come_back_after(close_code, self.config.retry_after, uniform)))
        )

    def became_slow(self) -> None:
        """Serve the room from history until the client has caught up."""
        if self.delivering is not None:
            self.delivering.pays = False  # it did not ask for that
            self._hub_of(self.delivering.room).start_recovery(self.delivering.room, self.delivering)

    def drained(self) -> None:
        """Continue in rooms that are served from history."""
        for room, member in list(self._rooms.items()):
            with log.failuresHandled(
                "reading from client {client} was not resumed in room {room}",
                client=self.id,
                room=room,
                event="client_resume_failed",
            ):
                self._hub_of(room).drained(room, member)
        if self._held and self._waiting is None:
            self.resume_publishing()

    def record_positions(self) -> None:
        """Record, before the connection closes, up to where everything was delivered."""
        for room, member in self._rooms.items():
            if member.key:
                with log.failuresHandled(
                    "determining the stream position of client {client} in room {room} failed",
                    client=self.id,
                    room=room,
                    event="room_position_failed",
                ):
                    self._hub_of(room).record_position(room, member)
                member.seal()

    def record_arrival(self) -> None:
        """Record, while the socket still exists, what has arrived."""
        for room, member in self._rooms.items():
            with log.failuresHandled(
                "determining the stream position of client {client} in room {room} failed",
                client=self.id,
                room=room,
                event="room_position_failed",
            ):
                member.close()

    def closed(self) -> None:
        """Leave all rooms. What was not acknowledged is not published."""
        self._closed = True
        self.token_lifetime.stop()
        self._stop_waiting()
        self._held = []
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        rooms, self._rooms = self._rooms, {}
        for room, member in rooms.items():
            with log.failuresHandled(
                "removing client {client} from room {room} failed", client=self.id, room=room, event="room_leave_failed"
            ):
                self._hub_of(room).leave(room, member)

    # Requests

    def _do(self, request: Request | BadRequest) -> None:
        match request:
            case BadRequest():
                self.refuse(request.ref, "bad_request", request.message)
            case json_v1.Publish():
                self._publish(request)
            case json_v1.Join():
                self._join(request)
            case json_v1.Leave():
                self._leave(request)
            case json_v1.Members(room=room):
                if self._member(room, request.ref) and self._may_read(request.ref):
                    self.send_members(room, request.ref)
            case json_v1.History():
                self._send_history(request)
            case json_v1.Nick():
                self._rename(request)
            case json_v1.Auth():
                self._renew(request)
            case json_v1.Ping():
                self.send_event(json_v1.Pong(ref=request.ref))

    def _member(self, room: str, ref: Ref) -> Subscription | None:
        """Return the subscription of a room; if there is none, send an error."""
        member = self._rooms.get(room)
        if member is None or not member.joined:
            self.refuse(ref, "not_joined", "join the room first")
            return None
        return member

    def _publish(self, request: json_v1.Publish) -> None:
        member, text = self._rooms.get(request.room), read_line(request.text)
        publisher = self._hub_of(request.room).publisher
        if member is None or not member.joined:
            self.refuse(request.ref, "not_joined", "join the room first")
        elif not self.token_lifetime.permissions.may_write(request.room):
            REFUSED_MESSAGES["forbidden"].value += 1
            self.refuse(request.ref, "forbidden", READ_ONLY.reason)
        elif not text:
            self.refuse(request.ref, "bad_request", "text: nothing but a line end")
        elif len(text) * 4 > self.config.max_message_size and utf8_size(text) > self.config.max_message_size:
            REFUSED_MESSAGES["too_large"].value += 1
            self.refuse(request.ref, "too_large", f"text: more than {self.config.max_message_size} bytes of UTF-8")
        elif publisher.open:
            if self._is_too_fast(request.ref, utf8_size(text)):
                return
            dedup_id = "" if request.id is UNSET else request.id
            publisher.publish(
                request.room, member, [text], dedup_id=dedup_id, receipt=_Published(self, request.room, request.ref)
            )
        elif publisher.away:
            REFUSED_MESSAGES["bus_away"].value += 1
            self.refuse(request.ref, "unavailable", self._hub_of(request.room).why_not_published(), again=True)
        else:
            self._hold(request, member)

    def _is_too_fast(self, ref: Ref, size: int, count: int = 1) -> bool:
        """Return whether a message exceeds the rate. If so, send an error, and close the connection after too many.

        Count is how many messages it costs.
        """
        if self._rate is None or not (wait := self._rate.take(size, count)):
            return False
        REFUSED_MESSAGES["rate_limited"].value += 1
        self._warn(self._rate, ref, wait)
        return True

    def _may_read(self, ref: Ref, *, count: int = 1, recovers: bool = False) -> bool:
        """Return whether the address may make count more requests; if not, send an error."""
        if self._rate is None or not (wait := self._rate.ask(count, recovers=recovers)):
            return True
        REFUSED["rate_limited"].value += 1
        self._warn(self._rate, ref, max(wait, READ_AGAIN))
        return False

    def _warn(self, rate: ClientRate, ref: Ref, wait: float) -> None:
        """Send the error for exceeding the rate; close the connection after too many of them."""
        if rate.refused > self.config.refused_messages_before_close:
            self.connection.close(FLOODING)
        else:
            self.refuse(ref, "rate_limited", "too fast", after=ceil(wait * 10) / 10)

    def _hold(self, request: Request, member: Subscription) -> None:
        """Read no more until there is room again."""
        self._held.append(request)
        self._waiting = member
        self.connection.pause()
        self._hub_of(member.room).publisher.wait(member)

    def resume_publishing(self) -> None:
        """Continue with the requests that waited."""
        self._stop_waiting()
        held, self._held = self._held, []
        if not self._closed:
            self.connection.resume()
        self._do_all(held)

    def bus_away(self) -> None:
        """Refuse what waited: it may be long."""
        self.resume_publishing()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._hub_of(self._waiting.room).publisher.stop_waiting(self._waiting)
            self._waiting = None

    def _join(self, request: json_v1.Join) -> None:
        try:
            room = read_room(request.room)
        except Refused as refused:
            self.refuse(request.ref, "bad_room", refused.message)
            return
        member = self._rooms.get(room)
        if not self.token_lifetime.permissions.may_read(room):
            self.refuse(request.ref, "forbidden", NOT_FOR_YOU)
        elif member is not None and member.joining:
            self.refuse(request.ref, "bad_request", BEING_JOINED)
        elif member is None and len(self._rooms) >= self.config.rooms_per_client:
            self.refuse(request.ref, "forbidden", f"no more than {self.config.rooms_per_client} rooms at once")
        elif self._may_go(request, again=member is not None) and (member or self._may_enter(room, request.ref)):
            again = member is not None
            member = member or Subscription(self, room)
            member.joining = member.pays = True
            member.ref, member.since, member.last = request.ref, request.position, request.last
            if again:
                self._hub_of(room).rejoin(room, member)
            else:
                self._enter(room, member)

    def _may_go(self, request: json_v1.Join, *, again: bool) -> bool:
        """Return whether a join may read history; if not, send an error.

        A join without history is free. Recovery from a position is never refused: only its text is charged.
        """
        if request.position is not None:
            return self._may_read(request.ref, count=int(again), recovers=True)
        return not (again or request.last) or self._may_read(request.ref)

    def _may_enter(self, room: str, ref: Ref) -> bool:
        try:
            self._enters(self.address, room)
        except Refused as refused:
            self.refuse(ref, "rate_limited", refused.message, again=True)
            return False
        if self._rate is not None and (wait := self._rate.join()):
            self.refuse(ref, "rate_limited", "too fast", after=ceil(wait * 10) / 10)
            return False
        return True

    def _enter(self, room: str, member: Subscription) -> None:
        self._rooms[room] = member

        def failed(failure: Failure) -> None:
            if self._rooms.get(room) is member:
                del self._rooms[room]
                self._hub_of(room).leave(room, member)
            if failure.check(TimeoutError):
                self.refuse(member.ref, "unavailable", self._hub_of(room).why_not_joined().reason, again=True)
            elif not failure.check(CancelledError):
                log.failure("client {client} could not join a room", failure, client=self.id, event="join_failed")
                self.refuse(member.ref, "unavailable", "an error on our side", again=True)

        joined = self._hub_of(room).join(room, member)
        if not joined.called:
            joined.addTimeout(self.config.subscribe_timeout, self._timers)
        joined.addErrback(failed)

    def _leave(self, request: json_v1.Leave) -> None:
        room = request.room
        if member := self._member(room, request.ref):
            if member.joining:
                self.refuse(request.ref, "bad_request", BEING_JOINED)
                return
            del self._rooms[room]
            self._hub_of(room).leave(room, member)
            self.send_event(json_v1.Left(room, ref=request.ref))

    def _renew(self, request: json_v1.Auth) -> None:
        """Replace the token; leave the rooms that the new one may not read."""
        if self.token_lifetime is UNLIMITED:
            self.refuse(request.ref, "bad_request", "this server takes no tokens")
            return
        try:
            self.token_lifetime.renew(request.token)
        except BadToken as bad:
            self.refuse(request.ref, "forbidden", str(bad))
            return
        self.send_event(msgspec.structs.replace(json_v1.token_ends(self.token_lifetime.left), ref=request.ref))
        for room, member in list(self._rooms.items()):
            if not self.token_lifetime.permissions.may_read(room):
                del self._rooms[room]
                self._hub_of(room).leave(room, member)
                self.refuse(UNSET, "forbidden", f"{room}: {NOT_FOR_YOU}")
                self.send_event(json_v1.Left(room))

    def _rename(self, request: json_v1.Nick) -> None:
        try:
            wanted = read_nick(request.nick)
        except BadNick as bad:
            self.refuse(request.ref, "bad_request", f"nick: {bad}")
            return
        if self.token_lifetime.permissions.nick:
            self.refuse(request.ref, "forbidden", "nick: it is that of your token")
            return
        if self._is_too_fast(request.ref, 0, max(1, len(self._rooms))):  # each room gets an event
            return
        was = self.nick

        def send_answer(has: str) -> None:
            self.nick, self.wanted = has, wanted
            self.send_event(json_v1.NickAnswer(has, was or None, ref=request.ref))

        self._ask(request.ref, lambda: Deferred.fromCoroutine(self._rename_everywhere(wanted)), send_answer)

    async def _rename_everywhere(self, nick: str) -> str:
        """Change the nick in all rooms, to the same one wherever it is free; return that of the first room."""
        identity = self.token_lifetime.identify(nick, self.address)
        has = ""
        for room, member in list(self._rooms.items()):
            if member.joined and self._rooms.get(room) is member:
                given = await self._hub_of(room).rename(room, member, identity)
                if not has:
                    has, identity = given, identity.keeping(given)
        return has or next(identity.choices())

    def renamed(self, nick: str) -> None:
        """Send the new nick."""
        was, self.nick = self.nick, nick
        if nick != was:  # several rooms may report it
            self.send_event(json_v1.NickAnswer(nick, was or None))

    def send_members(self, room: str, ref: Ref) -> None:
        """Send the list of members of a room."""

        def send_answer(members: MemberList) -> None:
            self.send_event(json_v1.MembersAnswer(room, listed(members), members.count, ref=ref))

        self._ask(ref, lambda: self._hub_of(room).bus.presence.members(room), send_answer)

    def _send_history(self, request: json_v1.History) -> None:
        if not (self._member(request.room, request.ref) and self._may_read(request.ref)):
            return
        before = None if request.before is UNSET else request.before
        epoch = self._hub_of(request.room).position(request.room).epoch

        def send_answer(stretch: HistoryPage) -> None:
            self.was_read(stretch.size)
            events = [event for batch in stretch.batches for event in json_v1.message_events(batch)]
            self.send_event(json_v1.HistoryAnswer(request.room, epoch, events, stretch.more or UNSET, ref=request.ref))

        self._ask(
            request.ref, lambda: self._hub_of(request.room).read_last(request.room, request.limit, before), send_answer
        )

    def was_read(self, size: int) -> None:
        """Charge the address for the size of the text, in bytes, that was read for the client."""
        if self._rate is not None:
            self._rate.read(size)

    def _ask(self, ref: Ref, question: "Callable[[], Deferred[T]]", send_answer: Callable[[T], None]) -> None:
        """Ask the broker and send the answer when it comes; only a few questions may be open."""
        if self._questions >= self.config.pending_queries_per_client:
            self.refuse(ref, "rate_limited", "too many requests without an answer", again=True)
            return
        self._questions += 1

        def over(result: T) -> T:
            self._questions -= 1
            return result

        def failed(failure: Failure) -> None:
            log.failure(
                "answering a request of client {client} failed", failure, client=self.id, event="request_failed"
            )
            self.refuse(ref, "unavailable", "an error on our side", again=True)

        question().addBoth(over).addCallback(send_answer).addErrback(failed)

    # Events to the client

    def refuse(self, ref: Ref, code: json_v1.Code, message: str, *, again: bool = False, after: float = 0.0) -> None:
        """Send an error, and after how many seconds to try again, if that helps."""
        after = after or (self.config.retry_after if again else 0.0)
        self.send_event(json_v1.Error(code, message, after or UNSET, ref=ref))

    def send_event(self, event: json_v1.Event) -> None:
        """Send an event, at the end of the reactor turn or before other frames."""
        if self._closed:
            return
        if self._early is not None:
            self._early.append(event)
            return
        self._outgoing.append(text_frame(encode(event)))
        if self._flushing is None:
            self._flushing = self._hub_of(self._target.room).call_soon(self._flush)

    def flush(self) -> None:
        """Write the events that were sent."""
        if self._outgoing:
            outgoing, self._outgoing = self._outgoing, []
            self.connection.send(b"".join(outgoing))

    def _flush(self) -> None:
        self._flushing = None
        self.flush()


def _read(text: str) -> Request | BadRequest:
    try:
        return read_request(text)
    except BadRequest as bad:
        return bad
