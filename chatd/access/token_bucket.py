"""Token buckets: so much at once, then so much a second. They know no clock: it is told with each question."""

from collections.abc import Callable, Sequence
from typing import Protocol

NO_TIME = 1e-6
"""Seconds that are none: what floats leave over."""

_TOLD_LEAST, _TOLD_PART = 2, 32
"""Other workers are told of what was taken from a bucket when it is at least so much, and such a part of its burst."""


class TokenBucket:
    """One bucket. Times are in seconds, from anywhere, and never go back."""

    __slots__ = ("_at", "_burst", "_level", "debt", "rate", "untold")

    def __init__(self, rate: float, burst: float, now: float, debt: float = 0.0) -> None:
        """Set what comes in a second, what the bucket holds (it starts full), and how much it may owe.

        It may always owe as much as it holds.
        """
        self.rate = rate
        self.debt = max(burst, debt)
        self.untold = 0.0
        """What was taken here since other workers were last told (``usage``)."""
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, count: float, now: float) -> bool:
        """Take so much, if it is there."""
        self._fill(now)
        if count > self._level:
            return False
        self._level -= count
        self.untold += count
        return True

    def request(self, count: float, now: float, *, recovers: bool) -> float:
        """Take a request that costs so much and return 0; or return in how many seconds it may be made.

        A request that recovers missed messages may owe: it waits only if half of what may be owed is owed.
        """
        wait = self.wait(-self.debt / 2 if recovers else 1, now)
        if wait > NO_TIME:
            return wait
        self.spend(count, now)
        return 0.0

    def spend(self, count: float, now: float) -> None:
        """Take so much even if it is more than there is: what was used already has to be paid. The debt is bounded."""
        self.spend_elsewhere(count, now)
        self.untold += count

    def spend_elsewhere(self, count: float, now: float) -> None:
        """Take what was used on other workers, as ``spend`` does."""
        self._fill(now)
        self._level = max(self._level - count, -self.debt)

    def wait(self, count: float, now: float) -> float:
        """Return in how many seconds so much will be there; a negative count is a debt that is allowed."""
        self._fill(now)
        return max(0.0, (min(count, self._burst) - self._level) / self.rate)

    def much(self) -> bool:
        """Return whether so much was taken and not told that it matters on other workers."""
        return self.untold >= max(_TOLD_LEAST, self._burst / _TOLD_PART)

    def full(self, now: float) -> bool:
        """Whether nothing was taken for so long that it is as if it were new."""
        self._fill(now)
        return self._level >= self._burst

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + (now - self._at) * self.rate)
        self._at = now


class SlowedClient(Protocol):
    """Somebody who has something still to say, at its pace."""

    def hurry(self) -> None:
        """Say it now: there is no time any more."""


class SlowedClients:
    """Clients that are slowed down. What those that are gone left behind is bounded."""

    def __init__(self, most: int) -> None:
        """Set how many bytes of UTF-8 the clients that are gone may have left behind, together."""
        self._most = most
        self._left: dict[SlowedClient, int] = {}
        self._total = 0

    def add(self, client: SlowedClient) -> None:
        """Register a client."""
        self._left.setdefault(client, 0)

    def leave(self, client: SlowedClient, size: int) -> bool:
        """Note that a client is gone and left so many bytes behind. Return whether they may still be published.

        If they may not, the client is forgotten: it counts no more.
        """
        total = self._total + size - self._left.get(client, 0)
        if total > self._most:
            self.discard(client)
            return False
        self._total = total
        self._left[client] = size
        return True

    def discard(self, client: SlowedClient) -> None:
        """Forget a client."""
        self._total -= self._left.pop(client, 0)

    def hurry(self) -> None:
        """Let all of them publish at once what they still have."""
        for client in list(self._left):
            client.hurry()


class SharedBuckets(Protocol):
    """What a pace needs of the usage of its address, which all clients of the address share."""

    messages: TokenBucket | None
    bytes: TokenBucket | None
    requests: TokenBucket | None

    def touch(self) -> None:
        """Note that something was taken from a bucket."""


class ClientRate:
    """How fast one client may publish and read: its own buckets, and those that it shares with its address."""

    __slots__ = ("_bytes", "_joins", "_messages", "_read_bytes", "_refused", "_seconds", "_shared", "slowed")

    def __init__(
        self,
        messages: TokenBucket | None,
        size: TokenBucket | None,
        joins: TokenBucket | None,
        seconds: Callable[[], float],
        slowed: SlowedClients,
        *,
        shared: SharedBuckets | None = None,
        read_bytes: int = 1,
    ) -> None:
        """Take the client's buckets of messages, bytes and joins, the clock, and the clients that wait.

        The usage of its address is shared. So many bytes that are read cost one request of the address.
        """
        self._messages = messages
        self._bytes = size
        self._joins = joins
        self._seconds = seconds
        self._shared = shared
        self._read_bytes = read_bytes
        self.slowed = slowed
        self._refused = [0, 0]  # messages, requests

    @property
    def refused(self) -> int:
        """Return how many messages were refused since one was taken, and how many requests."""
        return sum(self._refused)

    @property
    def messages_per_second(self) -> float | None:
        """Return how many messages per second the client may publish at most; None: no limit."""
        buckets = (self._messages, self._shared.messages if self._shared is not None else None)
        return min((bucket.rate for bucket in buckets if bucket is not None), default=None)

    def full(self, now: float) -> bool:
        """Return whether the client's own buckets are full, as if it were new."""
        buckets = (self._messages, self._bytes, self._joins)
        return all(bucket is None or bucket.full(now) for bucket in buckets)

    def take(self, size: int, count: int = 1) -> float:
        """Take a message of so many bytes and return 0; or return in how many seconds it may be taken.

        Count is how many messages it costs. One is enough to begin: the rest is owed, and the next one waits for it.
        The same goes for the bytes of the address, so that small messages of others do not keep out a large one.
        """
        now, shared = self._seconds(), self._shared
        wait = self._messages.wait(1, now) if self._messages is not None else 0.0
        if self._bytes is not None:
            wait = max(wait, self._bytes.wait(size, now))
        if shared is not None:
            wait = max(wait, _wait(shared.messages, now), _wait(shared.bytes, now))
        if wait > NO_TIME:
            self._refused[0] += 1
            return wait
        self._refused[0] = 0
        if self._messages is not None:
            self._messages.spend(count, now)
        if self._bytes is not None:
            self._bytes.spend(size, now)
        if shared is not None:
            if shared.messages is not None:
                shared.messages.spend(count, now)
            if shared.bytes is not None:
                shared.bytes.spend(size, now)
            shared.touch()
        return 0.0

    def take_some(self, sizes: Sequence[int]) -> tuple[int, float]:
        """Take as many of these messages as may go now. Return how many, and in how many seconds the next one may."""
        for place, size in enumerate(sizes):
            if wait := self.take(size):
                return place, wait
        return len(sizes), 0.0

    def join(self) -> float:
        """Join a room and return 0; or return in how many seconds it may be joined."""
        now = self._seconds()
        if self._joins is None or self._joins.take(1, now):
            return 0.0
        return self._joins.wait(1, now)

    def ask(self, count: int = 1, *, recovers: bool = False) -> float:
        """Take a request of the address, or so many, as ``TokenBucket.request`` does."""
        shared = self._shared
        if shared is None or shared.requests is None:
            return 0.0
        if wait := shared.requests.request(count, self._seconds(), recovers=recovers):
            self._refused[1] += 1
            return wait
        if count:
            self._refused[1] = 0
        shared.touch()
        return 0.0

    def read(self, size: int) -> None:
        """Charge the address for so many bytes of text that were read for the client."""
        shared = self._shared
        if size and shared is not None and shared.requests is not None:
            shared.requests.spend(size / self._read_bytes, self._seconds())
            shared.touch()


def _wait(bucket: TokenBucket | None, now: float) -> float:
    return bucket.wait(1, now) if bucket is not None else 0.0
