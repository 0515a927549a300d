"""What a client has surely got: as far as its kernel has acknowledged what was written.

What was written to a connection that then breaks may never have arrived; a client that comes back gets that again.
"""

from collections import deque
from typing import Protocol

from chatd.message import Position


class Written(Protocol):
    """What is asked of a connection."""

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes were written, and how many of them arrived; both counted from anywhere."""


class Receipts:
    """The positions that one client was given, and up to which of them it has got everything."""

    __slots__ = ("_closed", "_got", "_line", "_marks", "_sealed")

    def __init__(self, line: Written, most: int) -> None:
        """Take the connection, and how many positions to remember."""
        self._line = line
        self._marks: deque[tuple[int, Position]] = deque(maxlen=most)  # without the oldest less is known, nothing wrong
        self._got: Position | None = None
        self._closed = False
        self._sealed = False

    def given(self, position: Position) -> Position | None:
        """Note that all up to a position has been written; give up to which one it has got everything, if any."""
        if not self._closed:
            written, arrived = self._line.progress
            if not self._sealed:
                while self._marks and self._marks[-1][0] >= written:
                    self._marks.pop()  # it was said to be more than it was
                if not self._marks or self._marks[-1][1] != position:
                    self._marks.append((written, position))
            self._collect(arrived)
        return self._got

    def seal(self) -> None:
        """Note no position from now on: nothing more is written."""
        self._sealed = True

    def close(self) -> None:
        """See for the last time what has arrived: the connection is about to end."""
        if not self._closed:
            self._collect(self._line.progress[1])
            self._closed = True

    def _collect(self, arrived: int) -> None:
        while self._marks and self._marks[0][0] <= arrived:
            self._got = self._marks.popleft()[1]
