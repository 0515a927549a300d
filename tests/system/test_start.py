"""A start that cannot succeed, or is stopped: it ends at once, in one line that says why, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.system.daemon import CHATD as CHATD_TOOL
from tests.system.daemon import TWISTD, Daemon
from tests.waiting import until

LISTEN = ("--listen", "tcp:0:interface=127.0.0.1")
TWICE = ("--tuning", "start_attempts=2")
CHATD = (TWISTD, "--nodaemon", "--pidfile=", "chatd", "--workers", "2", *LISTEN)


def refusal(tmp_path: Path, *command: str, status: int = 1) -> str:
    """Run a command that fails; give the one line that it says."""
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60, env=environment(tmp_path)
    )
    assert done.returncode == status, done
    [line] = done.stderr.splitlines()
    assert done.stdout == ""
    assert left_in(tmp_path) == []
    return line


def environment(tmp_path: Path) -> dict[str, str]:
    """Give an environment with a folder for temporary files of its own."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp")}


def left_in(tmp_path: Path) -> list[str]:
    """List what is left in the folder for temporary files, and pid files."""
    return [*os.listdir(tmp_path / "tmp"), *(each.name for each in tmp_path.glob("*.pid"))]


def test_a_chat_log_that_cannot_be_written_ends_the_start_with_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = refusal(tmp_path, *CHATD, "--chat-log", "pipe")
    why = "it is no file on a disk; name a file, and follow it with: tail -F FILE"
    assert said == f"twistd chatd: --chat-log {tmp_path}/pipe cannot be used: {why}"


def test_a_server_log_that_cannot_be_written_ends_the_start_with_one_line(tmp_path: Path) -> None:
    said = refusal(tmp_path, TWISTD, "--logfile", "/proc/chatd.log", "chatd", *LISTEN)
    why = "No such file or directory; choose another with twistd --logfile"
    assert said == f"twistd chatd: cannot write the server log /proc/chatd.log: {why}"


def test_a_pid_file_that_cannot_be_written_ends_the_start_with_one_line(tmp_path: Path) -> None:
    for path, why in (("no/chatd.pid", "No such file or directory"), ("tmp", "Is a directory")):
        said = refusal(tmp_path, TWISTD, "-n", "--pidfile", path, "chatd", *LISTEN)
        assert said == f"twistd chatd: the pid file {path} cannot be written: {why}; for none: twistd --pidfile="


def test_a_folder_to_run_in_that_is_not_there_ends_the_start_with_one_line(tmp_path: Path) -> None:
    said = refusal(tmp_path, TWISTD, "-n", "--pidfile=", "--rundir", "no", "chatd", *LISTEN)
    assert said == "twistd chatd: twistd's --rundir no cannot be used: No such file or directory"


BROKEN = """
import os, sys
if "{broken}" in sys.orig_argv:
    os.write(2, b"ValueError: broken on purpose" + bytes([10]))
    os._exit(3)
"""
"""Let the Python of a child fail as soon as it starts."""


def gives_up(
    tmp_path: Path, *options: str, command: Sequence[str] = CHATD, env: Mapping[str, str] | None = None
) -> str:
    """Run a chatd that cannot start; give the line of its log that says why."""
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**environment(tmp_path), **(env or {})},
    )
    assert done.returncode == 1, done
    assert (" is ready" in done.stdout, done.stderr) == (False, "")
    assert left_in(tmp_path) == []
    [line] = [each for each in done.stdout.splitlines() if "cannot start" in each]
    return line


def test_a_worker_that_ends_again_and_again_ends_the_start_with_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN.format(broken="chatd.worker"))
    line = gives_up(tmp_path, *TWICE, env={"PYTHONPATH": str(tmp_path)})
    why = r"exit status 3: ValueError: broken on purpose"
    assert re.search(rf"#critical\] chatd cannot start: worker \d ended 2 times before all were ready: {why}$", line), (
        line
    )


def test_a_broker_that_ends_again_and_again_ends_the_start_with_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "state" / "broker").mkdir(parents=True)
    (tmp_path / "state" / "broker" / "appendonlydir").touch()
    line = gives_up(tmp_path, *TWICE, "--data-dir", "state")
    assert re.search(
        r"cannot start: the private broker ended 2 times before .*: exit status 1: .*appendonlydir", line
    ), line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_only_the_user_that_serves_cannot_do_ends_the_start_with_one_line_too(tmp_path: Path) -> None:
    """Root reads the options; who serves is --uid, for whom pytest's folders are closed."""
    state = tmp_path / "state"
    twistd = (TWISTD, "--nodaemon", "--pidfile=", "--uid=65534", "--gid=65534", "chatd", *LISTEN)
    listen = ("--listen", f"unix:{tmp_path}/chatd.sock")
    line = gives_up(tmp_path, *listen, command=twistd)
    assert re.search(r"cannot start: --chat-log \S+ cannot be used: Permission denied(: \S+)?$", line), line
    open_to_all = {"TMPDIR": tempfile.gettempdir()}
    line = gives_up(
        tmp_path, *listen, "--chat-log", os.devnull, "--data-dir", str(state), command=twistd, env=open_to_all
    )
    assert f"chatd cannot start: --data-dir {state} cannot be used: Permission denied" in line


def test_a_chat_log_that_cannot_be_written_refuses_a_reload(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = tmp_path / "chatd.toml"
    file.write_text("workers = 1\n")
    with Daemon(tmp_path, "--config", "chatd.toml") as daemon:
        file.write_text('workers = 1\nchat-log = "pipe"\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r"reload_refused: .*: --chat-log \S+ cannot be used: it is no file")
        daemon.say("", "still here")
        assert daemon.texts() == ["still here"]


# Locales


def test_it_starts_and_serves_its_page_where_the_locale_is_not_utf_8(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with Daemon(tmp_path, workers=1, env=ascii_only) as daemon:
        with urlopen(Request(daemon.url("ops", "http"), headers={"Accept": "text/html"}), timeout=20) as page:
            assert "Connecting …" in page.read().decode()
        daemon.say("caf\u00e9", "h\u00e9")
        (tmp_path / "logs" / "chat.log").write_bytes(b"")
        verify = [CHATD_TOOL, "verify", "--redis", f"unix://{broker(daemon)}"]
        done = subprocess.run(
            verify, cwd=tmp_path, env={**os.environ, **ascii_only}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, "")
        assert "missing" in done.stdout
        assert "caf\\xe9" in done.stdout


def broker(daemon: Daemon) -> str:
    """Give the path of a daemon's private broker."""
    command = Path(f"/proc/{daemon.broker_pid()}/cmdline").read_text("utf-8")
    found = re.search(r"unixsocket:([^\s\0]+)", command)
    assert found is not None, command
    return found[1]


# Signals


def catches(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM, which Python has not (proc(5))."""
    found = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text("ascii"))
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


PAUSED = """
import signal, sys
class Pause:
    def find_spec(name, path=None, target=None):
        if name == "chatd.tap":
            open("imports", "w").close()
            signal.pause()
sys.meta_path.insert(0, Pause)
"""
"""Let Python wait for a signal as soon as it is to import what twistd runs."""


@pytest.mark.parametrize("moment", ["while it imports", "before the broker", "as workers start", "ready"])
def test_signals_at_any_moment_of_a_start_are_quiet_and_leave_nothing(tmp_path: Path, moment: str) -> None:
    """Several of them at once, as by an impatient Ctrl-C, which goes to the workers too.

    The first moment is the first of chatd's own. Before it twistd itself is imported: a Ctrl-C then is a traceback of
    Python, which nothing here can change.
    """
    env = environment(tmp_path)
    if moment == "while it imports":
        (tmp_path / "paused").mkdir()
        (tmp_path / "paused" / "sitecustomize.py").write_text(PAUSED)
        env["PYTHONPATH"] = str(tmp_path / "paused")
    with Daemon(tmp_path, wait=False, env=env) as daemon:
        if moment == "while it imports":
            until((tmp_path / "imports").exists, "the import of chatd")
        elif moment == "before the broker":
            until(lambda: catches(daemon.process.pid), "a handler of its own")
        else:
            daemon.wait_for("private_broker_started: " if moment == "as workers start" else "server_ready: ")
        children = daemon.children()
        for _ in range(2):
            os.killpg(daemon.process.pid, signal.SIGINT)
        if moment != "while it imports":  # SIGTERM would end it before the other says anything
            daemon.process.terminate()
        assert -daemon.process.wait(20) in (signal.SIGINT, signal.SIGTERM)
        said = daemon.log()
        assert not re.search("Traceback|KeyboardInterrupt|ReactorNotRunning|#error|#critical", said), said
        assert ("server_stopped: " in said) == ("server_ready: " in said or "private_broker_started: " in said)
    assert left_in(tmp_path) == []
    assert not any(Path("/proc", str(each)).exists() for each in children)
