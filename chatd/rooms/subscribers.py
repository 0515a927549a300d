"""A client as a room sees it; the live subscribers of one room on this worker, and the loop that broadcasts to them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from twisted.logger import Logger

from chatd.broker.presence_list import Identity
from chatd.monitoring.metrics import SENT_BYTES, SENT_MESSAGES
from chatd.protocol.close_codes import OUR_FAULT, CloseCode
from chatd.protocol.message import Batch, OffsetGap, PresenceEvent, StreamPosition
from chatd.protocol.text import Format
from chatd.rooms.publisher import Sender

log = Logger()

LIVE_MESSAGES, LIVE_BYTES = SENT_MESSAGES["live"], SENT_BYTES["live"]


class Subscriber(Sender, Protocol):
    """A client in a room."""

    format: Format
    """How messages are encoded for it."""

    @property
    def echo(self) -> bool:
        """Return whether it receives its own messages."""

    @property
    def identity(self) -> Identity:
        """Return the nick that it wants, and its right to it."""

    @property
    def key(self) -> str:
        """Return its resume key; empty: none."""

    @property
    def delays_leave(self) -> bool:
        """Return whether its leave event is delayed, so that it may return."""

    @property
    def receives_presence(self) -> bool:
        """Return whether it receives presence events."""

    @property
    def recovers_at_once(self) -> bool:
        """Return whether it gets the first history in one call of ``recovered``."""

    @property
    def since(self) -> StreamPosition | None:
        """Return the position to start from, if it has no resume position."""

    @property
    def last(self) -> int:
        """Return how many earlier messages to send without a position."""

    @property
    def buffer_full(self) -> bool:
        """Return whether its send buffer is full. Once it is empty, ``drained`` must be called."""

    @property
    def received_all(self) -> bool:
        """Return whether it had received everything when its connection ended."""

    def deliver(self, blob: bytes, count: int) -> bool:
        """Send frames, which are ``count`` messages. Return False if its send buffer is full."""

    def replay(self, blob: bytes, count: int) -> bool:
        """Send frames, which are ``count`` messages, even if the send buffer is full. Return whether it is open."""

    def recovered(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Handle the first history: the newest position, gaps, batches, and whether more follows."""

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        """Handle a gap. ``slow``: it exists because the client reads too slowly and there is no history."""

    def missed_presence(self) -> None:
        """Handle that presence events were missed during recovery."""

    def renamed(self, nick: str) -> None:
        """Handle that its nick was changed."""

    def record(self, position: StreamPosition) -> StreamPosition | None:
        """Handle that everything up to a position was sent. Return up to where it was received, if known."""

    def record_early(self, position: StreamPosition) -> None:
        """Handle that everything up to a position was sent, soon after it was."""

    def disconnect(self, close_code: CloseCode) -> None:
        """Close the client."""


Deliver = Callable[[bytes, int], bool]


class Subscribers:
    """The live subscribers of a room."""

    __slots__ = ("_by_format", "_members")

    def __init__(self) -> None:
        self._members: dict[str, Subscriber] = {}  # by sender id
        self._by_format: dict[Format, list[tuple[str, Deliver]]] | None = None
        # None after a change of the subscribers.

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._members)

    def get(self, sender_id: str) -> Subscriber | None:
        """Return the subscriber with a sender id, if it is live."""
        return self._members.get(sender_id)

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber."""
        self._members[subscriber.sender_id] = subscriber
        self._by_format = None

    def remove(self, subscriber: Subscriber) -> bool:
        """Remove a subscriber. Return whether it was live."""
        if self._members.get(subscriber.sender_id) is not subscriber:
            return False
        del self._members[subscriber.sender_id]
        self._by_format = None
        return True

    def report_gap(self, gap: OffsetGap) -> int:
        """Notify all subscribers of a gap. Return their number."""
        subscribers = list(self._members.values())
        for subscriber in subscribers:
            try:
                subscriber.report_gap(gap)
            except Exception:  # noqa: BLE001 - the other subscribers go on
                self._failed(subscriber.sender_id)
        return len(subscribers)

    def refuse(self, sender_ids: Iterable[str] | None = None) -> None:
        """Close some or all subscribers, which missed something because of an internal error."""
        for sender_id in list(self._members) if sender_ids is None else sender_ids:
            with log.failuresHandled("closing client {client} failed", client=sender_id, event="client_close_failed"):
                if subscriber := self._members.get(sender_id):  # it may have left meanwhile
                    subscriber.disconnect(OUR_FAULT)

    def send(self, batches: Sequence[Batch]) -> None:
        """Broadcast batches: encoded once per format, one write per subscriber, without its own messages."""
        own: dict[str, list[int]] = {}
        for index, message in enumerate([message for batch in batches for message in batch.messages]):
            if (sender := self._members.get(message.session)) is not None and not sender.echo:
                own.setdefault(message.session, []).append(index)
        LIVE_MESSAGES.value += self._write(lambda format: format.frames(batches), own)

    def send_events(self, room: str, events: Sequence[PresenceEvent]) -> None:
        """Broadcast presence events, except to the subscribers that they are about."""
        own: dict[str, list[int]] = {}
        for index, event in enumerate(events):
            own.setdefault(event.session, []).append(index)
        self._write(lambda format: [format.change(room, event) for event in events], own)

    def _write(self, show: Callable[[Format], list[bytes]], own: Mapping[str, Sequence[int]]) -> int:
        """Write frames to every subscriber. ``own`` are the indexes of the frames that a sender does not get.

        Return the number of frames sent to all. An error in one format closes the subscribers with that format.
        """
        written = 0
        for format, delivers in self._group().items():
            try:
                frames = show(format)
                blob = b"".join(frames)
            except Exception:  # noqa: BLE001 - the other formats go on
                log.failure(
                    "encoding messages for {clients} clients failed",
                    clients=len(delivers),
                    event="message_encoding_failed",
                )
                self.refuse([sender_id for sender_id, _ in delivers])
                continue
            if blob:
                written += self._deliver(frames, blob, delivers, own)
        return written

    def _group(self) -> Mapping[Format, Sequence[tuple[str, Deliver]]]:
        """Return the ``deliver`` methods by format."""
        if self._by_format is None:
            self._by_format = {}
            for sender_id, subscriber in self._members.items():
                self._by_format.setdefault(subscriber.format, []).append((sender_id, subscriber.deliver))
        return self._by_format

    def _deliver(
        self,
        frames: Sequence[bytes],
        blob: bytes,
        delivers: Sequence[tuple[str, Deliver]],
        own: Mapping[str, Sequence[int]],
    ) -> int:
        """Write frames, joined in ``blob``, to the subscribers of a format. Return the number sent to all."""
        count, whole, messages, size = len(frames), 0, 0, 0
        starts: list[int] = []  # of each frame in the blob, and its end
        for sender_id, deliver in delivers:
            try:
                if sender_id not in own:
                    if deliver(blob, count):
                        whole += 1
                    continue
                starts = starts or [0, *accumulate(map(len, frames))]
                part, rest = _without(blob, starts, own[sender_id]), count - len(own[sender_id])
                if part and deliver(part, rest):
                    messages += rest
                    size += len(part)
            except Exception:  # noqa: BLE001 - as above
                self._failed(sender_id)
        LIVE_BYTES.value += size + whole * len(blob)
        return messages + whole * count

    def _failed(self, sender_id: str) -> None:
        """Log the current exception and close a subscriber."""
        log.failure("delivering to client {client} failed", client=sender_id, event="delivery_failed")
        self.refuse([sender_id])


def _without(blob: bytes, starts: Sequence[int], places: Sequence[int]) -> bytes:
    """Return joined frames without some of them. ``starts`` are the offsets of all frames, and the end."""
    pieces, at = [], 0
    for place in places:
        if at < starts[place]:
            pieces.append(blob[at : starts[place]])
        at = starts[place + 1]
    pieces.append(blob[at:])
    return b"".join(pieces)
