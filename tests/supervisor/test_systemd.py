import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from chatd.config.tuning import NOTIFY_KEPT, NOTIFY_RETRY_SECONDS, NOTIFY_SECONDS
from chatd.supervisor.systemd import SystemdNotifier
from tests.supervisor.children import Said


class Systemd:
    """What a service manager hears."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        lines: list[str] = []
        while True:
            try:
                lines += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[Systemd, str]]:
    address = str(tmp_path / "notify.sock")
    one = Systemd(address)
    with one.socket:
        yield one, address


def test_each_state_is_told_with_a_line_for_people(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    notifier = SystemdNotifier(Clock(), address)
    notifier.ready("2 clients")
    notifier.status("3 clients")
    notifier.stopping("bye")
    assert listening.heard() == ["READY=1", "STATUS=2 clients", "STATUS=3 clients", "STOPPING=1", "STATUS=bye"]


def test_a_reload_is_told_with_its_time(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    SystemdNotifier(Clock(), address).reloading("again")
    first, time, status = listening.heard()
    assert (first, status) == ("RELOADING=1", "STATUS=again")
    assert int(time.removeprefix("MONOTONIC_USEC=")) > 0


def test_a_start_may_take_longer(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    SystemdNotifier(Clock(), address).wait(2.5)
    assert listening.heard() == ["EXTEND_TIMEOUT_USEC=2500000"]


def test_the_watchdog_is_fed_only_where_there_is_one(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    SystemdNotifier(Clock(), address).alive()
    assert listening.heard() == []
    SystemdNotifier(Clock(), address, watchdog=30.0).alive()
    assert listening.heard() == ["WATCHDOG=1"]


def test_an_abstract_socket_is_one() -> None:
    name = f"chatd-test-{os.getpid()}"
    one = Systemd(f"\0{name}")
    with one.socket:
        SystemdNotifier(Clock(), f"@{name}").status("hello")
        assert one.heard() == ["STATUS=hello"]


def test_the_environment_says_whom_to_tell_and_children_do_not_see_it(
    systemd: tuple[Systemd, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, address = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = SystemdNotifier.from_environment(Clock())
    assert notifier.watchdog == 30.0
    notifier.status("hello")
    assert listening.heard() == ["STATUS=hello"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


@pytest.mark.parametrize(
    "said", [{"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_PID": "1"}]
)
def test_a_watchdog_of_somebody_else_is_none(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({"NOTIFY_SOCKET": "/nowhere"} | said).items():
        monkeypatch.setenv(name, value)
    assert SystemdNotifier.from_environment(Clock()).watchdog == 0.0


def test_where_nobody_wants_to_know_nobody_is_told(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    SystemdNotifier.from_environment(Clock()).ready("hello")
    assert said.lines == []


def test_one_that_cannot_be_told_is_said_once(tmp_path: Path, said: Said) -> None:
    notifier = SystemdNotifier(Clock(), str(tmp_path / "none"))
    notifier.status("one")
    notifier.status("two")
    assert said.lines == ["warn: systemd cannot be told how the service is: No such file or directory"]


def fill(notifier: SystemdNotifier, said: Said) -> None:
    """Fill the queue: what comes again is not kept, and said to be lost."""
    while not said.lines:
        notifier.status("busy")


def test_what_is_said_but_once_is_kept_in_its_order_while_the_queue_is_full(
    systemd: tuple[Systemd, str], said: Said
) -> None:
    listening, address = systemd
    clock = Clock()
    notifier = SystemdNotifier(clock, address)
    fill(notifier, said)
    notifier.reloading("again")
    notifier.status("would overtake")
    notifier.ready("2 clients")
    clock.advance(NOTIFY_RETRY_SECONDS)
    assert set(listening.heard()) == {"STATUS=busy"}
    clock.advance(NOTIFY_RETRY_SECONDS)
    heard = listening.heard()
    assert [heard[0], *heard[2:]] == ["RELOADING=1", "STATUS=again", "READY=1", "STATUS=2 clients"]
    assert clock.getDelayedCalls() == []
    notifier.status("3 clients")
    assert listening.heard() == ["STATUS=3 clients"]


def test_nothing_waits_in_the_event_loop_for_a_full_queue(
    systemd: tuple[Systemd, str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = systemd
    clock = Clock()
    notifier = SystemdNotifier(clock, address, watchdog=30)
    fill(notifier, said)
    waits: list[float | None] = []

    class Noting(socket.socket):
        def settimeout(self, value: float | None) -> None:
            waits.append(value)
            super().settimeout(value)

    monkeypatch.setattr(socket, "socket", Noting)
    for tell in (notifier.ready, notifier.reloading, notifier.stopping, notifier.status):
        tell("busy")
    notifier.alive()
    clock.advance(NOTIFY_RETRY_SECONDS)
    assert len(waits) == 3  # the first of those that are kept, twice, and the watchdog
    assert set(waits) == {0.0}


def test_what_cannot_be_said_for_a_while_is_given_up(systemd: tuple[Systemd, str], said: Said) -> None:
    listening, address = systemd
    clock = Clock()
    notifier = SystemdNotifier(clock, address)
    fill(notifier, said)
    notifier.ready("2 clients")
    clock.pump([NOTIFY_RETRY_SECONDS] * int(NOTIFY_SECONDS / NOTIFY_RETRY_SECONDS + 1))
    assert clock.getDelayedCalls() == []
    assert set(listening.heard()) == {"STATUS=busy"}


def test_no_more_is_kept_than_may_be(systemd: tuple[Systemd, str], said: Said) -> None:
    listening, address = systemd
    clock = Clock()
    notifier = SystemdNotifier(clock, address)
    fill(notifier, said)
    for number in range(NOTIFY_KEPT + 3):
        notifier.ready(f"{number}")
    listening.heard()
    heard: list[str] = []
    while clock.getDelayedCalls():
        clock.advance(NOTIFY_RETRY_SECONDS)
        heard += listening.heard()
    assert heard[1::2] == [f"STATUS={number}" for number in range(3, NOTIFY_KEPT + 3)]


def test_at_the_end_what_is_kept_is_said(systemd: tuple[Systemd, str], said: Said) -> None:
    listening, address = systemd
    clock = Clock()
    notifier = SystemdNotifier(clock, address)
    fill(notifier, said)
    notifier.stopping("bye")
    listening.heard()
    notifier.finish()
    assert listening.heard() == ["STOPPING=1", "STATUS=bye"]
    assert clock.getDelayedCalls() == []


def test_a_status_that_is_no_text_is_told_all_the_same(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    SystemdNotifier(Clock(), address).status("\udcff")
    assert listening.heard() == ["STATUS=\\udcff"]
