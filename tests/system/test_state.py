"""What ``--data-dir`` keeps: kill -9 of the broker, and of everything, loses nothing that was acknowledged."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import hiredis
import pytest

from chatd.cli import main
from tests.broker.server import Client
from tests.system.daemon import TWISTD, Daemon
from tests.waiting import until


def kill_broker(daemon: Daemon) -> None:
    os.kill(daemon.broker_pid(), signal.SIGKILL)


def write_until(daemon: Daemon, folder: Path, kill: Callable[[Daemon], None]) -> int:
    """Append to a stream, batches of 10 one after the other, with a kill amid them; give how many were acknowledged."""
    acknowledged = sent = 0
    with Client(str(folder / "broker" / "broker.sock")) as client, contextlib.suppress(OSError, EOFError):
        while True:
            for _ in range(10):
                sent += 1
                client.send("XADD", "lines", f"{sent}-0", "b", f"{sent} {'x' * 300}")
            if acknowledged == 2000:
                kill(daemon)
            for _ in range(10):
                assert client.read() == f"{acknowledged + 1}-0".encode()
                acknowledged += 1
    return acknowledged


def stored(folder: Path) -> list[bytes]:
    """Give the ids in the stream, once the broker has read its file."""

    def look() -> list[bytes] | None:
        try:
            with Client(str(folder / "broker" / "broker.sock")) as client:
                return [entry[0] for entry in client.ask("XRANGE", "lines", "-", "+")]
        except (OSError, hiredis.ReplyError):  # not there yet, or still reading
            return None

    found = until(look, "the stream")
    assert found is not None
    return found


def lineage(folder: Path) -> str:
    return (folder / "broker" / "lineage").read_text().split()[0]


def test_a_killed_broker_comes_back_with_all_it_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Daemon(tmp_path, "--data-dir", "state") as daemon:
        before = lineage(folder)
        acknowledged = write_until(daemon, folder, kill_broker)
        assert acknowledged >= 2000
        kept = stored(folder)
        assert kept == [f"{number + 1}-0".encode() for number in range(len(kept))]
        assert acknowledged <= len(kept) <= acknowledged + 10
        assert lineage(folder) == before


def test_after_a_kill_of_everything_the_next_chatd_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Daemon(tmp_path, "--data-dir", str(folder)) as daemon:
        before = lineage(folder)
        acknowledged = write_until(daemon, folder, Daemon.kill)
        assert acknowledged >= 2000
    with Daemon(tmp_path, "--data-dir", str(folder)):
        kept = stored(folder)
        assert kept == [f"{number + 1}-0".encode() for number in range(len(kept))]
        assert acknowledged <= len(kept) <= acknowledged + 10
        assert lineage(folder) == before


def test_after_a_stop_the_next_chatd_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with (
        Daemon(tmp_path, "--data-dir", str(folder)) as daemon,
        Client(str(folder / "broker" / "broker.sock")) as client,
    ):
        client.ask("XADD", "lines", "1-0", "b", "x")
        before = lineage(folder)
        daemon.process.terminate()
        daemon.process.wait(15)
        assert "killed" not in daemon.log()
        assert sorted(os.listdir(folder / "broker")) == ["appendonlydir", "lineage"]
    with Daemon(tmp_path, "--data-dir", str(folder)):
        assert stored(folder) == [b"1-0"]
        assert lineage(folder) == before


def test_a_restored_folder_begins_another_lineage(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--data-dir", "state"):
        before = lineage(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "copy", copy_function=shutil.copy2)
    assert main(["new-lineage", "--data-dir", str(tmp_path / "copy")]) == 0
    with Daemon(tmp_path, "--data-dir", "copy"):
        assert lineage(tmp_path / "copy") != before


def test_a_second_chatd_in_the_same_folder_ends_with_one_line_and_the_first_goes_on(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--data-dir", "state") as daemon, daemon.connect() as one, daemon.connect() as other:
        command = [TWISTD, "--nodaemon", "--pidfile=", "chatd", "--data-dir", "state"]
        second = subprocess.run(
            [*command, "--listen", "tcp:0:interface=127.0.0.1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (second.returncode, second.stdout, second.stderr) == (
            1,
            "",
            "twistd chatd: --data-dir state is in use by another chatd\n",
        )
        one.send("still here")
        assert other.recv(20) == "still here"


@pytest.mark.parametrize("name", ["a folder", "100%25?#", "caf\u00e9", "x" * 120])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    with Daemon(tmp_path, "--data-dir", name) as daemon, daemon.connect() as one, daemon.connect() as other:
        one.send("hello")
        assert other.recv(20) == "hello"
        assert (tmp_path / name / "broker" / "appendonlydir").is_dir()
