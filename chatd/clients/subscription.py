"""One room of a ``chatd.v1`` connection, as a subscriber of that room."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from chatd.broker.presence_list import Identity, MemberList
from chatd.clients.receipts import Acknowledging, Receipts
from chatd.protocol import json_v1
from chatd.protocol.close_codes import CloseCode
from chatd.protocol.message import Batch, OffsetGap, StreamPosition, rfc3339_ms

if TYPE_CHECKING:
    from chatd.clients.json_session import JsonSession

Ref = int | str | UnsetType
"""A client's own id of a request; the answer repeats it."""


class Subscription(Acknowledging):
    """One room of a session, which is a subscriber there."""

    recovers_at_once = True
    receives_presence = True

    __slots__ = (
        "_receipts",
        "_session",
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

    def __init__(self, session: "JsonSession", room: str, key: str = "") -> None:
        """Store the owner, the room, and the resume key, if any."""
        self._session = session
        self._receipts = (
            Receipts(session.connection.progress, session.config.unconfirmed_positions_per_client) if key else None
        )
        self.id = session.id
        self.address = session.address
        self.room = room
        self.key = key
        self.sender_id = session.sender_id
        self.nick = session.nick
        self.format = session.format
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
        return self._session.echo

    @property
    def subject(self) -> str:
        """The subject of its token; empty if there is none."""
        return self._session.token_lifetime.permissions.subject

    @property
    def identity(self) -> Identity:
        """The nick that it wants, in all rooms the same if no token has one, and its right to it."""
        session = self._session
        identity = session.token_lifetime.identify(session.wanted, session.address)
        return identity if identity.owner else identity.keeping(session.nick)

    @property
    def delays_leave(self) -> bool:
        """Whether it may come back without presence events."""
        return bool(self._session.key)

    @property
    def buffer_full(self) -> bool:
        """Whether it has enough to read for now."""
        return self._session.connection.buffer_full

    def deliver(self, blob: bytes, count: int) -> bool:
        """Write frames and return True, unless the client is too slow."""
        session = self._session
        session.flush()
        session.delivering = self
        return session.connection.deliver(blob, count)

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, however much waits; return whether they could be sent."""
        if self.pays:
            self._session.was_read(len(blob))
        self._session.flush()
        return self._session.connection.replay(blob, count)

    def recovered(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Send the answer to a join: the requested messages, what of them is lost, and whether more follow."""
        lost = None if any(gap.count is None for gap in gaps) else sum(gap.count or 0 for gap in gaps)
        events = [event for batch in batches for event in json_v1.message_events(batch)]
        self._session.was_read(sum(batch.size for batch in batches))
        answer = json_v1.Joined(
            self.room, top.epoch, top.offset, lost == 0, lost, events, more=more or UNSET, ref=self.ref
        )
        self.ref, self.joined, self.joining = UNSET, True, False
        self._session.send_event(answer)

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        """Send the gap."""
        self._session.send_event(json_v1.gap_event(self.room, gap))

    def renamed(self, nick: str) -> None:
        """Send the new nick."""
        self._session.renamed(nick)

    def missed_presence(self) -> None:
        """Send the list of members: presence events were skipped while the client was slow."""
        self._session.send_members(self.room, UNSET)

    def disconnect(self, close_code: CloseCode) -> None:
        """Close the connection."""
        self._session.connection.close(close_code)

    def publish_refused(self, close_code: CloseCode) -> None:
        """Do nothing: each of its messages has a receipt."""

    def resume_publishing(self) -> None:
        """Continue with the requests that waited."""
        self._session.resume_publishing()

    def bus_away(self) -> None:
        """Refuse what waited."""
        self._session.bus_away()


def listed(members: MemberList) -> Sequence[json_v1.Member] | None:
    """Return the members of a room for a JSON client; None if they are too many."""
    if members.present is None:
        return None
    return [
        json_v1.Member(member.session, member.nick or None, rfc3339_ms(member.since), member.subject or UNSET)
        for member in members.present
    ]
