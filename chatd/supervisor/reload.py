"""The fleet: the generation of workers that serves, and those before it that drain.

At a reload a new generation prepares itself beside the one that serves, takes over, and lets the old one drain. At a
stop all workers are first told to hold: to take nothing more and publish what they have; only when all have is
each told to stop, so that whatever one of them published, the others still deliver.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger, LogLevel

from chatd.config.settings import Config
from chatd.monitoring.metrics import WORKERS, WORKERS_READY
from chatd.monitoring.prometheus import MetricsDirectory
from chatd.runtime.ipc import HOLD, STOP, LogRecord
from chatd.runtime.timers import Periodic
from chatd.supervisor.sockets import ListeningSockets
from chatd.supervisor.worker_pool import WorkerPool, WorkerProcess, all_workers

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
        """Take what workers need: how to be, where to listen; asked at each start, the brokers' URLs and lineage.

        Metrics is where they write what they count.
        """
        self._reactor = reactor
        self._brokers = brokers
        self._metrics = metrics
        self._troubled: dict[str, set[WorkerProcess]] = {}
        self._ends: dict[str, Callable[[], None]] = {}  # of troubles that some are over and others are not
        self._serving = self._worker_pool(config, ports)
        self._preparing: WorkerPool | None = None
        self._draining: list[WorkerPool] = []
        self._stopping = False
        self._ticking = Periodic(reactor, config.worker_heartbeat_seconds, self._tick, "looking for frozen workers")
        self.ticked: Callable[[], None] = lambda: None
        """Called each time it was looked whether the workers answer."""

    @property
    def all_ready(self) -> "Deferred[None]":
        """Fire when all workers of the first generation have been ready for the first time."""
        return self._serving.ready

    @property
    def workers(self) -> list[WorkerProcess]:
        """List the workers that run, those that drain too."""
        return all_workers([self._serving, *self._draining])

    @property
    def answers(self) -> bool:
        """Whether there are workers that serve, and all of them have been heard of lately."""
        return self._serving.answers

    def start(self) -> None:
        """Start all workers."""
        self._serving.serve()
        self._ticking.start(now=False)

    async def replace(self, config: Config, ports: ListeningSockets) -> None:
        """Let a new generation of workers take over. Raises NotReady; then nothing has changed."""
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
        for crowd in self._draining[: -config.draining_most]:  # each of them takes memory
            crowd.tell(STOP)

    async def stop(self) -> None:
        """Hold all, then stop all, each in its time; then kill what is left."""
        self._stopping = True
        self._ticking.stop()
        pools = [self._serving, *self._draining, *([self._preparing] if self._preparing else [])]
        for worker_pool in pools:
            worker_pool.leave()
        config, workers = self._serving.config, all_workers(pools)
        for worker in workers:
            worker.tell(HOLD)
        await self._all([worker.held for worker in workers], config.hold_seconds)
        for worker in workers:
            worker.tell(STOP)
        await self._all([worker.ended for worker in workers], config.stop_seconds)
        left = all_workers(pools)
        for worker_pool in pools:
            worker_pool.kill()
        await self._all([worker.ended for worker in left], config.kill_seconds)

    async def _all(self, deferreds: "list[Deferred[None]]", seconds: float) -> None:
        late: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, late.callback, None)
        done: Deferred[Any] = DeferredList(deferreds)
        await DeferredList([done, late], fireOnOneCallback=True)
        if timer.active():
            timer.cancel()

    def _worker_pool(self, config: Config, ports: ListeningSockets) -> WorkerPool:
        return WorkerPool(
            self._reactor,
            config,
            ports,
            self._brokers,
            metrics=self._metrics,
            said=self._said,
            gone=self._gone,
        )

    def _tick(self) -> None:
        for worker_pool in (self._serving, *self._draining):
            with log.failuresHandled("frozen workers of one generation may not be noticed"):
                worker_pool.tick()
        WORKERS.value = self._serving.config.workers
        WORKERS_READY.value = sum(worker.ready for worker in self._serving.workers.values())
        self.ticked()

    def _gone(self, worker: WorkerProcess) -> None:
        for trouble, troubled in self._troubled.items():
            troubled.discard(worker)
            if not troubled and (say_end := self._ends.pop(trouble, None)):
                say_end()

    def _said(self, worker: WorkerProcess, report: LogRecord) -> None:
        """Log what a worker says; a trouble of all of them when the first has it and when the last one is over it."""
        level = LogLevel.levelWithName(report.level)
        about: dict[str, Any] = {
            "text": report.text,
            "source": report.namespace,
            "key": report.key,
            "fields": report.fields,
        }
        about |= {"worker": worker.number, "worker_pid": worker.pid}
        if not report.problem:
            log.emit(level, "worker {worker}: {text}", **about)
            return
        say = partial(log.emit, level, "{text}", problem=report.problem, resolved=report.resolved, **about)
        troubled = self._troubled.setdefault(report.problem, set())
        self._ends.pop(report.problem, None)
        if report.resolved:
            troubled.discard(worker)
            if troubled:  # the last one may go without being over it, as one that drains
                self._ends[report.problem] = say
            else:
                say()
        else:
            if not troubled:
                say()
            troubled.add(worker)
