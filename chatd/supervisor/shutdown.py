"""The end of the supervisor: by the first signal, even during the start, or because the start has failed."""

import atexit
import os
import signal
import sys
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Shutdown:
    """Stops the reactor, once."""

    def __init__(self, reactor: Any) -> None:
        """Set the reactor."""
        self._reactor = reactor
        self._stopped = False

    def hold_signals(self) -> None:
        """Keep a signal until the reactor runs, so that a start is stopped in order."""
        self._install_handlers()
        self._reactor.callWhenRunning(self._install_handlers)  # the reactor has just installed its own

    def stop(self) -> None:
        """Stop the reactor, unless it is stopping."""
        if not self._stopped:
            self._stopped = True
            self._reactor.stop()

    def fail(self) -> bool:
        """Stop the reactor and end the process with exit status 1. Return False if the reactor is stopping already.

        Twistd has no other way to set an exit status.
        """
        if self._stopped:
            return False
        atexit.register(_exit)
        self.stop()
        return True

    def _install_handlers(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        """Stop as the reactor does when it receives the signal itself, so that the process ends by the signal."""
        if not self._stopped:
            self._stopped = True
            self._reactor.callWhenRunning(
                self._reactor.sigInt if number == signal.SIGINT else self._reactor.sigTerm, number
            )


def end_quietly() -> None:
    """Suppress the traceback of the exception that ends the start, because the log has the reason.

    The exception is raised nevertheless: twistd removes its pid file and reports to the shell that started a daemon.
    """
    sys.excepthook = lambda *_: None


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
