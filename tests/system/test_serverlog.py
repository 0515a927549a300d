"""The server's own log of a real chatd: as JSON, without a word of what is said, and repeated trouble counted."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.system.daemon import TWISTD, Daemon
from tests.waiting import until

SECRET = "xyzzy-plugh"  # what is said, and what it is said with


def lines(path: Path) -> list[dict[str, object]]:
    """Give the lines that are whole."""
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_a_busy_run_has_no_word_of_chat_in_its_log(tmp_path: Path) -> None:
    key = f"resume-{SECRET}"
    with Daemon(tmp_path, "--max-send-buffer", "65536", wait=False) as daemon:
        log = tmp_path / "server.log"

        def ports() -> list[str]:
            texts = [str(each["text"]) for each in lines(log)]
            return [text.rpartition(":")[2] for text in texts if "ws://127.0.0.1" in text]

        daemon.port = int(until(ports, "it to say where it listens")[0])
        workers = daemon.worker_pids()
        with (
            daemon.connect(f"ops?resume={key}") as bare,
            daemon.connect("ops?nick=ann") as named,
            daemon.connect("", "chatd.v1") as program,
            daemon.connect_to(workers[0], "ops"),  # reads nothing of what it is sent
        ):
            program.send(json.dumps({"type": "join", "room": "ops"}))
            for number in range(100):
                bare.send(f"{SECRET} {number}")
                named.send(f"{SECRET} {number} " + "x" * 8000)
            program.send(json.dumps({"type": "publish", "room": "ops", "text": SECRET, "id": SECRET}))
            program.send(json.dumps({"type": SECRET}))
            program.send(SECRET)
            named.send(f"/{SECRET}")
            bare.send(SECRET + "x" * 20000)
            until(lambda: len(daemon.chat_lines()) >= 200, "200 lines in the chat log")
            os.kill(daemon.broker_pid(), signal.SIGKILL)
            os.kill(workers[1], signal.SIGKILL)
            until(
                lambda: sum(event["event"] in ("worker_ready", "server_ready") for event in lines(log)) >= 4,
                "a new worker",
            )
    said = lines(log)
    text = log.read_text()
    assert SECRET not in text
    assert "127.0.0.1" in text, "it is that log"
    assert {tuple(each) for each in said} == {
        ("time", "level", "event", "namespace", "pid", "worker", "text", "fields")
    }
    [gone] = [event for event in said if event["event"] == "worker_ended"]
    assert gone["level"] == "error"
    assert gone["fields"] == {"name": f"worker {gone['text'][7]} (pid {workers[1]})"} | {  # type: ignore[index]
        "reason": "killed by SIGKILL",
        "wait": 0.1,
    }


def test_a_worker_that_dies_again_and_again_is_said_once_in_a_while_with_how_often(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--tuning", "log_repeat_interval=2", workers=1) as daemon:
        for _ in range(4):
            [worker] = until(daemon.worker_pids, "a worker")
            os.kill(worker, signal.SIGKILL)
            until(lambda pid=worker: daemon.worker_pids() not in ([], [pid]), "the next one")  # type: ignore[misc]
        told = daemon.wait_for(r"worker_ended: .* ended: killed by SIGKILL; .* \((\d) more in \d s\)")
    deaths = daemon.log().count("worker_ended: ")
    assert 2 <= deaths <= 3, "not four times"
    assert int(told[1]) >= 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_file_of_twistds_is_written_and_rotated(form: str, tmp_path: Path) -> None:
    log = tmp_path / "own.log"
    command = [TWISTD, "--nodaemon", "--pidfile=", f"--logfile={log}", "chatd", "--workers", "1", "--log-format", form]
    command += ["--listen", "tcp:0:interface=127.0.0.1"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL)
    try:
        until(lambda: log.exists() and "is ready: 1 worker," in log.read_text(), "readiness")
        process.send_signal(signal.SIGUSR1)
        until((tmp_path / "own.log.1").exists, "the rotated log")
    finally:
        process.terminate()
        process.wait(15)
    assert "chatd has stopped" in log.read_text()
    if form == "json":
        assert lines(tmp_path / "own.log.1")
        assert lines(log)


def test_a_logger_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom twisted.logger import jsonFileLogObserver\n"
        "def observer():\n    return jsonFileLogObserver(sys.stdout, recordSeparator='')\n"
    )
    command = [TWISTD, "--nodaemon", "--pidfile=", "--logger=mine.observer", "chatd", "--workers", "1"]
    command += ["--listen", f"unix:{tmp_path}/s"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=out, env={**os.environ, "PYTHONPATH": path}
        )
    try:
        until(lambda: "is ready" in (tmp_path / "out").read_text(), "readiness")
    finally:
        process.terminate()
        process.wait(15)
    assert '"log_namespace": "chatd.supervisor.service"' in (tmp_path / "out").read_text()
