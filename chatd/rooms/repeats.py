"""Which batches came again, though their publisher does not know it: their answer got lost with a run of the broker.

A publisher has no more than one batch of a room on its way, so that it is always its newest one.
"""

from collections import OrderedDict
from dataclasses import replace

from chatd.protocol.message import Batch, StreamPosition


class Repeats:
    """What one room's publishers sent last, and what of it came again, as far as it was seen."""

    def __init__(self, most: int) -> None:
        """Take how many of each to know."""
        self._most = most
        self._newest: OrderedDict[str, tuple[int, StreamPosition]] = (
            OrderedDict()
        )  # by publisher: number, where it began
        self._again: OrderedDict[tuple[str, int], StreamPosition] = OrderedDict()  # where it began before

    def mark(self, batch: Batch) -> Batch:
        """Take note of a batch; give it with where it stood before, if that was seen."""
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
        """Give a batch with where it stood before, if that was seen, but take no note of it."""
        before = self._again.get((batch.publisher, batch.sequence))
        if before is None:
            sequence, first = self._newest.get(batch.publisher, (0, None))
            before = first if sequence == batch.sequence else None
        return batch if before is None or before.epoch == batch.epoch else replace(batch, before=before)
