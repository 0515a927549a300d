"""What systemd is told of a service: ready, reloading, stopping, alive, and a line for ``systemctl status``.

The protocol is that of sd_notify(3): a datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names.
It knows nothing of chatd but bounds. It never waits for systemd: what is said but once is kept while systemd's queue is
full, in its order, and a timer tries again.
"""

import os
import socket
import time
from collections import deque
from typing import Any

from twisted.logger import Logger

from chatd.config.tuning import NOTIFY_END_SECONDS, NOTIFY_KEPT, NOTIFY_RETRY_SECONDS, NOTIFY_SECONDS

log = Logger()


class SystemdNotifier:
    """Tells whoever started us; nobody, where nobody wants to know."""

    def __init__(self, clock: Any, address: str, watchdog: float = 0.0) -> None:
        """Take the reactor, the socket's path (``@``: an abstract one; empty: none), and the watchdog's seconds."""
        self._clock = clock
        self._kept: deque[tuple[float, bytes]] = deque(maxlen=NOTIFY_KEPT)  # until when, and what
        self._retry: Any = None
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog = watchdog
        """Within how many seconds ``alive`` is to be called; 0: never."""
        self._said_broken = False

    @classmethod
    def from_environment(cls, clock: Any) -> "SystemdNotifier":
        """Make one of what the environment says, and take that out of it: our children have nothing to say there."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        return cls(clock, address, int(microseconds) / 1e6 if microseconds.isdecimal() and ours and address else 0.0)

    def ready(self, status: str) -> None:
        """Say that the service serves, at the start and after a reload."""
        self._tell_once("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """Say that a reload has begun."""
        since = time.monotonic_ns() // 1000
        self._tell_once("RELOADING=1", f"MONOTONIC_USEC={since}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the service stops."""
        self._tell_once("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say in a line how the service is, unless something that was said before still waits."""
        if not self._kept:
            self._tell(f"STATUS={status}")

    def wait(self, seconds: float) -> None:
        """Say that a start may take so many seconds more, from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.watchdog:
            self._tell("WATCHDOG=1")

    def finish(self) -> None:
        """Send what is kept, within NOTIFY_END_SECONDS: the process ends."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        late = time.monotonic() + NOTIFY_END_SECONDS
        while self._kept:
            self._note(self._send(self._kept.popleft()[1], max(0.0, late - time.monotonic())))

    def _tell(self, *lines: str) -> None:
        """Send lines that are said again anyway."""
        if self._address:
            self._note(self._send(_datagram(lines)))

    def _tell_once(self, *lines: str) -> None:
        """Send lines now, or as soon as there is room in the queue, after what was said before."""
        if self._address:
            self._kept.append((self._clock.seconds() + NOTIFY_SECONDS, _datagram(lines)))
            if self._retry is None:
                self._send_kept()

    def _send_kept(self) -> None:
        self._retry = None
        while self._kept:
            late, data = self._kept[0]
            error = self._send(data)
            if isinstance(error, BlockingIOError) and self._clock.seconds() < late:
                self._retry = self._clock.callLater(NOTIFY_RETRY_SECONDS, self._send_kept)
                return
            self._kept.popleft()
            self._note(error)

    def _send(self, data: bytes, wait: float = 0.0) -> OSError | None:
        """Send a datagram, waiting so many seconds for room at most. Return what went wrong."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.settimeout(wait)
                one.connect(self._address)
                one.send(data)
        except OSError as error:
            return error
        return None

    def _note(self, error: OSError | None) -> None:
        if error is not None and not self._said_broken:
            self._said_broken = True
            log.warn("systemd cannot be told how the service is: {why}", why=error.strerror or error)


def _datagram(lines: tuple[str, ...]) -> bytes:
    return "\n".join(lines).encode("utf-8", "backslashreplace")
