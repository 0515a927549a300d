"""What each worker counts of addresses, added up in the broker: a limit is one for all workers, on all hosts.

Once a second, with one call, and nothing waits for it: while the broker is away each worker's own count holds.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config import Config
from chatd.gate.limits import Limits, Share
from chatd.room.queries import Queries
from chatd.room.script import SHARES

log = Logger()


class Shares:
    """This worker's part of it."""

    def __init__(self, clock: Any, queries: Queries, config: Config, worker: str) -> None:
        """Take this worker's unique name. Set ``limits`` before ``start``."""
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._limits: Limits | None = None
        self._coming: Any = None

    def share(self, limits: Limits) -> None:
        """Share what a worker's limits count, from now on."""
        self._limits = limits
        self._later()

    def stop(self) -> None:
        """Tell nothing any more."""
        self._limits = None
        if self._coming is not None and self._coming.active():
            self._coming.cancel()

    def _later(self) -> None:
        self._coming = self._clock.callLater(self._config.limit_seconds, self._tell)

    def _tell(self) -> None:
        limits = self._limits
        if limits is None:
            return
        told = limits.report()
        if not told:
            self._later()
            return
        config = self._config
        keys = [f"{config.redis_prefix}:address:{each.address}".encode() for each in told]
        given: list[Any] = [self._worker, config.limit_kept_seconds, 2 * 60]
        given += [number for each in told for number in each[1:]]

        def learn(answer: list[int]) -> None:
            totals = [Share(each.address, *answer[3 * at : 3 * at + 3]) for at, each in enumerate(told)]
            limits.learn(told, totals)

        asked: Deferred[Any] = self._queries.ask(SHARES, keys, lambda _: given)
        asked.addCallback(learn).addErrback(self._failed).addBoth(lambda _: self._next())

    def _failed(self, failure: Failure) -> None:
        log.failure("what addresses do was not shared with other workers", failure)

    def _next(self) -> None:
        if self._limits is not None:
            self._later()
