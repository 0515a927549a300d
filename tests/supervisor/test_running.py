import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatd.supervisor import running
from chatd.supervisor.data_dir import DataDir
from chatd.supervisor.running import find_running


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as one:
        yield one


def found_in(folder: Path) -> list[str]:
    return [each.socket for each in find_running() if each.socket.startswith(str(folder))]


def broker(folder: Path, one: socket.socket, *, listens: bool = True) -> str:
    folder.mkdir(parents=True)
    path = str(folder / "broker.sock")
    one.bind(path)
    if listens:
        one.listen()
    return path


@pytest.mark.parametrize(
    ("name", "listens", "found"),
    [("chatd-12-abc", True, True), ("chatd-12-abc", False, False), ("chatd-test-abc", True, False)],
    ids=["a broker", "one that does not listen", "something else"],
)
def test_the_brokers_in_temporary_folders_are_found(
    tmp_path: Path, listening: socket.socket, name: str, listens: bool, found: bool
) -> None:
    path = broker(tmp_path / name, listening, listens=listens)
    assert found_in(tmp_path) == [path] * found


def test_a_broker_in_a_state_folder_is_found_by_its_folder(tmp_path: Path, listening: socket.socket) -> None:
    state = DataDir(str(tmp_path / "kept here"), 0)
    state.acquire()
    path = str(tmp_path / "kept here" / "broker" / "broker.sock")
    listening.bind(path)
    listening.listen()
    [one] = [each for each in find_running() if each.socket == path]
    assert (one.state, one.option, one.uid) == (
        str(tmp_path / "kept here"),
        f"--data-dir '{tmp_path}/kept here'",
        os.getuid(),
    )
    state.release()


def test_a_folder_called_broker_is_not_enough(tmp_path: Path, listening: socket.socket) -> None:
    broker(tmp_path / "other" / "broker", listening)
    assert found_in(tmp_path) == []


def test_it_is_said_where_one_was_started_and_on_which_ports_it_listens(
    tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broker(tmp_path / "chatd-12-abc", listening)
    monkeypatch.setattr(running, "_parent", lambda pid: pid)  # here it is this process that listens
    with socket.create_server(("127.0.0.1", 0)) as other:
        [one] = [each for each in find_running() if each.socket == path]
        folder, _, ports = one.place().partition(", ")
        assert folder == f"started in {os.getcwd()}"
        assert str(other.getsockname()[1]) in ports.replace(",", "").split()


def test_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "UNIX_SOCKETS", "/none")
    assert find_running() == []
