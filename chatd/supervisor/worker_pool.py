"""The worker processes of one configuration: start, readiness, replacement, drain and end.

The first pool serves from the start. A later pool is prepared: its workers start and become ready before any of them
listens, and if one of them fails, none takes over. While a pool serves, a worker that ends is replaced on the same
sockets, after a wait that doubles. A worker without heartbeats is killed first. A pool that drains replaces nobody.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger, LogLevel
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
    """A worker pool cannot take over; the text says why."""


class WorkerLog:
    """The events of all workers, for the server log. A problem of several workers is logged once, and so is its end."""

    def __init__(self) -> None:
        self._affected: dict[str, set[WorkerProcess]] = {}
        self._solved: dict[str, Callable[[], None]] = {}  # logs the end of a problem that some workers still have

    def relay(self, worker: "WorkerProcess", record: LogRecord) -> None:
        """Log a record, unless it is about a problem that another worker still has."""
        level = LogLevel.levelWithName(record.level)
        values: dict[str, Any] = {
            "text": record.text,
            "source": record.namespace,
            "event": record.event,
            "fields": record.fields,
            "worker": worker.number,
            "worker_pid": worker.pid,
        }
        if not record.problem:
            log.emit(level, "worker {worker}: {text}", **values)
            return
        emit = partial(log.emit, level, "{text}", problem=record.problem, resolved=record.resolved, **values)
        affected = self._affected.setdefault(record.problem, set())
        self._solved.pop(record.problem, None)
        if record.resolved:
            affected.discard(worker)
            if affected:  # the others may end before they have solved it
                self._solved[record.problem] = emit
            else:
                emit()
        else:
            if not affected:
                emit()
            affected.add(worker)

    def forget(self, worker: "WorkerProcess") -> None:
        """Remove a worker that has ended from all problems, and log the end of those that no other worker has."""
        for problem, affected in self._affected.items():
            affected.discard(worker)
            if not affected and (emit := self._solved.pop(problem, None)):
                emit()


class WorkerProcess(ProcessProtocol):
    """One worker process, from its start to its end: its newest reports, and the pipe to it."""

    transport: Any

    def __init__(self, pool: "WorkerPool", number: int, started: float) -> None:
        """Set the pool, the worker's number (1, 2, …) and the time of its start."""
        self.number = number
        self.pid = 0
        self.started = started
        self.metrics = ""
        """The path of its metrics files."""
        self.ready = False
        self.heartbeat: Heartbeat | None = None
        """Its last heartbeat."""
        self.missed_heartbeats = 0
        """Intervals without a heartbeat since then."""
        self.publishing_stopped: Deferred[None] = Deferred()
        """Fires when it has published all messages that it accepted, or has ended."""
        self.ended: Deferred[None] = Deferred()
        """Fires when it has ended."""
        self.reason = ""
        """Why it ended."""
        self._pool = pool
        self._received = {1: b"", 2: b""}  # the begun line of each descriptor
        self._last_error = ""

    @property
    def name(self) -> str:
        """Return its name for the log."""
        return f"worker {self.number} (pid {self.pid})"

    def send(self, value: Assignment | str) -> None:
        """Send an assignment or an order, unless the worker has ended."""
        if self.transport is not None and not self.ended.called:
            self.transport.write(encode(value))

    def kill(self) -> None:
        """Kill the worker, unless it has ended."""
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    def connectionMade(self) -> None:
        """Store the process id: the transport forgets it when the process ends."""
        self.pid = self.transport.pid

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Read lines: reports from standard output, and a traceback of Python's from standard error."""
        *lines, rest = (self._received[childFD] + data).split(b"\n")
        self._received[childFD] = rest[-self._pool.config.worker_log_line_bytes :]
        for line in lines:
            if childFD == 1:
                with log.failuresHandled(
                    "handling a report of worker {number} failed", number=self.number, event="worker_report_failed"
                ):
                    self._line_received(line)  # Twisted closes the pipe if this raises
            elif line:
                self._last_error = line.decode("utf-8", "replace")
                log.error(
                    "worker {worker}: {line}",
                    worker=self.number,
                    line=self._last_error,
                    always=True,  # a traceback is needed as a whole
                    event="worker_stderr_read",
                )

    def processEnded(self, reason: Failure) -> None:
        """Store the reason and tell the pool."""
        self.reason = why_ended(reason, self._last_error)
        self.ready = False
        if not self.publishing_stopped.called:
            self.publishing_stopped.callback(None)
        self._pool.worker_ended(self)
        self.ended.callback(None)

    def _line_received(self, line: bytes) -> None:
        try:
            self._report_received(read_report(line))
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidLogLevelError):
            log.error(
                "worker {number} sent an invalid report: {line!r}",
                number=self.number,
                line=line,
                event="worker_report_invalid",
            )

    def _report_received(self, report: Report) -> None:
        match report:
            case Ready():
                self.ready = True
                self._pool.worker_ready(self)
            case PublishingStopped() if not self.publishing_stopped.called:
                self.publishing_stopped.callback(None)
            case Heartbeat():
                self.heartbeat, self.missed_heartbeats = report, 0
            case LogRecord():
                if report.level in ("error", "critical"):
                    self._last_error = report.text.strip().rpartition("\n")[2]
                self._pool.worker_log.relay(self, report)


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
        worker_log: WorkerLog,
    ) -> None:
        """Set what the workers get. Brokers is called for each worker; it returns the URLs and the lineage."""
        self.config = config
        self.worker_log = worker_log
        self.workers: dict[int, WorkerProcess] = {}
        """The running workers by number."""
        self.ready: Deferred[None] = Deferred()
        """Fires when all workers have been ready for the first time.

        Fails with NotReady if a worker ends before that: at once in a prepared pool, else after
        ``start_attempts`` ends.
        """
        self._reactor = reactor
        self._ports = ports
        self._brokers = brokers
        self._metrics = metrics
        self._backoffs = {number: Backoff(config) for number in range(1, config.workers + 1)}
        self._restarts: dict[int, Any] = {}
        self._serving = False
        self._ending = False
        self._timeout: Any = None  # of prepare()

    def serve(self) -> None:
        """Start all workers; each listens at once."""
        self._serving = True
        for number in self._backoffs:
            self._spawn(number)

    def prepare(self) -> "Deferred[None]":
        """Start all workers, but let none listen. Return ``ready``."""
        seconds = self.config.reload_timeout
        why = f"the new workers were not ready within {seconds:g} s"
        self._timeout = self._reactor.callLater(seconds, self._fail, why)
        for number in self._backoffs:
            if not self._ending:
                self._spawn(number)
        return self.ready

    def take_over(self) -> None:
        """Order the prepared workers to listen, and replace them from now on."""
        self._serving = True
        self.send(LISTEN)

    def drain(self) -> None:
        """Order all workers to close their clients over the drain time and end. Kill those that are late."""
        self.stop_replacing()
        self.send(DRAIN)
        config = self.config
        seconds = (
            config.drain_timeout + config.close_timeout + config.client_header_timeout + config.drain_broker_timeout
        )
        seconds += config.stop_publish_timeout + config.stop_timeout
        killing = self._reactor.callLater(seconds, self.kill)
        self.ended().addCallback(lambda _: killing.cancel() if killing.active() else None)

    def stop_replacing(self) -> None:
        """Start no worker any more."""
        self._ending = True
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        for restart in self._restarts.values():
            restart.cancel()
        self._restarts.clear()

    def send(self, order: str) -> None:
        """Send an order to all running workers."""
        for worker in self.workers.values():
            worker.send(order)

    def kill(self) -> None:
        """Kill all running workers."""
        for worker in list(self.workers.values()):
            log.warn("{name} did not stop in time and is killed", name=worker.name, event="worker_stop_timed_out")
            worker.kill()

    def ended(self) -> "Deferred[Any]":
        """Return a Deferred that fires when all workers that run now have ended."""
        return DeferredList([worker.ended for worker in self.workers.values()])

    @property
    def responsive(self) -> bool:
        """Whether there are workers, and all of them have sent a heartbeat lately."""
        most = self.config.worker_missed_heartbeats
        return bool(self.workers) and all(worker.missed_heartbeats <= most for worker in self.workers.values())

    def check_heartbeats(self) -> None:
        """Count an interval without heartbeats; kill workers whose last heartbeat is too old."""
        config = self.config
        for worker in list(self.workers.values()):
            worker.missed_heartbeats += 1
            limit = config.worker_heartbeat_timeout if worker.heartbeat is not None else config.worker_start_timeout
            if worker.missed_heartbeats * config.worker_heartbeat_interval > limit and not worker.ended.called:
                log.error(
                    "{name} sent no heartbeat for {limit:g} s and is killed",
                    name=worker.name,
                    limit=limit,
                    event="worker_heartbeat_missed",
                )
                worker.missed_heartbeats = 0
                worker.kill()

    def worker_ready(self, worker: WorkerProcess) -> None:
        """Log that a worker is ready; if it is the last one, so is the pool."""
        log.info("{name} is ready", name=worker.name, event="worker_ready")
        if len(self.workers) < self.config.workers or not all(other.ready for other in self.workers.values()):
            return
        if self.ready.called or self._ending:
            return
        if not self._serving:
            try:
                self._ports.listen()
            except OSError as error:
                self._fail(f"cannot listen: {error.strerror}")
                return
        if self._timeout is not None:
            self._timeout.cancel()
        self.ready.callback(None)

    def worker_ended(self, worker: WorkerProcess) -> None:
        """Remove a worker, and replace it if the pool serves."""
        del self.workers[worker.number]
        if self._metrics is not None:
            self._metrics.release(worker.metrics)
        self.worker_log.forget(worker)
        if self._ending:
            log.info("{name} ended: {reason}", name=worker.name, reason=worker.reason, event="worker_stopped")
        elif not self._serving:
            self._fail(f"{worker.name} ended: {worker.reason}")
        else:
            self._replace(worker)

    def _spawn(self, number: int) -> None:
        self._restarts.pop(number, None)
        worker = WorkerProcess(self, number, self._reactor.seconds())
        listeners, descriptors = inheritance(self._ports.bound, number - 1, self.config.workers, FIRST_DESCRIPTOR)
        self.workers[number] = worker
        if self._metrics is not None:
            worker.metrics = self._metrics.allocate()
        try:
            spawn(self._reactor, worker, COMMAND, env=_environment(), childFDs={0: "w", 1: "r", 2: "r", **descriptors})
        except OSError:  # no process can be started: handled like one that ends at once
            worker.processEnded(Failure())
            return
        urls, lineage = self._brokers()
        worker.send(Assignment(self.config, urls, listeners, lineage, worker.metrics))
        if self._serving:
            worker.send(LISTEN)

    def _fail(self, why: str) -> None:
        """End a pool that has not become ready."""
        self.stop_replacing()
        for worker in self.workers.values():
            worker.kill()
        self.ready.errback(NotReady(why))

    def _replace(self, worker: WorkerProcess) -> None:
        """Start another worker after a wait. Fail a start during which one ends again and again."""
        WORKER_RESTARTS.value += 1
        backoff = self._backoffs[worker.number]
        wait = backoff.wait(self._reactor.seconds() - worker.started if worker.heartbeat is not None else 0.0)
        if not self.ready.called and backoff.failures >= self.config.start_attempts:
            why = f"worker {worker.number} ended {backoff.failures} times before all were ready: {worker.reason}"
            self._fail(why)
            return
        log.error(
            "{name} ended: {reason}; a replacement starts in {wait:g} s",
            name=worker.name,
            reason=worker.reason,
            wait=wait,
            event="worker_ended",
        )
        self._restarts[worker.number] = self._reactor.callLater(wait, self._spawn, worker.number)


def all_workers(pools: Iterable[WorkerPool]) -> list[WorkerProcess]:
    """Return the running workers of several pools."""
    return [worker for pool in pools for worker in pool.workers.values()]


def _environment() -> dict[str, str]:
    """Return the environment of a worker, in which it imports this chatd, whatever put it onto the path."""
    root = str(Path(chatd.__file__).parent.parent)
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
