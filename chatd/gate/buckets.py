"""Token buckets: so much at once, then so much a second. They know no clock: it is told with each question."""

from collections.abc import Callable, Sequence
from typing import Protocol

_NO_TIME = 1e-6
"""Seconds that are none: what floats leave over."""


class Bucket:
    """One bucket. Times are in seconds, from anywhere, and never go back."""

    __slots__ = ("_at", "_burst", "_level", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """Take what comes in a second and what it holds, full at first."""
        self.rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, count: float, now: float) -> bool:
        """Take so much, if it is there."""
        self._fill(now)
        if count > self._level:
            return False
        self._level -= count
        return True

    def spend(self, count: float, now: float) -> None:
        """Take so much, that has been had already, though it be more than there is: down to as much as it holds."""
        self._fill(now)
        self._level = max(self._level - count, -self._burst)

    def wait(self, count: float, now: float) -> float:
        """Give in how many seconds so much will be there."""
        self._fill(now)
        return max(0.0, (min(count, self._burst) - self._level) / self.rate)

    def full(self, now: float) -> bool:
        """Whether nothing was taken for so long that it is as if it were new."""
        self._fill(now)
        return self._level >= self._burst

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + (now - self._at) * self.rate)
        self._at = now


class Late(Protocol):
    """Somebody who has something still to say, at its pace."""

    def hurry(self) -> None:
        """Say it now: there is no time any more."""


class Slowed:
    """Those who have something still to say, among them some who are gone: what these left behind is bounded."""

    def __init__(self, most: int) -> None:
        """Take how many characters those who are gone may have left behind, together."""
        self._most = most
        self._left: dict[Late, int] = {}

    def add(self, who: Late) -> None:
        """Know of one more."""
        self._left[who] = 0

    def leave(self, who: Late, size: int) -> bool:
        """Let it go, with so much to be said yet; whether that may still be said."""
        self._left[who] = size
        return sum(self._left.values()) <= self._most

    def discard(self, who: Late) -> None:
        """Know of one less."""
        self._left.pop(who, None)

    def hurry(self) -> None:
        """Let all of them say it now."""
        for who in list(self._left):
            who.hurry()


class Pace:
    """How fast one client may speak: messages and bytes, each with a bucket of its own."""

    __slots__ = ("_bytes", "_joins", "_messages", "_seconds", "refused", "slowed")

    def __init__(
        self,
        messages: Bucket | None,
        size: Bucket | None,
        joins: Bucket | None,
        seconds: Callable[[], float],
        slowed: "Slowed",
    ) -> None:
        """Take buckets of messages, of bytes and of rooms to join, what tells the time, and who waits already."""
        self._messages = messages
        self._bytes = size
        self._joins = joins
        self._seconds = seconds
        self.slowed = slowed
        self.refused = 0
        """How many messages were refused since one was taken."""

    @property
    def messages_per_second(self) -> float | None:
        """How many messages a second it may say; None: as many as it likes."""
        return self._messages.rate if self._messages is not None else None

    def full(self, now: float) -> bool:
        """Whether nothing was said for so long that it is as if it were new."""
        return all(each is None or each.full(now) for each in (self._messages, self._bytes, self._joins))

    def take(self, size: int) -> float:
        """Take a message of so many bytes, and give 0; or give in how many seconds it may be taken."""
        now = self._seconds()
        wait = self._messages.wait(1, now) if self._messages is not None else 0.0
        if self._bytes is not None:
            wait = max(wait, self._bytes.wait(size, now))
        if wait > _NO_TIME:
            self.refused += 1
            return wait
        self.refused = 0
        if self._messages is not None:
            self._messages.spend(1, now)
        if self._bytes is not None:
            self._bytes.spend(size, now)
        return 0.0

    def join(self) -> float:
        """Join a room, and give 0; or give in how many seconds it may be joined."""
        now = self._seconds()
        if self._joins is None or self._joins.take(1, now):
            return 0.0
        return self._joins.wait(1, now)

    def take_some(self, sizes: Sequence[int]) -> tuple[int, float]:
        """Take as many of these messages as may go now; give how many, and in how many seconds the next one may."""
        for place, size in enumerate(sizes):
            if wait := self.take(size):
                return place, wait
        return len(sizes), 0.0
