"""The session of a ``chatd.v1`` client: JSON both ways, several rooms on one connection, an answer to each request."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from random import uniform
from typing import Any

import msgspec
from msgspec import UNSET
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

import chatd
from chatd.access.tokens import BadToken
from chatd.clients.pipe_session import ClientConnection
from chatd.clients.subscription import JsonClient, PublishReceipt, Ref, Subscription
from chatd.clients.token_lifetime import UNLIMITED
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED_MESSAGES
from chatd.protocol import json_v1
from chatd.protocol.close_codes import READ_ONLY, TOKEN_OUT, CloseCode, come_back_after
from chatd.protocol.http_head import Refused, read_room
from chatd.protocol.json_line import encode
from chatd.protocol.json_v1 import BadRequest, Request, read_request
from chatd.protocol.message import HistoryPage
from chatd.protocol.nick import BadNick, read_nick
from chatd.protocol.text import read_line, utf8_size
from chatd.protocol.websocket_frames import text_frame
from chatd.rooms.hub import Hub

log = Logger()

NOT_FOR_YOU = "the token does not let you into this room"
BEING_JOINED = "room: it is being joined"


class JsonSession(JsonClient):
    """One connection with the subprotocol ``chatd.v1``."""

    protocol = "json"
    accepts_binary = False

    __slots__ = ("_enters", "_held", "_rooms", "_timers", "_waiting")

    def __init__(
        self,
        hub_of: Callable[[str], Hub],
        config: Config,
        timers: Any,
        connection: ClientConnection,
        *,
        enter: Callable[[str, str], None] = lambda address, room: None,
        **options: Any,
    ) -> None:
        """Store what a JsonClient stores, and the timers. ``enter`` raises Refused for an address and a room."""
        super().__init__(hub_of, config, connection, **options)
        self._timers = timers
        self._rooms: dict[str, Subscription] = {}
        self._held: list[Request | BadRequest] = []
        self._waiting: Subscription | None = None  # for which it waits for the publisher
        self._enters = enter

    # The connection calls

    def compress(self) -> None:
        """Compress messages to the client from now on."""
        self.format = self.format.deflated
        for subscription in self._rooms.values():
            subscription.format = self.format

    def join(self) -> "Deferred[None]":
        """Enter the room of the URL."""
        room = self._target.room
        subscription = self._rooms[room] = Subscription(self, self._hub_of(room), room, self._target.resume)
        subscription.last = self._target.last
        return subscription.join()

    def why_not_joined(self) -> CloseCode:
        """Return the reason why it did not enter that room in time."""
        return self._hub_of(self._target.room).why_not_joined()

    def opened(self) -> None:
        """Send the welcome event, then the events since the client joined."""
        subscription = self._rooms[self._target.room]
        subscription.joined = True  # a client may speak at once, though history is still being read for it
        self.sender_id, self.nick = subscription.sender_id, subscription.nick
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
        self._opened = True
        self._outgoing.insert(0, text_frame(encode(welcome)))
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
            self.delivering.hub.start_recovery(self.delivering.room, self.delivering)

    def drained(self) -> None:
        """Continue in rooms that are served from history."""
        for room, subscription in list(self._rooms.items()):
            with log.failuresHandled(
                "reading from client {client} was not resumed in room {room}",
                client=self.id,
                room=room,
                event="client_resume_failed",
            ):
                subscription.hub.drained(room, subscription)
        if self._held and self._waiting is None:
            self.resume_publishing()

    def record_positions(self) -> None:
        """Record, before the connection closes, up to where everything was delivered."""
        for room, subscription in self._rooms.items():
            if subscription.key:
                with self._recording(room):
                    subscription.hub.record_position(room, subscription)
                subscription.seal()

    def record_arrival(self) -> None:
        """Record, while the socket still exists, what has arrived."""
        for room, subscription in self._rooms.items():
            with self._recording(room):
                subscription.close()

    def _recording(self, room: str) -> AbstractContextManager[Any]:
        """Return a context that logs a failure for one room, so that the others are recorded all the same."""
        return log.failuresHandled(
            "determining the stream position of client {client} in room {room} failed",
            client=self.id,
            room=room,
            event="room_position_failed",
        )

    def closed(self) -> None:
        """Leave all rooms. Held requests are not published."""
        self._closed = True
        self.token_lifetime.stop()
        self._stop_waiting()
        self._held = []
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        rooms, self._rooms = self._rooms, {}
        for room, subscription in rooms.items():
            with log.failuresHandled(
                "removing client {client} from room {room} failed", client=self.id, room=room, event="room_leave_failed"
            ):
                subscription.leave()

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
                if self._joined(room, request.ref) and self._may_read(request.ref):
                    self.send_members(room, request.ref)
            case json_v1.History():
                self._send_history(request)
            case json_v1.Nick():
                self._rename(request)
            case json_v1.Auth():
                self._renew(request)
            case json_v1.Ping():
                self.send_event(json_v1.Pong(ref=request.ref))

    def _joined(self, room: str, ref: Ref) -> Subscription | None:
        """Return the subscription of a room; if there is none, send an error."""
        subscription = self._rooms.get(room)
        if subscription is None or not subscription.joined:
            self.refuse(ref, "not_joined", "join the room first")
            return None
        return subscription

    def _publish(self, request: json_v1.Publish) -> None:
        if (subscription := self._joined(request.room, request.ref)) is None:
            return
        text, publisher = read_line(request.text), subscription.hub.publisher
        if not self.token_lifetime.permissions.may_write(request.room):
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
                request.room,
                subscription,
                [text],
                dedup_id=dedup_id,
                receipt=PublishReceipt(self, request.room, request.ref),
            )
        elif publisher.away:
            REFUSED_MESSAGES["bus_away"].value += 1
            self.refuse(request.ref, "unavailable", subscription.hub.why_not_published(), again=True)
        else:
            self._hold(request, subscription)

    def _hold(self, request: Request, subscription: Subscription) -> None:
        """Read no more until there is room again."""
        self._held.append(request)
        self._waiting = subscription
        self.connection.pause()
        subscription.hub.publisher.wait(subscription)

    def resume_publishing(self) -> None:
        """Continue with the requests that waited."""
        self._stop_waiting()
        held, self._held = self._held, []
        if not self._closed:
            self.connection.resume()
        self._do_all(held)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.hub.publisher.stop_waiting(self._waiting)
            self._waiting = None

    def _join(self, request: json_v1.Join) -> None:
        try:
            room = read_room(request.room)
        except Refused as refused:
            self.refuse(request.ref, "bad_room", refused.message)
            return
        subscription = self._rooms.get(room)
        again = subscription is not None
        if not self.token_lifetime.permissions.may_read(room):
            self.refuse(request.ref, "forbidden", NOT_FOR_YOU)
        elif subscription is not None and subscription.joining:
            self.refuse(request.ref, "bad_request", BEING_JOINED)
        elif subscription is None and len(self._rooms) >= self.config.rooms_per_client:
            self.refuse(request.ref, "forbidden", f"no more than {self.config.rooms_per_client} rooms at once")
        elif self._may_go(request, again=again) and (again or self._may_enter(room, request.ref)):
            subscription = subscription or Subscription(self, self._hub_of(room), room)
            subscription.joining = subscription.pays = True
            subscription.ref, subscription.since, subscription.last = request.ref, request.position, request.last
            if again:
                subscription.hub.rejoin(room, subscription)
            else:
                self._enter(room, subscription)

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
            self.refuse_for(ref, wait)
            return False
        return True

    def _enter(self, room: str, subscription: Subscription) -> None:
        self._rooms[room] = subscription

        def failed(failure: Failure) -> None:
            if self._rooms.get(room) is subscription:
                del self._rooms[room]
                subscription.leave()
            if failure.check(TimeoutError):
                self.refuse(subscription.ref, "unavailable", subscription.hub.why_not_joined().reason, again=True)
            elif not failure.check(CancelledError):
                log.failure("client {client} could not join a room", failure, client=self.id, event="join_failed")
                self.refuse(subscription.ref, "unavailable", "an error on our side", again=True)

        joined = subscription.join()
        if not joined.called:
            joined.addTimeout(self.config.subscribe_timeout, self._timers)
        joined.addErrback(failed)

    def _leave(self, request: json_v1.Leave) -> None:
        room = request.room
        if subscription := self._joined(room, request.ref):
            if subscription.joining:
                self.refuse(request.ref, "bad_request", BEING_JOINED)
                return
            del self._rooms[room]
            subscription.leave()
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
        for room, subscription in list(self._rooms.items()):
            if not self.token_lifetime.permissions.may_read(room):
                del self._rooms[room]
                subscription.leave()
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
        for room, subscription in list(self._rooms.items()):
            if subscription.joined and self._rooms.get(room) is subscription:
                nick_there = await subscription.hub.rename(room, subscription, identity)
                if not has:
                    has, identity = nick_there, identity.keeping(nick_there)
        return has or next(identity.choices())

    def _send_history(self, request: json_v1.History) -> None:
        subscription = self._joined(request.room, request.ref)
        if subscription is None or not self._may_read(request.ref):
            return
        before, hub = None if request.before is UNSET else request.before, subscription.hub
        epoch = hub.position(request.room).epoch

        def send_answer(stretch: HistoryPage) -> None:
            self.was_read(stretch.size)
            events = [event for batch in stretch.batches for event in json_v1.message_events(batch)]
            self.send_event(json_v1.HistoryAnswer(request.room, epoch, events, stretch.more or UNSET, ref=request.ref))

        self._ask(request.ref, lambda: hub.read_last(request.room, request.limit, before), send_answer)


def _read(text: str) -> Request | BadRequest:
    try:
        return read_request(text)
    except BadRequest as bad:
        return bad
