"""A ``chatd.v1`` client: the events and errors that it is sent, and each of its rooms as a subscriber of that room."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.token_bucket import ClientRate
from chatd.broker.presence_list import Identity, MemberList
from chatd.clients.pipe_session import ClientConnection
from chatd.clients.receipts import Acknowledging, Receipts
from chatd.clients.token_lifetime import UNLIMITED, TokenLifetime
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED, REFUSED_MESSAGES
from chatd.protocol import json_v1
from chatd.protocol.close_codes import FLOODING, CloseCode
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.json_line import encode
from chatd.protocol.json_v1 import JSON
from chatd.protocol.message import Batch, Message, OffsetGap, StreamPosition, rfc3339_ms
from chatd.protocol.text import Format
from chatd.protocol.websocket_frames import text_frame
from chatd.rooms.hub import Hub

log = Logger()

Ref = int | str | UnsetType
"""A client's own id of a request; the answer repeats it."""


T = TypeVar("T")

READ_AGAIN = 1.0
"""The least seconds after which a client is told to read again: all clients of its address wait for the same."""


class JsonClient:
    """A client as its subscriptions know it: its identity, its rate limits, and the events to it."""

    __slots__ = (
        "_closed",
        "_flushing",
        "_hub_of",
        "_opened",
        "_outgoing",
        "_questions",
        "_rate",
        "_target",
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
        connection: ClientConnection,
        *,
        id: str,
        target: RoomTarget,
        address: str,
        token_lifetime: TokenLifetime = UNLIMITED,
        rate: ClientRate | None = None,
    ) -> None:
        """Store what a Session stores, except that ``hub_of`` returns the hub of a room."""
        self._hub_of = hub_of
        self._target = target
        self._opened = False  # events wait until the handshake is answered
        self._closed = False
        self._outgoing: list[bytes] = []
        self._flushing: Any = None
        self._questions = 0
        self._rate = rate
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

    def resume_publishing(self) -> None:
        """Continue with the requests that waited for the broker."""
        raise NotImplementedError

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
        if not self._closed:
            self._outgoing.append(text_frame(encode(event)))
            if self._flushing is None and self._opened:
                self._flushing = self._hub_of(self._target.room).call_soon(self._flush)

    def flush(self) -> None:
        """Write the events that were sent."""
        if self._outgoing and self._opened:
            outgoing, self._outgoing = self._outgoing, []
            self.connection.send(b"".join(outgoing))

    def _flush(self) -> None:
        self._flushing = None
        self.flush()

    # Rate limits

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
            self.refuse_for(ref, wait)

    def refuse_for(self, ref: Ref, wait: float) -> None:
        """Send the error for exceeding a rate that allows it again after so many seconds."""
        self.refuse(ref, "rate_limited", "too fast", after=ceil(wait * 10) / 10)


class PublishReceipt:
    """The receipt of one request to publish."""

    __slots__ = ("_client", "_ref", "_room")

    def __init__(self, client: JsonClient, room: str, ref: Ref) -> None:
        self._client = client
        self._room = room
        self._ref = ref

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        """Send an acknowledgement."""
        id, time = message.dedup_id or message.id, rfc3339_ms(message.time)
        self._client.send_event(
            json_v1.Ack(self._room, position.epoch, position.offset, id, time, duplicate, ref=self._ref)
        )

    def refused(self, message: Message, close_code: CloseCode) -> None:
        """Send an error."""
        self._client.refuse(self._ref, "unavailable", close_code.reason.removeprefix("not sent: "), again=True)


class Subscription(Acknowledging):
    """One room of a client, as a subscriber of that room."""

    recovers_at_once = True
    receives_presence = True

    __slots__ = (
        "_client",
        "_receipts",
        "address",
        "format",
        "hub",
        "id",
        "joined",
        "joining",
        "key",
        "last",
        "nick",
        "pays",
        "ref",
        "room",
        "sender_id",
        "since",
    )

    def __init__(self, client: JsonClient, hub: Hub, room: str, key: str = "") -> None:
        """Store the client, the room and its hub, and the resume key, if any."""
        self._client = client
        self._receipts = (
            Receipts(client.connection.progress, client.config.unconfirmed_positions_per_client) if key else None
        )
        self.id = client.id
        self.address = client.address
        self.hub = hub
        self.room = room
        self.key = key
        self.sender_id = client.sender_id
        self.nick = client.nick
        self.format = client.format
        self.ref: Ref = UNSET
        """Of the request to join that is still to be answered."""
        self.since: StreamPosition | None = None
        self.last = 0
        self.joined = False
        """Whether it may publish."""
        self.joining = True
        """Whether the answer to its join is still to be sent."""
        self.pays = True
        """Whether history that is read for it is charged: the client asked for it."""

    @property
    def echo(self) -> bool:
        """Whether the client receives its own messages."""
        return self._client.echo

    @property
    def subject(self) -> str:
        """The subject of its token; empty if there is none."""
        return self._client.token_lifetime.permissions.subject

    @property
    def identity(self) -> Identity:
        """The nick that it wants, in all rooms the same if no token has one, and its right to it."""
        client = self._client
        identity = client.token_lifetime.identify(client.wanted, client.address)
        return identity if identity.owner else identity.keeping(client.nick)

    @property
    def delays_leave(self) -> bool:
        """Whether it may come back without presence events."""
        return bool(self._client.key)

    @property
    def buffer_full(self) -> bool:
        """Whether it has enough to read for now."""
        return self._client.connection.buffer_full

    # The client calls

    def join(self) -> "Deferred[None]":
        """Join the room. Return a Deferred that fires when messages are delivered."""
        return self.hub.join(self.room, self)

    def leave(self) -> None:
        """Leave the room."""
        self.hub.leave(self.room, self)

    # The hub calls

    def deliver(self, blob: bytes, count: int) -> bool:
        """Write frames and return True, unless the client is too slow."""
        client = self._client
        client.flush()
        client.delivering = self
        return client.connection.deliver(blob, count)

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, however much waits; return whether they could be sent."""
        if self.pays:
            self._client.was_read(len(blob))
        self._client.flush()
        return self._client.connection.replay(blob, count)

    def recovered(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Send the answer to a join: the requested messages, what of them is lost, and whether more follow."""
        lost = None if any(gap.count is None for gap in gaps) else sum(gap.count or 0 for gap in gaps)
        events = [event for batch in batches for event in json_v1.message_events(batch)]
        self._client.was_read(sum(batch.size for batch in batches))
        answer = json_v1.Joined(
            self.room, top.epoch, top.offset, lost == 0, lost, events, more=more or UNSET, ref=self.ref
        )
        self.ref, self.joined, self.joining = UNSET, True, False
        self._client.send_event(answer)

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        """Send the gap."""
        self._client.send_event(json_v1.gap_event(self.room, gap))

    def renamed(self, nick: str) -> None:
        """Send the new nick."""
        self._client.renamed(nick)

    def missed_presence(self) -> None:
        """Send the list of members: presence events were skipped while the client was slow."""
        self._client.send_members(self.room, UNSET)

    def disconnect(self, close_code: CloseCode) -> None:
        """Close the connection."""
        self._client.connection.close(close_code)

    def publish_refused(self, close_code: CloseCode) -> None:
        """Do nothing: each of its messages has a receipt."""

    def resume_publishing(self) -> None:
        """Continue with the requests that waited."""
        self._client.resume_publishing()

    def bus_away(self) -> None:
        """Refuse what waited: it may be long."""
        self._client.resume_publishing()


def listed(members: MemberList) -> Sequence[json_v1.Member] | None:
    """Return the members of a room for a JSON client; None if they are too many."""
    if members.present is None:
        return None
    return [
        json_v1.Member(member.session, member.nick or None, rfc3339_ms(member.since), member.subject or UNSET)
        for member in members.present
    ]
