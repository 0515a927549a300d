"""A child process: how it is started, why it ended, and how long to wait before the next one."""

import signal
from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from chatd.config.settings import Config


def spawn(reactor: Any, protocol: ProcessProtocol, command: Sequence[str], **options: Any) -> Any:
    """Start a child that a Ctrl-C does not reach, not even before it leaves our process group. Raise OSError."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit that
    try:
        return reactor.spawnProcess(protocol, command[0], command, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def why_ended(failure: Failure, last_words: str = "") -> str:
    """Say in some words what ``processEnded`` was told; with a child's last words if it failed by itself."""
    why = _why_ended(failure)
    return f"{why}: {last_words}" if last_words and why.startswith("exit") else why


def _why_ended(failure: Failure) -> str:
    match failure.value:
        case ProcessDone():
            return "it stopped"
        case ProcessTerminated(signal=None, exitCode=code):
            return f"exit status {code}"
        case ProcessTerminated(signal=number):
            named = {int(each): each.name for each in signal.Signals}
            return f"killed by {named.get(number, f'signal {number}')}"
        case _:
            return failure.getErrorMessage()


class Backoff:
    """Doubles from the first wait to the longest; starts anew with a child that lived long enough to be healthy."""

    def __init__(self, config: Config) -> None:
        """Take the waits from the configuration."""
        self._config = config
        self.failures = 0
        """Children that did not live that long, one after another."""

    def wait(self, lived: float) -> float:
        """Give the seconds to wait after a child that lived that many seconds."""
        config = self._config
        if lived >= config.restart_healthy_seconds:
            self.failures = 0
        wait: float = config.restart_first_seconds * 2 ** min(self.failures, 30)
        self.failures += 1
        return min(wait, config.restart_most_seconds)
