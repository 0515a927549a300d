"""A child process that ended: why, and how long to wait before the next one."""

import signal

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from chatd.config import Config


def why_ended(failure: Failure) -> str:
    """Say in some words what ``processEnded`` was told."""
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
        self._failures = 0

    def wait(self, lived: float) -> float:
        """Give the seconds to wait after a child that lived that many seconds."""
        config = self._config
        if lived >= config.restart_healthy_seconds:
            self._failures = 0
        wait: float = config.restart_first_seconds * 2 ** min(self._failures, 30)
        self._failures += 1
        return min(wait, config.restart_most_seconds)
