"""Usage counts per address, added up in the broker, so that a limit holds over all workers on all hosts.

They are exchanged once a second with one query. While the broker is away each worker uses its own counts.
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
    """The exchange of usage counts by this worker."""

    def __init__(self, clock: Any, queries: Queries, config: Config, worker: str) -> None:
        """Prepare for a worker with this unique name."""
        self._queries = queries
        self._config = config
        self._worker = worker
        self._limits: RateLimits | None = None
        self._ticker = Periodic(clock, config.shared_limits_interval, self._exchange, "sharing what addresses do")

    def share(self, limits: RateLimits) -> None:
        """Start to exchange the usage counts of these limits."""
        self._limits = limits
        self._ticker.start(now=False)

    def stop(self) -> None:
        """Stop the exchange."""
        self._ticker.stop()

    def _exchange(self) -> "Deferred[None] | None":
        limits = self._limits
        reported = limits.usages.report() if limits is not None else ()
        if limits is None or not reported:
            return None
        config = self._config
        keys = [f"{config.redis_prefix}:address:{share.address}".encode() for share in reported]
        given: list[Any] = [self._worker, config.shared_limits_ttl, 2 * 60]
        given += [number for share in reported for number in share[1:]]

        def store(answer: list[int]) -> None:
            totals = zip(*[iter(answer)] * _NUMBERS, strict=True)
            limits.usages.update(
                reported, [UsageCounts(share.address, *total) for share, total in zip(reported, totals, strict=True)]
            )

        asked: Deferred[Any] = self._queries.ask(SHARES, keys, lambda _: given)
        return asked.addCallback(store)
