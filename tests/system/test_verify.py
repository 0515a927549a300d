"""``chatd verify`` beside a real chatd: its own logs, its own broker."""

import gzip
import subprocess
from pathlib import Path

from chatd.supervisor.running import find_running
from tests.system.daemon import CHATD, Daemon
from tests.waiting import until


def verify(daemon: Daemon) -> tuple[int, str]:
    """Run it where chatd runs; give its status and its last line."""
    command = [CHATD, "verify", "--data-dir", "state"]
    done = subprocess.run(command, cwd=daemon.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()[-1]


def test_what_was_said_is_in_the_logs_once_until_one_is_taken_away(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--data-dir", "state") as daemon, daemon.connect("ops") as ann, daemon.connect("ops") as bob:
        for number in range(300):
            ann.send(f"line {number} \\ \t\x1b")
            if number == 150:  # in the midst of it
                assert verify(daemon)[0] == 0
        for _ in range(300):
            bob.recv(20)
        [found] = [each for each in find_running() if each.state == str(tmp_path / "state")]
        assert found.place() == f"started in {tmp_path}, port {daemon.port}"
        status, said = verify(daemon)
        assert (status, said.partition(", rooms: ")[2]) == (
            0,
            "1, messages in histories: 300: each is in the logs once",
        )

        log = tmp_path / "logs" / "chat.log"
        rotated = log.with_name("chat.log.1")
        log.rename(rotated)
        until(log.exists, "a new chat log")
        packed = log.with_name("chat.log.1.gz")
        packed.write_bytes(gzip.compress(rotated.read_bytes()))
        rotated.unlink()
        ann.send("after the rotation")
        bob.recv(20)
        assert verify(daemon)[0] == 0

        packed.unlink()
        status, said = verify(daemon)
        assert (status, said.rpartition(": ")[2]) == (1, "300 missing")
