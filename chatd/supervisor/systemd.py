"""Notifications to systemd: ready, reloading, stopping, watchdog, and a line for ``systemctl status``.

The protocol is that of sd_notify(3): a datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names.
The notifier never waits for systemd. While systemd's queue is full, changes of state are kept in their order, and a
timer sends them again.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from chatd.runtime.ipc import Heartbeat
from chatd.supervisor.reload import WorkerPools
from chatd.supervisor.worker_pool import WorkerProcess

log = Logger()

START_SECONDS = 30.0
"""By how much a start that has not ended extends systemd's timeout, each time."""
NOTIFY_SECONDS = 1.0
"""Maximum time for which a change of state is sent again while systemd's queue is full."""
NOTIFY_RETRY_SECONDS = 0.05
"""Interval at which it is sent again."""
NOTIFY_KEPT = 16
"""Maximum changes of state that wait for systemd's queue. Beyond it, the oldest is dropped."""
NOTIFY_END_SECONDS = 0.05
"""Maximum time that the end of the process waits for systemd's queue."""


class SystemdNotifier:
    """Sends notifications to systemd, if it wants any."""

    def __init__(self, clock: Any, address: str, watchdog: float = 0.0) -> None:
        """Set the reactor, the socket's path (``@``: abstract; empty: none), and the seconds of the watchdog."""
        self._clock = clock
        self._kept: deque[tuple[float, bytes]] = deque(maxlen=NOTIFY_KEPT)  # each with its deadline
        self._retry: Any = None
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog = watchdog
        """The seconds within which ``feed_watchdog`` must be called; 0: never."""
        self._failed = False

    @classmethod
    def from_environment(cls, clock: Any) -> "SystemdNotifier":
        """Return a notifier as the environment describes it, and remove that from the environment of our children."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        return cls(clock, address, int(microseconds) / 1e6 if microseconds.isdecimal() and ours and address else 0.0)

    def ready(self, status: str) -> None:
        """Notify that the service is ready, at the start and after a reload."""
        self._send_state("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """Notify that a reload has begun."""
        since = time.monotonic_ns() // 1000
        self._send_state("RELOADING=1", f"MONOTONIC_USEC={since}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Notify that the service stops."""
        self._send_state("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Send a status line, unless a change of state waits to be sent."""
        if not self._kept:
            self._send_once(f"STATUS={status}")

    def extend_timeout(self, seconds: float) -> None:
        """Allow a start so many seconds more, from now on."""
        self._send_once(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def feed_watchdog(self) -> None:
        """Notify that the service works, if there is a watchdog."""
        if self.watchdog:
            self._send_once("WATCHDOG=1")

    def flush(self) -> None:
        """Send what is kept, within NOTIFY_END_SECONDS, because the process ends."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        deadline = time.monotonic() + NOTIFY_END_SECONDS
        while self._kept:
            self._log_error(self._send(self._kept.popleft()[1], max(0.0, deadline - time.monotonic())))

    def _send_once(self, line: str) -> None:
        """Send a line that the next one replaces."""
        if self._address:
            self._log_error(self._send(_datagram(line)))

    def _send_state(self, *lines: str) -> None:
        """Send a change of state, now or when the queue has room, after those before it."""
        if self._address:
            self._kept.append((self._clock.seconds() + NOTIFY_SECONDS, _datagram(*lines)))
            if self._retry is None:
                self._send_kept()

    def _send_kept(self) -> None:
        self._retry = None
        while self._kept:
            deadline, data = self._kept[0]
            error = self._send(data)
            if isinstance(error, BlockingIOError) and self._clock.seconds() < deadline:
                self._retry = self._clock.callLater(NOTIFY_RETRY_SECONDS, self._send_kept)
                return
            self._kept.popleft()
            self._log_error(error)

    def _send(self, data: bytes, timeout: float = 0.0) -> OSError | None:
        """Send a datagram, and wait so many seconds for room in the queue. Return the error, if there is one."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.settimeout(timeout)
                client.connect(self._address)
                client.send(data)
        except OSError as error:
            return error
        return None

    def _log_error(self, error: OSError | None) -> None:
        if error is not None and not self._failed:
            self._failed = True
            log.warn("cannot notify systemd: {why}", why=error.strerror or error, event="systemd_notification_failed")


class StatusReporter:
    """Reports the state of all workers to systemd: ready, alive, and a status line."""

    def __init__(self, clock: Any, notifier: SystemdNotifier) -> None:
        """Set the reactor and the notifier."""
        self._clock = clock
        self._notifier = notifier
        self._worker_pools: WorkerPools | None = None
        self._ready = False
        self._note = ""
        self._line = ""  # the one that was sent last
        self._rate = 0.0
        self._counted_at = 0.0
        self._counts: dict[WorkerProcess, int] = {}  # messages

    def start(self, worker_pools: WorkerPools) -> None:
        """Report after each check of the workers' heartbeats."""
        self._worker_pools, self._counted_at = worker_pools, self._clock.seconds()
        worker_pools.heartbeats_checked = self._report
        self._send("starting")

    def ready(self, note: str = "") -> None:
        """Report that the service is ready; the note is part of the status line until the next call."""
        self._ready, self._note = True, note
        self._line = self._serving_line()
        self._notifier.ready(self._line)

    def reloading(self) -> None:
        """Report that a reload has begun."""
        if self._ready:
            self._notifier.reloading("reloading")

    def not_reloaded(self, why: str) -> None:
        """Report that a reload has failed and the service is ready as before. Do not end a start with that."""
        if self._ready:
            self.ready(f"not reloaded: {why}")

    def stopping(self) -> None:
        """Report that the service stops."""
        self._ready = False
        self._notifier.stopping("stopping: closing clients")

    def stopped(self) -> None:
        """Send what has not been sent yet, because the process ends."""
        self._notifier.flush()

    def _report(self) -> None:
        if self._worker_pools is not None and self._worker_pools.responsive:
            self._notifier.feed_watchdog()
            if not self._ready:  # it waits for the broker, and a restart would not help
                self._notifier.extend_timeout(START_SECONDS)
        self._count()
        self._send(self._serving_line() if self._ready else self._starting_line())

    def _send(self, line: str) -> None:
        if line != self._line:
            self._line = line
            self._notifier.status(line)

    def _workers(self) -> Sequence[WorkerProcess]:
        return self._worker_pools.workers if self._worker_pools is not None else []

    def _heartbeats(self) -> Sequence[Heartbeat]:
        return [worker.heartbeat for worker in self._workers() if worker.heartbeat is not None]

    def _away(self) -> str:
        """Return why the broker is away, by the first worker that says so; empty if it is not."""
        return next((heartbeat.away for heartbeat in self._heartbeats() if heartbeat.away), "")

    def _starting_line(self) -> str:
        workers, away = self._workers(), self._away()
        ready = sum(worker.ready for worker in workers)
        return f"starting: {ready} of {len(workers)} workers are ready{f'; broker: {away}' if away else ''}"

    def _serving_line(self) -> str:
        heartbeats, away = self._heartbeats(), self._away()
        clients = sum(heartbeat.clients for heartbeat in heartbeats)
        rooms = max((heartbeat.rooms for heartbeat in heartbeats), default=0)
        broker = f"away: {away}" if away else "ok"
        note = f" ({self._note})" if self._note else ""
        return f"clients: {clients}, rooms: {rooms}, messages/s: {self._rate:.0f}, broker: {broker}{note}"

    def _count(self) -> None:
        """Measure the rate of messages since the last call."""
        before, now = self._counts, self._clock.seconds()
        self._counts = {worker: worker.heartbeat.messages for worker in self._workers() if worker.heartbeat is not None}
        received = sum(count - before.get(worker, 0) for worker, count in self._counts.items())
        passed, self._counted_at = now - self._counted_at, now
        self._rate = received / passed if passed > 0 else 0.0


def _datagram(*lines: str) -> bytes:
    return "\n".join(lines).encode("utf-8", "backslashreplace")
