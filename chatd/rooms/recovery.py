"""One member that is behind its room: it came back, asked for what was said before, or read too slowly.

It keeps nothing but its position. While it can take more it gets the next stretch of history, and in the end, in one
turn, what the room's tail still has; then it is live: each message once, none missing, whatever was said meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config.settings import Config
from chatd.monitoring.metrics import SEND_BUFFER_BYTES, SENT_BYTES, SENT_MESSAGES
from chatd.protocol.close_codes import OUR_FAULT, CloseCode
from chatd.protocol.message import Batch, HistoryRange, OffsetGap, StreamPosition
from chatd.protocol.text import Format, utf8_size
from chatd.rooms.ordering import Cursor, Ordering, Read, Repeats

log = Logger()


class Reader(Protocol):
    """What is asked of a member that is behind."""

    author: str
    """Whose messages are its own."""
    format: Format
    """How it sees messages."""

    @property
    def echo(self) -> bool:
        """Whether it hears its own."""

    @property
    def buffer_full(self) -> bool:
        """Whether it has enough to read for now; once it has read that, ``step`` is to be called."""

    @property
    def begins(self) -> bool:
        """Whether it is told in one piece, by ``began``, what history gives at first."""

    def began(
        self, top: StreamPosition, gaps: Sequence[OffsetGap], batches: Sequence[Batch], *, more: bool = False
    ) -> None:
        """Take what history gave at first, what of it is lost, where the order stood, and whether more follows."""

    def replay(self, blob: bytes, count: int) -> bool:
        """Send these frames, which are count messages, however much waits; return whether they could be sent."""

    def lost(self, gap: OffsetGap) -> None:
        """Learn that these messages can't be had any more."""

    def refused(self, close_code: CloseCode) -> None:
        """Learn that it can't go on."""

    def too_slow(self, gap: OffsetGap) -> None:
        """Learn that these messages can't be had, for there is no history and it read too slowly."""


class Tail:
    """The newest batches of a room while somebody is behind: what comes in while history is read."""

    def __init__(self, most: int) -> None:
        """Take how many bytes to keep, about."""
        self._most = most
        self._bytes = 0
        self._batches: deque[Batch] = deque()

    def add(self, batch: Batch) -> None:
        """Take what was said now."""
        self._batches.append(batch)
        self._bytes += batch.size
        while self._bytes > self._most and len(self._batches) > 1:
            self._bytes -= self._batches.popleft().size

    def after(self, cursor: Cursor) -> list[Batch]:
        """Give what follows on a position; nothing where it does not reach back so far."""
        rest: list[Batch] = []
        for batch in reversed(self._batches):
            if cursor.has(batch):
                break
            rest.append(batch)
            if batch.epoch == cursor.epoch and batch.first <= cursor.offset + 1:
                return rest[::-1]
        return []


class Recovery:
    """A member on its way to being live."""

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
        "member",
    )

    def __init__(
        self,
        member: Reader,
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
        """Take who is behind and where it stands, its room's history, tail and timeline, what makes it live, and what
        counts what how many members have lost.

        Slow is who was live before. Who asked for messages that history need not have is lenient: what is lost at
        first is not told up to that offset. Floor is how far back it may go.
        """
        self.member = member
        self._cursor = Cursor(position, before)
        self._config = config
        self._around = config.message_overhead_bytes if member.begins else 0
        self._read = read
        self._tail = tail
        self._ordering = ordering
        self._repeats = Repeats(config.publishers_known)  # of what it reads, which may be long ago
        self._live = live
        self._losses = losses
        self._slow = slow
        self._lenient = lenient
        self._floor = floor
        self._opening: tuple[list[OffsetGap], list[Batch]] | None = ([], []) if member.begins and not slow else None
        self._over = False
        self._looked: StreamPosition | None = None  # where the room stood when all that history had was asked for
        self._reading: Deferred[HistoryRange] | None = None

    @property
    def position(self) -> StreamPosition:
        """Up to where it was given everything."""
        return self._cursor.position

    @property
    def _most(self) -> int:
        """Return about how many bytes it is given at once: fewer while too much waits for all clients."""
        config = self._config
        most = min(config.history_bytes, config.max_backlog)
        return min(most, config.crowded_step) if SEND_BUFFER_BYTES.value > config.max_backlog_total else most

    def stop(self) -> None:
        """Let it be: it is gone."""
        self._over = True
        if self._reading is not None:
            self._reading.cancel()

    def step(self) -> None:
        """Go on, where it can take more: from the tail where that reaches back so far, else from history."""
        try:
            self._step()
        except Exception:  # noqa: BLE001 - one member's trouble is not the others'
            self._failed()

    def _step(self) -> None:
        if self._over:
            return
        if self._floor is not None and self._floor.epoch == self._cursor.epoch:
            self._tell(self._cursor.skip_to(self._floor))
        self._floor = None
        cursor = self._cursor
        while not (self._over or self._reading is not None or self.member.buffer_full):
            top = self._ordering.position
            behind = cursor.epoch == top.epoch and cursor.offset < top.offset
            ahead = cursor.epoch == top.epoch and cursor.offset > top.offset
            if cursor.position == top:
                self._open(top)
                if not self._ordering.knows(cursor.before):
                    return  # the tail has to do: it would get twice what comes again for the others
                self._over = True
                self._live()
            elif rest := self._tail.after(cursor):
                self._give(first_bytes(rest, cursor, self._most, self._around))
            elif behind and not self._config.keeps_history:
                self._tell(cursor.skip_to(top))
            elif self._looked == top or (ahead and self._looked is not None):
                return  # history had what the bus has yet to bring
            else:
                self._ask(top)

    def _ask(self, top: StreamPosition) -> None:
        self._reading = self._read(self.position, self._most)
        self._reading.addCallbacks(self._arrived, self._not_read, callbackArgs=(top,), errbackArgs=(top,)).addErrback(
            self._failed
        )

    def _arrived(self, span: HistoryRange, top: StreamPosition) -> None:
        self._reading = None
        if span.top.epoch == self._cursor.epoch and span.top.offset < self._cursor.offset:
            self._tell([self._cursor.reset(span.top)])  # there is no such position
        batches = first_bytes(span.batches, self._cursor, self._most, self._around)
        self._give(batches)
        if not span.more and batches is span.batches:
            self._tell(self._cursor.skip_to(span.top))
            self._looked = top
        self._open(span.top)
        self.step()

    def _open(self, top: StreamPosition) -> None:
        """Tell what was gathered for it, where it is told that in one piece."""
        if self._opening is not None:
            gaps, batches = self._opening
            self._opening = None
            self.member.began(top, gaps, batches, more=self._cursor.position != top)

    def _not_read(self, failure: Failure, top: StreamPosition) -> None:
        self._reading = None
        self._looked = top
        if not failure.check(CancelledError):
            log.error("the history of a room cannot be read: {why}", why=failure.getErrorMessage())
            self._tell(self._cursor.skip_to(self._ordering.position))
            self._open(top)
            self.step()

    def _failed(self, failure: Failure | None = None) -> None:
        """Log what just went wrong, and hang up on the member."""
        log.failure("{member} was not given what it missed", failure, member=self.member.author)
        self.stop()
        with log.failuresHandled("{member} was not closed", member=self.member.author):
            self.member.refused(OUR_FAULT)

    def _give(self, batches: Sequence[Batch]) -> None:
        """Send batches, and say between them what is lost."""
        share: list[Batch] = []
        for batch in batches:
            for each in self._cursor.advance(self._repeats.mark(self._ordering.repeats.look(batch))):
                if isinstance(each, OffsetGap):
                    self._send(share)
                    share = []
                    self._tell([each])
                else:
                    share.append(each)
        self._send(share)

    def _send(self, batches: list[Batch]) -> None:
        member = self.member
        if self._opening is not None:
            self._lenient = 0 if batches else self._lenient
            own = "" if member.echo else member.author
            self._opening[1].extend(part for batch in batches for part in batch.without(own))
            return
        messages = [message for batch in batches for message in batch.messages]
        frames = member.format.frames(batches)
        if not member.echo:
            frames = [frame for frame, each in zip(frames, messages, strict=True) if each.session != member.author]
        if frames:
            blob = b"".join(frames)
            if member.replay(blob, len(frames)):
                SENT_MESSAGES["history"].value += len(frames)
                SENT_BYTES["history"].value += len(blob)
        if messages:
            self._lenient = 0

    def _tell(self, gaps: Iterable[OffsetGap]) -> None:
        for each in gaps:
            lenient, self._lenient = self._lenient, 0
            gap = each
            if gap.count is not None and gap.last - gap.count < lenient:
                gap = replace(gap, count=max(0, gap.last - lenient))
            if gap.count == 0:
                continue
            self._losses(gap, 1)
            if self._opening is not None:
                self._opening[0].append(gap)
            elif self._slow and not self._config.keeps_history:
                self.member.too_slow(gap)
            else:
                self.member.lost(gap)


def first_bytes(batches: Sequence[Batch], cursor: Cursor, most: int, around: int = 0) -> Sequence[Batch]:
    """Give batches up to the message, behind a position, that makes so many bytes; one may be longer than that.

    Around is what a message takes beside its text.
    """
    size = 0
    for place, batch in enumerate(batches):
        known = max(0, cursor.offset + 1 - batch.first) if batch.epoch == cursor.epoch else 0
        for count, message in enumerate(batch.messages[known:], known + 1):
            size += utf8_size(message.text) + around
            if size >= most and (count < len(batch.messages) or place + 1 < len(batches)):
                return [*batches[:place], batch.first_ones(count)]
    return batches
