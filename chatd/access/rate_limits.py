"""The limits of a client and of an address: messages, requests, connections, rooms, new connections in a minute.

``auto`` limits clients of other hosts only. ``address_usage`` counts what an address uses. Its use on other workers
arrives up to a second later (``shared_limits``), so an address may exceed its limits for that second. An IPv6 address
counts with its /64, which one customer gets.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from chatd.access.address_usage import AddressUsage, AddressUsageTable
from chatd.access.token_bucket import ClientRate, SlowedClients, TokenBucket
from chatd.config.settings import Config
from chatd.config.values import limit
from chatd.protocol.http_head import Refused, unavailable

Member = TypeVar("Member")

_MINUTE = 60.0


class _Rates(NamedTuple):
    """The limits on one kind of listener as numbers; 0: no limit."""

    message_rate: float
    byte_rate: float
    connections_per_address: float
    connection_rate: float
    room_rate: float
    handshake_rate: float
    request_rate: float
    address_message_rate: float
    address_byte_rate: float


def _rates(config: Config, *, auto: bool) -> _Rates:
    names = _Rates._fields
    return _Rates(*(limit(getattr(config, name), getattr(config, f"auto_{name}") * auto) for name in names))


class RateLimits:
    """The limits of a worker."""

    def __init__(self, config: Config, seconds: Callable[[], float]) -> None:
        """Set the clock: seconds since any moment."""
        self._config = config
        self._seconds = seconds
        self._rates = (_rates(config, auto=False), _rates(config, auto=True))  # by whether a listener is exposed
        self.usages = AddressUsageTable(
            config, seconds, max(2, int((self._rates[True].connections_per_address or 64) / 32))
        )
        """The usage of addresses."""
        self._made: OrderedDict[str, None] = OrderedDict()  # rooms
        self._handshakes: TokenBucket | None = None
        self.slowed = SlowedClients(config.disconnected_slowed_bytes)
        """Clients that are slowed down."""

    # A client

    def client_rate(self, address: str, *, exposed: bool) -> ClientRate | None:
        """Return how fast a client at an address may publish and read; None: without limits."""
        config, now, rates = self._config, self._seconds(), self._rates[exposed]
        shared = self._shared(address, rates, now)
        if not rates.message_rate and not rates.byte_rate and shared is None:
            return None
        rate, size = rates.message_rate, rates.byte_rate
        return ClientRate(
            self._bucket(rate, config.message_burst, now) if rate else None,
            self._bucket(size, max(2 * size, config.max_message_size), now) if size else None,
            TokenBucket(rate, config.rooms_per_client, now) if rate else None,
            self._seconds,
            self.slowed,
            shared=shared,
            read_bytes=config.read_bytes_per_request,
        )

    def _shared(self, address: str, rates: _Rates, now: float) -> AddressUsage | None:
        """Return the usage of an address with its buckets for all its clients; None if nothing limits them."""
        config, rate, size = self._config, rates.address_message_rate, rates.address_byte_rate
        if not (rate or size or rates.request_rate) or (usage := self.usages.find(address)) is None:
            return None
        if rate:
            usage.messages = usage.messages or self._bucket(rate, max(2 * rate, config.message_burst), now)
        if size:
            usage.bytes = usage.bytes or self._bucket(size, max(2 * size, config.max_message_size), now)
        if rates.request_rate:
            usage.requests = usage.requests or self._requests(rates, now)
        return usage

    def _bucket(self, rate: float, burst: float, now: float) -> TokenBucket:
        return TokenBucket(rate, burst, now, self._config.rate_limit_debt_time * rate)

    def _requests(self, rates: _Rates, now: float) -> TokenBucket:
        return self._bucket(rates.request_rate, max(1, self._config.request_burst_time * rates.request_rate), now)

    # An address

    def request(
        self, address: str, *, exposed: bool, count: int = 1, probe: bool = False, recovers: bool = False
    ) -> None:
        """Charge an address for requests. Raise Refused: 429.

        Probes have a bucket of their own. A request that recovers missed messages may owe (``TokenBucket.request``).
        """
        rates = self._rates[exposed]
        if not rates.request_rate or (usage := self.usages.find(address)) is None:
            return
        now = self._seconds()
        if probe:
            bucket = usage.probes = usage.probes or self._requests(rates, now)
        else:
            bucket = usage.requests = usage.requests or self._requests(rates, now)
        if wait := bucket.request(count, now, recovers=recovers):
            raise too_many(f"{rates.request_rate:g} requests a second from one address at most", wait)
        usage.touch()

    def charge(self, address: str, requests: float, *, exposed: bool) -> None:
        """Charge an address for requests that were made already: the next ones wait."""
        rates = self._rates[exposed]
        if rates.request_rate and (usage := self.usages.find(address)) is not None:
            now = self._seconds()
            usage.requests = usage.requests or self._requests(rates, now)
            usage.requests.spend(requests, now)
            usage.touch()

    def read(self, address: str, size: int, *, exposed: bool) -> None:
        """Charge an address for the size of the text, in bytes, that was read for it."""
        self.charge(address, size / self._config.read_bytes_per_request, exposed=exposed)

    def crowded(self, address: str) -> bool:
        """Return whether an address exceeds its connections so far that new ones are dropped without an answer."""
        most = self._rates[True].connections_per_address
        usage = self.usages.get(address)
        return bool(most) and usage is not None and usage.connections >= 2 * most

    def admit(self, address: str, *, exposed: bool, counted: bool) -> None:
        """Check the limits for one more connection, which may be counted already.

        Raise Refused: 429, or 503 in a crowd.
        """
        now, rates = self._seconds(), self._rates[exposed]
        self.stay(address, exposed=exposed, counted=counted)
        rate = rates.connection_rate
        if rate and (usage := self.usages.find(address)) is not None:
            usage.arrivals = usage.arrivals or TokenBucket(rate / _MINUTE, rate, now)
            if not usage.arrivals.take(1, now):
                wait = usage.arrivals.wait(1, now)
                raise too_many(f"{rate:g} new connections a minute from one address at most", wait)
            usage.touch()
        if rates.handshake_rate:  # last: a client over its own limit takes nothing from others
            self._handshakes = self._handshakes or TokenBucket(rates.handshake_rate, rates.handshake_rate, now)
            if not self._handshakes.take(1, now):
                raise unavailable("too many come at once; try again")

    def stay(self, address: str, *, exposed: bool, counted: bool) -> None:
        """Check the limits for a connection of an address, if it is not counted yet. Raise Refused: 429."""
        most = self._rates[exposed].connections_per_address
        if not most or (usage := self.usages.find(address)) is None:
            return
        fresh = self._seconds() - usage.totals_at <= self._config.shared_limits_ttl
        if usage.connections + (usage.elsewhere if fresh else 0) + (not counted) > most:
            raise too_many(f"{most:g} connections from one address at most", 5.0)

    def minds_rooms(self, *, exposed: bool) -> bool:
        """Return whether the creation of rooms is limited."""
        return self._rates[exposed].room_rate > 0

    def enter(self, address: str, room: str, *, exposed: bool) -> None:
        """Charge an address for a room in which no client was. Raise Refused: 429."""
        rate = self._rates[exposed].room_rate
        if not rate or room in self._made or (usage := self.usages.find(address)) is None:
            return
        now = self._seconds()
        usage.rooms = usage.rooms or TokenBucket(rate / _MINUTE, rate, now)
        if not usage.rooms.take(1, now):
            raise too_many(f"{rate:g} new rooms a minute from one address at most", usage.rooms.wait(1, now))
        usage.touch()
        self._made[room] = None
        if len(self._made) > self._config.rate_limit_rooms:
            self._made.popitem(last=False)

    def post(self, address: str, size: int, *, exposed: bool) -> None:
        """Charge an address for a message over HTTP, whose size is in bytes. Raise Refused: 429.

        All posts of an address share the rate of one client.
        """
        if (usage := self.usages.find(address)) is None:
            return
        usage.posts = usage.posts or self.client_rate(address, exposed=exposed)
        if usage.posts is not None and (wait := usage.posts.take(size)):
            raise too_many("too fast", wait)


def too_many(message: str, wait: float) -> Refused:
    """Return a refusal (429) for a time, in seconds."""
    return Refused(429, "rate_limited", message, (("Retry-After", str(max(1, round(wait + 0.5)))),))


class ConnectionsByAddress(Generic[Member]):
    """Connections of one kind, counted by client address."""

    def __init__(self, limits: RateLimits) -> None:
        self._usages = limits.usages
        self._members: dict[Member, str] = {}

    def add(self, member: Member, address: str) -> None:
        """Add a connection; without an address it is not counted for one."""
        self._members[member] = address
        self._usages.connected(address)

    def discard(self, member: Member) -> None:
        """Count it out, if it is in."""
        address = self._members.pop(member, None)
        if address is not None:
            self._usages.disconnected(address)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def __contains__(self, member: object) -> bool:
        return member in self._members
