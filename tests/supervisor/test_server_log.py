"""The server's own log: text or JSON, to wherever twistd's options say."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LoggingFile, LogLevel
from twisted.python.failure import Failure
from twisted.python.syslog import SyslogObserver

from chatd.config.settings import Config
from chatd.supervisor.server_log import RepeatedEvents, ServerLog
from tests.fakes import Events

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


def test_text_has_the_form_of_twistds_own_log(capsys: pytest.CaptureFixture[str]) -> None:
    _, log = opened(STDOUT)
    log.warn("it is {why}", why="full")
    assert capsys.readouterr().out.endswith(" [chatd.test#warn] it is full\n")


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


def test_text_elsewhere_than_in_the_journal_has_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")  # that of a service which we were started from, in a file
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        _, log = opened(STDOUT)
        log.warn("it is full")
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ \[chatd.test#warn\] it is full\n", (tmp_path / "file").read_text())


def test_each_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, log = opened(STDOUT, log_format="json")
    log.warn(
        "{who}: it is {why},\nfor {seconds:g} s \x1b[2J\u2028", who="ann", why="full", seconds=3.0, event="disk_filled"
    )
    line = capsys.readouterr().out
    assert line.isascii()
    assert line.count("\n") == 1
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "warn",
        "namespace": "chatd.test",
        "pid": os.getpid(),
        "worker": None,
        "event": "disk_filled",
        "text": "ann: it is full,\nfor 3 s \x1b[2J\u2028",
        "fields": {"why": "full", "seconds": 3.0},
    }


def test_an_event_of_a_worker_has_its_namespace_pid_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    server_log, log = opened(STDOUT, log_format="json")
    about: dict[str, Any] = {"source": "chatd.rooms.hub", "event": "messages_lost", "fields": {"messages": 3}}
    for _ in range(3):
        log.warn("worker {worker}: {text}", worker=2, worker_pid=77, text="lost: 3", **about)
    server_log.close()
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    for each in (first, last):
        del each["time"]
    assert first == {
        "level": "warn",
        "namespace": "chatd.rooms.hub",
        "pid": 77,
        "worker": 2,
        "text": "lost: 3",
        "event": "messages_lost",
        "fields": {"messages": 3},
    }
    assert last == first | {"text": "worker 2: lost: 3 (2 more in 0 s)", "fields": {"messages": 3, "times": 2}}


def test_a_failure_has_its_traceback_in_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    _, log = opened(STDOUT, log_format="json")
    log.failure("it went wrong", Failure(KeyError("a")))
    said = json.loads(capsys.readouterr().out)
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


def test_a_log_that_cannot_be_written_ends_it_with_one_line(tmp_path: Path) -> None:
    why = f"cannot write the server log {tmp_path}: Is a directory; choose another with twistd --logfile"
    for path, message in (("-", "cannot log to stdout"), (str(tmp_path), why)):
        with pytest.raises(SystemExit, match=re.escape(message)):
            opened({"logfile": path})


def test_a_reload_may_change_the_format(capsys: pytest.CaptureFixture[str]) -> None:
    server_log, log = opened(STDOUT)
    server_log.configure(Config(log_format="json", log_repeat_interval=0))
    for _ in range(2):
        log.warn("it is so")
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["it is so"] * 2


def test_repetitions_are_logged_by_flush_old(capsys: pytest.CaptureFixture[str]) -> None:
    reactor = Reactor()
    server_log = ServerLog(reactor, STDOUT, Config())
    server_log.open()
    observer: Any = server_log
    log = Logger(namespace="chatd.test", observer=observer)
    for _ in range(5):
        log.warn("it is so")
    reactor.advance(60)
    server_log.flush_old()
    assert [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "it is so",
        "it is so (4 more in 60 s)",
    ]


def test_every_line_that_python_prints_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Twistd has them logged so (LoggingFile), all as one kind."""
    server_log, _ = opened(STDOUT)
    observer: Any = server_log
    printed = LoggingFile(Logger(namespace="stderr", observer=observer), LogLevel.error)
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1', "OSError: it is full"]
    printed.write("\n".join(lines) + "\n")
    assert [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()] == lines


def test_the_mode_of_a_new_log_is_that_of_twistds_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "twistd.log"
    before = os.umask(0o22)
    try:
        for options, mode in (({}, 0o600), ({"umask": 0o27}, 0o640), ({"nodaemon": True}, 0o644)):
            opened({"logfile": str(path), **options})
            assert path.stat().st_mode & 0o777 == mode
            path.unlink()
    finally:
        os.umask(before)
    path.touch()
    path.chmod(0o664)
    opened({"logfile": str(path)})
    assert path.stat().st_mode & 0o777 == 0o664


class RepeatedLog:
    """A log whose repeated events are logged once a minute, on a clock."""

    def __init__(self, seconds: float = 60.0, most: int = 10) -> None:
        self.clock = Clock()
        self.events = Events()
        self.events_repeated = RepeatedEvents(self.events, seconds, most, self.clock.seconds)
        observer: Any = self.events_repeated
        self.log = Logger(namespace="chatd.test", observer=observer)

    @property
    def lines(self) -> list[str]:
        """The lines since the last call."""
        lines = [text for _, text in self.events.said]
        self.events.events.clear()
        return lines

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.events_repeated.flush_old()


@pytest.fixture
def repeated() -> RepeatedLog:
    return RepeatedLog()


def test_an_event_is_logged_at_once_and_its_repetitions_once_a_minute_with_their_number(repeated: RepeatedLog) -> None:
    for number in range(200):
        repeated.log.warn("trouble number {number}", number=number)
        repeated.wait(1)
    assert ["times" in event for event in repeated.events.events] == [False, True, True, True]
    assert [event["number"] for event in repeated.events.events] == [0, 59, 119, 179]
    assert repeated.lines == [
        "trouble number 0",
        "trouble number 59 (59 more in 60 s)",
        "trouble number 119 (60 more in 60 s)",
        "trouble number 179 (60 more in 60 s)",
    ]


def test_events_with_different_keys_are_counted_separately(repeated: RepeatedLog) -> None:
    repeated.log.warn("one")
    repeated.log.warn("two")
    repeated.log.warn("one")
    repeated.wait(60)
    assert repeated.lines == ["one", "two", "one (1 more in 60 s)"]


def test_a_first_outage_is_logged_with_its_end_and_later_ones_by_their_last_state(
    repeated: RepeatedLog,
) -> None:
    def outage() -> None:
        repeated.log.warn("the broker is unavailable", problem="broker")
        repeated.wait(2)
        repeated.log.info("the broker is available", problem="broker", resolved=True)
        repeated.wait(2)

    outage()
    assert repeated.lines == ["the broker is unavailable", "the broker is available"]
    for _ in range(5):
        outage()
    assert repeated.lines == []
    repeated.wait(40)
    assert repeated.lines == ["the broker is available (5 more in 60 s)"]


def test_the_end_of_an_outage_that_was_logged_at_the_end_of_the_minute_is_logged_at_once(repeated: RepeatedLog) -> None:
    repeated.log.warn("the broker is unavailable", problem="broker")
    repeated.log.info("the broker is available", problem="broker", resolved=True)
    repeated.log.warn("the broker is unavailable", problem="broker")
    repeated.wait(60)
    repeated.log.info("the broker is available", problem="broker", resolved=True)
    assert repeated.lines == [
        "the broker is unavailable",
        "the broker is available",
        "the broker is unavailable (1 more in 60 s)",
        "the broker is available",
    ]


def test_events_of_several_workers_with_one_id_are_counted_together(repeated: RepeatedLog) -> None:
    for worker in (1, 2, 3):
        repeated.log.warn(
            "worker {worker}: {text}", worker=worker, text="slow consumers: 3", event="slow_consumers_detected"
        )
    repeated.log.warn("worker {worker}: {text}", worker=1, text="something else", event="other_event")
    assert repeated.lines == ["worker 1: slow consumers: 3", "worker 1: something else"]


def test_the_traceback_of_a_repeated_failure_is_logged_once(repeated: RepeatedLog) -> None:
    for _ in range(2):
        repeated.log.failure("it went wrong", Failure(KeyError("a")))
    repeated.wait(60)
    first, second = repeated.events.events
    assert "log_failure" in first
    assert "log_failure" not in second


def test_the_number_of_keys_is_bounded_and_no_event_is_lost() -> None:
    repeated = RepeatedLog(most=10)
    for number in range(100):
        for _ in range(2):
            repeated.log.warn(f"trouble of kind {number}")
    assert len(repeated.lines) == 100 + 90
    repeated.events_repeated.flush()
    assert repeated.lines == [f"trouble of kind {number} (1 more in 0 s)" for number in range(90, 100)]


def test_infos_and_lines_of_a_traceback_are_never_counted_nor_is_anything_without_an_interval() -> None:
    for seconds, level, always in ((60.0, "info", False), (60.0, "error", True), (0.0, "warn", False)):
        fixture = RepeatedLog(seconds)
        for _ in range(3):
            fixture.log.emit(LogLevel.levelWithName(level), "{line}", line="  ^^^^", always=always)
        fixture.wait(60)
        assert fixture.lines == ["  ^^^^"] * 3


def test_an_old_problem_is_forgotten_and_close_logs_what_was_counted(
    repeated: RepeatedLog,
) -> None:
    repeated.log.warn("problem")
    repeated.wait(61)
    for _ in range(3):
        repeated.log.warn("problem")
    repeated.events_repeated.flush()
    assert repeated.lines == ["problem", "problem", "problem (2 more in 0 s)"]


def test_events_below_the_level_are_left_out_until_a_reload_changes_it(capsys: pytest.CaptureFixture[str]) -> None:
    server_log, log = opened(STDOUT, log_level="warn")
    log.info("first")
    log.warn("second")
    server_log.configure(Config(log_level="error"))
    log.warn("third")
    log.critical("fourth")
    server_log.configure(Config(log_level="debug"))
    log.debug("fifth")
    assert re.findall(r"\] (\w+)$", capsys.readouterr().out, re.MULTILINE) == ["second", "fourth", "fifth"]
