"""The limit on the memory of the private broker: before it is full, old histories are dropped.

A full broker refuses to write (``noeviction``), for all rooms and until somebody makes room. So while it is nearly
full, the histories of the rooms that were silent for the longest are dropped, a few at a time. A room that is not
silent loses the older half of its history. Readers are told of the gap as of any history that ran out. The chat log
keeps everything.

One worker at a time does it: the broker says which. A server of the operator's own is never looked at.
"""

import heapq
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from chatd.broker.history import history_key
from chatd.broker.queries import HISTORIES, MEMORY, SHORTEN, Queries
from chatd.config.settings import Config
from chatd.monitoring.metrics import BROKER_MEMORY, BROKER_MEMORY_LIMIT, HISTORIES_DROPPED
from chatd.runtime.timers import Periodic

log = Logger()

MIB = 1_048_576


class Eviction:
    """The eviction of old histories by this worker, from ``start`` to ``stop``."""

    def __init__(self, clock: Any, queries: Queries, config: Config, worker: str) -> None:
        """Prepare for a worker with this unique name."""
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._looks = Periodic(
            clock, config.eviction_check_interval, self._look, "bounding the memory of the private broker"
        )
        self._looking: Deferred[Any] | None = None
        self._dropping: float | None = None  # how many histories had been dropped before, once it is said that some are
        self._full = False  # whether it is said that none are left
        self._rest = 0.0
        self._rest_until = float("-inf")

    def start(self) -> None:
        """Start to check the memory, and to drop histories while it is nearly full."""
        self._looks.start(now=False)

    def stop(self) -> None:
        """Stop checking."""
        self._looks.stop()
        if self._looking is not None:
            self._looking.cancel()
        BROKER_MEMORY.value = BROKER_MEMORY_LIMIT.value = 0

    def _look(self) -> "Deferred[Any]":
        self._looking = Deferred.fromCoroutine(self._make_room())
        return self._looking.addErrback(lambda failure: failure.trap(CancelledError))

    async def _make_room(self) -> None:
        """Drop histories while the broker is nearly full, until it is less so. Rest if too few are left to drop."""
        used, limit = await self._measure()
        high, now = limit * self._config.eviction_start_share, self._clock.seconds()
        if limit and used > high:
            if now < self._rest_until:
                return
            used = await self._drop(used, limit)
        if used <= high:
            self._report_room(said=limit > 0)

    async def _drop(self, used: int, limit: int) -> int:
        """Drop histories until the broker is less full, or none are left. Return the memory used then."""
        before, before_used = HISTORIES_DROPPED.value, used
        while used > limit * self._config.eviction_stop_share:
            used, freed = await self._drop_oldest(limit)
            if not freed:
                self._rest_later(used, limit, anew=HISTORIES_DROPPED.value > before)
                return used
            self._report_dropping(before, before_used, limit)
        return used

    def _rest_later(self, used: int, limit: int, *, anew: bool) -> None:
        """Look at no histories for a while, longer each time: a look costs the broker work for each of its keys."""
        config = self._config
        first = anew or not self._rest
        self._rest = config.eviction_min_delay if first else min(2 * self._rest, config.eviction_max_delay)
        self._rest_until = self._clock.seconds() + self._rest
        if used > limit * config.eviction_start_share and not self._full:
            self._full = True
            log.error(
                "the private broker uses {used} MiB and has no history left to drop",
                used=used // MIB,
                problem="broker full",
                event="broker_memory_exhausted",
            )

    def _report_dropping(self, before: float, used: int, limit: int) -> None:
        if self._dropping is None:
            self._dropping = before
            log.warn(
                "the private broker uses {used} of {limit} MiB (--redis-maxmemory); the histories of rooms "
                "without recent messages are dropped",
                used=used // MIB,
                limit=limit // MIB,
                problem="broker memory",
                event="history_eviction_started",
            )

    def _report_room(self, *, said: bool) -> None:
        """Note that there is room again, or that another worker drops histories. Only the first is logged."""
        dropping, self._dropping = self._dropping, None
        full, self._full = self._full, False
        self._rest, self._rest_until = 0.0, float("-inf")
        if said and dropping is not None:
            count = int(HISTORIES_DROPPED.value - dropping)
            log.info(
                "histories dropped: {count}",
                count=count,
                problem="broker memory",
                resolved=True,
                event="history_eviction_ended",
            )
        if said and full:
            log.info(
                "the private broker has free memory again",
                problem="broker full",
                resolved=True,
                event="broker_memory_recovered",
            )

    async def _drop_oldest(self, limit: int) -> tuple[int, int]:
        """Drop the oldest histories, as far as needed. Return the memory used then, and the batches dropped."""
        config = self._config
        silent = (config.history_seconds - config.recent_history_time) * 1000
        freed, used = 0, limit
        for number, (_, key) in enumerate(await self._oldest(), 1):
            gone = await self._queries.ask(SHORTEN, [key], lambda _: [silent])
            HISTORIES_DROPPED.value += gone > 0
            freed += gone
            if number % config.eviction_drops_per_check == 0:
                used, _ = await self._measure()
                if used <= limit * config.eviction_stop_share:
                    return used, freed
        used, _ = await self._measure()
        return used, freed

    async def _oldest(self) -> list[tuple[int, bytes]]:
        """Return the histories of the rooms that were silent for the longest, those first."""
        config, cursor = self._config, b"0"
        oldest: list[tuple[int, bytes]] = []
        while True:
            cursor, *found = await self._list(cursor)
            oldest = heapq.nsmallest(
                config.eviction_histories_per_scan, [*oldest, *zip(found[1::2], found[::2], strict=True)]
            )
            if cursor == b"0":
                return oldest

    def _list(self, cursor: bytes) -> "Deferred[Any]":
        start, _ = history_key(self._config.redis_prefix, "")
        return self._queries.ask(HISTORIES, [], lambda _: [cursor, start, self._config.eviction_keys_per_scan])

    async def _measure(self) -> tuple[int, int]:
        """Return the bytes that the broker uses, and its limit; 0 if another worker drops histories."""
        config = self._config
        key, kept = f"{config.redis_prefix}:eviction".encode(), round(config.eviction_lock_ttl * 1000)
        chosen, used, limit = await self._queries.ask(MEMORY, [key], lambda _: [self._worker, kept])
        if not chosen:
            used = limit = 0
        BROKER_MEMORY.value, BROKER_MEMORY_LIMIT.value = used, limit
        return used, limit
