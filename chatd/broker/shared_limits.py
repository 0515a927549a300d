"""What each worker counts of addresses, added up in the broker: a limit is one for all workers, on all hosts.

Once a second, with one call, and nothing waits for it: while the broker is away each worker's own count holds.
"""

from typing import Any

from twisted.internet.defer import Deferred

from chatd.access.address_usage import UsageCounts
from chatd.access.rate_limits import RateLimits
from chatd.broker.queries import SHARES, Queries
from chatd.config.settings import Config
from chatd.runtime.timers import Periodic

_NUMBERS = len(UsageCounts._fields) - 1


class SharedLimits:
    """This worker's part of it."""

    def __init__(self, clock: Any, queries: Queries, config: Config, worker: str) -> None:
        """Take the reactor and this worker's unique name."""
        self._queries = queries
        self._config = config
        self._worker = worker
        self._limits: RateLimits | None = None
        self._telling = Periodic(clock, config.limit_seconds, self._tell, "sharing what addresses do")

    def share(self, limits: RateLimits) -> None:
        """Share what a worker's limits count, from now on."""
        self._limits = limits
        self._telling.start(now=False)

    def stop(self) -> None:
        """Tell nothing any more."""
        self._telling.stop()

    def _tell(self) -> "Deferred[None] | None":
        limits = self._limits
        told = limits.report() if limits is not None else ()
        if limits is None or not told:
            return None
        config = self._config
        keys = [f"{config.redis_prefix}:address:{share.address}".encode() for share in told]
        given: list[Any] = [self._worker, config.limit_kept_seconds, 2 * 60]
        given += [number for share in told for number in share[1:]]

        def learn(answer: list[int]) -> None:
            totals = zip(*[iter(answer)] * _NUMBERS, strict=True)
            limits.update(told, [UsageCounts(share.address, *total) for share, total in zip(told, totals, strict=True)])

        asked: Deferred[Any] = self._queries.ask(SHARES, keys, lambda _: given)
        return asked.addCallback(learn)
