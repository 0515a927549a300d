"""One worker process, as the parent sees it, from its start to its end."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger
from twisted.python.failure import Failure

from chatd.runtime.ipc import Assignment, Heartbeat, LogRecord, PublishingStopped, Ready, Report, encode, read_report
from chatd.supervisor.child_process import why_ended

log = Logger()


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
        self.slot = 0
        """Where its connections are counted."""
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
