"""The fleet: spawn, watch, replace and drain the workers.

A worker is ready by its own word. One that ends is replaced on the same sockets, after a wait that grows while
it keeps ending. At a stop all are first told to hold: to take nothing more and publish what they have; only
when all have is each told to stop, so that whatever one of them published, the others still deliver.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger, LogLevel
from twisted.python.failure import Failure

import chatd
from chatd.config import Config
from chatd.lifeline import HOLD, STOP, Assignment, Held, Listener, Log, Ready, Report, encode, read_report
from chatd.parent.child import Backoff, why_ended
from chatd.parent.ports import Ports, inheritance

log = Logger()

COMMAND = (sys.executable, "-P", "-m", "chatd.worker")
FIRST_DESCRIPTOR = 3  # after standard input, output and error


class Worker(ProcessProtocol):
    """One worker process, as the parent sees it, from its start to its end."""

    transport: Any

    def __init__(
        self,
        number: int,
        line_bytes: int,
        started: float,
        changed: Callable[["Worker"], None],
        said: Callable[["Worker", Log], None],
    ) -> None:
        """Take its number (1, 2, …), the longest line it may say, the time, whom to tell of changes and words."""
        self.number = number
        self.pid = 0
        self.started = started
        self.ready = False
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

    @property
    def name(self) -> str:
        """Name it in the log."""
        return f"worker {self.number} (pid {self.pid})"

    def tell(self, value: Assignment | str) -> None:
        """Send its assignment or an order."""
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
                self._heard(line)
            elif line:
                log.error("worker {number}: {line}", number=self.number, line=line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """Tell that it is gone, and why."""
        self.reason = why_ended(reason)
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
            case Held() if not self.held.called:
                self.held.callback(None)
            case Log():
                self._said_something(self, report)


class Fleet:
    """All workers, from ``start`` to ``stop``."""

    def __init__(self, reactor: Any, config: Config, ports: Ports, broker: Callable[[], tuple[str, str]]) -> None:
        """Take what workers need: how to be, where to listen; asked at each start, the broker's URL and lineage."""
        self._reactor = reactor
        self._config = config
        self._ports = ports
        self._broker = broker
        self._workers: dict[int, Worker] = {}
        self._backoffs: dict[int, Backoff] = {}
        self._restarts: dict[int, Any] = {}
        self._troubled: dict[str, set[int]] = {}
        self._stopping = False
        self.all_ready: Deferred[None] = Deferred()
        """Fires when all workers have been ready for the first time."""

    def start(self) -> None:
        """Spawn all workers."""
        for number in range(1, self._config.workers + 1):
            self._backoffs[number] = Backoff(self._config)
            self._spawn(number)

    async def stop(self) -> None:
        """Hold all, then stop all, each in its time; then kill what is left."""
        self._stopping = True
        for restart in self._restarts.values():
            restart.cancel()
        workers = list(self._workers.values())
        for worker in workers:
            worker.tell(HOLD)
        await self._all([worker.held for worker in workers], self._config.hold_seconds)
        for worker in workers:
            worker.tell(STOP)
        await self._all([worker.ended for worker in workers], self._config.stop_seconds)
        left = list(self._workers.values())
        for worker in left:
            log.warn("{name} did not stop in time and is killed", name=worker.name)
            worker.kill()
        await self._all([worker.ended for worker in left], self._config.kill_seconds)

    async def _all(self, deferreds: "list[Deferred[None]]", seconds: float) -> None:
        late: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, late.callback, None)
        done: Deferred[Any] = DeferredList(deferreds)
        await DeferredList([done, late], fireOnOneCallback=True)
        if timer.active():
            timer.cancel()

    def _spawn(self, number: int) -> None:
        self._restarts.pop(number, None)
        worker = Worker(number, self._config.relayed_line_bytes, self._reactor.seconds(), self._changed, self._said)
        bound = self._ports.bound
        descriptors = inheritance(bound, number - 1, FIRST_DESCRIPTOR)
        listeners = tuple(
            Listener(each.endpoint, descriptor, int(each.family))
            for each, descriptor in zip(bound, descriptors, strict=True)
        )
        self._workers[number] = worker
        try:
            self._reactor.spawnProcess(
                worker, COMMAND[0], COMMAND, env=_environment(), childFDs={0: "w", 1: "r", 2: "r", **descriptors}
            )
        except OSError:  # no process to be had: as if it had ended at once
            worker.processEnded(Failure())
            return
        url, run = self._broker()
        worker.tell(Assignment(self._config, url, listeners, run))

    def _changed(self, worker: Worker) -> None:
        """Note that a worker is ready, or gone."""
        if worker.ready:
            log.info("{name} is ready", name=worker.name)
            ready = sum(each.ready for each in self._workers.values())
            if ready == self._config.workers and not self.all_ready.called and not self._stopping:
                self.all_ready.callback(None)
            return
        self._workers.pop(worker.number, None)
        for troubled in self._troubled.values():
            troubled.discard(worker.number)
        if self._stopping:
            log.info("{name} is gone: {reason}", name=worker.name, reason=worker.reason)
            return
        wait = self._backoffs[worker.number].wait(self._reactor.seconds() - worker.started)
        log.error(
            "{name} is gone: {reason}; its replacement comes in {wait:g} s",
            name=worker.name,
            reason=worker.reason,
            wait=wait,
        )
        self._restarts[worker.number] = self._reactor.callLater(wait, self._spawn, worker.number)

    def _said(self, worker: Worker, report: Log) -> None:
        """Log what a worker says; a trouble of all of them when the first has it and when the last one is over it."""
        level = LogLevel.levelWithName(report.level)
        if not report.trouble:
            log.emit(level, "worker {number}: {text}", number=worker.number, text=report.text)
            return
        troubled = self._troubled.setdefault(report.trouble, set())
        known = bool(troubled)
        if report.over:
            troubled.discard(worker.number)
        else:
            troubled.add(worker.number)
        if not (troubled if report.over else known):
            log.emit(level, "{text}", text=report.text)


def _environment() -> dict[str, str]:
    """Give our environment, in which workers find this very chatd, however it came onto our path."""
    root = str(Path(chatd.__file__).parent.parent)
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
