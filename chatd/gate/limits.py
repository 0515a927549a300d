"""How much one client, and one address, may do: messages, connections, rooms; and how many may come at once.

``auto`` is what a server that others can reach should have, and nothing on listeners of this host alone. What an
address does is counted here, and what it does on other workers is heard from them a moment later (``room/shares``); so
it may do a little more than it should for a second. An IPv6 address counts with its /64: that is what one customer has.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Generic, NamedTuple, TypeVar

from chatd.config import Config, limit
from chatd.gate.addresses import read_address
from chatd.gate.buckets import Bucket, Pace, Slowed
from chatd.wire.handshake import Refused, unavailable

Member = TypeVar("Member")

_MINUTE = 60.0


class Share(NamedTuple):
    """What an address has done, on one worker or on all of them."""

    address: str
    connections: int
    """That it has now."""
    arrivals: int
    """Connections that it began, and"""
    rooms: int
    """rooms that it made: since the last time on one worker, ever on all of them."""


@lru_cache(maxsize=4096)
def group(address: str) -> str:
    """Give what an address is counted as: itself, or its network; empty for what is none."""
    found = read_address(address)
    if isinstance(found, IPv6Address):
        return f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(found or "")


class _Address:
    """What is known of one address."""

    __slots__ = (
        "arrivals",
        "connections",
        "elsewhere",
        "heard",
        "heard_at",
        "made",
        "new",
        "posts",
        "reported",
        "rooms",
    )

    def __init__(self) -> None:
        self.connections = 0  # here
        self.elsewhere = 0
        self.arrivals: Bucket | None = None
        self.rooms: Bucket | None = None
        self.posts: Pace | None = None
        self.new = 0  # arrivals that were not reported yet
        self.made = 0
        self.heard = (0, 0)  # arrivals and rooms on all workers
        self.heard_at = 0.0
        self.reported = 0  # connections


class Limits:
    """The limits of a worker."""

    def __init__(self, config: Config, seconds: Callable[[], float]) -> None:
        """Take what tells the time, in seconds from anywhere."""
        self._config = config
        self._seconds = seconds
        self._known: OrderedDict[str, _Address] = OrderedDict()
        self._made: OrderedDict[str, None] = OrderedDict()  # rooms
        self._handshakes: Bucket | None = None
        self.slowed = Slowed(config.overdue_bytes)
        """Clients that are slowed down."""
        self._counts = any(
            limit(value, 1.0) for value in (config.limit_connections, config.limit_arrivals, config.limit_rooms)
        )

    # A client

    def pace(self, *, exposed: bool) -> Pace | None:
        """Give how fast a client may speak; None: as fast as it likes."""
        config, now = self._config, self._seconds()
        rate = limit(config.limit_messages, config.auto_messages if exposed else 0)
        size = limit(config.limit_bytes, config.auto_bytes if exposed else 0)
        if not rate and not size:
            return None
        return Pace(
            Bucket(rate, config.limit_burst, now) if rate else None,
            Bucket(size, max(2 * size, config.max_message), now) if size else None,
            Bucket(rate, config.max_rooms, now) if rate else None,
            self._seconds,
            self.slowed,
        )

    # An address

    def came(self, address: str) -> None:
        """Count a connection."""
        if self._counts and (known := self._find(address)) is not None:
            known.connections += 1

    def left(self, address: str) -> None:
        """Count it no more."""
        if self._counts and (known := self._known.get(group(address))) is not None:
            known.connections -= 1

    def crowded(self, address: str) -> bool:
        """Whether an address has so many connections, asked for or not, that there is no time to tell it."""
        most = limit(self._config.limit_connections, self._config.auto_connections)
        known = self._known.get(group(address))
        return bool(most) and known is not None and known.connections >= 2 * most

    def admit(self, address: str, *, exposed: bool, counted: bool) -> None:
        """Let one more connection in, which may be counted already. Raises Refused: 429, or 503 where many come."""
        config, now = self._config, self._seconds()
        self.stay(address, exposed=exposed, counted=counted)
        rate = limit(config.limit_arrivals, config.auto_arrivals if exposed else 0)
        if rate and (known := self._find(address)) is not None:
            known.arrivals = known.arrivals or Bucket(rate / _MINUTE, rate, now)
            if not known.arrivals.take(1, now):
                wait = known.arrivals.wait(1, now)
                raise too_many(f"{rate:g} new connections a minute from one address at most", wait)
            known.new += 1
        budget = limit(config.limit_handshakes, config.auto_handshakes if exposed else 0)
        if budget:  # last: who is refused for itself takes nothing from the others
            self._handshakes = self._handshakes or Bucket(budget, budget, now)
            if not self._handshakes.take(1, now):
                raise unavailable("too many come at once; try again")

    def stay(self, address: str, *, exposed: bool, counted: bool) -> None:
        """Let a connection be one of its address, where it may be counted already. Raises Refused: 429."""
        config = self._config
        most = limit(config.limit_connections, config.auto_connections if exposed else 0)
        if not most or (known := self._find(address)) is None:
            return
        fresh = self._seconds() - known.heard_at <= config.limit_kept_seconds
        if known.connections + (known.elsewhere if fresh else 0) + (not counted) > most:
            raise too_many(f"{most:g} connections from one address at most", 5.0)

    def minds_rooms(self, *, exposed: bool) -> bool:
        """Whether it matters who makes rooms."""
        return limit(self._config.limit_rooms, self._config.auto_rooms if exposed else 0) > 0

    def enter(self, address: str, room: str, *, exposed: bool) -> None:
        """Let it into a room, or say something there, where nobody was. Raises Refused: 429."""
        rate = limit(self._config.limit_rooms, self._config.auto_rooms if exposed else 0)
        if not rate or room in self._made or (known := self._find(address)) is None:
            return
        now = self._seconds()
        known.rooms = known.rooms or Bucket(rate / _MINUTE, rate, now)
        if not known.rooms.take(1, now):
            raise too_many(f"{rate:g} new rooms a minute from one address at most", known.rooms.wait(1, now))
        known.made += 1
        self._made[room] = None
        if len(self._made) > self._config.limit_rooms_known:
            self._made.popitem(last=False)

    def post(self, address: str, size: int, *, exposed: bool) -> None:
        """Let somebody at an address say something over HTTP, of so many bytes. Raises Refused: 429."""
        pace = self.pace(exposed=exposed)
        if pace is None or (known := self._find(address)) is None:
            return
        known.posts = known.posts or pace
        if wait := known.posts.take(size):
            raise too_many("too fast", wait)

    def _find(self, address: str) -> _Address | None:
        """Give what is known of an address, from now on too; None for what is none."""
        name = group(address)
        if not name:
            return None
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _Address()
            if len(self._known) > self._config.limit_addresses:
                self._forget()
        else:
            self._known.move_to_end(name)
        return known

    def _forget(self) -> None:
        """Forget who was not heard of for the longest time and has no connection."""
        for name, known in self._known.items():
            if known.connections == 0:
                del self._known[name]
                return

    # What other workers count

    def report(self) -> Sequence[Share]:
        """Give what addresses have done here that others should know, and of which it matters what they do elsewhere.

        Who does next to nothing is not among them; who has nothing left of what it did is forgotten.
        """
        config, now = self._config, self._seconds()
        fewest = max(2, int((limit(config.limit_connections, config.auto_connections) or 64) / 32))
        told: list[Share] = []
        for name, known in list(self._known.items()):
            idle = _idle(known, now)
            much = max(known.connections, known.new, known.made) >= fewest or known.reported
            if len(told) < config.limit_reported and (much or (known.heard != (0, 0) and not idle)):
                told.append(Share(name, known.connections, known.new, known.made))
                known.reported, known.new, known.made = known.connections, 0, 0
            elif idle:
                del self._known[name]
        return told

    def learn(self, told: Sequence[Share], totals: Sequence[Share]) -> None:
        """Learn what all workers, this one too, have counted of what was reported."""
        now = self._seconds()
        for own, all_together in zip(told, totals, strict=True):
            known = self._known.get(own.address)
            if known is None:
                continue
            known.elsewhere, known.heard_at = max(0, all_together.connections - own.connections), now
            arrivals, rooms = known.heard
            known.heard = (all_together.arrivals, all_together.rooms)
            if arrivals or rooms:  # else what others did before is not known to be new
                if known.arrivals is not None:
                    known.arrivals.spend(max(0, all_together.arrivals - arrivals - own.arrivals), now)
                if known.rooms is not None:
                    known.rooms.spend(max(0, all_together.rooms - rooms - own.rooms), now)


def _idle(known: _Address, now: float) -> bool:
    buckets = (known.arrivals, known.rooms, known.posts)
    return known.connections == 0 and all(each is None or each.full(now) for each in buckets)


def too_many(message: str, wait: float) -> Refused:
    """Refuse for so many seconds."""
    return Refused(429, "rate_limited", message, (("Retry-After", str(max(1, round(wait + 0.5)))),))


class Crowd(Generic[Member]):
    """Connections of one kind, counted by where they come from."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members: dict[Member, str] = {}

    def add(self, member: Member, address: str) -> None:
        """Count one in; an empty address is nobody's."""
        self._members[member] = address
        self._limits.came(address)

    def discard(self, member: Member) -> None:
        """Count it out, if it is in."""
        address = self._members.pop(member, None)
        if address is not None:
            self._limits.left(address)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def __contains__(self, member: object) -> bool:
        return member in self._members
