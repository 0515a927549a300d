"""A position in a room's order that moves on with what follows it: each message once, in order, or told as lost."""

from collections.abc import Iterator

from chatd.config.tuning import EPOCHS_KNOWN
from chatd.protocol.message import UNBEGUN, Batch, OffsetGap, StreamPosition


class Cursor:
    """How far somebody has come in a room: a worker, or one client that is behind.

    What it gives has to be passed on in that order; its position stands behind it by then.
    """

    __slots__ = ("before", "epoch", "offset")

    def __init__(self, position: StreamPosition, before: tuple[StreamPosition, ...] = ()) -> None:
        """Take where it stands, and where it stood when the epochs before that one ended, as far as that is known."""
        self.epoch = position.epoch
        self.offset = position.offset
        self.before = before

    @property
    def position(self) -> StreamPosition:
        """Where it stands."""
        return StreamPosition(self.epoch, self.offset)

    def follows(self, batch: Batch) -> bool:
        """Whether a batch is what comes next, with nothing between."""
        return batch.first == self.offset + 1 and batch.epoch == self.epoch

    def has(self, batch: Batch) -> bool:
        """Whether it stands behind a batch already."""
        return batch.epoch == self.epoch and batch.last <= self.offset

    def take(self, batch: Batch) -> Iterator[Batch | OffsetGap]:
        """Move behind a batch: give what is lost before it, and what of it was not given before, be it nothing."""
        if batch.epoch != self.epoch:
            yield from self._begin(batch.epoch, 0)
        if batch.last <= self.offset:
            return
        if batch.first > self.offset + 1:
            gap = OffsetGap(self.epoch, batch.first - 1, batch.first - 1 - self.offset)
            self.offset = gap.last
            yield gap
        self.offset, known = batch.last, self.offset + 1 - batch.first
        if batch.before is not None:
            for end in self.before:  # it was given in an epoch before
                if end.epoch == batch.before.epoch:
                    known = max(known, end.offset + 1 - batch.before.offset)
        yield batch.without_first(min(known, len(batch.messages))) if known > 0 else batch

    def skip_to(self, top: StreamPosition) -> Iterator[OffsetGap]:
        """Move to a position up to which nothing is to be had any more: give what is lost, if anything is."""
        if top.epoch != self.epoch:
            yield from self._begin(top.epoch, 0 if self.epoch == UNBEGUN else top.offset)
        if top.offset > self.offset:
            gap = OffsetGap(self.epoch, top.offset, top.offset - self.offset)
            self.offset = top.offset
            yield gap

    def reset(self, top: StreamPosition) -> OffsetGap:
        """Move to a position, from one that nobody can have had."""
        self.epoch, self.offset = top.epoch, top.offset
        return OffsetGap(top.epoch, top.offset, None)

    def _begin(self, epoch: str, offset: int) -> Iterator[OffsetGap]:
        """Move to another epoch. Nobody knows what is lost of the one before, unless nothing could be said in it."""
        before = self.position
        self.epoch, self.offset = epoch, offset
        if before.epoch != UNBEGUN:
            self.before = (*self.before, before)[-EPOCHS_KNOWN:]
            yield OffsetGap(epoch, offset, None)
