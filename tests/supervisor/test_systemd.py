import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.runtime.ipc import Heartbeat
from chatd.supervisor.systemd import (
    NOTIFY_KEPT,
    NOTIFY_RETRY_SECONDS,
    NOTIFY_SECONDS,
    StatusReporter,
    SystemdNotifier,
)
from tests.rows import rows
from tests.supervisor.children import Said


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.setblocking(False)

    def received(self) -> list[str]:
        """Return the lines since the last call."""
        lines: list[str] = []
        while True:
            try:
                lines += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify.sock"))
    with manager.socket:
        yield manager


@rows(
    ("notify", "received"),
    [
        (lambda notifier: notifier.ready("2 clients"), ["READY=1", "STATUS=2 clients"]),
        (lambda notifier: notifier.status("3 clients"), ["STATUS=3 clients"]),
        (lambda notifier: notifier.status("\udcff"), ["STATUS=\\udcff"]),
        (lambda notifier: notifier.stopping("bye"), ["STOPPING=1", "STATUS=bye"]),
        (lambda notifier: notifier.extend_timeout(2.5), ["EXTEND_TIMEOUT_USEC=2500000"]),
        (lambda notifier: notifier.feed_watchdog(), []),
    ],
)
def test_each_state_is_sent_with_a_status_line(
    manager: Manager, notify: Callable[[SystemdNotifier], None], received: list[str]
) -> None:
    notify(SystemdNotifier(Clock(), manager.address))
    assert manager.received() == received


def test_the_watchdog_is_fed_where_there_is_one(manager: Manager) -> None:
    SystemdNotifier(Clock(), manager.address, watchdog=30.0).feed_watchdog()
    assert manager.received() == ["WATCHDOG=1"]


def test_a_reload_is_sent_with_its_time(manager: Manager) -> None:
    SystemdNotifier(Clock(), manager.address).reloading("again")
    first, time, status = manager.received()
    assert (first, status) == ("RELOADING=1", "STATUS=again")
    assert int(time.removeprefix("MONOTONIC_USEC=")) > 0


def test_an_abstract_socket_is_one() -> None:
    manager = Manager(f"@chatd-test-{os.getpid()}")
    with manager.socket:
        SystemdNotifier(Clock(), manager.address).status("hello")
        assert manager.received() == ["STATUS=hello"]


def test_the_environment_has_the_socket_and_children_do_not_inherit_it(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = SystemdNotifier.from_environment(Clock())
    assert notifier.watchdog == 30.0
    notifier.status("hello")
    assert manager.received() == ["STATUS=hello"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


@pytest.mark.parametrize(
    "variables", [{"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_PID": "1"}]
)
def test_the_watchdog_of_another_process_is_ignored(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({"NOTIFY_SOCKET": "/nowhere"} | variables).items():
        monkeypatch.setenv(name, value)
    assert SystemdNotifier.from_environment(Clock()).watchdog == 0.0


def test_without_a_socket_nothing_is_sent_or_logged(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    SystemdNotifier.from_environment(Clock()).ready("hello")
    assert said.lines == []


def test_a_failure_is_logged_once(tmp_path: Path, said: Said) -> None:
    notifier = SystemdNotifier(Clock(), str(tmp_path / "none"))
    notifier.status("one")
    notifier.status("two")
    assert said.lines == ["warn: cannot notify systemd: No such file or directory"]


# A full queue


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stuck(manager: Manager, clock: Clock, said: Said) -> SystemdNotifier:
    """Return a notifier whose queue is full; a status line is not kept, and its loss is logged."""
    notifier = SystemdNotifier(clock, manager.address, watchdog=30)
    while not said.lines:
        notifier.status("busy")
    return notifier


def test_changes_of_state_are_kept_in_their_order_while_the_queue_is_full(
    manager: Manager, clock: Clock, stuck: SystemdNotifier
) -> None:
    stuck.reloading("again")
    stuck.status("would overtake")
    stuck.ready("2 clients")
    clock.advance(NOTIFY_RETRY_SECONDS)
    assert set(manager.received()) == {"STATUS=busy"}
    clock.advance(NOTIFY_RETRY_SECONDS)
    lines = manager.received()
    assert [lines[0], *lines[2:]] == ["RELOADING=1", "STATUS=again", "READY=1", "STATUS=2 clients"]
    assert clock.getDelayedCalls() == []
    stuck.status("3 clients")
    assert manager.received() == ["STATUS=3 clients"]


def test_nothing_waits_in_the_event_loop_for_a_full_queue(
    clock: Clock, stuck: SystemdNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Noting(socket.socket):
        def settimeout(self, value: float | None) -> None:
            waits.append(value)
            super().settimeout(value)

    monkeypatch.setattr(socket, "socket", Noting)
    for notify in (stuck.ready, stuck.reloading, stuck.stopping, stuck.status):
        notify("busy")
    stuck.feed_watchdog()
    clock.advance(NOTIFY_RETRY_SECONDS)
    assert len(waits) == 3  # the first of those that are kept, twice, and the watchdog
    assert set(waits) == {0.0}


def test_a_change_of_state_is_dropped_after_its_deadline(
    manager: Manager, clock: Clock, stuck: SystemdNotifier
) -> None:
    stuck.ready("2 clients")
    clock.pump([NOTIFY_RETRY_SECONDS] * int(NOTIFY_SECONDS / NOTIFY_RETRY_SECONDS + 1))
    assert clock.getDelayedCalls() == []
    assert set(manager.received()) == {"STATUS=busy"}


def test_the_number_of_kept_changes_is_bounded(manager: Manager, clock: Clock, stuck: SystemdNotifier) -> None:
    for number in range(NOTIFY_KEPT + 3):
        stuck.ready(f"{number}")
    manager.received()
    lines: list[str] = []
    while clock.getDelayedCalls():
        clock.advance(NOTIFY_RETRY_SECONDS)
        lines += manager.received()
    assert lines[1::2] == [f"STATUS={number}" for number in range(3, NOTIFY_KEPT + 3)]


def test_flush_sends_what_is_kept(manager: Manager, clock: Clock, stuck: SystemdNotifier) -> None:
    stuck.stopping("bye")
    manager.received()
    stuck.flush()
    assert manager.received() == ["STOPPING=1", "STATUS=bye"]
    assert clock.getDelayedCalls() == []


class FakeNotifier:
    """A notifier that stores what it is called with."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *status: self.lines.append(": ".join([name, *map(str, status)]))

    def since(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


class FakeWorker:
    """A worker and its last heartbeat."""

    def __init__(self) -> None:
        self.ready = True
        self.heartbeat: Heartbeat | None = None

    def say(self, clients: int, rooms: int, messages: int, away: str = "") -> None:
        self.heartbeat = Heartbeat(clients, rooms, messages, away)


class FakeWorkerPools:
    """Worker pools with two workers."""

    def __init__(self) -> None:
        self.workers = [FakeWorker(), FakeWorker()]
        self.responsive = True
        self.heartbeats_checked: Any = None


class Fixture:
    def __init__(self) -> None:
        self.clock = Clock()
        self.told = FakeNotifier()
        self.worker_pools = FakeWorkerPools()
        worker_pools: Any = self.worker_pools
        told: Any = self.told
        self.reporter = StatusReporter(self.clock, told)
        self.reporter.start(worker_pools)

    def tick(self) -> list[str]:
        self.clock.advance(1.0)
        self.worker_pools.heartbeats_checked()
        return self.told.since()


@pytest.fixture
def of() -> Fixture:
    made = Fixture()
    assert made.told.since() == ["status: starting"]
    return made


def test_during_a_start_the_line_has_the_number_of_ready_workers(of: Fixture) -> None:
    of.worker_pools.workers[1].ready = False
    assert of.tick() == ["feed_watchdog", "extend_timeout: 30.0", "status: starting: 1 of 2 workers are ready"]
    of.worker_pools.workers[1].say(0, 0, 0, "Connection refused")
    line = "status: starting: 1 of 2 workers are ready; broker: Connection refused"
    assert of.tick() == ["feed_watchdog", "extend_timeout: 30.0", line]
    of.worker_pools.responsive = False
    assert of.tick() == []


def test_the_line_has_clients_rooms_messages_and_the_bus(of: Fixture) -> None:
    one, other = of.worker_pools.workers
    one.say(3, 2, 10)
    other.say(2, 1, 5)
    of.tick()
    of.reporter.ready()
    assert of.told.since() == ["ready: clients: 5, rooms: 2, messages/s: 15, broker: ok"]
    one.say(3, 2, 110)
    other.say(2, 1, 105, "Connection refused")
    assert of.tick() == [
        "feed_watchdog",
        "status: clients: 5, rooms: 2, messages/s: 200, broker: away: Connection refused",
    ]


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
    assert of.tick()[-1] == "status: clients: 1, rooms: 1, messages/s: 7, broker: ok"


def test_an_unchanged_line_is_not_sent_again(of: Fixture) -> None:
    of.reporter.ready()
    of.tick()
    assert of.tick() == ["feed_watchdog"]


def test_workers_that_do_not_answer_do_not_feed_the_watchdog(of: Fixture) -> None:
    of.reporter.ready()
    of.tick()
    of.worker_pools.responsive = False
    assert of.tick() == []


def test_a_reload_that_failed_stands_in_the_line_until_the_next(of: Fixture) -> None:
    of.reporter.ready()
    of.reporter.reloading()
    of.reporter.not_reloaded("no such option")
    line = "clients: 0, rooms: 0, messages/s: 0, broker: ok"
    assert of.told.since() == [
        f"ready: {line}",
        "reloading: reloading",
        f"ready: {line} (not reloaded: no such option)",
    ]
    assert of.tick() == ["feed_watchdog"]
    of.reporter.ready()
    assert of.told.since() == [f"ready: {line}"]


def test_a_reload_that_failed_does_not_end_a_start(of: Fixture) -> None:
    of.reporter.reloading()
    of.reporter.not_reloaded("no such option")
    assert of.told.since() == []
    assert of.tick()[-1] == "status: starting: 2 of 2 workers are ready"


def test_a_stop_is_reported(of: Fixture) -> None:
    of.reporter.stopping()
    assert of.told.since() == ["stopping: stopping: closing clients"]
