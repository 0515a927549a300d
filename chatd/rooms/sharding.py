"""The shards of a worker: a bus and a hub for each broker, and which of them has a room.

Rooms are spread over independent brokers by rendezvous hashing: a room is on the broker whose hash together with the
room's name is the highest. Every worker on every host finds the same one, in whatever order it was told of them, and
where a broker is added only the rooms that it wins move. Each shard has its own links, order, history and outage; one
that is away stops its own rooms alone. With one broker there is one shard, and nothing is hashed.
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
    """One broker, as this worker has it."""

    identity: str
    """What names the broker on all hosts."""
    bus: Bus
    hub: Hub


class Shards:
    """All of them: what is about a room goes to one, the rest to each."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Take at least one."""
        self._shards = list(shards)
        self._place: Callable[[str], Shard] = lru_cache(_ROOMS_KNOWN)(self._find)

    def __iter__(self) -> Iterator[Shard]:
        """Give them, in the order of the options."""
        return iter(self._shards)

    def hub(self, room: str) -> Hub:
        """Give the hub that has a room."""
        shards = self._shards
        return shards[0].hub if len(shards) == 1 else self._place(room).hub

    def _find(self, room: str) -> Shard:
        return max(self._shards, key=lambda shard: score(shard.identity, room))

    # From beginning to end

    def start(self) -> None:
        """Dial all brokers."""
        for shard in self._shards:
            shard.bus.start()
            shard.hub.start()

    def share(self, limits: RateLimits) -> None:
        """Share with all workers what addresses do on this one: through the same broker on all hosts."""
        min(self._shards, key=lambda shard: shard.identity).bus.shared_limits.share(limits)

    def evict(self) -> None:
        """Keep the memory of the brokers, which are private ones, from running out."""
        for shard in self._shards:
            shard.bus.eviction.start()

    def hold(self) -> "Deferred[Any]":
        """Take no more messages; fires when all that were taken are published."""
        for shard in self._shards:
            shard.hub.publisher.hold()
        return gatherResults([shard.hub.publisher.flushed() for shard in self._shards], consumeErrors=True)

    def fan_out(self) -> None:
        """Deliver at once what has come."""
        for shard in self._shards:
            with log.failuresHandled("messages from {broker} were not delivered", broker=shard.identity):
                shard.hub.fan_out()

    def saved(self) -> "Deferred[Any]":
        """Fire once all places are kept, and it is said who has left."""
        stored = [
            stored
            for shard in self._shards
            for stored in (shard.bus.resume_positions.saved(), shard.bus.presence.flushed())
        ]
        return gatherResults(stored, consumeErrors=True)

    def logged(self) -> "Deferred[Any]":
        """Fire once the chat log has all that is known to be said, or its lock was held for too long."""
        return gatherResults([shard.hub.publisher.logged() or succeed(None) for shard in self._shards])

    def stop(self) -> None:
        """Hang up."""
        for shard in self._shards:
            with log.failuresHandled("the link to {broker} was not stopped in order", broker=shard.identity):
                shard.hub.stop()
                shard.bus.stop()

    # How they are

    def probe(self) -> "Deferred[list[str]]":
        """Publish to ourselves through each; fires with what is wrong, a line for each that is, when all are known."""

        def tell(results: list[tuple[bool, Any]]) -> list[str]:
            return [
                f"{shard.identity}: {result.value}" if len(self._shards) > 1 else str(result.value)
                for shard, (well, result) in zip(self._shards, results, strict=True)
                if not well and (result.check(NotPublished) or result.raiseException())
            ]

        return DeferredList([shard.bus.probe() for shard in self._shards], consumeErrors=True).addCallback(tell)

    @property
    def away(self) -> str:
        """Why nothing can be published through one of them now; empty while it can through each."""
        troubles = [(shard.identity, shard.bus.away) for shard in self._shards if shard.bus.away]
        return "; ".join(f"{name}: {why}" if len(self._shards) > 1 else why for name, why in troubles)

    @property
    def room_count(self) -> int:
        """Return the number of rooms that have members on this worker, or are about to."""
        return sum(len(shard.hub.rooms) for shard in self._shards)

    @property
    def taken(self) -> int:
        """How many messages were taken, ever."""
        return sum(shard.hub.publisher.taken for shard in self._shards)

    @property
    def unreachable(self) -> str:
        """Why nothing can be read now of any room; empty while there is one of which it can."""
        troubles = [shard.bus.unreachable for shard in self._shards]
        return "" if not all(troubles) else troubles[0]

    def list_rooms(self) -> "Deferred[tuple[Sequence[OccupiedRoom], bool]]":
        """List the rooms that have members or messages, by name, and say whether there may be more.

        Those of a broker that can't be reached are left out, unless none can.
        """
        well = [shard for shard in self._shards if not shard.bus.unreachable] or self._shards

        def together(lists: list[tuple[Sequence[OccupiedRoom], bool]]) -> tuple[Sequence[OccupiedRoom], bool]:
            rooms = sorted((each for listed, _ in lists for each in listed), key=lambda each: each.room)
            return rooms, len(well) < len(self._shards) or any(more for _, more in lists)

        listing = gatherResults([shard.hub.list_rooms() for shard in well], consumeErrors=True)
        return listing.addErrback(_first_failure).addCallback(together)


def _first_failure(failure: Failure) -> Failure:
    """Return what ``gatherResults`` wraps: the failure of one shard, or that nobody waits for it any more."""
    failure.trap(FirstError)
    error: Any = failure.value
    first: Failure = error.subFailure
    return first


def score(identity: str, room: str) -> bytes:
    """Give what a broker bids for a room; the highest has it."""
    return blake2b(f"{identity} {room}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
