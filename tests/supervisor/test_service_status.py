from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.runtime.ipc import Heartbeat
from chatd.supervisor.service_status import StatusReporter


class Told:
    """A notifier that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *status: self.lines.append(": ".join([name, *map(str, status)]))

    def since(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


class FakeWorker:
    """A worker that says how it is."""

    def __init__(self) -> None:
        self.ready = True
        self.heartbeat: Heartbeat | None = None

    def say(self, clients: int, rooms: int, messages: int, away: str = "") -> None:
        self.heartbeat = Heartbeat(clients, rooms, messages, away)


class FakeFleet:
    """A fleet of two workers."""

    def __init__(self) -> None:
        self.workers = [FakeWorker(), FakeWorker()]
        self.answers = True
        self.ticked: Any = None


class Fixture:
    def __init__(self) -> None:
        self.clock = Clock()
        self.told = Told()
        self.worker_pools = FakeFleet()
        worker_pools: Any = self.worker_pools
        told: Any = self.told
        self.reporter = StatusReporter(self.clock, told)
        self.reporter.start(worker_pools)

    def tick(self) -> list[str]:
        self.clock.advance(1.0)
        self.worker_pools.ticked()
        return self.told.since()


@pytest.fixture
def of() -> Fixture:
    made = Fixture()
    assert made.told.since() == ["status: starting"]
    return made


def test_until_it_is_ready_it_says_how_far_it_is(of: Fixture) -> None:
    of.worker_pools.workers[1].ready = False
    assert of.tick() == ["alive", "wait: 30.0", "status: starting: 1 of 2 workers are ready"]
    of.worker_pools.workers[1].say(0, 0, 0, "Connection refused")
    line = "status: starting: 1 of 2 workers are ready; message bus: Connection refused"
    assert of.tick() == ["alive", "wait: 30.0", line]
    of.worker_pools.answers = False
    assert of.tick() == []


def test_the_line_has_clients_rooms_messages_and_the_bus(of: Fixture) -> None:
    one, other = of.worker_pools.workers
    one.say(3, 2, 10)
    other.say(2, 1, 5)
    of.tick()
    of.reporter.ready()
    assert of.told.since() == ["ready: clients: 5, rooms: 2, messages/s: 15, bus: ok"]
    one.say(3, 2, 110)
    other.say(2, 1, 105, "Connection refused")
    assert of.tick() == ["alive", "status: clients: 5, rooms: 2, messages/s: 200, bus: away: Connection refused"]


def test_the_line_has_the_rooms_of_the_worker_that_has_most(of: Fixture) -> None:
    for worker, rooms in zip(of.worker_pools.workers, (3, 5), strict=True):
        worker.say(1, rooms, 0)
    of.reporter.ready()
    assert "rooms: 5," in of.told.since()[0]


def test_a_worker_that_ended_takes_nothing_off_the_rate(of: Fixture) -> None:
    of.reporter.ready()
    for worker in of.worker_pools.workers:
        worker.say(1, 1, 1000)
    of.tick()
    del of.worker_pools.workers[0]
    of.worker_pools.workers[0].say(1, 1, 1007)
    assert of.tick()[-1] == "status: clients: 1, rooms: 1, messages/s: 7, bus: ok"


def test_a_line_that_is_the_same_is_not_told_again(of: Fixture) -> None:
    of.reporter.ready()
    of.tick()
    assert of.tick() == ["alive"]


def test_workers_that_do_not_answer_do_not_feed_the_watchdog(of: Fixture) -> None:
    of.reporter.ready()
    of.tick()
    of.worker_pools.answers = False
    assert of.tick() == []


def test_a_reload_that_failed_stands_in_the_line_until_the_next(of: Fixture) -> None:
    of.reporter.ready()
    of.reporter.reloading()
    of.reporter.not_reloaded("no such option")
    line = "clients: 0, rooms: 0, messages/s: 0, bus: ok"
    assert of.told.since() == [
        f"ready: {line}",
        "reloading: reloading",
        f"ready: {line} (not reloaded: no such option)",
    ]
    assert of.tick() == ["alive"]
    of.reporter.ready()
    assert of.told.since() == [f"ready: {line}"]


def test_a_reload_that_failed_does_not_end_a_start(of: Fixture) -> None:
    of.reporter.reloading()
    of.reporter.not_reloaded("no such option")
    assert of.told.since() == []
    assert of.tick()[-1] == "status: starting: 2 of 2 workers are ready"


def test_a_stop_is_told(of: Fixture) -> None:
    of.reporter.stopping()
    assert of.told.since() == ["stopping: stopping: clients are closed"]
