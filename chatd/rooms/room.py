"""One room on this worker: its order, its live subscribers, and those in recovery."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatd.config.settings import Config
from chatd.protocol.message import Batch, HistoryRange, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms.ordering import Item, Ordering
from chatd.rooms.recovery import Recovery, Tail
from chatd.rooms.subscribers import Subscriber, Subscribers
from chatd.runtime.waiters import Waiters

log = Logger()


class Room:
    """A room: its order and its subscribers. Items of the order are pending until ``deliver``."""

    __slots__ = (
        "_config",
        "_done",
        "_events",
        "_losses",
        "_on_pending",
        "_pending",
        "_read",
        "_recoveries",
        "_subscribers",
        "_tail",
        "begun",
        "joining",
        "name",
        "ordering",
        "presence_receivers",
        "starting",
        "waiters",
    )

    def __init__(
        self,
        name: str,
        config: Config,
        *,
        read: Callable[[str, StreamPosition | None, int], "Deferred[HistoryRange]"],
        pending: Callable[["Room", Item], None],
        losses: Callable[[OffsetGap, int], None],
    ) -> None:
        """``read`` reads history, ``pending`` is called with each item, ``losses`` with a gap and its subscribers."""
        self.name = name
        self.ordering = Ordering(config, lambda after, most: read(name, after, most), self._in_order)
        """Its order."""
        self.starting: Deferred[None]
        """The start of the order."""
        self.begun = False
        """Whether the order has started."""
        self.waiters = Waiters()
        """Callers that wait for that."""
        self.joining: dict[str, tuple[Subscriber, Deferred[Any]]] = {}
        """Joining subscribers by connection id, and the Deferred of their joining."""
        self.presence_receivers: set[str] = set()
        """Connection ids of the subscribers that receive presence events."""
        self._config = config
        self._read = read
        self._on_pending = pending
        self._losses = losses
        self._subscribers = Subscribers()
        self._recoveries: dict[str, Recovery] = {}  # by sender id
        self._tail: Tail | None = None  # while there are recoveries
        self._pending: list[Item] = []
        self._events = 0  # presence events so far
        self._done = StreamPosition("", 0)  # up to where live subscribers were sent everything

    # Subscribers

    def __bool__(self) -> bool:
        """Return whether the room has subscribers, or joining ones."""
        return bool(self._subscribers or self._recoveries or self.joining)

    def subscriber(self, sender_id: str) -> Subscriber | None:
        """Return the subscriber with a sender id, if it is here."""
        recovery = self._recoveries.get(sender_id)
        return recovery.subscriber if recovery is not None else self._subscribers.get(sender_id)

    def position(self, subscriber: Subscriber) -> StreamPosition:
        """Return the position up to which a subscriber was sent everything."""
        if (recovery := self._recoveries.get(subscriber.sender_id)) is not None:
            return recovery.position
        return self._done if self._pending else self.ordering.position

    def admit(self, subscriber: Subscriber, start: StreamPosition | None) -> Callable[[], None] | None:
        """Add a subscriber that starts at a position, or at the messages that it asks for.

        Return a function to call once it can be sent something, or None.
        """
        top = self.ordering.position
        floor = StreamPosition(
            top.epoch, max(0, top.offset - self._config.history_size)
        )  # the broker may keep more, for gaps
        lenient = 0
        if start is None:
            start = StreamPosition(top.epoch, max(floor.offset, top.offset - subscriber.last))
            lenient = top.offset
        if start == top:
            self._make_live(subscriber)
            if subscriber.recovers_at_once:
                subscriber.recovered(top, (), ())
            return None
        return self._start_recovery(subscriber, start, lenient=lenient, floor=floor).step

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber."""
        self._subscribers.remove(subscriber)
        if (recovery := self._recoveries.get(subscriber.sender_id)) is not None and recovery.subscriber is subscriber:
            recovery.stop()
            self._end_recovery(subscriber)

    def recover(self, subscriber: Subscriber) -> None:
        """Move a live subscriber, whose send buffer is full, to recovery."""
        if self._subscribers.remove(subscriber):
            before = tuple(end for end in self.ordering.before if end.epoch != self._done.epoch)
            self._start_recovery(subscriber, self._done, slow=True, before=before)

    def drained(self, subscriber: Subscriber) -> None:
        """Continue the recovery of a subscriber whose send buffer is empty."""
        if (recovery := self._recoveries.get(subscriber.sender_id)) is not None:
            recovery.step()

    def _make_live(self, subscriber: Subscriber) -> None:
        self.deliver()  # not to this one: it starts after that
        self._subscribers.add(subscriber)

    def _start_recovery(
        self,
        subscriber: Subscriber,
        position: StreamPosition,
        *,
        slow: bool = False,
        lenient: int = 0,
        floor: StreamPosition | None = None,
        before: tuple[StreamPosition, ...] = (),
    ) -> Recovery:
        events = self._events

        def live() -> None:
            self._end_recovery(subscriber)
            self._make_live(subscriber)
            if events != self._events:
                subscriber.missed_presence()

        self._tail = self._tail or Tail(self._config.batch_bytes)
        self._recoveries[subscriber.sender_id] = recovery = Recovery(
            subscriber,
            position,
            self._config,
            read=lambda after, most: self._read(self.name, after, most),
            tail=self._tail,
            ordering=self.ordering,
            live=live,
            losses=self._losses,
            slow=slow,
            lenient=lenient,
            floor=floor,
            before=before,
        )
        return recovery

    def _end_recovery(self, subscriber: Subscriber) -> None:
        del self._recoveries[subscriber.sender_id]
        if not self._recoveries:
            self._tail = None

    # Delivery

    def begin(self) -> None:
        """Set the position of live subscribers, once the order has started."""
        self._done = self.ordering.position
        self.begun = True

    def deliver(self) -> None:
        """Send what is pending to live subscribers. Then continue the recoveries.

        An error that is not one subscriber's closes all live ones: nobody knows what they have missed.
        """
        if not self._pending:
            return
        try:
            self._deliver()
        except Exception:  # noqa: BLE001 - they are told
            log.failure("broadcasting messages of room {room} failed", room=self.name, event="broadcast_failed")
            self._subscribers.refuse()
        self._pending = []
        for recovery in list(self._recoveries.values()):
            recovery.step()

    def _deliver(self) -> None:
        for kind, group in groupby(self._pending, type):
            items: Any = list(group)
            if kind is PresenceEvent:
                self._events += len(items)
                self._subscribers.send_events(self.name, items)
                continue
            if kind is Batch:
                self._subscribers.send(items)
            else:
                for gap in items:
                    self._done = StreamPosition(gap.epoch, gap.last)  # a full send buffer must not repeat the gap
                    self._losses(gap, self._subscribers.report_gap(gap))
            self._done = StreamPosition(items[-1].epoch, items[-1].last)

    def _in_order(self, item: Item, whole: Batch | None) -> None:
        """Handle the next item of the order. Recoveries get whole batches, of which the room may know a part."""
        if whole is not None and self._tail is not None:
            self._tail.add(whole)
        self._pending.append(item)
        self._on_pending(self, item)
