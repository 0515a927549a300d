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
    about: dict[str, Any] = {"source": "chatd.rooms.hub", "key": "lost", "fields": {"messages": 3}}
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
    server_log.flush_old()
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
    why = "Is a directory; choose another with twistd --logfile"
    assert caught.value.code == f"twistd chatd: cannot write the server log {tmp_path}: {why}"


class House:
    """A log of which trouble is said once a minute."""

    def __init__(self, seconds: float = 60.0, most: int = 10) -> None:
        self.clock = Clock()
        self.events = Events()
        self.repetition = RepeatedEvents(self.events, seconds, most, self.clock.seconds)
        observer: Any = self.repetition
        self.log = Logger(namespace="chatd.test", observer=observer)

    @property
    def said(self) -> list[str]:
        """What was said since it was asked the last time."""
        said = [text for _, text in self.events.said]
        self.events.events.clear()
        return said

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.repetition.flush_old()


@pytest.fixture
def house() -> House:
    return House()


def test_trouble_is_said_at_once_and_then_once_a_minute_with_how_often(house: House) -> None:
    for number in range(200):
        house.log.warn("trouble number {number}", number=number)
        house.wait(1)
    assert house.said == [
        "trouble number 0",
        "trouble number 59 (59 more in 60 s)",
        "trouble number 119 (60 more in 60 s)",
        "trouble number 179 (60 more in 60 s)",
    ]


def test_the_count_stands_in_a_field_too(house: House) -> None:
    for _ in range(3):
        house.log.warn("trouble", why="it is full")
    house.wait(60)
    first, second = house.events.events
    assert "times" not in first
    assert (second["times"], second["why"]) == (2, "it is full")


def test_what_came_no_more_is_forgotten(house: House) -> None:
    house.log.warn("trouble")
    house.wait(61)
    house.log.warn("trouble")
    assert house.said == ["trouble", "trouble"]


def test_kinds_are_counted_apart(house: House) -> None:
    house.log.warn("one")
    house.log.warn("two")
    house.log.warn("one")
    house.wait(60)
    assert house.said == ["one", "two", "one (1 more in 60 s)"]


def test_what_is_no_trouble_passes(house: House) -> None:
    for _ in range(3):
        house.log.info("worker {n} is ready", n=1)
    assert house.said == ["worker 1 is ready"] * 3


def test_a_line_of_a_traceback_passes(house: House) -> None:
    for _ in range(3):
        house.log.error("{line}", line="  ^^^^", always=True)
    assert house.said == ["  ^^^^"] * 3


def test_an_outage_is_told_with_its_end_and_those_after_it_as_it_stands_at_the_end_of_the_minute(house: House) -> None:
    def outage() -> None:
        house.log.warn("the bus is away", problem="bus")
        house.wait(2)
        house.log.info("the bus is back", problem="bus", resolved=True)
        house.wait(2)

    outage()
    assert house.said == ["the bus is away", "the bus is back"]
    for _ in range(5):
        outage()
    assert house.said == []
    house.wait(40)
    assert house.said == ["the bus is back (5 more in 60 s)"]


def test_an_outage_that_goes_on_at_the_end_of_the_minute_is_said_to_and_its_end_is_said_at_once(house: House) -> None:
    house.log.warn("the bus is away", problem="bus")
    house.log.info("the bus is back", problem="bus", resolved=True)
    house.log.warn("the bus is away", problem="bus")
    house.wait(60)
    house.log.info("the bus is back", problem="bus", resolved=True)
    assert house.said == [
        "the bus is away",
        "the bus is back",
        "the bus is away (1 more in 60 s)",
        "the bus is back",
    ]


def test_the_same_from_several_workers_is_the_same(house: House) -> None:
    for worker in (1, 2, 3):
        house.log.warn("worker {worker}: {text}", worker=worker, text="slow readers: 3", key="slow readers: {clients}")
    house.log.warn("worker {worker}: {text}", worker=1, text="something else", key="something else")
    assert house.said == ["worker 1: slow readers: 3", "worker 1: something else"]


def test_a_failure_has_its_traceback_once(house: House) -> None:
    for _ in range(2):
        house.log.failure("it went wrong", Failure(KeyError("a")))
    house.wait(60)
    first, second = house.events.events
    assert "log_failure" in first
    assert "log_failure" not in second


def test_no_more_kinds_are_known_than_may_be_and_none_is_lost() -> None:
    house = House(most=10)
    for number in range(100):
        for _ in range(2):
            house.log.warn(f"trouble of kind {number}")
    assert len(house.said) == 100 + 90
    house.repetition.flush()
    assert house.said == [f"trouble of kind {number} (1 more in 0 s)" for number in range(90, 100)]


def test_what_was_counted_is_said_at_the_end(house: House) -> None:
    for _ in range(3):
        house.log.warn("trouble")
    house.repetition.flush()
    assert house.said == ["trouble", "trouble (2 more in 0 s)"]


def test_all_can_be_said() -> None:
    house = House(seconds=0)
    for _ in range(3):
        house.log.warn("trouble")
    house.repetition.flush_old()
    assert house.said == ["trouble"] * 3
