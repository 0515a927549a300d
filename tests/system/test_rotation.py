"""The chat log in production: rotated under load, by itself and by logrotate, as JSON, and synced."""

import gzip
import json
import subprocess
import threading
from pathlib import Path

from chatd.chatlog.line import read_line
from tests.system.crowd import Crowd
from tests.system.daemon import CHATD, Daemon
from tests.waiting import until

LOGROTATE = Path(__file__).parents[2] / "deploy" / "logrotate"
HISTORY = ("--history-size", "100000")


class Rotated(Daemon):
    """A daemon whose chat log is in several files."""

    def chat_lines(self, path: str = "logs/chat.log") -> list[str]:
        lines: list[str] = []
        for file in sorted((self.folder / "logs").glob("chat.log*")):
            if file.suffix == ".gz" and file.with_suffix("").exists():
                continue  # it is being packed
            data = file.read_bytes()
            text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
            assert not text or text.endswith("\n")
            lines += text.split("\n")[:-1]
        return lines

    @property
    def files(self) -> int:
        return len(list((self.folder / "logs").glob("chat.log*")))

    def verify(self) -> str:
        command = [CHATD, "verify", "--data-dir", "state", "logs"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def talk(daemon: Rotated, crowd: Crowd, *, until_files: int) -> None:
    """Let people talk on both workers until there are so many files; account for each line."""
    workers = daemon.worker_pids()
    for number in range(4):
        crowd.member(daemon, f"member {number}", worker=workers[number % 2])
    crowd.wait_for_all()
    for number in range(4):
        crowd.sender(daemon, f"sender {number}", worker=workers[number % 2], pace=0.001, padding="x" * 100)
    crowd.wait_for_all()
    until(lambda: daemon.files >= until_files, f"{until_files} files", seconds=40)
    crowd.finish([daemon])


def test_its_own_rotation_each_moment_loses_no_line(tmp_path: Path) -> None:
    options = ("--data-dir", "state", "--chat-log-rotate", "20kB", *HISTORY)
    with Rotated(tmp_path, *options) as daemon, Crowd() as crowd:
        talk(daemon, crowd, until_files=20)
        daemon.verify()
    assert len(list((tmp_path / "logs").glob("*.gz"))) >= 15


def test_renames_each_200_milliseconds_lose_no_line(tmp_path: Path) -> None:
    stop = threading.Event()

    def rename(log: Path) -> None:
        number = 0
        while not stop.wait(0.2):
            if log.exists():
                number += 1
                log.rename(log.with_name(f"chat.log.{number:04}"))

    with Rotated(tmp_path, "--data-dir", "state", *HISTORY) as daemon, Crowd() as crowd:
        renaming = threading.Thread(target=rename, args=(tmp_path / "logs" / "chat.log",))
        renaming.start()
        try:
            talk(daemon, crowd, until_files=20)
        finally:
            stop.set()
            renaming.join()
        daemon.verify()


def test_logrotate_rotates_it_with_the_file_that_we_give(tmp_path: Path) -> None:
    with Rotated(tmp_path) as daemon, daemon.connect() as one, daemon.connect() as other:
        log = tmp_path / "logs" / "chat.log"
        rules = LOGROTATE.read_text().replace("/var/log/chatd/chat.log", str(log)).replace("su chatd chatd", "")
        (tmp_path / "rules").write_text(rules)
        (tmp_path / "rules").chmod(0o600)
        said = []
        for turn in range(3):
            said.append(f"turn {turn}")
            one.send(said[-1])
            assert other.recv(20) == said[-1]
            command = ["logrotate", "--force", "--state", str(tmp_path / "status"), str(tmp_path / "rules")]
            subprocess.run(command, check=True, timeout=20)
        one.send("the last")
        assert other.recv(20) == "the last"
        assert {line.split(" ", 4)[4] for line in daemon.chat_lines()} == {*said, "the last"}
        assert daemon.files == 4
        assert len(list((tmp_path / "logs").glob("*.gz"))) == 2


def test_a_log_of_objects_has_the_same_fields_and_may_be_mixed(tmp_path: Path) -> None:
    with Rotated(tmp_path, "--data-dir", "state", "--chat-log-format", "json") as daemon:
        with daemon.connect("ops?nick=ann") as ann, daemon.connect("ops") as bare:
            ann.send("/me waves \u202e\x1b[1m")
            heard = bare.recv(20)
            bare.send("hello")
            assert ann.recv(20) == "hello"
        objects = [json.loads(line) for line in daemon.chat_lines()]
        assert heard == "* ann waves \u202e\x1b[1m"
        assert [(each["room"], each["nick"], each["text"]) for each in objects] == [
            ("ops", "ann", "waves \u202e\x1b[1m"),
            ("ops", None, "hello"),
        ]
        assert objects[0]["action"] is True
        assert "\u202e" not in "".join(daemon.chat_lines())
    with Rotated(tmp_path, "--data-dir", "state") as daemon:
        daemon.say("ops", "as text")
        kinds = [line.startswith("{") for line in daemon.chat_lines()]
        assert kinds == [True, True, False]
        assert all(read_line(line.encode()) for line in daemon.chat_lines())
        daemon.verify()


def test_a_synced_log_loses_no_line_and_keeps_the_order(tmp_path: Path) -> None:
    options = ("--data-dir", "state", "--chat-log-sync", "batch", "--chat-log-rotate", "50kB", *HISTORY)
    with Rotated(tmp_path, *options) as daemon, Crowd() as crowd:
        talk(daemon, crowd, until_files=5)
        daemon.verify()
