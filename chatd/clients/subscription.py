"""One room of a ``chatd.v1`` connection, as a subscriber of that room."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import UNSET, UnsetType

from chatd.broker.presence_list import Identity, MemberList
from chatd.clients.pipe_session import ClientConnection
from chatd.clients.receipts import Acknowledging, Receipts
from chatd.clients.token_lifetime import TokenLifetime
from chatd.config.settings import Config
from chatd.protocol import json_v1
from chatd.protocol.close_codes import CloseCode
from chatd.protocol.message import Batch, OffsetGap, StreamPosition, rfc3339_ms
from chatd.protocol.text import Format

Ref = int | str | UnsetType
"""A client's own id of a request; the answer repeats it."""


class Owner(Protocol):
    """The session that owns the subscriptions of a connection."""

    id: str
    address: str
    sender_id: str
    nick: str
    wanted: str
    token_lifetime: TokenLifetime
    format: Format
    config: Config
    connection: ClientConnection
    delivering: "Subscription | None"

    @property
    def echo(self) -> bool:
        """Whether the client receives its own messages."""

    @property
    def key(self) -> str:
        """Its resume key."""

    def send_event(self, event: json_v1.Event) -> None:
        """Send an event."""

    def flush(self) -> None:
        """Write the events that were sent, because other frames follow."""

    def renamed(self, nick: str) -> None:
        """Send the new nick."""

    def send_members(self, room: str, ref: Ref) -> None:
        """Send the list of members of a room."""

    def was_read(self, size: int) -> None:
        """Charge the address for the size of the text, in bytes, that was read for the client."""

    def resume_publishing(self) -> None:
        """Continue with the requests that waited for the broker."""

    def bus_away(self) -> None:
        """Refuse what waited for it."""


class Subscription(Acknowledging):
    """A program in one of its rooms: what the hub knows as a member."""

    recovers_at_once = True
    receives_presence = True

    __slots__ = (
        "_program",
        "_receipts",
        "address",
        "format",
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

    def __init__(self, program: Owner, room: str, key: str = "") -> None:
        """Store the owner, the room, and the resume key, if any."""
        self._program = program
        self._receipts = (
            Receipts(program.connection.progress, program.config.unconfirmed_positions_per_client) if key else None
        )
        self.id = program.id
        self.address = program.address
        self.room = room
        self.key = key
        self.sender_id = program.sender_id
        self.nick = program.nick
        self.format = program.format
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
        return self._program.echo

    @property
    def subject(self) -> str:
        """The subject of its token; empty if there is none."""
        return self._program.token_lifetime.permissions.subject

    @property
    def identity(self) -> Identity:
        """The nick that it wants, in all rooms the same if no token has one, and its right to it."""
        program = self._program
        identity = program.token_lifetime.identify(program.wanted, program.address)
        return identity if identity.owner else identity.keeping(program.nick)

    @property
    def delays_leave(self) -> bool:
        """Whether it may come back without presence events."""
        return bool(self._program.key)

    @property
    def buffer_full(self) -> bool:
        """Whether it has enough to read for now."""
        return self._program.connection.buffer_full

    def deliver(self, blob: bytes, count: int) -> bool:
        """Write frames and return True, unless the client is too slow."""
        program = self._program
        program.flush()
        program.delivering = self
        return program.connection.deliver(blob, count)

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, however much waits; return whether they could be sent."""
        if self.pays:
            self._program.was_read(len(blob))
        self._program.flush()
        return self._program.connection.replay(blob, count)

    def recovered(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Send the answer to a join: the requested messages, what of them is lost, and whether more follow."""
        lost = None if any(gap.count is None for gap in gaps) else sum(gap.count or 0 for gap in gaps)
        events = [event for batch in batches for event in json_v1.message_events(batch)]
        self._program.was_read(sum(batch.size for batch in batches))
        answer = json_v1.Joined(
            self.room, top.epoch, top.offset, lost == 0, lost, events, more=more or UNSET, ref=self.ref
        )
        self.ref, self.joined, self.joining = UNSET, True, False
        self._program.send_event(answer)

    def lost(self, gap: OffsetGap) -> None:
        """Send the gap."""
        self._program.send_event(json_v1.gap_event(self.room, gap))

    def too_slow(self, gap: OffsetGap) -> None:
        """Send the gap."""
        self.lost(gap)

    def renamed(self, nick: str) -> None:
        """Send the new nick."""
        self._program.renamed(nick)

    def missed_presence(self) -> None:
        """Send the list of members: presence events were skipped while the client was slow."""
        self._program.send_members(self.room, UNSET)

    def disconnect(self, close_code: CloseCode) -> None:
        """Close the connection."""
        self._program.connection.close(close_code)

    def publish_refused(self, close_code: CloseCode) -> None:
        """Do nothing: each of its messages has a receipt."""

    def resume_publishing(self) -> None:
        """Continue with the requests that waited."""
        self._program.resume_publishing()

    def bus_away(self) -> None:
        """Refuse what waited."""
        self._program.bus_away()


def listed(members: MemberList) -> Sequence[json_v1.Member] | None:
    """Return the members of a room for a JSON client; None if they are too many."""
    if members.present is None:
        return None
    return [
        json_v1.Member(member.session, member.nick or None, rfc3339_ms(member.since), member.subject or UNSET)
        for member in members.present
    ]
