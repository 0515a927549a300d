"""What systemd hears of the fleet: when it is ready, whether its workers answer, and a line on how it is."""

from collections.abc import Sequence
from typing import Any

from chatd.runtime.ipc import Heartbeat
from chatd.supervisor.reload import WorkerPools
from chatd.supervisor.systemd import SystemdNotifier
from chatd.supervisor.worker_process import WorkerProcess

START_SECONDS = 30.0
"""How long a start that goes on may at least go on."""


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
