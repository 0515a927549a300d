"""The hub: the rooms of this worker, who is in them, and when messages are broadcast.

It promises:

* Messages come only from the bus, also those of senders on this worker: one path, one order.
* A subscriber receives every message of its room after its start, once, in order, or is told of the gap. It receives
  its own messages only with ``echo``. It starts where the room is when ``join`` fires, or where it asked to.
* The batches that arrive between two broadcasts reach a subscriber in one write.
* A subscriber that reads too slowly, or asks for earlier messages, gets them from history. No other one waits for it.
* A room without subscribers is forgotten.

It knows subscribers by their methods (``subscribers.Subscriber``), never their sockets.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
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
from chatd.rooms.room import Room
from chatd.rooms.subscribers import Subscriber
from chatd.runtime.single_flight import SingleFlight
from chatd.runtime.timers import Periodic

log = Logger()

_log_lost = partial(
    log.warn, "{clients} clients missed {messages} messages that were no longer in the history", event="messages_lost"
)
_log_broker_lost = partial(
    log.warn, "the broker lost data; {clients} clients may have missed messages", event="broker_data_lost"
)
_log_contested = partial(
    log.warn, "refused {clients} clients because other clients use their resume keys", event="resume_keys_contested"
)


class Hub:
    """The rooms of one broker on this worker."""

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
        """Attach to a bus. ``chat`` is the Logger of the chat log, ``now`` returns seconds since 1970.

        With ``sync`` nothing is published before it is on the disk. Hubs may share the ``numbers`` of message ids.
        """
        self.publisher = Publisher(bus, chat, config, clock, now, sync=sync, numbers=numbers)
        """The publisher of the messages of these rooms."""
        self.bus = bus
        self._config = config
        self._clock = clock
        self._rooms: dict[str, Room] = {}
        self._listing = SingleFlight(
            clock, bus.presence.list_rooms, config.room_list_ttl, rest=config.room_list_ttl_factor
        )
        self._keyed: dict[str, tuple[Room, Subscriber]] = {}
        self._superseded: set[str] = set()  # whose key another connection claimed, until they have left
        self._pending_rooms: list[Room] = []
        self._pending_bytes = 0
        self._now = now
        self._received_at: list[int] = []  # by this worker, in milliseconds: the first message of each batch
        self._broadcasts = Pacer(clock, config.flush_interval, self._broadcast)
        self._lost = Tally(clock, config.client_report_interval, _log_lost, {"messages": LOST_MESSAGES})
        self._maybe_lost = Tally(clock, config.client_report_interval, _log_broker_lost, {"clients": MAYBE_LOST})
        self._contested = Tally(clock, config.client_report_interval, _log_contested)
        self._saving = Periodic(
            clock, config.resume_position_write_interval, self._save_positions, "saving resume positions"
        )
        self._marking: Any = None
        bus.listener = self

    def start(self) -> None:
        """Start to save the resume positions of subscribers with a key."""
        self._saving.start(now=False)

    def stop(self) -> None:
        """Stop saving, and log what is counted."""
        self._saving.stop()
        if self._marking is not None:
            self._marking.cancel()
            self._marking = None
        self._contested.flush()
        self._lost.flush()
        self._maybe_lost.flush()

    # Subscribers

    def join(self, name: str, subscriber: Subscriber) -> "Deferred[None]":
        """Add a subscriber to a room. Return a Deferred that fires in the turn in which it starts to receive."""
        room = self._rooms[name] if name in self._rooms else self._open(name)
        if (
            room.begun
            and self.bus.subscribed(name)
            and not (subscriber.key or subscriber.receives_presence or subscriber.nick)
        ):
            self._admit(room, subscriber, None)
            return succeed(None)
        joined: Deferred[None] = Deferred()
        entering = Deferred.fromCoroutine(self._enter(room, subscriber))
        room.joining[subscriber.id] = (subscriber, entering)

        def admit(resume_position: ResumePosition | None) -> None:
            if room.joining.pop(subscriber.id, None) is not None:
                self._admit(room, subscriber, resume_position)
                joined.callback(None)

        def fail(failure: Failure) -> None:
            if room.joining.pop(subscriber.id, None) is not None:
                self.bus.presence.leave(name, subscriber.sender_id, linger=False)
                self._forget_if_empty(room)
                if failure.check(KeyContested):
                    self._contested.add(clients=1)
                if failure.check(TakenOver):
                    subscriber.disconnect(TAKEN_OVER)
                else:
                    joined.errback(failure)

        entering.addCallbacks(admit, fail).addErrback(
            lambda failure: log.failure("handling the result of a join failed", failure, event="join_result_failed")
        )
        return joined

    def leave(self, name: str, subscriber: Subscriber) -> None:
        """Remove a subscriber, or one that is still joining; the Deferred of ``join`` then never fires."""
        if subscriber.key and subscriber.id in self._superseded:
            self._superseded.discard(subscriber.id)
            if subscriber.received_all:
                self.bus.resume_positions.count_takeover(name, subscriber.key)
        room = self._rooms.get(name)
        if room is None:
            return
        if (entering := room.joining.pop(subscriber.id, None)) is not None:
            entering[1].cancel()
            self.bus.presence.leave(name, subscriber.sender_id, linger=False)
        elif room.subscriber(subscriber.sender_id) is subscriber:
            if subscriber.key:
                self._save_position(room, subscriber, left=True)
            self._remove(room, subscriber)
            self.publisher.flush()  # earlier messages go first
            self.bus.presence.leave(name, subscriber.sender_id, linger=subscriber.delays_leave)
        self._forget_if_empty(room)

    def start_recovery(self, name: str, subscriber: Subscriber) -> None:
        """Serve a subscriber from history, because its send buffer is full."""
        if (room := self._rooms.get(name)) is not None:
            room.recover(subscriber)

    def drained(self, name: str, subscriber: Subscriber) -> None:
        """Continue the recovery of a subscriber whose send buffer is empty."""
        if (room := self._room_of(name, subscriber)) is not None:
            room.drained(subscriber)

    def record_position(self, name: str, subscriber: Subscriber) -> None:
        """Report its position to a subscriber, while its connection knows what has arrived."""
        if (room := self._room_of(name, subscriber)) is not None:
            subscriber.record(room.position(subscriber))

    def rejoin(self, name: str, subscriber: Subscriber) -> None:
        """Move a subscriber back to the position that it asks for."""
        if (room := self._room_of(name, subscriber)) is not None:
            room.remove(subscriber)
            self._continue_later(room.admit(subscriber, subscriber.since))

    @property
    def rooms(self) -> Collection[str]:
        """Return the rooms that have subscribers on this worker, or joining ones."""
        return self._rooms.keys()

    # Queries

    def why_not_joined(self) -> CloseCode:
        """Return the close code for a subscriber that could not join in time."""
        return WRITES_REFUSED if self.bus.refusing else BUS_AWAY

    def why_not_published(self) -> str:
        """Return why nothing can be published now."""
        return REFUSES_WRITES if self.bus.refusing else AWAY

    def position(self, name: str) -> StreamPosition:
        """Return the newest position of a room."""
        return self._rooms[name].ordering.position

    def call_soon(self, call: Callable[[], None]) -> Any:
        """Call a function at the end of the turn. Return the timer."""
        return self._clock.callLater(0, call)

    def rename(self, name: str, subscriber: Subscriber, identity: Identity) -> "Deferred[str]":
        """Change a nick. Return a Deferred that fires with the nick: the wanted one, or one like it."""
        self.publisher.flush()  # earlier messages go first

        def set_nick(nick: str) -> str:
            subscriber.nick = nick
            return nick

        return self.bus.presence.rename(name, subscriber.sender_id, identity).addCallback(set_nick)

    def round_trip(self) -> "Deferred[float]":
        """Measure the bus. Return a Deferred that fires with seconds, or fails with NotPublished."""
        sent = self._clock.seconds()
        return self.bus.probe().addCallback(lambda _: self._clock.seconds() - sent)

    def read_last(self, name: str, count: int, before: int | None = None) -> "Deferred[HistoryPage]":
        """Read the last messages of a room, or the last before an offset."""
        top = self._rooms[name].ordering.position
        return Deferred.fromCoroutine(self._read_page(name, top, count, before))

    def read_recent(self, name: str, count: int, before: StreamPosition | None = None) -> "Deferred[HistoryPage]":
        """Read the last messages of any room, or the last before a position."""

        async def read() -> HistoryPage:
            (top,) = await self.bus.history.tops([name])
            if before is None:
                return await self._read_page(name, top, count, None) if top.epoch else HistoryPage(())
            end = top if top.epoch == before.epoch else before  # the end of an earlier epoch is unknown
            return await self._read_page(name, end, count, before.offset)

        return Deferred.fromCoroutine(read())

    def list_rooms(self) -> "Deferred[tuple[Sequence[OccupiedRoom], bool]]":
        """Return a Deferred that fires with the rooms on all workers, and whether there may be more.

        The answer may be some seconds old, because the broker has to look at many keys.
        """
        return self._listing.get()

    async def _read_page(self, name: str, top: StreamPosition, count: int, before: int | None) -> HistoryPage:
        """Read backwards until there are ``count`` messages or ``max_send_buffer`` bytes. Return them in order.

        One more is read than returned, to see whether history has older ones.
        """
        config = self._config
        end = top.offset if before is None else min(top.offset, before - 1)
        oldest = max(0, top.offset - config.history_size)
        start = max(end - count, oldest)
        after = max(start - 1, oldest)
        batches: list[Batch] = []
        size, unread, older = 0, start < end, False
        while unread and after < end and size < config.max_send_buffer:
            most = min(config.history_read_bytes, config.max_send_buffer - size)
            read, unread = await self.bus.history.read_back(name, top.epoch, end, after, most)
            for batch in read:
                older = older or oldest < start >= batch.first
                wanted, end = batch.first_ones(end + 1 - batch.first), batch.first - 1
                if batch.last <= start:
                    continue  # older than the page
                size += batch.size
                if size > config.max_send_buffer and batches:
                    return HistoryPage(batches[::-1], more=True)
                batches.append(wanted.without_first(max(0, start - end)))
        return HistoryPage(batches[::-1], older or (unread and after < end))

    def _room_of(self, name: str, subscriber: Subscriber) -> Room | None:
        """Return a room if the subscriber is in it."""
        room = self._rooms.get(name)
        return room if room is not None and room.subscriber(subscriber.sender_id) is subscriber else None

    # Joining and leaving

    def _open(self, name: str) -> Room:
        room = Room(name, self._config, read=self.bus.history.read, pending=self._pending, losses=self._count_losses)
        self._rooms[name] = room
        ROOMS.value += 1
        room.starting = Deferred.fromCoroutine(self._begin(room))
        return room

    async def _begin(self, room: Room) -> None:
        """Subscribe to the room and read its position. Then release the callers that wait."""
        name, failure = room.name, None
        try:
            await self.bus.subscribe(name)
            await room.ordering.start()
            room.begin()
        except CancelledError:
            return
        except Exception:  # noqa: BLE001 - who waits is told
            failure = Failure()
            room.ordering.stop()
            del self._rooms[name]
            ROOMS.value -= 1
            self.bus.unsubscribe(name)
        room.waiters.fire(failure)

    async def _enter(self, room: Room, subscriber: Subscriber) -> ResumePosition | None:
        """Wait for everything that a subscriber needs before it is in the room."""
        if not room.begun:
            await room.waiters.wait()
        await self.bus.subscribe(room.name)  # again if the connection has broken since
        resume_position = (
            await self.bus.resume_positions.claim(room.name, subscriber.key, subscriber.id) if subscriber.key else None
        )
        if resume_position is not None:
            subscriber.sender_id = resume_position.sender_id
        if subscriber.receives_presence or subscriber.nick:
            entered = self.bus.presence.enter(room.name, subscriber.sender_id, subscriber.identity)
            if subscriber.nick or not self.bus.refusing:
                subscriber.nick = await entered
            else:  # it needs no answer; the join event follows when the broker accepts writes
                entered.addErrback(lambda _: None)
        return resume_position

    def _admit(self, room: Room, subscriber: Subscriber, resume_position: ResumePosition | None) -> None:
        """Add a subscriber, live or in recovery."""
        JOINS.value += 1
        if resume_position is not None:
            if (other := room.subscriber(subscriber.sender_id)) is not None:
                self._take_over(room, other)
            self._keyed[subscriber.id] = (room, subscriber)
        if subscriber.receives_presence:
            self._listen(room, subscriber)
        elif not subscriber.nick:  # nothing that it receives depends on it
            self.bus.presence.enter(room.name, subscriber.sender_id, subscriber.identity).addErrback(lambda _: None)
        self._continue_later(room.admit(subscriber, (resume_position and resume_position.position) or subscriber.since))
        if resume_position is not None:
            self._save_position(room, subscriber)

    def _continue_later(self, step: Callable[[], None] | None) -> None:
        if step is not None:
            self._clock.callLater(0, step)  # after the caller has handled that it has joined

    def _remove(self, room: Room, subscriber: Subscriber) -> None:
        self._keyed.pop(subscriber.id, None)
        room.remove(subscriber)
        if subscriber.id in room.presence_receivers:
            room.presence_receivers.remove(subscriber.id)
            if not room.presence_receivers:
                self.bus.presence.unwatch(room.name)

    def _listen(self, room: Room, subscriber: Subscriber) -> None:
        if not room.presence_receivers:
            self.bus.presence.watch(room.name)
        room.presence_receivers.add(subscriber.id)

    def _forget_if_empty(self, room: Room) -> None:
        if room or self._rooms.get(room.name) is not room:
            return
        del self._rooms[room.name]
        ROOMS.value -= 1
        room.starting.cancel()
        room.ordering.stop()
        self.bus.unsubscribe(room.name)

    # Resume positions

    def _resume_position(self, room: Room, subscriber: Subscriber) -> ResumePosition:
        """Return the position up to which a subscriber surely has everything. None keeps the one before."""
        with log.failuresHandled(
            "determining the stream position of client {client} failed", client=subscriber.id, event="position_failed"
        ):
            return ResumePosition(subscriber.record(room.position(subscriber)), subscriber.sender_id)
        return ResumePosition(None, subscriber.sender_id)

    def _save_position(self, room: Room, subscriber: Subscriber, *, left: bool = False) -> None:
        self.bus.resume_positions.save(
            room.name, subscriber.key, subscriber.id, self._resume_position(room, subscriber), left=left
        )

    def _save_positions(self) -> None:
        self._save_batch(list(self._keyed.values()))

    def _save_batch(self, subscribers: list[tuple[Room, Subscriber]]) -> None:
        """Save the positions of some subscribers now, and of the others in later turns."""
        for room, subscriber in subscribers[: self._config.resume_positions_per_write]:
            if subscriber.id in self._keyed:
                with log.failuresHandled(
                    "saving the resume position of client {client} failed",
                    client=subscriber.id,
                    event="resume_position_save_failed",
                ):
                    self._save_position(room, subscriber)
        if rest := subscribers[self._config.resume_positions_per_write :]:
            self._clock.callLater(0, self._save_batch, rest)

    def _mark_later(self) -> None:
        """Report positions to subscribers before they are saved, if they are few."""
        if self._marking is None and len(self._keyed) <= self._config.resume_position_prompt_subscribers:
            self._marking = self._clock.callLater(self._config.resume_position_send_delay, self._mark)

    def _mark(self) -> None:
        self._marking = None
        for room, subscriber in self._keyed.values():
            with log.failuresHandled(
                "determining the stream position of client {client} failed",
                client=subscriber.id,
                event="position_failed",
            ):
                subscriber.record_early(room.position(subscriber))

    def _take_over(self, room: Room, subscriber: Subscriber) -> ResumePosition:
        resume_position = self._resume_position(room, subscriber)
        self._remove(room, subscriber)
        self._superseded.add(subscriber.id)
        with log.failuresHandled("closing client {client} failed", client=subscriber.id, event="client_close_failed"):
            subscriber.disconnect(TAKEN_OVER)
        return resume_position

    # Called by the bus

    def bus_changed(self) -> None:
        """Resume the senders that wait, or tell them that the bus is away."""
        self.publisher.bus_changed()

    def deliver(self, batch: Batch) -> None:
        """Handle a batch. It is broadcast with the next ones, once nothing before it is missing."""
        if (room := self._rooms.get(batch.room)) is not None:
            room.ordering.receive(batch)

    def recover(self, name: str, top: StreamPosition) -> None:
        """Recover what is missing in a room up to a position."""
        if (room := self._rooms.get(name)) is not None:
            room.ordering.recover(top)

    def disconnect(self, name: str, id: str) -> ResumePosition | None:
        """Close a connection whose key was claimed by another one. Return its position, if it is here."""
        room = self._rooms.get(name)
        if room is None:
            return None
        resume_position = None
        if (entering := room.joining.pop(id, None)) is not None:
            entering[1].cancel()
            entering[0].disconnect(TAKEN_OVER)
        elif id in self._keyed:
            room, subscriber = self._keyed[id]
            resume_position = self._take_over(room, subscriber)
            self.bus.presence.leave(name, subscriber.sender_id, linger=True)  # it continues on another connection
        self._forget_if_empty(room)
        return resume_position

    def logged(self) -> "Deferred[None] | None":
        """Return a Deferred that fires when all messages are published or refused, or None if they are."""
        return self.publisher.logged()

    def presence_changed(self, name: str, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        """Handle presence events, which follow a position."""
        if (room := self._rooms.get(name)) is not None:
            room.ordering.receive_presence(after, changes)

    def renamed(self, name: str, sender_id: str, nick: str) -> None:
        """Notify a subscriber that its nick was changed."""
        room = self._rooms.get(name)
        if room is not None and (subscriber := room.subscriber(sender_id)) is not None:
            subscriber.nick = nick
            subscriber.renamed(nick)

    # Broadcasting

    def broadcast(self) -> None:
        """Broadcast what has arrived from the bus now."""
        self._broadcasts.run()

    def _pending(self, room: Room, item: Item) -> None:
        """Schedule a broadcast of the next item of a room."""
        self._pending_rooms.append(room)
        if isinstance(item, Batch):
            self._pending_bytes += item.size
            if item.publisher == self.bus.publisher and item.messages:
                self._received_at.append(item.messages[0].time)
        if self._pending_bytes < self._config.batch_bytes:
            self._broadcasts.request()
        else:  # a larger blob would wait as a whole for each slow consumer
            self.broadcast()

    def _broadcast(self) -> None:
        try:
            self.publisher.flush_due()  # first: the broker works meanwhile
        except Exception:  # noqa: BLE001 - what has arrived is broadcast all the same
            log.failure("publishing accepted messages before a broadcast failed", event="flush_failed")
        rooms, self._pending_rooms, self._pending_bytes = self._pending_rooms, [], 0
        for room in rooms:  # one may be forgotten meanwhile, or be listed twice
            try:
                room.deliver()
            except Exception:  # noqa: BLE001 - the other rooms go on
                log.failure(
                    "continuing recoveries in room {room} failed", room=room.name, event="recovery_continue_failed"
                )
        if self._keyed:
            self._mark_later()
        if self._received_at:
            received_at, self._received_at, now = self._received_at, [], self._now()
            for milliseconds in received_at:
                DELIVERY_SECONDS.observe(max(0.0, now - milliseconds / 1000))

    def _count_losses(self, gap: OffsetGap, subscribers: int) -> None:
        if not subscribers:
            return
        if gap.count is None:
            self._maybe_lost.add(clients=subscribers)
        else:
            self._lost.add(clients=subscribers, messages=subscribers * gap.count)
