"""The hub: who is in which room on this worker, and the one loop that fans messages out.

What it promises:

* A message is in the chat log before it is published; where it can't be logged, its author is told and nobody
  hears it. What is taken in one turn of the reactor is logged in one write and published in one batch a room.
* Members get messages only from the bus, the sender's neighbours on this worker too: one path, one order.
* A member hears every message of its room that gets an offset after its ``join`` has fired, once; its own
  only where it asked for them.
* A room without members is forgotten.

It knows members by what they offer (``Member``), never their sockets.
"""

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.closing import LOG_AWAY, OUR_FAULT, Closing
from chatd.config import Config
from chatd.message import Batch, Message
from chatd.room.bus import Bus
from chatd.room.chatlog import Entry, log_entries, log_outcome
from chatd.room.outbox import NotPublished
from chatd.wire.frames import text_frame
from chatd.wire.text import bare

log = Logger()


class Member(Protocol):
    """What the hub asks of a client in a room."""

    id: str
    """Its session: unique among all that ever were."""
    address: str
    echo: bool
    """Whether it hears its own messages."""

    def deliver(self, blob: bytes) -> None:
        """Send these frames."""

    def carry_on(self) -> None:
        """Publish what was held back: the hub takes messages again."""

    def bus_away(self) -> None:
        """Learn, while holding messages back, that the bus is away."""

    def refused(self, closing: Closing) -> None:
        """Learn that a message it published was not."""


class _Room:
    """One room on this worker."""

    __slots__ = ("joining", "members", "name", "seen", "since")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[str, Member] = {}
        self.since: dict[str, int] = {}
        """When each of them joined: milliseconds since 1970."""
        self.joining: dict[str, tuple[Deferred[None], Deferred[None]]] = {}
        """Of each member that is: its join, and what the bus was asked for."""
        self.seen: OrderedDict[str, int] = OrderedDict()
        """The newest batch of each publisher: one that comes again, after an outage, is known by its number."""


class Hub:
    """Everybody on this worker, by room."""

    def __init__(
        self,
        bus: Bus,
        chat: Logger,
        config: Config,
        later: Callable[[Callable[[], None]], Any],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the bus, the Logger of the chat log, how to run something at the end of the turn, and the time."""
        self._bus = bus
        self._chat = chat
        self._config = config
        self._later = later
        self._now = now
        self._rooms: dict[str, _Room] = {}
        self._turn: list[tuple[Member, Entry]] = []
        self._turn_weight = 0
        self._waiting: dict[str, Member] = {}
        self._holding = False
        self._messages = 0
        bus.listener = self

    # Members

    def join(self, name: str, member: Member) -> "Deferred[None]":
        """Make a member of the room; fires, in the turn in which it begins to hear it, once the room is subscribed."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = _Room(name)
        joined: Deferred[None] = Deferred()
        subscribed = self._bus.subscribe(name)
        room.joining[member.id] = (joined, subscribed)
        subscribed.addCallbacks(lambda _: self._admit(room, member), lambda failure: failure.trap(CancelledError))
        return joined

    def leave(self, name: str, member: Member) -> None:
        """Let a member go, or one that is still joining; its Deferred then never fires."""
        room = self._rooms.get(name)
        if room is None:
            return
        if joining := room.joining.pop(member.id, None):
            joining[1].cancel()
        room.members.pop(member.id, None)
        room.since.pop(member.id, None)
        if not room.members and not room.joining:
            del self._rooms[name]
            self._bus.unsubscribe(name)

    def _admit(self, room: _Room, member: Member) -> None:
        joining = room.joining.pop(member.id, None)
        if joining is not None:
            room.members[member.id] = member
            room.since[member.id] = int(self._now() * 1000)
            joining[0].callback(None)

    # Messages in

    @property
    def open(self) -> bool:
        """Whether ``publish`` may be called; a member that would and may not calls ``wait``."""
        return self._bus.open and self._turn_weight < self._bus.space and not self._holding

    @property
    def away(self) -> str:
        """Why nothing can be published for now, where it is for more than a full window; else empty."""
        return self._bus.away

    def publish(self, name: str, member: Member, text: str) -> None:
        """Take a message, log and publish it at the end of the turn; a failure reaches ``member.refused``."""
        self._messages += 1
        message = Message(f"{member.id}.{self._messages}", int(self._now() * 1000), member.id, text)
        if not self._turn:
            self._later(self.flush)
        self._turn.append((member, Entry(name, member.address, message)))
        self._turn_weight += self._bus.weight(message)

    def wait(self, member: Member) -> None:
        """Call ``member.carry_on`` once the hub takes messages again."""
        self._waiting[member.id] = member

    @property
    def waiting(self) -> int:
        """How many members wait."""
        return len(self._waiting)

    def stop_waiting(self, member: Member) -> None:
        """Do not call it any more."""
        self._waiting.pop(member.id, None)

    def hold(self) -> None:
        """Take no more messages, for good: the worker stops."""
        self._holding = True

    def flush(self) -> None:
        """Log and publish what this turn has taken."""
        turn, self._turn, self._turn_weight = self._turn, [], 0
        if self._waiting:
            self._later(self.bus_changed)  # this turn was full, the next one may not be
        if not turn:
            return
        try:
            log_entries(self._chat, [entry for _, entry in turn])
        except OSError:  # said by the chat log itself, once
            self._tell_refused(turn, LOG_AWAY)
            return
        rooms: dict[str, list[tuple[Member, Entry]]] = {}
        for each in turn:
            rooms.setdefault(each[1].room, []).append(each)
        for name, taken in rooms.items():
            messages = [entry.message for _, entry in taken]
            self._bus.publish(name, messages).addErrback(self._not_published, taken)

    def _not_published(self, failure: Failure, taken: Sequence[tuple[Member, Entry]]) -> None:
        error = failure.value
        unknown = isinstance(error, NotPublished) and error.unknown
        if not isinstance(error, NotPublished):
            log.failure("a batch was not published", failure)
        try:
            entries = [entry for _, entry in taken]
            log_outcome(self._chat, entries, "unknown" if unknown else "refused", int(self._now() * 1000))
        except OSError:  # said by the chat log itself
            log.error("{count} messages in the chat log were not published", count=len(taken))
        self._tell_refused(taken, OUR_FAULT)

    def _tell_refused(self, taken: Sequence[tuple[Member, Entry]], closing: Closing) -> None:
        for member in {member.id: member for member, _ in taken}.values():
            member.refused(closing)

    # The bus calls

    def bus_changed(self) -> None:
        """Let those who wait carry on, or tell them that the bus is away."""
        if self.open:
            for member in list(self._waiting.values()):
                if not self.open:  # those before it filled the window, or have to wait once more: behind it
                    break
                if self._waiting.pop(member.id, None) is not None:
                    member.carry_on()
        elif self._bus.away:
            for member in list(self._waiting.values()):
                member.bus_away()

    def deliver(self, batch: Batch) -> None:
        """Fan a batch out: framed once, one write a member; whoever wrote in it gets it without its own."""
        room = self._rooms.get(batch.room)
        if room is None or self._known(room, batch):
            return
        frames = [text_frame(bare(message).encode()) for message in batch.messages]
        blob = b"".join(frames)
        members = room.members
        authors = {
            each.session for each in batch.messages if each.session in members and not members[each.session].echo
        }
        for member in list(members.values()):
            try:
                if not batch.again and member.id not in authors:
                    member.deliver(blob)
                    continue
                # What comes again is not for those who joined after it was said, nor for one that has just left.
                since = room.since.get(member.id, sys.maxsize) if batch.again else 0
                if share := self._share(member, frames, batch, since):
                    member.deliver(share)
            except Exception:  # noqa: BLE001 - one member's trouble is not the others'
                log.failure("a batch was not delivered to {member}", member=member.id)
                member.refused(OUR_FAULT)

    @staticmethod
    def _share(member: Member, frames: list[bytes], batch: Batch, since: int) -> bytes:
        """Join the frames of what was said since then, in milliseconds since 1970, and is not the member's own."""
        return b"".join(
            [
                frame
                for frame, message in zip(frames, batch.messages, strict=True)
                if message.time >= since and (member.echo or message.session != member.id)
            ]
        )

    def _known(self, room: _Room, batch: Batch) -> bool:
        """Whether this batch was here before: its publisher did not hear of its success and sent it again."""
        if batch.sequence <= room.seen.get(batch.publisher, 0):
            return True
        room.seen[batch.publisher] = batch.sequence
        room.seen.move_to_end(batch.publisher)
        if len(room.seen) > self._config.publishers_known:
            room.seen.popitem(last=False)
        return False
