"""Child processes: how they are started, why they ended, and how long to wait before a restart."""

import signal
from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from chatd.config.settings import Config


def spawn(reactor: Any, protocol: ProcessProtocol, command: Sequence[str], **options: Any) -> Any:
    """Start a child that Ctrl-C does not reach, even before it leaves our process group. Raise OSError."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits the mask
    try:
        return reactor.spawnProcess(protocol, command[0], command, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def why_ended(failure: Failure, last_error: str = "") -> str:
    """Return why a child ended, for the log: with its last line of errors if it failed by itself."""
    match failure.value:
        case ProcessDone():
            return "exit status 0"
        case ProcessTerminated(signal=None, exitCode=code):
            return f"exit status {code}" + (f": {last_error}" if last_error else "")
        case ProcessTerminated(signal=number):
            names = {int(member): member.name for member in signal.Signals}
            return f"killed by {names.get(number, f'signal {number}')}"
        case _:
            return failure.getErrorMessage()


class Backoff:
    """The wait before a restart: doubled after each failure, and reset by a child that lived long enough."""

    def __init__(self, config: Config) -> None:
        """Use the ``restart_…`` values of the configuration."""
        self._config = config
        self.failures = 0
        """Successive children that did not live long enough."""

    def wait(self, lived: float) -> float:
        """Return the seconds to wait after a child that lived so many seconds."""
        config = self._config
        if lived >= config.restart_reset_time:
            self.failures = 0
        wait: float = config.restart_min_delay * 2 ** min(self.failures, 30)
        self.failures += 1
        return min(wait, config.restart_max_delay)
