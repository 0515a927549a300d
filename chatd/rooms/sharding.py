"""The shards of a worker: a bus and a hub for each broker, and which of them has a room.

Rooms are distributed over independent brokers by rendezvous hashing: the broker with the highest hash of its name and
the room's name has the room. Every worker on every host finds the same one, in any order of the options. If a broker is
added, only the rooms that it wins move. Each shard has its own connections, order, history and outages. With one broker
there is one shard, and nothing is hashed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.rate_limits import RateLimits
from chatd.broker.bus import Bus
from chatd.broker.presence_list import OccupiedRoom
from chatd.broker.publish_queue import NotPublished
from chatd.rooms.hub import Hub

log = Logger()

_ROOMS_KNOWN = 4096
"""Rooms of which it is remembered where they are."""


@dataclass(frozen=True)
class Shard:
    """One broker, with its bus and hub on this worker."""

    identity: str
    """The name of the broker on all hosts."""
    bus: Bus
    hub: Hub


class Shards:
    """The shards of a worker. Methods about a room use one, the others use each."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Combine shards, at least one."""
        self._shards = list(shards)
        self._place: Callable[[str], Shard] = lru_cache(_ROOMS_KNOWN)(self._find)

    def __iter__(self) -> Iterator[Shard]:
        """Iterate over the shards in the order of the options."""
        return iter(self._shards)

    def hub(self, room: str) -> Hub:
        """Return the hub of a room."""
        shards = self._shards
        return shards[0].hub if len(shards) == 1 else self._place(room).hub

    def _find(self, room: str) -> Shard:
        return max(self._shards, key=lambda shard: score(shard.identity, room))

    # Lifetime

    def start(self) -> None:
        """Connect to all brokers."""
        for shard in self._shards:
            shard.bus.start()
            shard.hub.start()

    def share(self, limits: RateLimits) -> None:
        """Share usage counts per address with all workers, through the same broker on all hosts."""
        min(self._shards, key=lambda shard: shard.identity).bus.shared_limits.share(limits)

    def evict(self) -> None:
        """Start to drop old histories of the private brokers before their memory is full."""
        for shard in self._shards:
            shard.bus.eviction.start()

    def hold(self) -> "Deferred[Any]":
        """Accept no more messages. Return a Deferred that fires when all accepted ones are published."""
        for shard in self._shards:
            shard.hub.publisher.hold()
        return gatherResults([shard.hub.publisher.flushed() for shard in self._shards], consumeErrors=True)

    def broadcast(self) -> None:
        """Broadcast what has arrived from the brokers."""
        for shard in self._shards:
            with log.failuresHandled(
                "broadcasting messages from the broker {broker} failed",
                broker=shard.identity,
                event="shard_broadcast_failed",
            ):
                shard.hub.broadcast()

    def saved(self) -> "Deferred[Any]":
        """Return a Deferred that fires when resume positions and presence are stored."""
        stored = [
            stored
            for shard in self._shards
            for stored in (shard.bus.resume_positions.saved(), shard.bus.presence.flushed())
        ]
        return gatherResults(stored, consumeErrors=True)

    def logged(self) -> "Deferred[Any]":
        """Return a Deferred that fires when the chat log has all messages, or its lock was held for too long."""
        return gatherResults([shard.hub.publisher.logged() or succeed(None) for shard in self._shards])

    def stop(self) -> None:
        """Disconnect from all brokers."""
        for shard in self._shards:
            with log.failuresHandled(
                "disconnecting from the broker {broker} failed", broker=shard.identity, event="broker_disconnect_failed"
            ):
                shard.hub.stop()
                shard.bus.stop()

    # State

    def probe(self) -> "Deferred[list[str]]":
        """Probe each broker. Return a Deferred that fires with one line for each that is not usable."""

        def describe(results: list[tuple[bool, Any]]) -> list[str]:
            return [
                f"{shard.identity}: {result.value}" if len(self._shards) > 1 else str(result.value)
                for shard, (well, result) in zip(self._shards, results, strict=True)
                if not well and (result.check(NotPublished) or result.raiseException())
            ]

        return DeferredList([shard.bus.probe() for shard in self._shards], consumeErrors=True).addCallback(describe)

    @property
    def away(self) -> str:
        """Return why nothing can be published through some broker, or an empty string."""
        troubles = [(shard.identity, shard.bus.away) for shard in self._shards if shard.bus.away]
        return "; ".join(f"{name}: {why}" if len(self._shards) > 1 else why for name, why in troubles)

    @property
    def room_count(self) -> int:
        """Return the number of rooms that have members on this worker, or are about to."""
        return sum(len(shard.hub.rooms) for shard in self._shards)

    @property
    def accepted(self) -> int:
        """Return the number of messages accepted so far."""
        return sum(shard.hub.publisher.accepted for shard in self._shards)

    @property
    def unreachable(self) -> str:
        """Return why no room can be read now, or an empty string."""
        troubles = [shard.bus.unreachable for shard in self._shards]
        return "" if not all(troubles) else troubles[0]

    def list_rooms(self) -> "Deferred[tuple[Sequence[OccupiedRoom], bool]]":
        """Return a Deferred that fires with the rooms that have members or messages, and whether there may be more.

        Rooms of a broker that cannot be reached are left out, unless none can.
        """
        well = [shard for shard in self._shards if not shard.bus.unreachable] or self._shards

        def together(lists: list[tuple[Sequence[OccupiedRoom], bool]]) -> tuple[Sequence[OccupiedRoom], bool]:
            rooms = sorted((room for listed, _ in lists for room in listed), key=lambda room: room.room)
            return rooms, len(well) < len(self._shards) or any(more for _, more in lists)

        listing = gatherResults([shard.hub.list_rooms() for shard in well], consumeErrors=True)
        return listing.addErrback(_first_failure).addCallback(together)


def _first_failure(failure: Failure) -> Failure:
    """Return the failure that ``gatherResults`` wraps."""
    failure.trap(FirstError)
    error: Any = failure.value
    first: Failure = error.subFailure
    return first


def score(identity: str, room: str) -> bytes:
    """Return the score of a broker for a room; the highest has it."""
    return blake2b(f"{identity} {room}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
