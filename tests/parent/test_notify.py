import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatd.parent.notify import Notifier
from tests.parent.children import Said


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
    notifier = Notifier(address)
    notifier.ready("2 clients")
    notifier.status("3 clients")
    notifier.stopping("bye")
    assert listening.heard() == ["READY=1", "STATUS=2 clients", "STATUS=3 clients", "STOPPING=1", "STATUS=bye"]


def test_a_reload_is_told_with_its_time(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    Notifier(address).reloading("again")
    first, time, status = listening.heard()
    assert (first, status) == ("RELOADING=1", "STATUS=again")
    assert int(time.removeprefix("MONOTONIC_USEC=")) > 0


def test_a_start_may_take_longer(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    Notifier(address).wait(2.5)
    assert listening.heard() == ["EXTEND_TIMEOUT_USEC=2500000"]


def test_the_watchdog_is_fed_only_where_there_is_one(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    Notifier(address).alive()
    assert listening.heard() == []
    Notifier(address, watchdog=30.0).alive()
    assert listening.heard() == ["WATCHDOG=1"]


def test_an_abstract_socket_is_one() -> None:
    name = f"chatd-test-{os.getpid()}"
    one = Systemd(f"\0{name}")
    with one.socket:
        Notifier(f"@{name}").status("hello")
        assert one.heard() == ["STATUS=hello"]


def test_the_environment_says_whom_to_tell_and_children_do_not_see_it(
    systemd: tuple[Systemd, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, address = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier.from_environment()
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
    assert Notifier.from_environment().watchdog == 0.0


def test_where_nobody_wants_to_know_nobody_is_told(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier.from_environment().ready("hello")
    assert said.lines == []


def test_one_that_cannot_be_told_is_said_once(tmp_path: Path, said: Said) -> None:
    notifier = Notifier(str(tmp_path / "none"))
    notifier.status("one")
    notifier.status("two")
    assert said.lines == ["warn: systemd cannot be told how the service is: No such file or directory"]


def test_what_is_said_but_once_waits_for_room_in_a_full_queue(systemd: tuple[Systemd, str], said: Said) -> None:
    listening, address = systemd
    notifier = Notifier(address)
    while not said.lines:  # what comes again does not wait
        notifier.status("busy")
    listening.socket.settimeout(20)
    read: list[bytes] = []

    def read_on() -> None:
        while not read or not read[-1].startswith(b"READY"):
            read.append(listening.socket.recv(4096))

    reader = threading.Timer(0.05, read_on)
    reader.start()
    notifier.ready("2 clients")
    reader.join()
    assert read[-1] == b"READY=1\nSTATUS=2 clients"


def test_a_status_that_is_no_text_is_told_all_the_same(systemd: tuple[Systemd, str]) -> None:
    listening, address = systemd
    Notifier(address).status("\udcff")
    assert listening.heard() == ["STATUS=\\udcff"]
