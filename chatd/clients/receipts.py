"""What a client has surely got: as far as its kernel has acknowledged what was written.

What was written to a connection that then breaks may never have arrived; a client that comes back gets that again.
"""

from collections import deque
from itertools import islice
from typing import Protocol

from chatd.protocol.message import StreamPosition


class Written(Protocol):
    """What is asked of a connection."""

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes were written, and how many of them arrived; both counted from anywhere."""


class Receipts:
    """The positions that one client was given, and up to which of them it has got everything."""

    __slots__ = ("_closed", "_got", "_line", "_marks", "_most", "_sealed", "got_all")

    def __init__(self, line: Written, most: int) -> None:
        """Take the connection, and how many positions to remember; of more every second one is forgotten."""
        self._line = line
        self._most = most
        self._marks: deque[tuple[int, StreamPosition]] = deque()
        self._got: StreamPosition | None = None
        self._closed = False
        self._sealed = False
        self.got_all = False
        """Whether all that was written had arrived when the connection ended: the client was there to the end."""

    def given(self, position: StreamPosition) -> StreamPosition | None:
        """Note that all up to a position has been written; give up to which one it has got everything, if any."""
        if not self._closed:
            self._note(position, *self._line.progress)
        return self._got

    def given_early(self, position: StreamPosition) -> None:
        """Note the same between two of those, where it has got all that was noted before: what follows may be lost."""
        if self._newest != position and not self._closed:
            written, arrived = self._line.progress
            self._collect(arrived)
            if not self._marks:
                self._note(position, written, arrived)

    def _note(self, position: StreamPosition, written: int, arrived: int) -> None:
        if not self._sealed:
            while self._marks and self._marks[-1][0] >= written:
                self._marks.pop()  # it was said to be more than it was
            if self._newest != position:
                if len(self._marks) == self._most:  # the oldest stays: it is the next to arrive
                    self._marks = deque(islice(self._marks, 0, None, 2))
                self._marks.append((written, position))
        self._collect(arrived)

    @property
    def _newest(self) -> StreamPosition | None:
        return self._marks[-1][1] if self._marks else self._got

    def seal(self) -> None:
        """Note no position from now on: nothing more is written."""
        self._sealed = True

    def close(self) -> None:
        """See for the last time what has arrived: the connection is about to end."""
        if not self._closed:
            written, arrived = self._line.progress
            self._collect(arrived)
            self._closed, self.got_all = True, arrived >= written

    def _collect(self, arrived: int) -> None:
        while self._marks and self._marks[0][0] <= arrived:
            self._got = self._marks.popleft()[1]
