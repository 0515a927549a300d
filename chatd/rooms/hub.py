"""The hub: who is in which room on this worker, from joining to leaving, and when what came from the bus is delivered.

What it promises:

* Members get messages only from the bus, the sender's neighbours on this worker too: one path, one order.
* A member hears every message of its room that follows on where it began, once, in order, or is told what is lost;
  its own only where it asked for them. It begins where the room stands when its ``join`` fires, or where it asked to.
* What comes from the bus between two flushes reaches a member in one write.
* A member that reads too slowly, or has to get what was said before, gets it from history, and nobody waits for it.
* A room without members is forgotten.

It knows members by what they offer (``room.Member``), never their sockets.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.bus import Bus
from chatd.broker.presence_list import Identity, OccupiedRoom
from chatd.broker.resume_positions import KeyContested, ResumePosition, TakenOver
from chatd.chatlog.writer import Sync
from chatd.config.settings import Config
from chatd.monitoring.log_events import Tally
from chatd.monitoring.metrics import DELIVERY_SECONDS, JOINS, LOST_MESSAGES, MAYBE_LOST, ROOMS
from chatd.protocol.close_codes import AWAY, BUS_AWAY, REFUSES_WRITES, TAKEN_OVER, WRITES_REFUSED, CloseCode
from chatd.protocol.message import Batch, HistoryPage, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms.ordering import Item
from chatd.rooms.publisher import Pacer, Publisher
from chatd.rooms.room import Room, Subscriber
from chatd.runtime.single_flight import SingleFlight
from chatd.runtime.timers import Periodic

log = Logger()

LOST_SAYS = "messages lost for good: {messages}, by clients: {clients}"
CONTESTED_SAYS = "clients that were refused because others use their resume keys too: {clients}"
MAYBE_LOST_SAYS = "clients that may have lost messages, for the broker did: {clients}"


class _RoomEntry:
    """A room, and who is about to come in."""

    __slots__ = ("begun", "entering", "listening", "room", "waiting")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.begun: Deferred[None]
        self.waiting: OrderedDict[Deferred[None], None] | None = OrderedDict()
        """Those that wait for the room to be heard, in turn; None once it is."""
        self.entering: dict[str, tuple[Subscriber, Deferred[Any]]] = {}
        """Those who are about to be members, by id, and what brings them in."""
        self.listening: set[str] = set()
        """Ids of the members who want to know who comes and goes."""


class Hub:
    """Everybody on this worker, by room."""

    def __init__(
        self,
        bus: Bus,
        chat: Logger,
        config: Config,
        clock: Any,
        now: Callable[[], float] = time.time,
        *,
        sync: Sync | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Take the bus, the Logger of the chat log, the reactor, and the time of day in seconds since 1970.

        With a sync nothing is published before it is on the disk. Numbers make the ids of messages, where hubs share
        them.
        """
        self.publisher = Publisher(bus, chat, config, clock, now, sync=sync, numbers=numbers)
        """What members say."""
        self.bus = bus
        self._config = config
        self._clock = clock
        self._incomings: dict[str, _RoomEntry] = {}
        self._listing = SingleFlight(clock, bus.presence.list_rooms, config.rooms_seconds, rest=config.rooms_rest)
        self._keyed: dict[str, tuple[Room, Subscriber]] = {}
        self._turned_out: set[str] = set()  # by whom has their key too, until their connections have ended
        self._heard: list[Room] = []
        self._heard_bytes = 0
        self._now = now
        self._received_at: list[int] = []  # by this worker, in milliseconds: the first message of each batch
        self._broadcasts = Pacer(clock, config.flush_interval / 1000, self._fan_out)
        self._lost = Tally(clock, config.report_seconds, log, LOST_SAYS, {"messages": LOST_MESSAGES})
        self._maybe_lost = Tally(clock, config.report_seconds, log, MAYBE_LOST_SAYS, {"clients": MAYBE_LOST})
        self._contested = Tally(clock, config.report_seconds, log, CONTESTED_SAYS)
        self._saving = Periodic(clock, config.place_seconds, self._save_places, "saving resume positions")
        self._marking: Any = None
        bus.listener = self

    def start(self) -> None:
        """Begin to write down the places of members with a key, now and then."""
        self._saving.start(now=False)

    def stop(self) -> None:
        """Do so no more."""
        self._saving.stop()
        if self._marking is not None:
            self._marking.cancel()
            self._marking = None
        self._contested.flush()
        self._lost.flush()
        self._maybe_lost.flush()

    # Members

    def join(self, name: str, member: Subscriber) -> "Deferred[None]":
        """Make a member of the room; fires, in the turn in which it begins to hear it, once the room is subscribed."""
        incoming = self._incomings.get(name) or self._open(name)
        if incoming.waiting is None and self.bus.subscribed(name) and not (member.key or member.listens or member.nick):
            self._admit(incoming.room, member, None)
            return succeed(None)
        joined: Deferred[None] = Deferred()
        entering = Deferred.fromCoroutine(self._enter(incoming, member))
        incoming.entering[member.id] = (member, entering)

        def admit(place: ResumePosition | None) -> None:
            if incoming.entering.pop(member.id, None) is not None:
                self._admit(incoming.room, member, place)
                joined.callback(None)

        def fail(failure: Failure) -> None:
            if incoming.entering.pop(member.id, None) is not None:
                self.bus.presence.leave(name, member.author, linger=False)
                self._forget_if_empty(incoming)
                if failure.check(KeyContested):
                    self._contested.add(clients=1)
                if failure.check(TakenOver):
                    member.refused(TAKEN_OVER)
                else:
                    joined.errback(failure)

        entering.addCallbacks(admit, fail).addErrback(
            lambda failure: log.failure("a member that joined was not told", failure)
        )
        return joined

    def leave(self, name: str, member: Subscriber) -> None:
        """Let a member go, or one that is still joining; its Deferred then never fires."""
        if member.key and member.id in self._turned_out:
            self._turned_out.discard(member.id)
            if member.got_all:
                self.bus.resume_positions.count_takeover(name, member.key)
        incoming = self._incomings.get(name)
        if incoming is None:
            return
        if (entering := incoming.entering.pop(member.id, None)) is not None:
            entering[1].cancel()
            self.bus.presence.leave(name, member.author, linger=False)
        elif incoming.room.member(member.author) is member:
            if member.key:
                self._save_place(incoming.room, member, left=True)
            self._remove(incoming.room, member)
            self.publisher.flush()  # what it said before goes first
            self.bus.presence.leave(name, member.author, linger=member.lingers)
        self._forget_if_empty(incoming)

    def fall_behind(self, name: str, member: Subscriber) -> None:
        """Take a member that can't take what it was just given out of the way; it gets that from history."""
        if (incoming := self._incomings.get(name)) is not None:
            incoming.room.fall_behind(member)

    def drained(self, name: str, member: Subscriber) -> None:
        """Go on with a member that has read all it was given, where it is behind."""
        if (room := self._room_of(name, member)) is not None:
            room.drained(member)

    def note(self, name: str, member: Subscriber) -> None:
        """Tell a member up to where it was given everything, while its connection knows what arrived."""
        if (room := self._room_of(name, member)) is not None:
            member.given(room.position(member))

    def join_again(self, name: str, member: Subscriber) -> None:
        """Let a member of the room go back to where it wants to hear it from."""
        if (room := self._room_of(name, member)) is not None:
            room.remove(member)
            self._go_on(room.admit(member, member.since))

    @property
    def rooms(self) -> Collection[str]:
        """The rooms that have members on this worker, or are about to."""
        return self._incomings.keys()

    # What members ask

    def why_not_joined(self) -> CloseCode:
        """Return the reason why a member did not join in time."""
        return WRITES_REFUSED if self.bus.refusing else BUS_AWAY

    def why_not_published(self) -> str:
        """Return why nothing can be published now."""
        return REFUSES_WRITES if self.bus.refusing else AWAY

    def top(self, name: str) -> StreamPosition:
        """Say where a room's order stands."""
        return self._incomings[name].room.ordering.position

    def soon(self, call: Callable[[], None]) -> Any:
        """Call at the end of the turn; gives what may be cancelled."""
        return self._clock.callLater(0, call)

    def rename(self, name: str, member: Subscriber, identity: Identity) -> "Deferred[str]":
        """Let a member take another nick, or one like it; fires with the one that it has."""
        self.publisher.flush()  # what it said before goes first

        def renamed(has: str) -> str:
            member.nick = has
            return has

        return self.bus.presence.rename(name, member.author, identity).addCallback(renamed)

    def round_trip(self) -> "Deferred[float]":
        """Send something through the bus and back; fires with the seconds it took, or fails with NotPublished."""
        sent = self._clock.seconds()
        return self.bus.probe().addCallback(lambda _: self._clock.seconds() - sent)

    def last(self, name: str, count: int, before: int | None = None) -> "Deferred[HistoryPage]":
        """Ask for the last messages of a room, or of those before an offset."""
        top = self._incomings[name].room.ordering.position
        return Deferred.fromCoroutine(self._stretch(name, top, count, before))

    def recent(self, name: str, count: int, before: StreamPosition | None = None) -> "Deferred[HistoryPage]":
        """Ask for the last messages of a room that need have no member here, or of those before a position."""

        async def recent() -> HistoryPage:
            (top,) = await self.bus.history.tops([name])
            if before is None:
                return await self._stretch(name, top, count, None) if top.epoch else HistoryPage(())
            end = top if top.epoch == before.epoch else before  # of an epoch that is over nobody knows the end
            return await self._stretch(name, end, count, before.offset)

        return Deferred.fromCoroutine(recent())

    def list_rooms(self) -> "Deferred[tuple[Sequence[OccupiedRoom], bool]]":
        """List the rooms that there are, on all workers, and say whether there may be more.

        The broker is asked once in a while: it looks at many keys.
        """
        return self._listing.get()

    async def _stretch(self, name: str, top: StreamPosition, count: int, before: int | None) -> HistoryPage:
        """Read messages backwards, until there are so many of them or ``max_backlog`` bytes; return them in order.

        One more is asked for than is given: whether there is one shows whether history has older ones.
        """
        config = self._config
        end = top.offset if before is None else min(top.offset, before - 1)
        oldest = max(0, top.offset - config.history)
        start = max(end - count, oldest)
        after = max(start - 1, oldest)
        batches: list[Batch] = []
        size, unread, older = 0, start < end, False
        while unread and after < end and size < config.max_backlog:
            most = min(config.history_bytes, config.max_backlog - size)
            read, unread = await self.bus.history.read_back(name, top.epoch, end, after, most)
            for batch in read:
                older = older or oldest < start >= batch.first
                wanted, end = batch.first_ones(end + 1 - batch.first), batch.first - 1
                if batch.last <= start:
                    continue  # it only shows that there are older ones
                size += batch.size
                if size > config.max_backlog and batches:
                    return HistoryPage(batches[::-1], more=True)
                batches.append(wanted.without_first(max(0, start - end)))
        return HistoryPage(batches[::-1], older or (unread and after < end))

    def _room_of(self, name: str, member: Subscriber) -> Room | None:
        """Give a room, where the member is in it."""
        incoming = self._incomings.get(name)
        return incoming.room if incoming is not None and incoming.room.member(member.author) is member else None

    # How a room begins and ends, who comes in and goes

    def _open(self, name: str) -> _RoomEntry:
        room = Room(name, self._config, read=self.bus.history.read, pending=self._pending, losses=self._count_losses)
        incoming = self._incomings[name] = _RoomEntry(room)
        ROOMS.value += 1
        incoming.begun = Deferred.fromCoroutine(self._begin(incoming))
        return incoming

    async def _begin(self, incoming: _RoomEntry) -> None:
        """Hear the room and learn where its order stands; then let in who waits."""
        name, failure = incoming.room.name, None
        try:
            await self.bus.subscribe(name)
            await incoming.room.ordering.start()
            incoming.room.begin()
        except CancelledError:
            return
        except Exception:  # noqa: BLE001 - who waits is told
            failure = Failure()
            incoming.room.ordering.stop()
            del self._incomings[name]
            ROOMS.value -= 1
            self.bus.unsubscribe(name)
        waiting, incoming.waiting = incoming.waiting or OrderedDict(), None
        while waiting:  # one may cancel another
            begun, _ = waiting.popitem(last=False)
            if failure is None:
                begun.callback(None)
            else:
                begun.errback(failure)

    async def _enter(self, incoming: _RoomEntry, member: Subscriber) -> ResumePosition | None:
        """Wait for all that a member needs before it is in the room."""
        if incoming.waiting is not None:
            begun: Deferred[None] = Deferred(incoming.waiting.pop)
            incoming.waiting[begun] = None
            await begun
        await self.bus.subscribe(incoming.room.name)  # anew, where the link has broken since
        place = await self.bus.resume_positions.claim(incoming.room.name, member.key, member.id) if member.key else None
        if place is not None:
            member.author = place.author
        if member.listens or member.nick:
            entered = self.bus.presence.enter(incoming.room.name, member.author, member.identity)
            if member.nick or not self.bus.refusing:
                member.nick = await entered
            else:  # it needs no answer; the others hear of it when the broker takes writes again
                entered.addErrback(lambda _: None)
        return place

    def _admit(self, room: Room, member: Subscriber, place: ResumePosition | None) -> None:
        """Let a member in, live or behind."""
        JOINS.value += 1
        if place is not None:
            if (other := room.member(member.author)) is not None:
                self._take_over(room, other)
            self._keyed[member.id] = (room, member)
        if member.listens:
            self._listen(room, member)
        elif not member.nick:  # nothing that it hears depends on it
            self.bus.presence.enter(room.name, member.author, member.identity).addErrback(lambda _: None)
        self._go_on(room.admit(member, (place and place.position) or member.since))
        if place is not None:
            self._save_place(room, member)

    def _go_on(self, step: Callable[[], None] | None) -> None:
        if step is not None:
            self._clock.callLater(0, step)  # when the member has been told that it is in

    def _remove(self, room: Room, member: Subscriber) -> None:
        self._keyed.pop(member.id, None)
        room.remove(member)
        incoming = self._incomings[room.name]
        if member.id in incoming.listening:
            incoming.listening.remove(member.id)
            if not incoming.listening:
                self.bus.presence.unwatch(room.name)

    def _listen(self, room: Room, member: Subscriber) -> None:
        incoming = self._incomings[room.name]
        if not incoming.listening:
            self.bus.presence.watch(room.name)
        incoming.listening.add(member.id)

    def _forget_if_empty(self, incoming: _RoomEntry) -> None:
        if incoming.room or incoming.entering or self._incomings.get(incoming.room.name) is not incoming:
            return
        del self._incomings[incoming.room.name]
        ROOMS.value -= 1
        incoming.begun.cancel()
        incoming.room.ordering.stop()
        self.bus.unsubscribe(incoming.room.name)

    # Places

    def _place(self, room: Room, member: Subscriber) -> ResumePosition:
        """Say how far a member has surely come; where it can't tell, what it told before stays."""
        with log.failuresHandled("the position of {member} is not known", member=member.id):
            return ResumePosition(member.given(room.position(member)), member.author)
        return ResumePosition(None, member.author)

    def _save_place(self, room: Room, member: Subscriber, *, left: bool = False) -> None:
        self.bus.resume_positions.save(room.name, member.key, member.id, self._place(room, member), left=left)

    def _save_places(self) -> None:
        self._save_some(list(self._keyed.values()))

    def _save_some(self, members: list[tuple[Room, Subscriber]]) -> None:
        """Write down the places of the first of them, and of the others when everybody else had a turn."""
        for room, member in members[: self._config.places]:
            if member.id in self._keyed:
                with log.failuresHandled("the resume position of {member} was not saved", member=member.id):
                    self._save_place(room, member)
        if rest := members[self._config.places :]:
            self._clock.callLater(0, self._save_some, rest)

    def _mark_later(self) -> None:
        """Have members learn how far they have come before their places are saved, if they are few."""
        if self._marking is None and 0 < len(self._keyed) <= self._config.marked_members:
            self._marking = self._clock.callLater(self._config.mark_seconds, self._mark)

    def _mark(self) -> None:
        self._marking = None
        for room, member in self._keyed.values():
            with log.failuresHandled("the position of {member} is not known", member=member.id):
                member.given_early(room.position(member))

    def _take_over(self, room: Room, member: Subscriber) -> ResumePosition:
        place = self._place(room, member)
        self._remove(room, member)
        self._turned_out.add(member.id)
        with log.failuresHandled("{member} was not closed", member=member.id):
            member.refused(TAKEN_OVER)
        return place

    # The bus calls

    def bus_changed(self) -> None:
        """Let those who wait carry on, or tell them that the bus is away."""
        self.publisher.bus_changed()

    def deliver(self, batch: Batch) -> None:
        """Take a batch for the members of its room; they get it with the next fan-out, once nothing is missing."""
        if (incoming := self._incomings.get(batch.room)) is not None:
            incoming.room.ordering.receive(batch)

    def recover(self, name: str, top: StreamPosition) -> None:
        """Take where a room's order stood, when all that was published up to there should have come."""
        if (incoming := self._incomings.get(name)) is not None:
            incoming.room.ordering.recover(top)

    def disconnect(self, name: str, id: str) -> ResumePosition | None:
        """Hang up on a member, for it has come back on another connection; give how far it has come, if it is here."""
        incoming = self._incomings.get(name)
        if incoming is None:
            return None
        place = None
        if (entering := incoming.entering.pop(id, None)) is not None:
            entering[1].cancel()
            entering[0].refused(TAKEN_OVER)
        elif id in self._keyed:
            room, member = self._keyed[id]
            place = self._take_over(room, member)
            self.bus.presence.leave(name, member.author, linger=True)  # it goes on elsewhere
        self._forget_if_empty(incoming)
        return place

    def logged(self) -> "Deferred[None] | None":
        """Fire once all that members have said up to now was handed over, or refused. Return None if it was."""
        return self.publisher.logged()

    def presence_changed(self, name: str, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        """Take who came to a room and went, for those who listen, behind the message that was the newest then."""
        if (incoming := self._incomings.get(name)) is not None:
            incoming.room.ordering.receive_presence(after, changes)

    def renamed(self, name: str, author: str, nick: str) -> None:
        """Let a member know that it has another nick."""
        incoming = self._incomings.get(name)
        if incoming is not None and (member := incoming.room.member(author)) is not None:
            member.nick = nick
            member.renamed(nick)

    # Fan-out

    def fan_out(self) -> None:
        """Deliver at once what came from the bus."""
        self._broadcasts.run()

    def _pending(self, room: Room, item: Item) -> None:
        """Have what is next in a room delivered."""
        self._heard.append(room)
        if isinstance(item, Batch):
            self._heard_bytes += item.size
            if item.publisher == self.bus.publisher and item.messages:
                self._received_at.append(item.messages[0].time)
        if self._heard_bytes < self._config.batch_bytes:
            self._broadcasts.request()
        else:  # a blob larger than that would wait whole for each client that does not read
            self.fan_out()

    def _fan_out(self) -> None:
        with log.failuresHandled("messages of members were not published before others were delivered"):
            self.publisher.flush_due()  # first, because the broker then has something to do meanwhile
        heard, self._heard, self._heard_bytes = self._heard, [], 0
        for room in heard:  # one that was forgotten meanwhile has no members, one that comes again nothing pending
            with log.failuresHandled("those behind in room {room} may have to wait", room=room.name):
                room.deliver()
        self._mark_later()
        if self._received_at:
            received_at, self._received_at, now = self._received_at, [], self._now()
            for milliseconds in received_at:
                DELIVERY_SECONDS.observe(max(0.0, now - milliseconds / 1000))

    def _count_losses(self, gap: OffsetGap, members: int) -> None:
        if not members:
            return
        if gap.count is None:
            self._maybe_lost.add(clients=members)
        else:
            self._lost.add(clients=members, messages=members * gap.count)
