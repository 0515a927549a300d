"""The live members of one room on this worker, and the one loop that fans messages out to them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from twisted.logger import Logger

from chatd.monitoring.metrics import SENT_BYTES, SENT_MESSAGES
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.message import Batch, OffsetGap, PresenceEvent
from chatd.protocol.text import Format
from chatd.rooms.publisher import Author
from chatd.rooms.recovery import Reader

log = Logger()

LIVE_MESSAGES, LIVE_BYTES = SENT_MESSAGES["live"], SENT_BYTES["live"]


class LiveSubscriber(Author, Reader, Protocol):
    """What is asked of a client in a room."""

    def deliver(self, blob: bytes, count: int) -> bool:
        """Send these frames, which are count messages, and return True; or fall behind, and return False."""


Deliver = Callable[[bytes, int], bool]


class Subscribers:
    """Those who hear what is said now."""

    __slots__ = ("_by_format", "_members")

    def __init__(self) -> None:
        self._members: dict[str, LiveSubscriber] = {}  # by author
        self._by_format: dict[Format, list[tuple[str, Deliver]]] | None = None
        # How to deliver to each of them, where that was looked up since the last one came or went.

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self._members)

    def get(self, author: str) -> LiveSubscriber | None:
        """Give the member that is this author, if it is here."""
        return self._members.get(author)

    def add(self, member: LiveSubscriber) -> None:
        """Let it hear what is sent from now on."""
        self._members[member.author] = member
        self._by_format = None

    def remove(self, member: LiveSubscriber) -> bool:
        """Let it hear no more; give whether it did."""
        if self._members.get(member.author) is not member:
            return False
        del self._members[member.author]
        self._by_format = None
        return True

    def lost(self, gap: OffsetGap) -> int:
        """Tell them what can't be had; give how many they are."""
        members = list(self._members.values())
        for member in members:
            try:
                member.lost(gap)
            except Exception:  # noqa: BLE001 - one member's trouble is not the others'
                self._failed(member.author)
        return len(members)

    def refuse(self, authors: Iterable[str] | None = None) -> None:
        """Close some members, or all of them, because of an error of ours: they missed something."""
        for author in list(self._members) if authors is None else authors:
            with log.failuresHandled("{member} was not closed", member=author):
                if member := self._members.get(author):  # it may have left on the way
                    member.refused(OUR_FAULT)

    def send(self, batches: Sequence[Batch]) -> None:
        """Write messages to every member: framed once a dress, one write a member, an author's own left out."""
        own: dict[str, list[int]] = {}
        for place, message in enumerate([message for batch in batches for message in batch.messages]):
            if (speaker := self._members.get(message.session)) is not None and not speaker.echo:
                own.setdefault(message.session, []).append(place)
        LIVE_MESSAGES.value += self._write(lambda format: format.frames(batches), own)

    def tell(self, room: str, changes: Sequence[PresenceEvent]) -> None:
        """Tell every member who came and went, but those of whom it is told."""
        own: dict[str, list[int]] = {}
        for place, change in enumerate(changes):
            own.setdefault(change.session, []).append(place)
        self._write(lambda format: [format.change(room, change) for change in changes], own)

    def _write(self, show: Callable[[Format], list[bytes]], own: Mapping[str, Sequence[int]]) -> int:
        """Write frames, made once a dress, to every member; own are those that an author does not get.

        Return how many frames were sent, over all members. An error in one dress closes those who wear it.
        """
        written = 0
        for format, delivers in self._look_up().items():
            try:
                frames = show(format)
                blob = b"".join(frames)
            except Exception:  # noqa: BLE001 - one dress's trouble is not the others'
                log.failure("messages for {clients} clients could not be framed", clients=len(delivers))
                self.refuse([author for author, _ in delivers])
                continue
            if blob:
                written += self._deliver(frames, blob, delivers, own)
        return written

    def _look_up(self) -> Mapping[Format, Sequence[tuple[str, Deliver]]]:
        """Return how to deliver to each member, by dress."""
        if self._by_format is None:
            self._by_format = {}
            for author, member in self._members.items():
                self._by_format.setdefault(member.format, []).append((author, member.deliver))
        return self._by_format

    def _deliver(
        self,
        frames: Sequence[bytes],
        blob: bytes,
        delivers: Sequence[tuple[str, Deliver]],
        own: Mapping[str, Sequence[int]],
    ) -> int:
        """Write frames, which blob has joined, to members of one dress; return how many were sent, over all members."""
        count, whole, messages, size = len(frames), 0, 0, 0
        starts: list[int] = []  # of each frame in the blob, and its end
        for author, deliver in delivers:
            try:
                if author not in own:
                    if deliver(blob, count):
                        whole += 1
                    continue
                starts = starts or [0, *accumulate(map(len, frames))]
                part, rest = _without(blob, starts, own[author]), count - len(own[author])
                if part and deliver(part, rest):
                    messages += rest
                    size += len(part)
            except Exception:  # noqa: BLE001 - as above
                self._failed(author)
        LIVE_BYTES.value += size + whole * len(blob)
        return messages + whole * count

    def _failed(self, author: str) -> None:
        """Log what just went wrong, and hang up on the member, if it has not left on the way."""
        log.failure("something was not delivered to {member}", member=author)
        self.refuse([author])


def _without(blob: bytes, starts: Sequence[int], places: Sequence[int]) -> bytes:
    """Return joined frames without those at some places, in order; starts are where each begins, and the end."""
    pieces, at = [], 0
    for place in places:
        if at < starts[place]:
            pieces.append(blob[at : starts[place]])
        at = starts[place + 1]
    pieces.append(blob[at:])
    return b"".join(pieces)
