"""Reload and stop of the worker pools: one pool serves, and earlier ones drain.

A reload prepares a new pool beside the serving one, lets it take over, and drains the old one. A stop first lets all
workers stop publishing: they accept no messages any more and publish what they have. Only when all have done so are
they told to stop, so that every worker delivers what the others published.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from chatd.config.settings import Config
from chatd.monitoring.metrics import WORKERS, WORKERS_READY
from chatd.monitoring.prometheus import MetricsDirectory
from chatd.runtime.ipc import HOLD, STOP
from chatd.runtime.timers import Periodic
from chatd.supervisor.sockets import ListeningSockets
from chatd.supervisor.worker_pool import WorkerLog, WorkerPool, WorkerProcess, all_workers

log = Logger()


class WorkerPools:
    """All workers, from ``start`` to ``stop``."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        ports: ListeningSockets,
        brokers: Callable[[], tuple[tuple[str, ...], str]],
        metrics: MetricsDirectory | None = None,
    ) -> None:
        """Set what the workers get. Brokers is called for each worker; it returns the URLs and the lineage."""
        self._reactor = reactor
        self._brokers = brokers
        self._metrics = metrics
        self._worker_log = WorkerLog()
        self._serving = self._worker_pool(config, ports)
        self._preparing: WorkerPool | None = None
        self._draining: list[WorkerPool] = []
        self._checking = Periodic(
            reactor, config.worker_heartbeat_interval, self._check_heartbeats, "checking the heartbeats of workers"
        )
        self.heartbeats_checked: Callable[[], None] = lambda: None
        """Called after each check."""

    @property
    def all_ready(self) -> "Deferred[None]":
        """Return a Deferred that fires when all workers of the first pool have been ready for the first time."""
        return self._serving.ready

    @property
    def workers(self) -> list[WorkerProcess]:
        """Return the running workers, those that drain included."""
        return all_workers([self._serving, *self._draining])

    @property
    def responsive(self) -> bool:
        """Whether there are workers that serve, and all of them have sent a heartbeat lately."""
        return self._serving.responsive

    def start(self) -> None:
        """Start all workers."""
        self._serving.serve()
        self._checking.start(now=False)

    async def replace(self, config: Config, ports: ListeningSockets) -> None:
        """Replace the serving pool by a new one. Raise NotReady, and change nothing, if that fails."""
        new = self._preparing = self._worker_pool(config, ports)
        try:
            await new.prepare()
        finally:
            self._preparing = None
        old, self._serving = self._serving, new
        new.take_over()
        self._draining.append(old)
        old.drain()
        old.ended().addCallback(lambda _: self._draining.remove(old))
        for pool in self._draining[: -config.draining_pools]:  # each of them uses memory
            pool.send(STOP)

    async def stop(self) -> None:
        """Order all workers to stop publishing, then to stop, each within a limit. Kill those that are left."""
        self._checking.stop()
        pools = [self._serving, *self._draining, *([self._preparing] if self._preparing else [])]
        for pool in pools:
            pool.stop_replacing()
        config, workers = self._serving.config, all_workers(pools)
        for worker in workers:
            worker.send(HOLD)
        await self._wait([worker.publishing_stopped for worker in workers], config.stop_publish_timeout)
        for worker in workers:
            worker.send(STOP)
        await self._wait([worker.ended for worker in workers], config.stop_timeout)
        left = all_workers(pools)
        for pool in pools:
            pool.kill()
        await self._wait([worker.ended for worker in left], config.kill_timeout)

    async def _wait(self, deferreds: "list[Deferred[None]]", seconds: float) -> None:
        """Wait until all have fired, or until the time is over."""
        timeout: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, timeout.callback, None)
        all_fired: Deferred[Any] = DeferredList(deferreds)
        await DeferredList([all_fired, timeout], fireOnOneCallback=True)
        if timer.active():
            timer.cancel()

    def _worker_pool(self, config: Config, ports: ListeningSockets) -> WorkerPool:
        return WorkerPool(
            self._reactor,
            config,
            ports,
            self._brokers,
            metrics=self._metrics,
            worker_log=self._worker_log,
        )

    def _check_heartbeats(self) -> None:
        for pool in (self._serving, *self._draining):
            with log.failuresHandled("checking the heartbeats of a worker pool failed", event="heartbeat_check_failed"):
                pool.check_heartbeats()
        WORKERS.value = self._serving.config.workers
        WORKERS_READY.value = sum(worker.ready for worker in self._serving.workers.values())
        self.heartbeats_checked()
