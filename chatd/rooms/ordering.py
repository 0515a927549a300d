"""A room's order on this worker: batches in as the bus brings them, out in order, each once, or told as lost.

The bus may lose a batch, bring one twice, or begin another epoch. Whatever does not follow on what came before is
held back while the room's history is read; what history has not is told. Other rooms do not wait.
"""

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config.settings import Config
from chatd.monitoring.metrics import HELD_BYTES, HOLES_FILLED
from chatd.protocol.message import Batch, HistoryRange, OffsetGap, PresenceEvent, StreamPosition
from chatd.rooms.cursor import Cursor
from chatd.rooms.repeats import Repeats

log = Logger()

Read = Callable[[StreamPosition | None, int], "Deferred[HistoryRange]"]
"""Reads the room's history behind a position, or where its order stands; about so many bytes."""


Item = Batch | OffsetGap | PresenceEvent
"""What comes next in a room."""


class Ordering:
    """The order of one room."""

    __slots__ = (
        "_changes",
        "_config",
        "_cursor",
        "_held",
        "_held_bytes",
        "_out",
        "_overflowed",
        "_read",
        "_reading",
        "_sure",
        "repeats",
    )

    def __init__(self, config: Config, read: Read, out: Callable[[Item, Batch | None], None]) -> None:
        """Take what reads history, and whom to give what comes next: of a batch what is new, and the whole of it."""
        self._config = config
        self._read = read
        self._out = out
        self._cursor = Cursor(StreamPosition("", 0))  # no epoch: not started
        self._reading: Deferred[HistoryRange] | None = None
        self._held: list[Batch] = []
        self._held_bytes = 0
        self._sure = 0  # of those held, how many were heard before what is being read was asked for
        self._overflowed = False  # and more than may be held was heard since then
        self._changes: list[tuple[StreamPosition, PresenceEvent]] = []  # that wait for messages before them
        self.repeats = Repeats(config.publishers_known)
        """What came again, for those too who read history on their own."""

    @property
    def position(self) -> StreamPosition:
        """Up to where everything was given out; to be asked once ``start`` has fired."""
        return self._cursor.position

    @property
    def before(self) -> tuple[StreamPosition, ...]:
        """Up to where it was when the last epochs ended that it has seen."""
        return self._cursor.before

    def start(self) -> "Deferred[None]":
        """Begin where the room's order stands now; to be called once the room is subscribed."""

        def begin(span: HistoryRange) -> None:
            self._cursor = Cursor(span.top)
            self._read_up_to(span)

        return self._ask(None).addCallback(begin)

    def stop(self) -> None:
        """Read no more, and hold nothing back any more."""
        if self._reading is not None:
            self._reading.cancel()
        self._hold_on_to([])

    def hear(self, batch: Batch) -> None:
        """Take a batch from the bus."""
        cursor = self._cursor
        if self._reading is None and cursor.epoch:
            if cursor.has(batch):
                return  # it came once more, for others
            if cursor.follows(batch) or (batch.epoch == cursor.epoch and not self._config.keeps_history):
                self._take(batch)
                if self._changes:
                    self._give_changes()
                return
        self._hold(batch)
        self._fill()

    def present(self, after: StreamPosition, changes: Sequence[PresenceEvent]) -> None:
        """Take who came and went; it is given out behind the message that it came after, where that is on its way."""
        self._changes += [(after, each) for each in changes]
        self._give_changes()

    def compare(self, top: StreamPosition) -> None:
        """Take where the order stood a moment ago: all that was published up to there should have come."""
        cursor = self._cursor
        if not cursor.epoch or (top.epoch == cursor.epoch and top.offset <= cursor.offset):
            return
        if self._config.keeps_history or top.epoch != cursor.epoch:
            self._fill()
        elif self._reading is None:
            self._skip_to(cursor, top)
            self._give_changes()

    def knows(self, before: tuple[StreamPosition, ...]) -> bool:
        """Whether it came as far as somebody else in the epochs before: what comes again of them may go to both."""
        ends = {end.epoch: end.offset for end in self._cursor.before}
        was_there = False
        for end in before:
            if end.offset > ends.get(end.epoch, -1 if was_there else end.offset):
                return False
            was_there = was_there or end.epoch in ends
        return True

    def _give_changes(self) -> None:
        """Give out who came and went, up to what has to wait for messages."""
        waiting, cursor = self._changes, self._cursor
        while waiting:
            after, change = waiting[0]
            early = self._reading is not None or (after.epoch == cursor.epoch and after.offset > cursor.offset)
            if early and len(waiting) <= self._config.presence_held:
                return
            del waiting[0]
            self._out(change, None)

    # What is missing

    def _ask(self, after: StreamPosition | None) -> "Deferred[HistoryRange]":
        self._sure = len(self._held)
        self._overflowed = False
        self._reading = reading = self._read(after, self._config.history_bytes)

        def done(result: object) -> object:
            self._reading = None
            return result

        return reading.addBoth(done)

    def _fill(self) -> None:
        if self._reading is None and self._cursor.epoch:
            self._ask(self._cursor.position).addCallbacks(self._arrived, self._not_read)

    def _arrived(self, span: HistoryRange) -> None:
        before = self._cursor.position
        for batch in span.batches:
            self._take(batch)
        HOLES_FILLED.value += self._cursor.position != before
        if span.more:
            self._fill()
        else:
            self._read_up_to(span)
        self._give_changes()

    def _not_read(self, failure: Failure) -> None:
        """Go on without what history will not tell."""
        if not failure.check(CancelledError):
            log.error("the history of a room cannot be read: {why}", why=failure.getErrorMessage())
            held = self._held
            self._hold_on_to([])
            for batch in held:
                self._take(batch)
            self._give_changes()

    def _read_up_to(self, span: HistoryRange) -> None:
        """Go on behind a span that reached the top: with what was held, where history can have nothing before it."""
        cursor, top = self._cursor, span.top
        for place, batch in enumerate(self._held):
            if batch.epoch == top.epoch:
                complete = batch.first <= 1 + max(top.offset, cursor.offset if cursor.epoch == top.epoch else 0)
            else:
                complete = batch.epoch == cursor.epoch  # that epoch is over
            if complete:
                self._take(batch)
            elif batch.epoch == top.epoch or place >= self._sure:  # heard since history was read
                self._hold_on_to(self._held[place:])
                self._fill()
                return
        self._hold_on_to([])
        if self._config.keeps_history:
            self._skip_to(cursor, top)
        elif cursor.epoch != top.epoch:
            self._skip_to(cursor, StreamPosition(top.epoch, 0))  # the rest may be on its way
        if self._overflowed:
            self._fill()

    def _hold(self, batch: Batch) -> None:
        """Hold a batch back, within the bounds of the room and of all rooms of the worker; else it is read again."""
        config = self._config
        if self._held_bytes < config.held_bytes and HELD_BYTES.value < config.held_total_bytes:
            self._held.append(batch)
            self._count_held(self._held_bytes + batch.size)
        else:
            self._overflowed = True

    def _hold_on_to(self, batches: list[Batch]) -> None:
        self._held = batches
        self._count_held(sum([batch.size for batch in batches]))

    def _count_held(self, size: int) -> None:
        HELD_BYTES.value += size - self._held_bytes  # of all rooms, whichever broker they are on
        self._held_bytes = size

    # What is next

    def _take(self, batch: Batch) -> None:
        batch = self.repeats.mark(batch)
        for each in self._cursor.take(batch):
            if isinstance(each, OffsetGap):
                self._out(each, None)
            else:
                self._out(each, batch)

    def _skip_to(self, cursor: Cursor, top: StreamPosition) -> None:
        for gap in cursor.skip_to(top):
            self._out(gap, None)
