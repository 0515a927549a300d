"""A generation: the workers of one configuration, all on the sockets of the same ports.

The first one serves from the beginning. One that is to take over prepares itself: its workers start, and are
ready by their own word, before any of them listens; where one of them can't, none will. While a generation serves,
a worker that ends is replaced on the same sockets, after a wait that grows while it keeps ending, and one that
is silent for too long is killed first. One that drains ends by itself.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger
from twisted.python.failure import Failure

import chatd
from chatd.config.settings import Config
from chatd.monitoring.metrics import WORKER_RESTARTS
from chatd.monitoring.prometheus import MetricsDirectory
from chatd.runtime.ipc import (
    DRAIN,
    LISTEN,
    Assignment,
    Heartbeat,
    LogRecord,
    PublishingStopped,
    Ready,
    Report,
    encode,
    read_report,
)
from chatd.supervisor.child_process import Backoff, spawn, why_ended
from chatd.supervisor.sockets import ListeningSockets, inheritance

log = Logger()

COMMAND = (sys.executable, "-P", "-m", "chatd.worker")
FIRST_DESCRIPTOR = 3  # after standard input, output and error


class NotReady(Exception):
    """A generation can't take over; its text says why."""


class WorkerProcess(ProcessProtocol):
    """A worker: what it has said of itself, and how to tell it something."""

    transport: Any

    def __init__(
        self,
        number: int,
        line_bytes: int,
        started: float,
        changed: Callable[["WorkerProcess"], None],
        said: Callable[["WorkerProcess", LogRecord], None],
    ) -> None:
        """Take its number (1, 2, …), the longest line it may say, the time, whom to tell of changes and words."""
        self.number = number
        self.pid = 0
        self.started = started
        self.metrics = ""
        """The path of its share of the metrics."""
        self.ready = False
        self.heartbeat: Heartbeat | None = None
        """What it said last of how it is."""
        self.silent_ticks = 0
        """Ticks since then."""
        self.held: Deferred[None] = Deferred()
        """Fires when it has published all it took, or has ended."""
        self.ended: Deferred[None] = Deferred()
        """Fires when it has ended."""
        self.reason = ""
        """Why it ended, then."""
        self._changed = changed
        self._said_something = said
        self._line_bytes = line_bytes
        self._said = {1: b"", 2: b""}
        self._last_error = ""

    @property
    def name(self) -> str:
        """Name it in the log."""
        return f"worker {self.number} (pid {self.pid})"

    def tell(self, value: Assignment | str) -> None:
        """Send its assignment or an order, if it is still there."""
        if self.transport is not None and not self.ended.called:
            self.transport.write(encode(value))

    def kill(self) -> None:
        """Kill it, if it is still there."""
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    # The process calls

    def connectionMade(self) -> None:
        """Note its process id: the transport forgets it when it ends."""
        self.pid = self.transport.pid

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Read lines: reports from standard output; from standard error, what Python says of a crash."""
        *lines, rest = (self._said[childFD] + data).split(b"\n")
        self._said[childFD] = rest[-self._line_bytes :]
        for line in lines:
            if childFD == 1:
                with log.failuresHandled("a report of worker {number} was not handled", number=self.number):
                    self._heard(line)  # Twisted closes the pipe if this raises
            elif line:
                self._last_error = line.decode("utf-8", "replace")
                log.error(
                    "worker {worker}: {line}",
                    worker=self.number,
                    line=self._last_error,
                    always=True,  # it is a line of a traceback
                )

    def processEnded(self, reason: Failure) -> None:
        """Tell that it is gone, and why."""
        self.reason = why_ended(reason, self._last_error)
        self.ready = False
        if not self.held.called:
            self.held.callback(None)
        self._changed(self)
        self.ended.callback(None)

    def _heard(self, line: bytes) -> None:
        try:
            self._report(read_report(line))
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidLogLevelError):
            log.error("worker {number} says {line!r}", number=self.number, line=line)

    def _report(self, report: Report) -> None:
        match report:
            case Ready():
                self.ready = True
                self._changed(self)
            case PublishingStopped() if not self.held.called:
                self.held.callback(None)
            case Heartbeat():
                self.heartbeat, self.silent_ticks = report, 0
            case LogRecord():
                if report.level in ("error", "critical"):
                    self._last_error = report.text.strip().rpartition("\n")[2]
                self._said_something(self, report)


class WorkerPool:
    """The workers of one configuration, from ``serve`` or ``prepare`` to the end of the last one."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        ports: ListeningSockets,
        brokers: Callable[[], tuple[tuple[str, ...], str]],
        *,
        metrics: MetricsDirectory | None,
        said: Callable[[WorkerProcess, LogRecord], None],
        gone: Callable[[WorkerProcess], None],
    ) -> None:
        """Take what workers need: how to be, where to listen; asked at each start, the brokers' URLs and lineage.

        Metrics is where they write what they count. Said and gone are called with what a worker says, and when one
        has ended.
        """
        self.config = config
        self.workers: dict[int, WorkerProcess] = {}
        """Those that run, by number."""
        self.ready: Deferred[None] = Deferred()
        """Fires when all have been ready for the first time.

        Fails with NotReady if one of them ends before that: once if it was to take over, or ``start_tries`` times.
        """
        self._reactor = reactor
        self._ports = ports
        self._brokers = brokers
        self._metrics = metrics
        self._said = said
        self._gone = gone
        self._backoffs = {number: Backoff(config) for number in range(1, config.workers + 1)}
        self._restarts: dict[int, Any] = {}
        self._serving = False
        self._leaving = False
        self._late: Any = None

    def serve(self) -> None:
        """Start all workers; each listens at once."""
        self._serving = True
        for number in self._backoffs:
            self._spawn(number)

    def prepare(self) -> "Deferred[None]":
        """Start all workers, which do not listen yet; gives ``ready``."""
        late = self.config.reload_seconds
        self._late = self._reactor.callLater(late, self._fail, f"the new workers were not ready within {late:g} s")
        for number in self._backoffs:
            if not self._leaving:
                self._spawn(number)
        return self.ready

    def take_over(self) -> None:
        """Listen, and be replaced from now on."""
        self._serving = True
        self.tell(LISTEN)

    def drain(self) -> None:
        """Let all workers close their clients, spread over the drain time, and end; what then still runs is killed."""
        self.leave()
        self.tell(DRAIN)
        config = self.config
        enough = config.drain + config.close_seconds + config.head_seconds + config.unsaved_seconds
        enough += config.hold_seconds + config.stop_seconds
        killing = self._reactor.callLater(enough, self.kill)
        self.ended().addCallback(lambda _: killing.cancel() if killing.active() else None)

    def leave(self) -> None:
        """Replace nobody any more."""
        self._leaving = True
        if self._late is not None and self._late.active():
            self._late.cancel()
        for restart in self._restarts.values():
            restart.cancel()
        self._restarts.clear()

    def tell(self, order: str) -> None:
        """Give an order to all that run."""
        for worker in self.workers.values():
            worker.tell(order)

    def kill(self) -> None:
        """Kill all that run."""
        for worker in list(self.workers.values()):
            log.warn("{name} did not stop in time and is killed", name=worker.name)
            worker.kill()

    def ended(self) -> "Deferred[Any]":
        """Fire when all that run now have ended."""
        return DeferredList([worker.ended for worker in self.workers.values()])

    @property
    def answers(self) -> bool:
        """Whether there are workers, and all that run have been heard of lately."""
        most = self.config.worker_heartbeats_missed
        return bool(self.workers) and all(each.silent_ticks <= most for each in self.workers.values())

    def tick(self) -> None:
        """Count a tick of the time in which workers say how they are; kill those that are silent for too long."""
        config = self.config
        for worker in list(self.workers.values()):
            worker.silent_ticks += 1
            limit = config.frozen_seconds if worker.heartbeat is not None else config.start_seconds
            if worker.silent_ticks * config.worker_heartbeat_seconds > limit and not worker.ended.called:
                log.error("{name} has not been heard of for {limit:g} s and is killed", name=worker.name, limit=limit)
                worker.silent_ticks = 0
                worker.kill()

    def _spawn(self, number: int) -> None:
        self._restarts.pop(number, None)
        worker = WorkerProcess(
            number, self.config.relayed_line_bytes, self._reactor.seconds(), self._changed, self._said
        )
        listeners, descriptors = inheritance(self._ports.bound, number - 1, self.config.workers, FIRST_DESCRIPTOR)
        self.workers[number] = worker
        if self._metrics is not None:
            worker.metrics = self._metrics.take()
        try:
            spawn(self._reactor, worker, COMMAND, env=_environment(), childFDs={0: "w", 1: "r", 2: "r", **descriptors})
        except OSError:  # no process to be had: as if it had ended at once
            worker.processEnded(Failure())
            return
        urls, run = self._brokers()
        worker.tell(Assignment(self.config, urls, listeners, run, worker.metrics))
        if self._serving:
            worker.tell(LISTEN)

    def _changed(self, worker: WorkerProcess) -> None:
        """Note that a worker is ready, or gone."""
        if worker.ready:
            log.info("{name} is ready", name=worker.name)
            if len(self.workers) == self.config.workers and all(each.ready for each in self.workers.values()):
                self._all_ready()
            return
        del self.workers[worker.number]
        if self._metrics is not None:
            self._metrics.give_back(worker.metrics)
        self._gone(worker)
        if self._leaving:
            log.info("{name} is gone: {reason}", name=worker.name, reason=worker.reason)
        elif not self._serving:
            self._fail(f"{worker.name} is gone: {worker.reason}")
        else:
            self._replace(worker)

    def _all_ready(self) -> None:
        if not self.ready.called and not self._leaving:
            if not self._serving:
                try:
                    self._ports.listen()
                except OSError as error:
                    self._fail(f"cannot listen: {error.strerror}")
                    return
            if self._late is not None:
                self._late.cancel()
            self.ready.callback(None)

    def _fail(self, why: str) -> None:
        """Give up before it has begun."""
        self.leave()
        for worker in self.workers.values():
            worker.kill()
        self.ready.errback(NotReady(why))

    def _replace(self, worker: WorkerProcess) -> None:
        """Start another one after a while; but give up a start in which one ends again and again."""
        WORKER_RESTARTS.value += 1
        backoff = self._backoffs[worker.number]
        wait = backoff.wait(self._reactor.seconds() - worker.started if worker.heartbeat is not None else 0.0)
        if not self.ready.called and backoff.failures >= self.config.start_tries:
            why = f"worker {worker.number} ended {backoff.failures} times before all were ready: {worker.reason}"
            self._fail(why)
            return
        log.error(
            "{name} is gone: {reason}; its replacement comes in {wait:g} s",
            name=worker.name,
            reason=worker.reason,
            wait=wait,
        )
        self._restarts[worker.number] = self._reactor.callLater(wait, self._spawn, worker.number)


def all_workers(pools: Iterable[WorkerPool]) -> list[WorkerProcess]:
    """List the workers of several generations that run."""
    return [worker for worker_pool in pools for worker in worker_pool.workers.values()]


def _environment() -> dict[str, str]:
    """Give our environment, in which workers find this very chatd, however it came onto our path."""
    root = str(Path(chatd.__file__).parent.parent)
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
