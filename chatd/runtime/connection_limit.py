"""How many connections all workers have together, in memory that they share: a number each, for its worker to write.

A worker has a slot in it, from the parent, which sets it to 0 when its worker has ended: nobody who died is counted.
What a worker reads is as old as the others' last writes, ``headcount_seconds`` at most where connections have gone.
"""

import mmap
import os
from struct import calcsize
from typing import Final

SLOTS = 2048
"""Workers at once, those of all generations together; the number before theirs says how many slots were ever taken."""
_FORM: Final = "q"


class ConnectionCount:
    """The numbers of all workers."""

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor of the memory (``create``)."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SLOTS * calcsize(_FORM))
        self._counts = memoryview(self._memory).cast(_FORM)
        self._free = list(range(SLOTS - 1, 0, -1))

    @classmethod
    def create(cls) -> "ConnectionCount":
        """Make the memory, all of it 0."""
        descriptor = os.memfd_create("chatd connections", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, SLOTS * calcsize(_FORM))
        return cls(descriptor)

    def take(self) -> int:
        """Give a slot that nobody has. For the parent alone. Raises IndexError where all are taken."""
        slot = self._free.pop()
        self._counts[0] = max(slot, self._counts[0])
        return slot

    def free(self, slot: int) -> None:
        """Count a worker that has ended no more."""
        self._counts[slot] = 0
        self._free.append(slot)

    def write(self, slot: int, count: int) -> None:
        """Say how many connections the worker with that slot has."""
        self._counts[slot] = count

    def total(self) -> int:
        """Add up all workers."""
        return sum(self._counts[1 : self._counts[0] + 1])
