"""The server's own log: text or JSON, to wherever twistd's options say."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LoggingFile, LogLevel
from twisted.python.failure import Failure
from twisted.python.syslog import SyslogObserver

from chatd.config.settings import Config
from chatd.supervisor.server_log import ServerLog

STDOUT = {"nodaemon": True}


class Reactor(Clock):
    def callFromThread(self, function: Any, *args: Any) -> None:  # noqa: N802 - Twisted's
        function(*args)


@pytest.fixture(autouse=True)
def kept_signal() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


def opened(options: dict[str, Any], **config: Any) -> tuple[ServerLog, Logger]:
    log = ServerLog(Reactor(), options, Config(**config))
    log.open()
    observer: Any = log
    return log, Logger(namespace="chatd.test", observer=observer)


def test_text_is_as_twistd_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())
    _, log = opened(STDOUT)
    log.warn("it is {why}", why="full")
    written: Any = sys.stdout
    assert written.getvalue().endswith(" [chatd.test#warn] it is full\n")


@pytest.mark.parametrize(
    ("form", "at_the_start"), [("text", "[chatd.test#warn] it is full\n\tup to here\n"), ("json", '{"time": ')]
)
def test_in_the_journal_text_has_no_time_of_its_own(
    form: str, at_the_start: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "journal").open("w") as journal:
        about = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        monkeypatch.setattr(sys, "stdout", journal)
        _, log = opened(STDOUT, log_format=form)
        log.warn("it is full\nup to here")
    assert (tmp_path / "journal").read_text().startswith(at_the_start)


def test_what_leads_elsewhere_than_to_the_journal_has_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")  # that of a service which we were started from, in a file
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        _, log = opened(STDOUT)
        log.warn("it is full")
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ \[chatd.test#warn\] it is full\n", (tmp_path / "file").read_text())


def test_json_is_an_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())
    _, log = opened(STDOUT, log_format="json")
    log.warn("{who}: it is {why},\nfor {seconds:g} s \x1b[2J\u2028", who="ann", why="full", seconds=3.0)
    written: Any = sys.stdout
    line = written.getvalue()
    assert line.isascii()
    assert line.count("\n") == 1
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "warn",
        "namespace": "chatd.test",
        "pid": os.getpid(),
        "worker": None,
        "text": "ann: it is full,\nfor 3 s \x1b[2J\u2028",
        "fields": {"why": "full", "seconds": 3.0},
    }


def test_what_a_worker_says_is_told_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())
    server_log, log = opened(STDOUT, log_format="json")
    about: dict[str, Any] = {"source": "chatd.rooms.hub", "kind": "lost", "fields": {"messages": 3}}
    for _ in range(3):
        log.warn("worker {worker}: {text}", worker=2, worker_pid=77, text="lost: 3", **about)
    server_log.close()
    written: Any = sys.stdout
    first, last = map(json.loads, written.getvalue().splitlines())
    for each in (first, last):
        del each["time"]
    assert first == {
        "level": "warn",
        "namespace": "chatd.rooms.hub",
        "pid": 77,
        "worker": 2,
        "text": "lost: 3",
        "fields": {"messages": 3},
    }
    assert last == first | {"text": "worker 2: lost: 3 (2 more in 0 s)", "fields": {"messages": 3, "times": 2}}


def test_a_failure_has_its_traceback_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())
    _, log = opened(STDOUT, log_format="json")
    log.failure("it went wrong", Failure(KeyError("a")))
    written: Any = sys.stdout
    said = json.loads(written.getvalue())
    assert said["level"] == "critical"
    assert said["text"].startswith("it went wrong\nTraceback")


@pytest.mark.parametrize(("name", "options"), [("own.log", {"logfile": "own.log"}), ("twistd.log", {})])
def test_a_file_is_written_and_rotated_at_a_signal(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files: list[Any] = []
    open_file = ServerLog._log_file

    def keep(server_log: ServerLog, path: str) -> Any:
        files.append(open_file(server_log, path))
        return files[0]

    monkeypatch.setattr(ServerLog, "_log_file", keep)
    _, log = opened(options, log_format="json")
    log.info("before")
    os.kill(os.getpid(), signal.SIGUSR1)
    log.info("after")
    files[0].close()
    texts = [json.loads((tmp_path / each).read_text())["text"] for each in (f"{name}.1", name)]
    assert texts == ["before", "after"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_syslog_is_written(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(SyslogObserver, "openlog", lambda *_: None)
    monkeypatch.setattr(SyslogObserver, "syslog", lambda _, priority, line: said.append(line))
    _, log = opened({"syslog": True, "prefix": "chatd"}, log_format=form)
    log.warn("it is {why}", why="full")
    [line] = said
    _, _, text = line.partition("] ")
    assert (text if form == "text" else json.loads(text)["text"]) == "it is full"


def test_a_daemon_has_no_stdout() -> None:
    with pytest.raises(SystemExit, match="cannot log to stdout"):
        opened({"logfile": "-"})


def test_a_reload_may_change_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())
    server_log, log = opened(STDOUT)
    server_log.configure(Config(log_format="json", log_repeat=0))
    for _ in range(2):
        log.warn("it is so")
    written: Any = sys.stdout
    assert [json.loads(line)["text"] for line in written.getvalue().splitlines()] == ["it is so"] * 2


def test_what_repeats_is_said_when_it_is_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())
    reactor = Reactor()
    server_log = ServerLog(reactor, STDOUT, Config())
    server_log.open()
    observer: Any = server_log
    log = Logger(namespace="chatd.test", observer=observer)
    for _ in range(5):
        log.warn("it is so")
    reactor.advance(60)
    server_log.look()
    written: Any = sys.stdout
    assert [line.partition("] ")[2] for line in written.getvalue().splitlines()] == [
        "it is so",
        "it is so (4 more in 60 s)",
    ]


def test_every_line_that_python_prints_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twistd has them logged so (LoggingFile), all as one kind."""
    monkeypatch.setattr(sys, "stdout", StringIO())
    server_log, _ = opened(STDOUT)
    observer: Any = server_log
    printed = LoggingFile(Logger(namespace="stderr", observer=observer), LogLevel.error)
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1', "OSError: it is full"]
    printed.write("\n".join(lines) + "\n")
    written: Any = sys.stdout
    assert [line.partition("] ")[2] for line in written.getvalue().splitlines()] == lines


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, 0o600),
        ({"umask": 0o27}, 0o640),
        ({"nodaemon": True}, 0o644),
    ],
)
def test_a_daemons_log_is_made_with_the_umask_that_twistd_gives_it(
    tmp_path: Path, options: dict[str, Any], mode: int
) -> None:
    before = os.umask(0o22)
    try:
        opened({"logfile": str(tmp_path / "twistd.log"), **options})
    finally:
        os.umask(before)
    assert (tmp_path / "twistd.log").stat().st_mode & 0o777 == mode


def test_the_mode_of_a_log_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "twistd.log"
    path.touch(mode=0o664)
    path.chmod(0o664)
    opened({"logfile": str(path)})
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_log_that_cannot_be_written_ends_it_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        opened({"logfile": str(tmp_path)})
    why = "Is a directory; name another: twistd --logfile"
    assert caught.value.code == f"twistd chatd: the server's log {tmp_path} cannot be written: {why}"
