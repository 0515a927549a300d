"""Doubles for the tests of the supervisor: a reactor that starts no process, and the events of the server log."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

real_reactor: Any = reactor


@dataclass(eq=False)
class FakeProcess:
    """A child process that the test controls, and what was written to it."""

    pid: int
    protocol: ProcessProtocol
    command: list[str]
    env: Mapping[str, str]
    descriptors: dict[int, Any]
    told: list[bytes] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    gone: bool = False

    @property
    def folder(self) -> str:
        """The folder of the socket that a broker listens on."""
        return os.path.dirname(self.command[self.command.index("--unixsocket") + 1])

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def signalProcess(self, name: str) -> None:  # noqa: N802 - Twisted's
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)

    def say(self, data: bytes, descriptor: int = 1) -> None:
        """Write to a descriptor that the supervisor reads."""
        self.protocol.childDataReceived(descriptor, data)

    def end(self, exit_code: int = 0, signal: int | None = None) -> None:
        """End, of a signal where one is given."""
        self.gone = True
        well = exit_code == 0 and signal is None
        self.protocol.processEnded(Failure(ProcessDone(0) if well else ProcessTerminated(exit_code, signal)))


class FakeReactor(Clock):
    """A clock that starts fake processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.refuse: OSError | None = None

    def spawnProcess(  # noqa: N802 - Twisted's
        self,
        protocol: ProcessProtocol,
        executable: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        childFDs: Mapping[int, Any],  # noqa: N803 - Twisted's
    ) -> FakeProcess:
        """Accept only what Twisted does without a fork (26.10.0): no directory to run in, no other user or group."""
        if self.refuse is not None:
            raise self.refuse
        assert executable == args[0]
        pid = 1_000_000 + len(self.processes)
        process = FakeProcess(pid, protocol, list(args), dict(env), dict(childFDs))
        self.processes.append(process)
        protocol.makeConnection(process)
        return process


@implementer(ILogObserver)
class Said:
    """The events of the server log from now on: ``lines`` such as ``info: worker 1 (pid 7) is ready``."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self._waiting: list[tuple[str, Deferred[LogEvent]]] = []
        globalLogPublisher.addObserver(self)

    @classmethod
    def during(cls, case: TestCase) -> "Said":
        """Listen until a test case ends."""
        said = cls()
        case.addCleanup(said.close)
        return said

    def close(self) -> None:
        globalLogPublisher.removeObserver(self)

    @property
    def lines(self) -> list[str]:
        return [f"{event['log_level'].name}: {formatEvent(event)}" for event in self.events]

    def next(self, part: str) -> "Deferred[LogEvent]":
        """Fire with the next event whose text has that part, after the code that logged it has returned."""
        heard: Deferred[LogEvent] = Deferred()
        self._waiting.append((part, heard))
        return heard

    def __call__(self, event: LogEvent) -> None:
        if not event.get("log_namespace", "").startswith("chatd."):
            return
        self.events.append(event)
        text = formatEvent(event)
        for waiting in [each for each in self._waiting if each[0] in text]:
            self._waiting.remove(waiting)
            real_reactor.callLater(0, waiting[1].callback, event)
