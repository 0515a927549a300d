"""The live members of one room on this worker, and the one loop that fans messages out to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twisted.logger import Logger

from chatd.closing import OUR_FAULT
from chatd.message import Batch, Change, Gap
from chatd.metrics import SENT_BYTES, SENT_MESSAGES
from chatd.room.catchup import Reader
from chatd.room.intake import Author
from chatd.wire.text import Dress

log = Logger()

LIVE_MESSAGES, LIVE_BYTES = SENT_MESSAGES["live"], SENT_BYTES["live"]


class Member(Author, Reader, Protocol):
    """What is asked of a client in a room."""

    def deliver(self, blob: bytes, count: int) -> None:
        """Send these frames, which are count messages; or say that it falls behind, and send nothing."""


class Audience:
    """Those who hear what is said now."""

    __slots__ = ("_by_dress", "_members")

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}  # by author
        self._by_dress: dict[Dress, list[tuple[str, Callable[[bytes, int], None]]]] | None = None
        # How to deliver to each of them, where that was looked up since the last one came or went.

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self._members)

    def get(self, author: str) -> Member | None:
        """Give the member that is this author, if it is here."""
        return self._members.get(author)

    def add(self, member: Member) -> None:
        """Let it hear what is sent from now on."""
        self._members[member.author] = member
        self._by_dress = None

    def remove(self, member: Member) -> bool:
        """Let it hear no more; give whether it did."""
        if self._members.get(member.author) is not member:
            return False
        del self._members[member.author]
        self._by_dress = None
        return True

    def lost(self, gap: Gap) -> int:
        """Tell them what can't be had; give how many they are."""
        members = list(self._members.values())
        for member in members:
            try:
                member.lost(gap)
            except Exception:  # noqa: BLE001 - one member's trouble is not the others'
                self._failed(member.author)
        return len(members)

    def send(self, batches: Sequence[Batch]) -> None:
        """Write messages to every member: framed once a dress, one write a member, an author's own left out."""
        own: dict[str, list[int]] = {}
        for place, message in enumerate([message for batch in batches for message in batch.messages]):
            if (speaker := self._members.get(message.session)) is not None and not speaker.echo:
                own.setdefault(message.session, []).append(place)
        LIVE_MESSAGES.value += self._write(lambda dress: dress.frames(batches), own)

    def tell(self, room: str, changes: Sequence[Change]) -> None:
        """Tell every member who came and went, but those of whom it is told."""
        own: dict[str, list[int]] = {}
        for place, change in enumerate(changes):
            own.setdefault(change.session, []).append(place)
        self._write(lambda dress: [dress.change(room, change) for change in changes], own)

    def _write(self, show: Callable[[Dress], list[bytes]], own: Mapping[str, Sequence[int]]) -> int:
        """Write frames, made once a dress, to every member; own are those that an author does not get.

        Gives how many frames that were, over all members.
        """
        written = 0
        if self._by_dress is None:
            self._by_dress = {}
            for author, member in self._members.items():
                self._by_dress.setdefault(member.dress, []).append((author, member.deliver))
        for dress, delivers in self._by_dress.items():
            frames = show(dress)
            blob = b"".join(frames)
            if not blob:
                continue
            written += len(frames) * len(delivers)
            size = len(blob) * len(delivers)
            for author, deliver in delivers:
                try:
                    if author not in own:
                        deliver(blob, len(frames))
                        continue
                    share = frames.copy()
                    for place in reversed(own[author]):
                        del share[place]
                    part = b"".join(share)
                    written -= len(own[author])
                    size -= len(blob) - len(part)
                    if part:
                        deliver(part, len(share))
                except Exception:  # noqa: BLE001 - as above
                    self._failed(author)
            LIVE_BYTES.value += size
        return written

    def _failed(self, author: str) -> None:
        """Log what just went wrong, and hang up on the member, if it has not left on the way."""
        log.failure("something was not delivered to {member}", member=author)
        if member := self._members.get(author):
            member.refused(OUR_FAULT)
