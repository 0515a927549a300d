"""Doubles for the tests of the parent: a reactor that starts no process, and what is said in the server's own log."""

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
    """A child process that does what the test says, and remembers what it was told."""

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
        """Write to a descriptor that the parent reads."""
        self.protocol.childDataReceived(descriptor, data)

    def end(self, exit_code: int = 0, signal: int | None = None) -> None:
        """End, of a signal where one is given."""
        self.gone = True
        well = exit_code == 0 and signal is None
        self.protocol.processEnded(Failure(ProcessDone(0) if well else ProcessTerminated(exit_code, signal)))


class FakeReactor(Clock):
    """A clock that starts processes, in the test's imagination."""

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
        """Take what Twisted can do without a fork (26.10.0): no folder to run in, no other user or group."""
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
    """What is said in the server's own log from now on: ``lines`` such as ``info: worker 1 (pid 7) is ready``."""

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
        """Fire with the next event whose text holds that part, once whoever said it is done."""
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
