"""The hub: who is in which room on this worker, and the one loop that fans messages out.

What it promises:

* A message is in the chat log before it is published; where it can't be logged, its author is told and nobody
  hears it. What is taken between two flushes is logged in one write and published in one batch a room; what comes
  from the bus between two flushes reaches a member in one write.
* Members get messages only from the bus, the sender's neighbours on this worker too: one path, one order.
* A member hears every message of its room that gets an offset after its ``join`` has fired, once; its own
  only where it asked for them.
* A room without members is forgotten.

It knows members by what they offer (``Member``), never their sockets.
"""

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
from chatd.room.pacer import Pacer
from chatd.wire.text import Dress

log = Logger()


class Member(Protocol):
    """What the hub asks of a client in a room."""

    id: str
    """Its session: unique among all that ever were."""
    address: str
    echo: bool
    """Whether it hears its own messages."""
    dress: Dress
    """How it sees messages."""

    def deliver(self, blob: bytes, count: int) -> None:
        """Send these frames, which are count messages."""

    def carry_on(self) -> None:
        """Publish what was held back: the hub takes messages again."""

    def bus_away(self) -> None:
        """Learn, while holding messages back, that the bus is away."""

    def refused(self, closing: Closing) -> None:
        """Learn that a message it published was not."""


class _Room:
    """One room on this worker."""

    __slots__ = ("by_dress", "joining", "members", "name", "seen", "since")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[str, Member] = {}
        self.by_dress: dict[Dress, dict[str, Callable[[bytes, int], None]]] | None = None
        """How to deliver to each of them, where that was looked up since the last one came or went."""
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
        clock: Any,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the bus, the Logger of the chat log, the reactor, and the time of day in seconds since 1970."""
        self._bus = bus
        self._chat = chat
        self._config = config
        self._clock = clock
        self._now = now
        self._rooms: dict[str, _Room] = {}
        self._taken: list[tuple[Member, Entry]] = []
        self._taken_weight = 0
        self._flushes = Pacer(clock, config.flush_interval / 1000, self._flush)
        self._heard: list[tuple[_Room, Batch]] = []
        self._heard_bytes = 0
        self._fan_outs = Pacer(clock, config.flush_interval / 1000, self._fan_out)
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
        room.by_dress = None
        if not room.members and not room.joining:
            del self._rooms[name]
            self._bus.unsubscribe(name)

    def _admit(self, room: _Room, member: Member) -> None:
        joining = room.joining.pop(member.id, None)
        if joining is not None:
            room.members[member.id] = member
            room.by_dress = None
            room.since[member.id] = int(self._now() * 1000)
            joining[0].callback(None)

    # Messages in

    @property
    def open(self) -> bool:
        """Whether ``publish`` may be called; a member that would and may not calls ``wait``."""
        return self._bus.open and self._taken_weight < self._bus.space and not self._holding

    @property
    def away(self) -> str:
        """Why nothing can be published for now, where it is for more than a full window; else empty."""
        return self._bus.away

    def publish(self, name: str, member: Member, texts: Sequence[str]) -> None:
        """Take messages, log and publish them at the next flush; a failure reaches ``member.refused``."""
        number, author, time = self._messages, member.id, int(self._now() * 1000)
        self._messages += len(texts)
        messages = [Message(f"{author}.{number}", time, author, text) for number, text in enumerate(texts, number + 1)]
        self._taken.append((member, Entry(name, member.address, messages)))
        self._taken_weight += self._bus.weight(messages)
        self._flushes.ask()

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
        """Log and publish at once what was taken."""
        self._flushes.run()

    def _flush(self) -> None:
        taken, self._taken, self._taken_weight = self._taken, [], 0
        if self._waiting:
            self._clock.callLater(0, self.bus_changed)  # there was no room for more; now there may be
        if not taken:
            return
        try:
            log_entries(self._chat, [entry for _, entry in taken])
        except OSError:  # said by the chat log itself, once
            self._tell_refused(taken, LOG_AWAY)
            return
        rooms: dict[str, list[tuple[Member, Entry]]] = {}
        for each in taken:
            rooms.setdefault(each[1].room, []).append(each)
        for name, share in rooms.items():
            messages = [message for _, entry in share for message in entry.messages]
            self._bus.publish(name, messages).addErrback(self._not_published, share)

    def _not_published(self, failure: Failure, taken: Sequence[tuple[Member, Entry]]) -> None:
        error = failure.value
        unknown = isinstance(error, NotPublished) and error.unknown
        if not isinstance(error, NotPublished):
            log.failure("a batch was not published", failure)
        try:
            entries = [entry for _, entry in taken]
            log_outcome(self._chat, entries, "unknown" if unknown else "refused", int(self._now() * 1000))
        except OSError:  # said by the chat log itself
            count = sum(len(entry.messages) for entry in entries)
            log.error("{count} messages in the chat log were not published", count=count)
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
        """Take a batch for the members of its room; they get it with the next fan-out."""
        room = self._rooms.get(batch.room)
        if room is not None and not self._known(room, batch):
            self._heard.append((room, batch))
            self._heard_bytes += batch.size
            if self._heard_bytes < self._config.batch_bytes:
                self._fan_outs.ask()
            else:  # a blob larger than that would wait whole for each client that does not read
                self.fan_out()

    def fan_out(self) -> None:
        """Deliver at once what came from the bus."""
        self._fan_outs.run()

    def _fan_out(self) -> None:
        if self._flushes.due:
            self.flush()  # first, for the broker to have something to do meanwhile
        heard, self._heard, self._heard_bytes = self._heard, [], 0
        rooms: dict[_Room, list[Batch]] = {}  # one that was forgotten meanwhile has no members
        for room, batch in heard:
            rooms.setdefault(room, []).append(batch)
        for room, batches in rooms.items():
            messages: list[Message] = []
            for batch in batches:
                if not batch.again:
                    messages += batch.messages
                    continue
                # What comes again is not for those who joined after it was said.
                self._send(room, messages)
                self._send_again(room, batch.messages)
                messages = []
            self._send(room, messages)

    def _send(self, room: _Room, messages: Sequence[Message]) -> None:
        """Write messages to every member: framed once a dress, one write a member, an author's own left out."""
        if not messages:
            return
        if room.by_dress is None:
            room.by_dress = {}
            for name, member in room.members.items():
                room.by_dress.setdefault(member.dress, {})[name] = member.deliver
        own: dict[str, list[int]] = {}
        for place, message in enumerate(messages):
            if (author := room.members.get(message.session)) is not None and not author.echo:
                own.setdefault(message.session, []).append(place)
        count = len(messages)
        for dress, delivers in room.by_dress.items():
            frames = dress.frames(messages)
            blob = b"".join(frames)
            for name, deliver in delivers.items():
                try:
                    if name not in own:
                        deliver(blob, count)
                    elif count > len(own[name]):
                        share = frames.copy()
                        for place in reversed(own[name]):
                            del share[place]
                        deliver(b"".join(share), len(share))
                except Exception:  # noqa: BLE001 - one member's trouble is not the others'
                    self._not_delivered(room, name)

    def _send_again(self, room: _Room, messages: Sequence[Message]) -> None:
        """Write messages that were published once more to those who were there when they were said."""
        for name, member in list(room.members.items()):
            since = room.since.get(name)
            share = [each for each in messages if since is not None and each.time >= since]
            share = [each for each in share if member.echo or each.session != name]
            try:
                if share:
                    member.deliver(b"".join(member.dress.frames(share)), len(share))
            except Exception:  # noqa: BLE001 - as above
                self._not_delivered(room, name)

    @staticmethod
    def _not_delivered(room: _Room, name: str) -> None:
        """Log what just went wrong, and hang up on the member, if it has not left on the way."""
        log.failure("a batch was not delivered to {member}", member=name)
        if member := room.members.get(name):
            member.refused(OUR_FAULT)

    def _known(self, room: _Room, batch: Batch) -> bool:
        """Whether this batch was here before: its publisher did not hear of its success and sent it again."""
        if batch.sequence <= room.seen.get(batch.publisher, 0):
            return True
        room.seen[batch.publisher] = batch.sequence
        room.seen.move_to_end(batch.publisher)
        if len(room.seen) > self._config.publishers_known:
            room.seen.popitem(last=False)
        return False
