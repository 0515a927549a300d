"""What systemd is told of a service: ready, reloading, stopping, alive, and a line for ``systemctl status``.

The protocol is that of sd_notify(3): a datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names.
It knows nothing of chatd but a bound.
"""

import os
import socket
import time

from twisted.logger import Logger

from chatd.config import NOTIFY_SECONDS

log = Logger()


class Notifier:
    """Tells whoever started us; nobody, where nobody wants to know."""

    def __init__(self, address: str, watchdog: float = 0.0) -> None:
        """Take the socket's path (``@`` begins an abstract one, empty is none), and the watchdog's time in seconds."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog = watchdog
        """Within how many seconds ``alive`` is to be called; 0: never."""
        self._said_broken = False

    @classmethod
    def from_environment(cls) -> "Notifier":
        """Make one of what the environment says, and take that out of it: our children have nothing to say there."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if microseconds.isdecimal() and ours and address else 0.0)

    def ready(self, status: str) -> None:
        """Say that the service serves, at the start and after a reload."""
        self._tell("READY=1", f"STATUS={status}", wait=NOTIFY_SECONDS)

    def reloading(self, status: str) -> None:
        """Say that a reload has begun."""
        since = time.monotonic_ns() // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={since}", f"STATUS={status}", wait=NOTIFY_SECONDS)

    def stopping(self, status: str) -> None:
        """Say that the service stops."""
        self._tell("STOPPING=1", f"STATUS={status}", wait=NOTIFY_SECONDS)

    def status(self, status: str) -> None:
        """Say in a line how the service is."""
        self._tell(f"STATUS={status}")

    def wait(self, seconds: float) -> None:
        """Say that a start may take so many seconds more, from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.watchdog:
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str, wait: float = 0.0) -> None:
        """Tell it; what is not told again waits so many seconds for room in a queue that is full."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.settimeout(wait)
                one.connect(self._address)
                one.send("\n".join(lines).encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._said_broken:
                self._said_broken = True
                log.warn("systemd cannot be told how the service is: {why}", why=error.strerror or error)
