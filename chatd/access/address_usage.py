"""The usage of each address on this worker: its connections and its token buckets, in a bounded table.

The workers add up their usage (``shared_limits``). The table reports addresses in turns, so the work of a second
depends on the addresses that were active in it, not on the number of known ones.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from itertools import islice
from typing import NamedTuple

from chatd.access.client_address import read_address
from chatd.access.token_bucket import ClientRate, TokenBucket
from chatd.config.settings import Config


class UsageCounts(NamedTuple):
    """The usage of an address: on one worker since its last report, or on all workers ever."""

    address: str
    connections: int
    """Connections that are open now."""
    arrivals: int = 0
    """Connections that began."""
    rooms: int = 0
    """Rooms that it made."""
    requests: int = 0
    messages: int = 0
    bytes: int = 0


COUNTED = UsageCounts._fields[2:]
"""The counts of an address beside its connections; each has a bucket."""
_NOTHING = (0,) * len(COUNTED)


@lru_cache(maxsize=4096)
def group(address: str) -> str:
    """Return what an address is counted as: itself, or its network; empty for text that is no address."""
    found = read_address(address)
    if isinstance(found, IPv6Address):
        return f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(found or "")


@dataclass(slots=True, eq=False)
class AddressUsage:
    """The usage of one address. A bucket that is None limits nothing."""

    address: str
    _touched: "dict[str, AddressUsage]"
    """The table of usages that changed."""
    connections: int = 0
    arrivals: TokenBucket | None = None
    rooms: TokenBucket | None = None
    requests: TokenBucket | None = None
    messages: TokenBucket | None = None
    bytes: TokenBucket | None = None
    probes: TokenBucket | None = None
    """Health checks; each worker counts them alone."""
    posts: ClientRate | None = None
    """Of all messages that the address posts over HTTP."""
    elsewhere: int = 0
    """Connections on other workers, as reported at totals_at."""
    totals_at: float = 0.0
    totals: tuple[int, ...] = _NOTHING
    """The totals of all workers at that time."""
    reported: int = 0
    """Connections here that were reported to other workers."""

    def touch(self) -> None:
        """Record that a count has changed."""
        self._touched[self.address] = self

    def counted(self) -> tuple[TokenBucket | None, ...]:
        """Return the buckets in the order of COUNTED."""
        return (self.arrivals, self.rooms, self.requests, self.messages, self.bytes)

    def settled(self, now: float) -> bool:
        """Return whether nothing is left of what it used: all its buckets are full."""
        buckets = (*self.counted(), self.probes, self.posts)
        return all(bucket is None or bucket.full(now) for bucket in buckets)

    def matters(self, fewest: int, now: float) -> bool:
        """Return whether other workers have to know what it uses here, or this one what it uses there."""
        if self.connections >= fewest or self.reported >= fewest:
            return True
        if any(bucket is not None and bucket.worth_reporting() for bucket in self.counted()):
            return True
        return any(self.totals) and not self.settled(now)

    def report(self) -> UsageCounts:
        """Return the counts to report, in whole numbers. Counts that were reported are not reported again."""
        used = []
        for bucket in self.counted():
            count = int(bucket.unreported) if bucket is not None else 0
            used.append(count)
            if bucket is not None:
                bucket.unreported -= count
        self.reported = self.connections
        return UsageCounts(self.address, self.connections, *used)

    def update(self, own: UsageCounts, total: UsageCounts, now: float) -> None:
        """Store the totals of all workers, this one included; own is what this worker has reported."""
        before, self.totals = self.totals, total[2:]
        self.elsewhere, self.totals_at = max(0, total.connections - own.connections), now
        if not any(before):  # what others counted before is not known to be new
            return
        for bucket, was, count, mine in zip(self.counted(), before, total[2:], own[2:], strict=True):
            if bucket is not None:
                bucket.spend_elsewhere(max(0, count - was - mine), now)


class AddressUsageTable:
    """The usages of a worker."""

    def __init__(self, config: Config, seconds: Callable[[], float], fewest: int) -> None:
        """Set the clock, and from how many connections on other workers have to know of an address."""
        self._config = config
        self._seconds = seconds
        self._fewest = fewest
        self._connected: dict[str, AddressUsage] = {}
        self._loose: OrderedDict[str, AddressUsage] = OrderedDict()  # without connections, the oldest first
        self._touched: dict[str, AddressUsage] = {}  # that changed and were not looked at yet
        self._shared: OrderedDict[str, AddressUsage] = OrderedDict()  # reported to other workers, in turns

    def __iter__(self) -> Iterator[str]:
        """Iterate over the addresses."""
        yield from self._connected
        yield from self._loose

    def get(self, address: str) -> AddressUsage | None:
        """Return the usage of an address; None if it is not known."""
        return self._get(group(address))

    def find(self, address: str) -> AddressUsage | None:
        """Return the usage of an address, a new one if it was not known; None for text that is no address."""
        name = group(address)
        if not name:
            return None
        usage = self._get(name)
        if usage is None:
            usage = self._loose[name] = AddressUsage(name, self._touched)
            if len(self._connected) + len(self._loose) > self._config.rate_limit_addresses and len(self._loose) > 1:
                self._drop(next(iter(self._loose)))
        elif not usage.connections:
            self._loose.move_to_end(name)
        return usage

    def connected(self, address: str) -> None:
        """Count a connection."""
        if (usage := self.find(address)) is not None:
            usage.connections += 1
            if usage.connections == 1:
                self._connected[usage.address] = self._loose.pop(usage.address)
            usage.touch()

    def disconnected(self, address: str) -> None:
        """Count a connection no more."""
        usage = self._connected.get(group(address))
        if usage is not None:
            usage.connections -= 1
            if not usage.connections:
                self._loose[usage.address] = self._connected.pop(usage.address)
            usage.touch()

    def report(self) -> Sequence[UsageCounts]:
        """Return the counts to report to other workers now; forget addresses without any.

        Addresses with next to no usage are not reported. If there are too many, they take turns.
        """
        now = self._seconds()
        for name in list(islice(self._touched, self._config.shared_limits_per_scan)):
            usage = self._touched.pop(name)
            if name not in self._shared and usage.matters(self._fewest, now):
                usage.totals = _NOTHING
                self._shared[name] = usage
        reported: list[UsageCounts] = []
        for name, usage in list(islice(self._shared.items(), self._config.shared_limits_per_report)):
            if usage.matters(self._fewest, now):
                self._shared.move_to_end(name)
                reported.append(usage.report())
            else:
                del self._shared[name]
        self._forget(now)
        return reported

    def update(self, reported: Sequence[UsageCounts], totals: Sequence[UsageCounts]) -> None:
        """Store the totals of all workers, this one included, for what was reported."""
        now = self._seconds()
        for own, total in zip(reported, totals, strict=True):
            if (usage := self._get(own.address)) is not None:
                usage.update(own, total, now)

    def _get(self, name: str) -> AddressUsage | None:
        return self._connected.get(name) or self._loose.get(name)

    def _forget(self, now: float) -> None:
        """Forget some addresses without connections and usage, in turns."""
        for name in list(islice(self._loose, self._config.shared_limits_per_scan)):
            if name not in self._shared and self._loose[name].settled(now):
                self._drop(name)
            else:
                self._loose.move_to_end(name)

    def _drop(self, name: str) -> None:
        del self._loose[name]
        self._touched.pop(name, None)
        self._shared.pop(name, None)
