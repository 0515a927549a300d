"""Token buckets: a burst, then a rate. They read no clock: each call has the time."""

from collections.abc import Callable, Sequence
from typing import Protocol

NO_TIME = 1e-6
"""Seconds that are none: what floats leave over."""

_REPORTED_LEAST, _REPORTED_PART = 2, 32
"""Usage is reported to other workers if it is at least so much, and such a part of the burst."""


class TokenBucket:
    """One bucket. Times are in seconds, from anywhere, and never go back."""

    __slots__ = ("_at", "_burst", "_level", "debt", "rate", "unreported")

    def __init__(self, rate: float, burst: float, now: float, debt: float = 0.0) -> None:
        """Store how much is added each second, the capacity (the bucket starts full), and the additional debt.

        It may always owe as much as it holds.
        """
        self.rate = rate
        self.debt = max(burst, debt)
        self.unreported = 0.0
        """How much was taken here since the last report to other workers (``usage``)."""
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, count: float, now: float) -> bool:
        """Consume an amount if it is available; return whether it was."""
        self._fill(now)
        if count > self._level:
            return False
        self._level -= count
        self.unreported += count
        return True

    def request(self, count: float, now: float, *, recovers: bool) -> float:
        """Consume the cost of a request and return 0; or return after how many seconds it is allowed.

        A request that recovers missed messages may owe: it waits only if half of the allowed debt is used.
        """
        wait = self.wait(-self.debt / 2 if recovers else 1, now)
        if wait > NO_TIME:
            return wait
        self.spend(count, now)
        return 0.0

    def spend(self, count: float, now: float) -> None:
        """Consume an amount even if it is not available: it was used already. The debt is bounded."""
        self.spend_elsewhere(count, now)
        self.unreported += count

    def spend_elsewhere(self, count: float, now: float) -> None:
        """Consume what was used on other workers, as ``spend`` does."""
        self._fill(now)
        self._level = max(self._level - count, -self.debt)

    def wait(self, count: float, now: float) -> float:
        """Return in how many seconds so much will be there; a negative count is a debt that is allowed."""
        self._fill(now)
        return max(0.0, (min(count, self._burst) - self._level) / self.rate)

    def worth_reporting(self) -> bool:
        """Return whether so much was taken since the last report that other workers need to know."""
        return self.unreported >= max(_REPORTED_LEAST, self._burst / _REPORTED_PART)

    def full(self, now: float) -> bool:
        """Return whether it is as full as a new one."""
        self._fill(now)
        return self._level >= self._burst

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + (now - self._at) * self.rate)
        self._at = now


class SlowedClient(Protocol):
    """A client that has kept messages because of its rate."""

    def publish_now(self) -> None:
        """Publish the kept messages at once."""


class SlowedClients:
    """The clients that have kept messages because of their rate. Those of disconnected clients are bounded."""

    def __init__(self, most: int) -> None:
        """Store how many bytes of UTF-8 the disconnected clients may have left, together."""
        self._most = most
        self._left: dict[SlowedClient, int] = {}
        self._total = 0

    def add(self, client: SlowedClient) -> None:
        """Register a client."""
        self._left.setdefault(client, 0)

    def reserve(self, client: SlowedClient, size: int) -> bool:
        """Reserve room for the unpublished text of a disconnected client, in bytes; return whether there is room.

        If not, the client is forgotten.
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

    def publish_now(self) -> None:
        """Make all clients publish at once what they have kept."""
        for client in list(self._left):
            client.publish_now()


class SharedBuckets(Protocol):
    """The usage of an address, as far as a client's rate needs it; all clients of the address share it."""

    messages: TokenBucket | None
    bytes: TokenBucket | None
    requests: TokenBucket | None

    def touch(self) -> None:
        """Record that something was taken from a bucket."""


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
        """Store the client's buckets of messages, bytes and joins, the clock, and the clients that wait.

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
        """How many messages, and requests, were refused since the last accepted one."""
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
        """Charge a message, whose size is in bytes, and return 0; otherwise return the seconds until it is allowed.

        Count is how many messages it costs. One is enough to start: the rest is owed, and the next message waits for
        it. The same holds for the bytes of the address, so that small messages of others do not keep out a large one.
        """
        now, shared = self._seconds(), self._shared
        charges: list[tuple[TokenBucket | None, float, float]] = [
            (self._messages, 1, count),
            (self._bytes, size, size),
        ]
        if shared is not None:
            charges += [(shared.messages, 1, count), (shared.bytes, 1, size)]
        limits = [(bucket, needed, used) for bucket, needed, used in charges if bucket is not None]
        wait = max((bucket.wait(needed, now) for bucket, needed, _ in limits), default=0.0)
        if wait > NO_TIME:
            self._refused[0] += 1
            return wait
        self._refused[0] = 0
        for bucket, _, used in limits:
            bucket.spend(used, now)
        if shared is not None:
            shared.touch()
        return 0.0

    def take_some(self, sizes: Sequence[int]) -> tuple[int, float]:
        """Consume as many of these messages as are allowed now.

        Return how many, and after how many seconds the next one is.
        """
        for number, size in enumerate(sizes):
            if wait := self.take(size):
                return number, wait
        return len(sizes), 0.0

    def join(self) -> float:
        """Join a room and return 0; or return in how many seconds it may be joined."""
        now = self._seconds()
        if self._joins is None or self._joins.take(1, now):
            return 0.0
        return self._joins.wait(1, now)

    def ask(self, count: int = 1, *, recovers: bool = False) -> float:
        """Consume requests of the address, as ``TokenBucket.request`` does."""
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
        """Charge the address for the size of the text, in bytes, that was read for the client."""
        shared = self._shared
        if size and shared is not None and shared.requests is not None:
            shared.requests.spend(size / self._read_bytes, self._seconds())
            shared.touch()
