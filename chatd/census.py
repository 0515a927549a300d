"""How many different rooms several workers have, of what each says of its own.

A worker says how many rooms it has, and a sample of them: those with the smallest hashes, so that all workers choose
the same ones (k minimum values). As long as every room is in a sample the count is exact, beyond it is about right.
"""

import heapq
from collections.abc import Iterable, Sequence
from zlib import crc32

_HASHES = 2**32


def sample(rooms: Iterable[str], most: int) -> tuple[int, ...]:
    """Give the smallest hashes of rooms, at most so many."""
    return tuple(heapq.nsmallest(most, {crc32(room.encode("utf-8", "surrogatepass")) for room in rooms}))


def count(workers: Sequence[tuple[int, Sequence[int]]]) -> int:
    """Give how many different rooms there are, of each worker's number of rooms and its sample."""
    known = {each for _, hashes in workers for each in hashes}
    cut = [hashes[-1] for rooms, hashes in workers if hashes and len(hashes) < rooms]
    if not cut:
        return len(known)
    below = min(cut)  # up to here every room of every worker is known
    share = sum(each <= below for each in known)
    return max(round(share * _HASHES / (below + 1)), *(rooms for rooms, _ in workers))
