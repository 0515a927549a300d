"""How the process ends: by the first signal that stops it, whenever that comes, or by a start that cannot succeed."""

import atexit
import os
import signal
import sys
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Shutdown:
    """Stops the reactor, once."""

    def __init__(self, reactor: Any) -> None:
        """Take the reactor."""
        self._reactor = reactor
        self._running = False
        self._signal = 0
        self._stopped = False

    def hold_signals(self) -> None:
        """From now on, keep a signal until the reactor runs: what a start has begun is then stopped in order."""
        self._take_signals()
        self._reactor.callWhenRunning(self._run)

    def stop(self) -> None:
        """Stop the reactor, unless it is being stopped."""
        if not self._stopped:
            self._stopped = True
            self._reactor.stop()

    def fail(self) -> bool:
        """Stop the reactor, and let the process end with exit status 1; return False if it is being stopped already.

        Twistd has no other way to give an exit status.
        """
        if self._stopped:
            return False
        atexit.register(_exit)
        self.stop()
        return True

    def _take_signals(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: object) -> None:
        if not self._signal:
            self._signal = number
            if self._running:
                self._obey()

    def _run(self) -> None:
        self._take_signals()  # the reactor has just installed its own
        self._running = True
        if self._signal:
            self._obey()

    def _obey(self) -> None:
        """Stop as the reactor does when it gets the signal itself: the process ends by it."""
        if not self._stopped:
            self._stopped = True
            (self._reactor.sigInt if self._signal == signal.SIGINT else self._reactor.sigTerm)(self._signal)


def end_quietly() -> None:
    """Have the exception that is about to end the start not printed: the log has said it.

    It is raised all the same: twistd then removes its pid file, and tells whoever waits for a daemon.
    """
    sys.excepthook = lambda *_: None


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
