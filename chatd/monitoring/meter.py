"""Has what a process counts written each second, and gives the sum of all processes where it is asked for."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from chatd.config.settings import Config
from chatd.monitoring.prometheus import MetricsFile, expose
from chatd.runtime.single_flight import SingleFlight
from chatd.runtime.timers import Periodic

log = Logger()


class NoMetrics(Exception):
    """There are no metrics; the log has said why."""


class Meter:
    """One process's, from ``start`` to ``stop``."""

    def __init__(self, reactor: Any, path: str, config: Config, look: Callable[[float], None]) -> None:
        """Take the path of the process's share, empty where there is none; and what gauges the process.

        That is called each second, before what was counted is written; with how many seconds late.
        """
        self._reactor = reactor
        self._path = path
        self._config = config
        self._look = look
        self._share: MetricsFile | None = None
        self._ticking = Periodic(reactor, config.metrics_seconds, self._tick, "writing metrics")
        self._due = 0.0
        self._sum = SingleFlight(reactor, self._add_up, config.metrics_kept_seconds)

    def start(self) -> None:
        """Begin."""
        if not self._path:
            return
        try:
            self._share = MetricsFile(self._path)
        except OSError as error:
            log.warn("there are no metrics: {why}", why=str(error))
            return
        self._due = self._reactor.seconds()
        self._ticking.start()

    def stop(self) -> None:
        """Write once more, and no more."""
        self._ticking.stop()
        if self._share is not None:
            share, self._share = self._share, None
            self._gauge(0.0)
            share.write()
            share.close()

    def exposed(self) -> "Deferred[bytes]":
        """Give what all processes have counted, in Prometheus' text format; fails with NoMetrics.

        It is worked out in a thread, once for all who ask meanwhile, and is good for a fraction of a second.
        """
        return fail(NoMetrics()) if self._share is None else self._sum.get()

    def _add_up(self) -> "Deferred[bytes]":
        if self._share is None:
            return fail(NoMetrics())
        self._share.write()
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, expose, self._share.folder)

    def _tick(self) -> None:
        now = self._reactor.seconds()
        late, self._due = now - self._due, now + self._config.metrics_seconds
        self._gauge(late)
        if self._share is not None:
            self._share.write()

    def _gauge(self, late: float) -> None:
        with log.failuresHandled("a process could not be gauged"):
            self._look(late)
