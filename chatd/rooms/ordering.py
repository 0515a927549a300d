"""The order of a room on this worker.

Batches arrive from the bus, which may lose a batch, deliver one twice, or begin another epoch. They leave in order,
each message once, with a gap for what is lost. A batch that does not follow the one before is held back while the
history is read. Other rooms do not wait.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config.settings import Config
from chatd.monitoring.metrics import GAPS_FILLED, HELD_BYTES
from chatd.protocol.message import UNBEGUN, Batch, HistoryRange, OffsetGap, PresenceEvent, StreamPosition

log = Logger()

EPOCHS_KNOWN = 4
"""Maximum ended epochs whose last position is remembered, per room and per client in recovery.

Uncertain batches are published again within seconds, so this is how often a broker may be lost meanwhile.
"""

Read = Callable[[StreamPosition | None, int], "Deferred[HistoryRange]"]
"""Reads about so many bytes of the history after a position; without one only the newest position."""


Item = Batch | OffsetGap | PresenceEvent
"""The next item in the order of a room."""


class Cursor:
    """A stream position that moves on with the batches of a room: that of a worker, or of a client in recovery.

    It yields what is new of each batch, and the gaps, in order. Its position is then after what it has yielded.
    """

    __slots__ = ("before", "epoch", "offset")

    def __init__(self, position: StreamPosition, before: tuple[StreamPosition, ...] = ()) -> None:
        """Start at a position. ``before`` are its last positions in earlier epochs, as far as they are known."""
        self.epoch = position.epoch
        self.offset = position.offset
        self.before = before

    @property
    def position(self) -> StreamPosition:
        """Return the stream position."""
        return StreamPosition(self.epoch, self.offset)

    def follows(self, batch: Batch) -> bool:
        """Return whether a batch is the next one."""
        return batch.first == self.offset + 1 and batch.epoch == self.epoch

    def has(self, batch: Batch) -> bool:
        """Return whether the position is already after a batch."""
        return batch.epoch == self.epoch and batch.last <= self.offset

    def advance(self, batch: Batch) -> Iterator[Batch | OffsetGap]:
        """Move past a batch. Yield the gap before it, if any, and its new part, which may be empty."""
        if batch.epoch != self.epoch:
            yield from self._begin_epoch(batch.epoch, 0)
        if batch.last <= self.offset:
            return
        if batch.first > self.offset + 1:
            gap = OffsetGap(self.epoch, batch.first - 1, batch.first - 1 - self.offset)
            self.offset = gap.last
            yield gap
        self.offset, known = batch.last, self.offset + 1 - batch.first
        if batch.before is not None:
            for end in self.before:  # yielded in an earlier epoch
                if end.epoch == batch.before.epoch:
                    known = max(known, end.offset + 1 - batch.before.offset)
        yield batch.without_first(min(known, len(batch.messages))) if known > 0 else batch

    def skip_to(self, top: StreamPosition) -> Iterator[OffsetGap]:
        """Move to a position up to which history has nothing more. Yield the gap, if any."""
        if top.epoch != self.epoch:
            yield from self._begin_epoch(top.epoch, 0 if self.epoch == UNBEGUN else top.offset)
        if top.offset > self.offset:
            gap = OffsetGap(self.epoch, top.offset, top.offset - self.offset)
            self.offset = top.offset
            yield gap

    def reset(self, top: StreamPosition) -> OffsetGap:
        """Move to a position from one that does not exist. Return the gap."""
        self.epoch, self.offset = top.epoch, top.offset
        return OffsetGap(top.epoch, top.offset, None)

    def _begin_epoch(self, epoch: str, offset: int) -> Iterator[OffsetGap]:
        """Move to another epoch. Nobody knows what is lost of the one before, unless it was none."""
        before = self.position
        self.epoch, self.offset = epoch, offset
        if before.epoch != UNBEGUN:
            self.before = (*self.before, before)[-EPOCHS_KNOWN:]
            yield OffsetGap(epoch, offset, None)


class Repeats:
    """The batches of one room that were published again in another epoch without a mark.

    Their answer was lost with the broker, so their publisher does not know their first position. A publisher has one
    batch of a room on its way, so it is always its newest one.
    """

    def __init__(self, most: int) -> None:
        """Keep at most ``most`` publishers and repeated batches."""
        self._most = most
        self._newest: OrderedDict[str, tuple[int, StreamPosition]] = (
            OrderedDict()
        )  # by publisher: sequence and position
        self._again: OrderedDict[tuple[str, int], StreamPosition] = OrderedDict()  # the position before

    def mark(self, batch: Batch) -> Batch:
        """Record a batch. Return it with its position in an earlier epoch, if it is known."""
        sequence, first = self._newest.get(batch.publisher, (0, None))
        if batch.sequence >= sequence:
            self._newest[batch.publisher] = batch.sequence, StreamPosition(batch.epoch, batch.first)
            self._newest.move_to_end(batch.publisher)
            if len(self._newest) > self._most:
                self._newest.popitem(last=False)
        if batch.sequence == sequence and first is not None and first.epoch != batch.epoch:
            self._again[batch.publisher, sequence] = first
            if len(self._again) > self._most:
                self._again.popitem(last=False)
        return self.look(batch) if self._again else batch

    def look(self, batch: Batch) -> Batch:
        """Return a batch with its position in an earlier epoch, if it is known."""
        before = self._again.get((batch.publisher, batch.sequence))
        if before is None:
            sequence, first = self._newest.get(batch.publisher, (0, None))
            before = first if sequence == batch.sequence else None
        return batch if before is None or before.epoch == batch.epoch else replace(batch, before=before)


class Ordering:
    """The order of one room."""

    __slots__ = (
        "_config",
        "_cursor",
        "_held",
        "_held_bytes",
        "_out",
        "_overflowed",
        "_presence",
        "_read",
        "_reading",
        "_sure",
        "repeats",
    )

    def __init__(self, config: Config, read: Read, out: Callable[[Item, Batch | None], None]) -> None:
        """``out`` gets each item: the new part of a batch with the whole batch, else a gap or event with None."""
        self._config = config
        self._read = read
        self._out = out
        self._cursor = Cursor(StreamPosition("", 0))  # no epoch: not started
        self._reading: Deferred[HistoryRange] | None = None
        self._held: list[Batch] = []
        self._held_bytes = 0
        self._sure = 0  # how many of them arrived before the history was asked for
        self._overflowed = False  # more has arrived since then than may be held
        self._presence: list[tuple[StreamPosition, PresenceEvent]] = []  # they wait for messages before them
        self.repeats = Repeats(config.publishers_per_room)
        """Repeated batches; recoveries, which read history on their own, use it too."""

    @property
    def position(self) -> StreamPosition:
        """Return the position after the last item. Valid once ``start`` has fired."""
        return self._cursor.position

    @property
    def before(self) -> tuple[StreamPosition, ...]:
        """Return the last positions in earlier epochs."""
        return self._cursor.before

    def start(self) -> "Deferred[None]":
        """Start at the newest position. Call it once the room is subscribed."""

        def begin(span: HistoryRange) -> None:
            self._cursor = Cursor(span.top)
            self._read_up_to(span)

        return self._read_history(None).addCallback(begin)

    def stop(self) -> None:
        """Stop reading, and drop what is held back."""
        if self._reading is not None:
            self._reading.cancel()
        self._set_held([])

    def receive(self, batch: Batch) -> None:
        """Handle a batch from the bus."""
        cursor = self._cursor
        if self._reading is None and cursor.epoch:
            follows = cursor.follows(batch)
            if not follows and cursor.has(batch):
                return  # published twice
            if follows or (batch.epoch == cursor.epoch and not self._config.keeps_history):
                self._emit(batch)
                if self._presence:
                    self._release_presence()
                return
        self._hold(batch)
        self._read_gap()

    def receive_presence(self, after: StreamPosition, events: Sequence[PresenceEvent]) -> None:
        """Handle presence events. They leave after the message that they follow, if that is on its way."""
        self._presence += [(after, event) for event in events]
        self._release_presence()

    def recover(self, top: StreamPosition) -> None:
        """Recover what is missing up to a position: what was published before has arrived or is lost."""
        cursor = self._cursor
        if not cursor.epoch or (top.epoch == cursor.epoch and top.offset <= cursor.offset):
            return
        if self._config.keeps_history or top.epoch != cursor.epoch:
            self._read_gap()
        elif self._reading is None:
            self._skip_to(cursor, top)
            self._release_presence()

    def knows(self, before: tuple[StreamPosition, ...]) -> bool:
        """Return whether it got as far as a recovery in earlier epochs: both then skip the same repeated batches."""
        ends = {end.epoch: end.offset for end in self._cursor.before}
        was_there = False
        for end in before:
            if end.offset > ends.get(end.epoch, -1 if was_there else end.offset):
                return False
            was_there = was_there or end.epoch in ends
        return True

    def _release_presence(self) -> None:
        """Emit the presence events that need not wait for messages."""
        waiting, cursor = self._presence, self._cursor
        while waiting:
            after, event = waiting[0]
            early = self._reading is not None or (after.epoch == cursor.epoch and after.offset > cursor.offset)
            if early and len(waiting) <= self._config.held_presence_events:
                return
            del waiting[0]
            self._out(event, None)

    # Gaps

    def _read_history(self, after: StreamPosition | None) -> "Deferred[HistoryRange]":
        self._sure = len(self._held)
        self._overflowed = False
        self._reading = reading = self._read(after, self._config.history_read_bytes)

        def done(result: object) -> object:
            self._reading = None
            return result

        return reading.addBoth(done)

    def _read_gap(self) -> None:
        if self._reading is None and self._cursor.epoch:
            self._read_history(self._cursor.position).addCallbacks(self._received_history, self._history_failed)

    def _received_history(self, span: HistoryRange) -> None:
        before = self._cursor.position
        for batch in span.batches:
            self._emit(batch)
        GAPS_FILLED.value += self._cursor.position != before
        if span.more:
            self._read_gap()
        else:
            self._read_up_to(span)
        self._release_presence()

    def _history_failed(self, failure: Failure) -> None:
        """Go on without history."""
        if not failure.check(CancelledError):
            log.error(
                "cannot read the history of a room: {why}", why=failure.getErrorMessage(), event="history_read_failed"
            )
            held = self._held
            self._set_held([])
            for batch in held:
                self._emit(batch)
            self._release_presence()

    def _read_up_to(self, span: HistoryRange) -> None:
        """Go on after a range that reached the top, with the held batches that history can have nothing before."""
        cursor, top = self._cursor, span.top
        for index, batch in enumerate(self._held):
            if batch.epoch == top.epoch:
                complete = batch.first <= 1 + max(top.offset, cursor.offset if cursor.epoch == top.epoch else 0)
            else:
                complete = batch.epoch == cursor.epoch  # that epoch is over
            if complete:
                self._emit(batch)
            elif batch.epoch == top.epoch or index >= self._sure:  # arrived since history was read
                self._set_held(self._held[index:])
                self._read_gap()
                return
        self._set_held([])
        if self._config.keeps_history:
            self._skip_to(cursor, top)
        elif cursor.epoch != top.epoch:
            self._skip_to(cursor, StreamPosition(top.epoch, 0))  # the rest may be on its way
        if self._overflowed:
            self._read_gap()

    def _hold(self, batch: Batch) -> None:
        """Hold a batch back, within the bounds of the room and the worker; beyond them history is read again."""
        config = self._config
        if self._held_bytes < config.gap_buffer_bytes_per_room and HELD_BYTES.value < config.gap_buffer_bytes:
            self._held.append(batch)
            self._count_held(self._held_bytes + batch.size)
        else:
            self._overflowed = True

    def _set_held(self, batches: list[Batch]) -> None:
        self._held = batches
        self._count_held(sum([batch.size for batch in batches]))

    def _count_held(self, size: int) -> None:
        HELD_BYTES.value += size - self._held_bytes  # over all rooms
        self._held_bytes = size

    # Output

    def _emit(self, batch: Batch) -> None:
        batch = self.repeats.mark(batch)
        for item in self._cursor.advance(batch):
            self._out(item, None if isinstance(item, OffsetGap) else batch)

    def _skip_to(self, cursor: Cursor, top: StreamPosition) -> None:
        for gap in cursor.skip_to(top):
            self._out(gap, None)
