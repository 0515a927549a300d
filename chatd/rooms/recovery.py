"""Recovery: sending a subscriber what it missed, asked for, or read too slowly, from history.

It keeps nothing but a position. While the send buffer has room the next part of the history is read and sent. When the
rest is in the tail of the room, it is sent in one turn, and the subscriber is live: each message once, none missing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config.settings import Config
from chatd.monitoring.metrics import SEND_BUFFER_BYTES, SENT_BYTES, SENT_MESSAGES
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.message import Batch, HistoryRange, OffsetGap, StreamPosition
from chatd.protocol.text import utf8_size
from chatd.rooms.ordering import Cursor, Ordering, Read, Repeats
from chatd.rooms.subscribers import Subscriber

log = Logger()


class Tail:
    """The newest batches of a room, kept while it has recoveries."""

    def __init__(self, most: int) -> None:
        """Keep about ``most`` bytes."""
        self._most = most
        self._bytes = 0
        self._batches: deque[Batch] = deque()

    def add(self, batch: Batch) -> None:
        """Add a batch."""
        self._batches.append(batch)
        self._bytes += batch.size
        while self._bytes > self._most and len(self._batches) > 1:
            self._bytes -= self._batches.popleft().size

    def after(self, cursor: Cursor) -> list[Batch]:
        """Return the batches after a position; none if the tail does not reach back so far."""
        rest: list[Batch] = []
        for batch in reversed(self._batches):
            if cursor.has(batch):
                break
            rest.append(batch)
            if batch.epoch == cursor.epoch and batch.first <= cursor.offset + 1:
                return rest[::-1]
        return []


class Recovery:
    """The recovery of one subscriber, until it is live."""

    __slots__ = (
        "_around",
        "_config",
        "_cursor",
        "_floor",
        "_lenient",
        "_live",
        "_looked",
        "_losses",
        "_opening",
        "_ordering",
        "_over",
        "_read",
        "_reading",
        "_repeats",
        "_slow",
        "_tail",
        "subscriber",
    )

    def __init__(
        self,
        subscriber: Subscriber,
        position: StreamPosition,
        config: Config,
        *,
        read: Read,
        tail: Tail,
        ordering: Ordering,
        live: Callable[[], None],
        losses: Callable[[OffsetGap, int], None],
        slow: bool = False,
        lenient: int = 0,
        floor: StreamPosition | None = None,
        before: tuple[StreamPosition, ...] = (),
    ) -> None:
        """Start at a position. ``live`` is called when the subscriber has everything, ``losses`` with each gap.

        ``slow``: it was live before. ``lenient``: gaps up to this offset are not reported before the first message.
        ``floor``: the earliest position that it may read.
        """
        self.subscriber = subscriber
        self._cursor = Cursor(position, before)
        self._config = config
        self._around = config.message_overhead_bytes if subscriber.recovers_at_once else 0
        self._read = read
        self._tail = tail
        self._ordering = ordering
        self._repeats = Repeats(config.publishers_per_room)  # of what it reads, which may be long ago
        self._live = live
        self._losses = losses
        self._slow = slow
        self._lenient = lenient
        self._floor = floor
        self._opening: tuple[list[OffsetGap], list[Batch]] | None = (
            ([], []) if subscriber.recovers_at_once and not slow else None
        )
        self._over = False
        self._looked: StreamPosition | None = None  # where the room stood when all that history had was asked for
        self._reading: Deferred[HistoryRange] | None = None

    @property
    def position(self) -> StreamPosition:
        """Return the position up to which everything was sent."""
        return self._cursor.position

    @property
    def _most(self) -> int:
        """Return about how many bytes to send at once: fewer while too much waits for all clients."""
        config = self._config
        most = min(config.history_read_bytes, config.max_send_buffer)
        return (
            min(most, config.reduced_recovery_bytes) if SEND_BUFFER_BYTES.value > config.worker_send_buffers else most
        )

    def stop(self) -> None:
        """Stop, because the subscriber has left."""
        self._over = True
        if self._reading is not None:
            self._reading.cancel()

    def step(self) -> None:
        """Send more if the send buffer has room: from the tail if it reaches back so far, else from history."""
        try:
            self._step()
        except Exception:  # noqa: BLE001 - one subscriber's trouble is not the others'
            self._failed()

    def _step(self) -> None:
        if self._over:
            return
        if self._floor is not None and self._floor.epoch == self._cursor.epoch:
            self._report(self._cursor.skip_to(self._floor))
        self._floor = None
        cursor = self._cursor
        while not (self._over or self._reading is not None or self.subscriber.buffer_full):
            top = self._ordering.position
            behind = cursor.epoch == top.epoch and cursor.offset < top.offset
            ahead = cursor.epoch == top.epoch and cursor.offset > top.offset
            if cursor.position == top:
                self._open(top)
                if not self._ordering.knows(cursor.before):
                    return  # stay on the tail: repeated batches differ from those of live subscribers
                self._over = True
                self._live()
            elif rest := self._tail.after(cursor):
                self._send_batches(first_bytes(rest, cursor, self._most, self._around))
            elif behind and not self._config.keeps_history:
                self._report(cursor.skip_to(top))
            elif self._looked == top or (ahead and self._looked is not None):
                return  # the bus has yet to deliver what history had
            else:
                self._read_history(top)

    def _read_history(self, top: StreamPosition) -> None:
        self._reading = self._read(self.position, self._most)
        self._reading.addCallbacks(
            self._received_history, self._history_failed, callbackArgs=(top,), errbackArgs=(top,)
        ).addErrback(self._failed)

    def _received_history(self, span: HistoryRange, top: StreamPosition) -> None:
        self._reading = None
        if span.top.epoch == self._cursor.epoch and span.top.offset < self._cursor.offset:
            self._report([self._cursor.reset(span.top)])  # the position does not exist
        batches = first_bytes(span.batches, self._cursor, self._most, self._around)
        self._send_batches(batches)
        if not span.more and batches is span.batches:
            self._report(self._cursor.skip_to(span.top))
            self._looked = top
        self._open(span.top)
        self.step()

    def _open(self, top: StreamPosition) -> None:
        """Call ``recovered`` with what was gathered, once."""
        if self._opening is not None:
            gaps, batches = self._opening
            self._opening = None
            self.subscriber.recovered(top, gaps, batches, more=self._cursor.position != top)

    def _history_failed(self, failure: Failure, top: StreamPosition) -> None:
        self._reading = None
        self._looked = top
        if not failure.check(CancelledError):
            log.error(
                "cannot read the history of a room: {why}", why=failure.getErrorMessage(), event="history_read_failed"
            )
            self._report(self._cursor.skip_to(self._ordering.position))
            self._open(top)
            self.step()

    def _failed(self, failure: Failure | None = None) -> None:
        """Log the exception and close the subscriber."""
        log.failure(
            "the recovery of client {client} failed", failure, client=self.subscriber.sender_id, event="recovery_failed"
        )
        self.stop()
        with log.failuresHandled(
            "closing client {client} failed", client=self.subscriber.sender_id, event="client_close_failed"
        ):
            self.subscriber.disconnect(OUR_FAULT)

    def _send_batches(self, batches: Sequence[Batch]) -> None:
        """Send batches, with the gaps between them."""
        share: list[Batch] = []
        for batch in batches:
            for item in self._cursor.advance(self._repeats.mark(self._ordering.repeats.look(batch))):
                if isinstance(item, OffsetGap):
                    self._send(share)
                    share = []
                    self._report([item])
                else:
                    share.append(item)
        self._send(share)

    def _send(self, batches: list[Batch]) -> None:
        subscriber = self.subscriber
        if self._opening is not None:
            self._lenient = 0 if batches else self._lenient
            own = "" if subscriber.echo else subscriber.sender_id
            self._opening[1].extend(part for batch in batches for part in batch.without(own))
            return
        messages = [message for batch in batches for message in batch.messages]
        frames = subscriber.format.frames(batches)
        if not subscriber.echo:
            own = subscriber.sender_id
            frames = [frame for frame, message in zip(frames, messages, strict=True) if message.session != own]
        if frames:
            blob = b"".join(frames)
            if subscriber.replay(blob, len(frames)):
                SENT_MESSAGES["history"].value += len(frames)
                SENT_BYTES["history"].value += len(blob)
        if messages:
            self._lenient = 0

    def _report(self, gaps: Iterable[OffsetGap]) -> None:
        for reported in gaps:
            lenient, self._lenient = self._lenient, 0
            gap = reported
            if gap.count is not None and gap.last - gap.count < lenient:
                gap = replace(gap, count=max(0, gap.last - lenient))
            if gap.count == 0:
                continue
            self._losses(gap, 1)
            if self._opening is not None:
                self._opening[0].append(gap)
            else:
                self.subscriber.report_gap(gap, slow=self._slow and not self._config.keeps_history)


def first_bytes(batches: Sequence[Batch], cursor: Cursor, most: int, around: int = 0) -> Sequence[Batch]:
    """Return batches up to about ``most`` bytes after a position, but at least one message.

    ``around`` is the size of a message beside its text.
    """
    size = 0
    for index, batch in enumerate(batches):
        known = max(0, cursor.offset + 1 - batch.first) if batch.epoch == cursor.epoch else 0
        for count, message in enumerate(batch.messages[known:], known + 1):
            size += utf8_size(message.text) + around
            if size >= most and (count < len(batch.messages) or index + 1 < len(batches)):
                return [*batches[:index], batch.first_ones(count)]
    return batches
