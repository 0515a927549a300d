"""What systemd is told of a service: ready, reloading, stopping, alive, and a line for ``systemctl status``.

The protocol is that of sd_notify(3): a datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names.
It knows nothing of chatd but bounds. It never waits for systemd: what is said but once is kept while systemd's queue is
full, in its order, and a timer tries again.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from chatd.config.tuning import NOTIFY_END_SECONDS, NOTIFY_KEPT, NOTIFY_RETRY_SECONDS, NOTIFY_SECONDS
from chatd.runtime.ipc import Heartbeat
from chatd.supervisor.reload import WorkerPools
from chatd.supervisor.worker_pool import WorkerProcess

log = Logger()

START_SECONDS = 30.0
"""How long a start that goes on may at least go on."""


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


class StatusReporter:
    """Tells a notifier of a fleet, from ``start`` on."""

    def __init__(self, clock: Any, notifier: SystemdNotifier) -> None:
        """Take the reactor, and who is told."""
        self._clock = clock
        self._notifier = notifier
        self._worker_pools: WorkerPools | None = None
        self._ready = False
        self._note = ""
        self._shown = ""
        self._rate = 0.0
        self._counted_at = 0.0
        self._messages: dict[WorkerProcess, int] = {}

    def start(self, worker_pools: WorkerPools) -> None:
        """Look at the fleet whenever it has looked at its workers."""
        self._worker_pools, self._counted_at = worker_pools, self._clock.seconds()
        worker_pools.ticked = self._ticked
        self._show("starting")

    def ready(self, note: str = "") -> None:
        """Say that it serves; the note stands in the line until the next time."""
        self._ready, self._note = True, note
        self._shown = self._line()
        self._notifier.ready(self._shown)

    def reloading(self) -> None:
        """Say that it is reloading."""
        if self._ready:
            self._notifier.reloading("reloading")

    def not_reloaded(self, why: str) -> None:
        """Say that it serves as before; a start that goes on is not over with that."""
        if self._ready:
            self.ready(f"not reloaded: {why}")

    def stopping(self) -> None:
        """Say that it stops."""
        self._ready = False
        self._notifier.stopping("stopping: clients are closed")

    def stopped(self) -> None:
        """Say what could not be said before: this process ends."""
        self._notifier.finish()

    def _ticked(self) -> None:
        if self._worker_pools is not None and self._worker_pools.answers:
            self._notifier.alive()
            if not self._ready:  # it waits for the broker: to be killed would not bring that back
                self._notifier.wait(START_SECONDS)
        self._count()
        self._show(self._line() if self._ready else self._starting())

    def _show(self, line: str) -> None:
        if line != self._shown:
            self._shown = line
            self._notifier.status(line)

    def _starting(self) -> str:
        away = next((each.away for each in self._heartbeats() if each.away), "")
        workers = self._workers()
        ready = sum(worker.ready for worker in workers)
        return f"starting: {ready} of {len(workers)} workers are ready{f'; message bus: {away}' if away else ''}"

    def _workers(self) -> Sequence[WorkerProcess]:
        return self._worker_pools.workers if self._worker_pools is not None else []

    def _heartbeats(self) -> Sequence[Heartbeat]:
        return [worker.heartbeat for worker in self._workers() if worker.heartbeat is not None]

    def _line(self) -> str:
        heartbeats = self._heartbeats()
        clients = sum(each.clients for each in heartbeats)
        rooms = max((heartbeat.rooms for heartbeat in heartbeats), default=0)
        away = next((each.away for each in heartbeats if each.away), "")
        bus = f"away: {away}" if away else "ok"
        note = f" ({self._note})" if self._note else ""
        return f"clients: {clients}, rooms: {rooms}, messages/s: {self._rate:.0f}, bus: {bus}{note}"

    def _count(self) -> None:
        """Take the rate of messages since the last time."""
        before, now = self._messages, self._clock.seconds()
        self._messages = {each: each.heartbeat.messages for each in self._workers() if each.heartbeat is not None}
        taken = sum(count - before.get(worker, 0) for worker, count in self._messages.items())
        passed, self._counted_at = now - self._counted_at, now
        self._rate = taken / passed if passed > 0 else 0.0


def _datagram(lines: tuple[str, ...]) -> bytes:
    return "\n".join(lines).encode("utf-8", "backslashreplace")
