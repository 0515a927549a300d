"""The stream positions that a client has received for certain: its kernel has acknowledged all bytes before them.

Data that was written to a connection which then breaks may never have arrived. A client that resumes gets it again.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice

from chatd.protocol.message import StreamPosition


class Receipts:
    """The positions that were delivered to one client, and the newest one up to which everything has arrived."""

    __slots__ = ("_closed", "_got", "_marks", "_most", "_progress", "_sealed", "received_all")

    def __init__(self, progress: Callable[[], tuple[int, int]], most: int) -> None:
        """Store how many positions to keep, beyond which every second one is dropped, and the connection's progress.

        Progress returns how many bytes were written, and how many of them have arrived; both counted from anywhere.
        """
        self._progress = progress
        self._most = most
        self._marks: deque[tuple[int, StreamPosition]] = deque()
        self._got: StreamPosition | None = None
        self._closed = False
        self._sealed = False
        self.received_all = False
        """Whether everything written had arrived when the connection ended: the client was there to the end."""

    def record(self, position: StreamPosition) -> StreamPosition | None:
        """Record that everything up to a position was written; return the position that has arrived, if any."""
        if not self._closed:
            self._note(position, *self._progress())
        return self._got

    def record_early(self, position: StreamPosition) -> None:
        """Record a position between two regular ones, if all earlier ones have arrived: what follows may be lost."""
        if self._newest != position and not self._closed:
            written, arrived = self._progress()
            self._collect(arrived)
            if not self._marks:
                self._note(position, written, arrived)

    def _note(self, position: StreamPosition, written: int, arrived: int) -> None:
        if not self._sealed:
            while self._marks and self._marks[-1][0] >= written:
                self._marks.pop()  # the count of bytes was too high
            if self._newest != position:
                if len(self._marks) == self._most:  # the oldest stays: it is the next to arrive
                    self._marks = deque(islice(self._marks, 0, None, 2))
                self._marks.append((written, position))
        self._collect(arrived)

    @property
    def _newest(self) -> StreamPosition | None:
        return self._marks[-1][1] if self._marks else self._got

    def seal(self) -> None:
        """Record no further position: nothing more is written."""
        self._sealed = True

    def close(self) -> None:
        """Record for the last time what has arrived: the connection is about to end."""
        if not self._closed:
            written, arrived = self._progress()
            self._collect(arrived)
            self._closed, self.received_all = True, arrived >= written

    def _collect(self, arrived: int) -> None:
        while self._marks and self._marks[0][0] <= arrived:
            self._got = self._marks.popleft()[1]


class Acknowledging:
    """A subscriber whose received positions are recorded if it has a resume key."""

    __slots__ = ()

    _receipts: Receipts | None

    def record(self, position: StreamPosition) -> StreamPosition | None:
        """Record that everything up to a position was written; return the position that has arrived, if known."""
        return self._receipts.record(position) if self._receipts is not None else None

    def record_early(self, position: StreamPosition) -> None:
        """Record a position between two regular ones."""
        if self._receipts is not None:
            self._receipts.record_early(position)

    @property
    def received_all(self) -> bool:
        """Whether everything written, its end included, had arrived when the connection ended."""
        return self._receipts is not None and self._receipts.received_all

    def seal(self) -> None:
        """Record no further position."""
        if self._receipts is not None:
            self._receipts.seal()

    def close(self) -> None:
        """Record for the last time what has arrived."""
        if self._receipts is not None:
            self._receipts.close()
