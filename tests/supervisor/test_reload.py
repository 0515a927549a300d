import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

import chatd
from chatd.config.settings import Config
from chatd.runtime.ipc import (
    DRAIN,
    HOLD,
    LISTEN,
    STOP,
    Heartbeat,
    ListeningSocket,
    LogRecord,
    PublishingStopped,
    Ready,
    encode,
    read_assignment,
)
from chatd.supervisor import worker_pool
from chatd.supervisor.reload import WorkerPools
from chatd.supervisor.sockets import ListeningSockets
from chatd.supervisor.worker_pool import NotReady, WorkerLog, WorkerProcess
from tests.supervisor.children import FakeProcess, FakeReactor, Said

CONFIG = Config(
    workers=2, stop_publish_timeout=4.0, stop_timeout=3.0, drain_broker_timeout=10.0, worker_log_line_bytes=1000
)
URL = "unix:///run/broker.sock"


class Fixture:
    """Worker pools with two workers that are no processes, on two endpoints."""

    def __init__(self, folder: Path) -> None:
        self.reactor = FakeReactor()
        self.ports = ListeningSockets(["tcp:0:interface=127.0.0.1", f"unix:{folder}/chat.sock"], CONFIG.workers, 16)
        self.ports.bind()
        self.brokers = iter(range(1, 100))
        self.worker_pools = WorkerPools(
            self.reactor, CONFIG, self.ports, lambda: ((f"{URL}.{next(self.brokers)}",), "line")
        )

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def start(self) -> list[FakeProcess]:
        self.worker_pools.start()
        return list(self.processes)

    def stop(self) -> list[str]:
        """Begin to stop; give a list that says ``stopped`` once that is over."""
        over: list[str] = []
        Deferred.fromCoroutine(self.worker_pools.stop()).addCallback(lambda _: over.append("stopped"))
        return over


@pytest.fixture
def of(tmp_path: Path) -> Iterator[Fixture]:
    made = Fixture(tmp_path)
    yield made
    made.ports.close()


def orders(process: FakeProcess) -> list[str]:
    """What a worker was told after its assignment, and after the order to listen."""
    told = [json.loads(line) for line in process.told[1:]]
    assert told[0] == LISTEN
    return told[1:]


# Spawning


def test_each_worker_is_started_once_with_its_assignment_and_its_own_socket_of_each_port(of: Fixture) -> None:
    first, second = of.start()
    assert [process.command for process in of.processes] == [[sys.executable, "-P", "-m", "chatd.worker"]] * 2
    assignment = read_assignment(first.told[0])
    assert assignment.config == CONFIG
    assert (assignment.brokers, assignment.lineage) == ((f"{URL}.1",), "line")
    tcp, unix = of.ports.bound
    assert assignment.listeners == (ListeningSocket(tcp.endpoint, 3), ListeningSocket(unix.endpoint, 4))
    standard = {0: "w", 1: "r", 2: "r"}
    assert first.descriptors == {**standard, 3: tcp.sockets[0].fileno(), 4: unix.sockets[0].fileno()}
    assert second.descriptors == {**standard, 3: tcp.sockets[1].fileno(), 4: unix.sockets[0].fileno()}


def test_a_worker_finds_this_chatd_first_on_its_path(of: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(chatd.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("LANG", "C.UTF-8")
    of.start()
    assert of.processes[0].env["PYTHONPATH"] == f"{root}:/elsewhere"
    assert of.processes[0].env["LANG"] == "C.UTF-8"
    monkeypatch.delenv("PYTHONPATH")
    of.processes[0].end(exit_code=1)
    of.reactor.advance(0.1)
    assert of.processes[2].env["PYTHONPATH"] == root


# Readiness


def test_the_pools_are_ready_once_when_every_worker_is(of: Fixture, said: Said) -> None:
    first, second = of.start()
    times: list[str] = []
    of.worker_pools.all_ready.addCallback(lambda _: times.append("ready"))
    first.say(encode(Ready()))
    assert times == []
    second.say(encode(Ready()))
    assert times == ["ready"]
    assert said.lines == [f"info: worker {n} (pid {p.pid}) is ready" for n, p in enumerate((first, second), 1)]
    first.end(signal=signal.SIGKILL)
    of.reactor.advance(0.1)
    of.processes[2].say(encode(Ready()))
    assert times == ["ready"]


@pytest.mark.parametrize("was_ready", [True, False])
def test_the_pools_are_not_ready_while_a_worker_is_missing(of: Fixture, was_ready: bool) -> None:
    first, second = of.start()
    if was_ready:
        second.say(encode(Ready()))
    second.end(exit_code=1)
    first.say(encode(Ready()))
    assert not of.worker_pools.all_ready.called
    of.reactor.advance(0.1)
    of.processes[2].say(encode(Ready()))
    assert of.worker_pools.all_ready.called


def test_pools_that_stop_do_not_become_ready(of: Fixture) -> None:
    first, second = of.start()
    first.say(encode(Ready()))
    of.stop()
    second.say(encode(Ready()))
    assert not of.worker_pools.all_ready.called


# Replacing


def test_a_worker_that_ends_is_replaced_on_the_same_sockets_and_told_where_the_broker_is_by_then(of: Fixture) -> None:
    _, second = of.start()
    second.end(signal=signal.SIGKILL)
    assert len(of.processes) == 2
    of.reactor.advance(0.1)
    replacement = of.processes[2]
    assert replacement.descriptors == second.descriptors
    assignment = read_assignment(replacement.told[0])
    assert assignment.listeners == read_assignment(second.told[0]).listeners
    assert assignment.brokers == (f"{URL}.3",)


def test_the_wait_doubles_while_a_worker_keeps_ending(of: Fixture, said: Said) -> None:
    for worker in of.start():
        worker.say(encode(Ready()))
    of.processes[0].end(exit_code=1)
    said.events.clear()
    waits = [0.1, 0.2, 0.4, 0.8]
    for count, wait in enumerate(waits, 2):
        of.reactor.advance(wait * 0.99)
        assert len(of.processes) == count
        of.reactor.advance(wait * 0.011)
        assert len(of.processes) == count + 1
        of.processes[-1].end(exit_code=1)
    assert [event["wait"] for event in said.events] == [*waits[1:], 1.6]


def test_a_minute_of_health_makes_the_wait_short_again(of: Fixture) -> None:
    of.start()[0].end(exit_code=1)
    of.reactor.advance(0.1)
    of.processes[-1].end(exit_code=1)
    of.reactor.advance(0.2)
    of.processes[-1].say(encode(Heartbeat()))
    of.reactor.advance(60.0)
    of.processes[-1].end(exit_code=1)
    of.reactor.advance(0.1)
    assert len(of.processes) == 5


def test_each_worker_has_a_wait_of_its_own(of: Fixture) -> None:
    first, second = of.start()
    first.end(exit_code=1)
    of.reactor.advance(0.1)
    second.end(exit_code=1)
    of.reactor.advance(0.1)
    assert len(of.processes) == 4


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ({}, "exit status 0"),
        ({"exit_code": 3}, "exit status 3"),
        ({"signal": signal.SIGKILL}, "killed by SIGKILL"),
        ({"signal": 40}, "killed by signal 40"),
    ],
)
def test_the_log_has_the_reason_why_a_worker_ended(of: Fixture, said: Said, end: dict[str, int], reason: str) -> None:
    first, _ = of.start()
    first.end(**end)
    assert said.lines == [f"error: worker 1 (pid {first.pid}) ended: {reason}; a replacement starts in 0.1 s"]


@pytest.mark.parametrize("descriptor", [1, 2])
def test_the_reason_has_the_last_error_unless_the_worker_was_killed(of: Fixture, said: Said, descriptor: int) -> None:
    failure = "it failed\nTraceback\nValueError: no"
    first, second = of.start()
    for worker, signalled in ((first, None), (second, signal.SIGKILL)):
        worker.say(encode(LogRecord("error", failure)) if descriptor == 1 else f"{failure}\n".encode(), descriptor)
        worker.end(exit_code=1, signal=signalled)
    wait = "a replacement starts in 0.1 s"
    assert [line.split(": ", 1)[1] for line in said.lines if " ended: " in line] == [
        f"worker 1 (pid {first.pid}) ended: exit status 1: ValueError: no; {wait}",
        f"worker 2 (pid {second.pid}) ended: killed by SIGKILL; {wait}",
    ]


@pytest.mark.parametrize("silent", [True, False])
def test_a_worker_that_ends_again_and_again_before_all_are_ready_ends_the_start(of: Fixture, silent: bool) -> None:
    over: list[str] = []
    of.start()
    of.worker_pools.all_ready.addErrback(lambda failure: over.append(failure.getErrorMessage()))
    for _ in range(CONFIG.start_attempts):
        assert over == []
        worker = of.processes[-1]
        if silent:  # it was not heard of for too long
            of.reactor.advance(CONFIG.restart_reset_time)
        worker.end(exit_code=1)
        of.reactor.advance(CONFIG.restart_max_delay)
    assert over == ["worker 2 ended 5 times before all were ready: exit status 1"]


def test_a_worker_that_ends_again_and_again_later_is_replaced(of: Fixture) -> None:
    for worker in of.start():
        worker.say(encode(Ready()))
    for _ in range(2 * CONFIG.start_attempts):
        of.processes[-1].end(exit_code=1)
        of.reactor.advance(CONFIG.restart_max_delay)
    assert len(of.processes) == 2 + 2 * CONFIG.start_attempts


def test_a_worker_that_cannot_be_started_is_tried_again_until_a_stop(of: Fixture, said: Said) -> None:
    first, second = of.start()
    of.reactor.refuse = BlockingIOError(11, "Resource temporarily unavailable")
    first.end(exit_code=1)
    of.reactor.advance(0.1)
    assert "Resource temporarily unavailable; a replacement starts in 0.2 s" in said.lines[-1]
    of.reactor.refuse = None
    of.reactor.advance(0.2)
    assert len(of.processes) == 3
    of.reactor.refuse = BlockingIOError(11, "Resource temporarily unavailable")
    of.processes[2].end(exit_code=1)
    of.reactor.advance(1.0)
    over = of.stop()
    second.end()
    assert over == ["stopped"]


# Reports


def test_an_event_of_a_worker_is_logged_with_its_level(of: Fixture, said: Said) -> None:
    _, second = of.start()
    for level in ("info", "warn", "error", "critical"):
        second.say(encode(LogRecord(level, "the disk is {full}")))
    assert said.lines == [f"{level}: worker 2: the disk is {{full}}" for level in ("info", "warn", "error", "critical")]


def test_lines_arrive_whole_however_they_are_cut(of: Fixture, said: Said) -> None:
    first, _ = of.start()
    for byte in encode(LogRecord("info", "smörgås")) + encode(LogRecord("warn", "two")):
        first.say(bytes([byte]))
    assert said.lines == ["info: worker 1: smörgås", "warn: worker 1: two"]


@pytest.mark.parametrize(
    "line",
    [b"hello", b"", b"{}", b'{"type":"dance"}', b'{"type":"log","level":7,"text":""}', b'"\xff"', b"\0", b"[" * 9000],
)
def test_an_invalid_report_is_logged_and_the_worker_lives_on(of: Fixture, said: Said, line: bytes) -> None:
    first, second = of.start()
    first.say(line + b"\n" + encode(Ready()))
    second.say(encode(Ready()))
    assert said.lines[0] == f"error: worker 1 sent an invalid report: {line!r}"
    assert of.worker_pools.all_ready.called


def test_an_event_with_an_unknown_level_is_an_invalid_report(of: Fixture, said: Said) -> None:
    first, _ = of.start()
    line = encode(LogRecord("shout", "hello"))
    first.say(line + encode(LogRecord("info", "calm")))
    assert said.lines == [f"error: worker 1 sent an invalid report: {line.rstrip()!r}", "info: worker 1: calm"]


def test_problems_are_logged_for_the_first_worker_that_has_one_and_their_ends_for_the_last(
    of: Fixture, said: Said
) -> None:
    first, second = of.start()
    for worker in (second, first, second):
        worker.say(encode(LogRecord("warn", "away", "bus")))
    first.say(encode(LogRecord("error", "full", "chat log")))
    for worker in (second, second, first):
        worker.say(encode(LogRecord("info", "back", "bus", resolved=True)))
    assert said.lines == ["warn: away", "error: full", "info: back"]


def test_a_worker_that_has_ended_has_no_problem(of: Fixture, said: Said) -> None:
    first, second = of.start()
    first.say(encode(LogRecord("warn", "away", "bus")))
    first.end(exit_code=1)
    second.say(encode(LogRecord("warn", "away again", "bus")))
    second.say(encode(LogRecord("info", "back", "bus", resolved=True)))
    assert [said.lines[0], *said.lines[2:]] == ["warn: away", "warn: away again", "info: back"]


def test_a_problem_ends_with_the_last_worker_that_has_it(of: Fixture, said: Said) -> None:
    first, second = of.start()
    for worker in (first, second):
        worker.say(encode(LogRecord("error", "full", "chat log")))
    second.say(encode(LogRecord("info", "room again", "chat log", resolved=True)))
    assert said.lines == ["error: full"]
    first.end(exit_code=1)
    assert [line for line in said.lines if "room" in line] == ["info: room again"]
    second.end(exit_code=1)
    assert [line for line in said.lines if "room" in line] == ["info: room again"]


@given(st.lists(st.binary(), max_size=20))
def test_any_output_of_a_worker_is_survived(chunks: list[bytes]) -> None:
    pool: Any = SimpleNamespace(
        config=Config(worker_log_line_bytes=100), worker_log=WorkerLog(), worker_ready=lambda worker: None
    )
    worker = WorkerProcess(pool, 1, 0.0)
    for chunk in chunks:
        worker.childDataReceived(1, chunk)
        worker.childDataReceived(2, chunk)


def test_a_line_without_an_end_is_bounded(of: Fixture, said: Said) -> None:
    first, _ = of.start()
    for _ in range(50):
        first.say(b"x" * 100)
    first.say(b"\n")
    assert said.lines == [f"error: worker 1 sent an invalid report: {b'x' * 1000!r}"]


def test_a_traceback_on_standard_error_is_logged(of: Fixture, said: Said) -> None:
    _, second = of.start()
    second.say(b"Traceback:\n\n  \xff {boom}\nunfinished", descriptor=2)
    assert said.lines == ["error: worker 2: Traceback:", "error: worker 2:   \ufffd {boom}"]


# Stopping


def test_workers_stop_when_all_have_stopped_publishing(of: Fixture) -> None:
    first, second = of.start()
    over = of.stop()
    first.say(encode(PublishingStopped()))
    assert orders(first) == orders(second) == [HOLD]
    second.say(encode(PublishingStopped()))
    assert orders(first) == orders(second) == [HOLD, STOP]
    assert over == []


def test_the_stop_is_over_when_all_have_ended(of: Fixture, said: Said) -> None:
    first, second = of.start()
    over = of.stop()
    for process in (first, second):
        process.say(encode(PublishingStopped()))
    first.end()
    assert over == []
    second.end()
    assert over == ["stopped"]
    assert said.lines == [f"info: worker {n} (pid {p.pid}) ended: exit status 0" for n, p in enumerate(of.processes, 1)]
    assert of.reactor.getDelayedCalls() == []


def test_a_worker_that_publishes_for_too_long_does_not_delay_the_others(of: Fixture) -> None:
    first, second = of.start()
    of.stop()
    first.say(encode(PublishingStopped()))
    of.reactor.advance(3.9)
    assert orders(first) == [HOLD]
    of.reactor.advance(0.1)
    assert orders(first) == orders(second) == [HOLD, STOP]


def test_a_report_that_comes_twice_or_late_is_harmless(of: Fixture) -> None:
    first, second = of.start()
    over = of.stop()
    first.say(encode(PublishingStopped()) * 2)
    of.reactor.advance(4.0)
    second.say(encode(PublishingStopped()))
    first.end()
    second.end()
    assert over == ["stopped"]


def test_a_worker_that_has_ended_has_stopped_publishing(of: Fixture) -> None:
    first, second = of.start()
    of.stop()
    first.end(signal=signal.SIGKILL)
    second.say(encode(PublishingStopped()))
    assert orders(second) == [HOLD, STOP]


def test_one_that_does_not_stop_in_time_is_killed(of: Fixture, said: Said) -> None:
    first, second = of.start()
    over = of.stop()
    for process in (first, second):
        process.say(encode(PublishingStopped()))
    first.end()
    of.reactor.advance(2.9)
    assert second.signals == []
    of.reactor.advance(0.1)
    assert (first.signals, second.signals) == ([], ["KILL"])
    assert f"warn: worker 2 (pid {second.pid}) did not stop in time and is killed" in said.lines
    assert over == []
    second.end(signal=signal.SIGKILL)
    assert over == ["stopped"]


def test_one_that_cannot_even_be_killed_does_not_keep_us(of: Fixture) -> None:
    of.start()
    over = of.stop()
    of.reactor.pump([4.0, 3.0, 3.0])
    assert over == ["stopped"]


def test_one_that_is_gone_but_not_yet_known_to_be_may_be_killed(of: Fixture) -> None:
    first, second = of.start()
    over = of.stop()
    first.gone = second.gone = True
    of.reactor.pump([4.0, 3.0])
    first.end()
    second.end()
    assert over == ["stopped"]


def test_a_replacement_that_is_due_does_not_come_after_a_stop(of: Fixture) -> None:
    first, second = of.start()
    first.end(exit_code=1)
    over = of.stop()
    assert over == []
    second.end(exit_code=1)
    assert over == ["stopped"]
    of.reactor.advance(60.0)
    assert len(of.processes) == 2
    assert of.reactor.getDelayedCalls() == []


def test_pools_without_running_workers_stop_at_once(of: Fixture) -> None:
    for process in of.start():
        process.end(exit_code=1)
    assert of.stop() == ["stopped"]


# Another pool


NEW = Config(
    workers=3,
    drain_timeout=7.0,
    max_message_size=99,
    stop_publish_timeout=4.0,
    stop_timeout=3.0,
    client_header_timeout=2.0,
)


class Reload:
    """A pool of two that serves, and three new workers that are prepared."""

    def __init__(self, of: Fixture, config: Config = NEW) -> None:
        self.of = of
        self.old = of.start()
        for process in self.old:
            process.say(encode(Ready()))
        self.result: list[str] = []
        self.new = self.again(config)

    def again(self, config: Config = NEW) -> list[FakeProcess]:
        count = len(self.of.processes)
        done = Deferred.fromCoroutine(self.of.worker_pools.replace(config, self.of.ports))
        done.addCallbacks(lambda _: self.result.append("over"), self._failed)
        return self.of.processes[count:]

    def _failed(self, failure: Any) -> None:
        failure.trap(NotReady)
        self.result.append(failure.getErrorMessage())

    def ready(self) -> None:
        for process in self.new:
            process.say(encode(Ready()))


def test_new_workers_listen_once_all_are_ready_and_the_old_ones_drain(of: Fixture) -> None:
    reload = Reload(of)
    assert [len(process.told) for process in reload.new] == [1, 1, 1]
    assert read_assignment(reload.new[0].told[0]).config == NEW
    for process in reload.new[:2]:
        process.say(encode(Ready()))
    assert (reload.result, [orders(process) for process in reload.old]) == ([], [[], []])
    reload.new[2].say(encode(Ready()))
    assert [orders(process) for process in reload.new] == [[], [], []]
    assert [orders(process) for process in reload.old] == [[DRAIN], [DRAIN]]
    assert reload.result == ["over"]


def test_sockets_of_theirs_listen_once_all_are_ready(of: Fixture) -> None:
    before = of.ports
    of.ports = ListeningSockets(["tcp:0:interface=127.0.0.1"], NEW.workers, 16)
    of.ports.bind(before)
    last = of.ports.bound[0].sockets[-1]
    reload = Reload(of)
    assert not last.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    reload.ready()
    assert last.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert reload.result == ["over"]
    of.ports.close()
    before.close()


def test_where_a_socket_of_theirs_cannot_listen_nothing_changes(of: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ports: ListeningSockets) -> None:
        raise OSError(98, "Address already in use")

    reload = Reload(of)
    monkeypatch.setattr(ListeningSockets, "listen", refuse)
    reload.ready()
    assert reload.result == ["cannot listen: Address already in use"]
    assert [process.signals for process in reload.new] == [["KILL"]] * 3
    assert [orders(process) for process in reload.old] == [[], []]


def test_where_one_of_them_ends_nothing_changes(of: Fixture) -> None:
    reload = Reload(of)
    reload.new[0].say(encode(Ready()))
    reload.new[1].end(exit_code=1)
    assert reload.result == [f"worker 2 (pid {reload.new[1].pid}) ended: exit status 1"]
    assert [reload.new[at].signals for at in (0, 2)] == [["KILL"], ["KILL"]]
    assert [orders(process) for process in reload.old] == [[], []]
    for process in (reload.new[0], reload.new[2]):
        process.end(signal=signal.SIGKILL)
    of.reactor.advance(60.0)
    assert len(of.processes) == 5


def test_where_they_are_not_ready_in_time_nothing_changes(of: Fixture) -> None:
    reload = Reload(of)
    of.reactor.pump([1.0] * 29)
    assert reload.result == []
    of.reactor.advance(1.0)
    assert reload.result == ["the new workers were not ready within 30 s"]
    assert [process.signals for process in reload.new] == [["KILL"]] * 3
    assert [orders(process) for process in reload.old] == [[], []]


def test_where_none_can_be_started_nothing_changes(of: Fixture) -> None:
    for process in of.start():
        process.say(encode(Ready()))
    of.reactor.refuse = BlockingIOError(11, "Resource temporarily unavailable")
    over: list[str] = []
    done = Deferred.fromCoroutine(of.worker_pools.replace(NEW, of.ports))
    done.addErrback(lambda failure: over.append(failure.getErrorMessage()))
    assert over == ["worker 1 (pid 0) ended: [Errno 11] Resource temporarily unavailable"]


def test_a_worker_that_drains_is_not_replaced_and_a_new_one_is(of: Fixture) -> None:
    reload = Reload(of)
    reload.ready()
    reload.old[0].end()
    reload.old[1].end(signal=signal.SIGKILL)
    of.reactor.advance(60.0)
    assert len(of.processes) == 5
    reload.new[2].end(signal=signal.SIGKILL)
    of.reactor.advance(0.1)
    assert read_assignment(of.processes[5].told[0]).config == NEW
    assert orders(of.processes[5]) == []


def test_one_that_does_not_end_with_the_drain_is_killed(of: Fixture, said: Said) -> None:
    reload = Reload(of, replace(NEW, drain_timeout=1.0))
    reload.ready()
    first, second = reload.old
    second.end()
    wait = CONFIG.drain_timeout + CONFIG.close_timeout + CONFIG.client_header_timeout  # not those of the new pool
    wait += CONFIG.drain_broker_timeout + CONFIG.stop_publish_timeout + CONFIG.stop_timeout
    heartbeats(of, wait - 1)
    assert first.signals == []
    heartbeats(of, 1)
    assert first.signals == ["KILL"]
    assert f"warn: worker 1 (pid {first.pid}) did not stop in time and is killed" in said.lines


def test_if_too_many_pools_drain_the_oldest_stops(of: Fixture) -> None:
    reload = Reload(of)
    pools = [reload.old]
    for _ in range(CONFIG.draining_pools + 1):
        reload.ready()
        pools.append(reload.new)
        reload.new = reload.again()
    assert [orders(each[0]) for each in pools] == [[DRAIN, STOP], [DRAIN], [DRAIN], [DRAIN], []]


def test_a_stop_stops_all_pools(of: Fixture) -> None:
    reload = Reload(of)
    reload.ready()
    preparing = reload.again()
    over = of.stop()
    assert orders(reload.old[0]) == [DRAIN, HOLD]
    assert orders(reload.new[0]) == [HOLD]
    assert json.loads(preparing[0].told[1]) == HOLD
    for process in of.processes:
        process.say(encode(PublishingStopped()))
    assert {json.loads(process.told[-1]) for process in of.processes} == {STOP}
    for process in of.processes:
        process.end()
    assert over == ["stopped"]
    assert of.reactor.getDelayedCalls() == []


# Heartbeats


def heartbeats(of: Fixture, seconds: float, *silent: FakeProcess) -> None:
    """Advance the clock by seconds in which all but these send heartbeats."""
    for _ in range(round(seconds)):
        for process in of.processes:
            if process not in silent and not process.gone:
                process.say(encode(Heartbeat()))
        of.reactor.advance(1.0)


def test_a_worker_without_heartbeats_is_killed_and_replaced(of: Fixture, said: Said) -> None:
    first, second = of.start()
    heartbeats(of, 3)
    heartbeats(of, 9, first)
    assert first.signals == []
    heartbeats(of, 1, first)
    assert (first.signals, second.signals) == (["KILL"], [])
    assert said.lines[-1] == f"error: worker 1 (pid {first.pid}) sent no heartbeat for 10 s and is killed"
    first.end(signal=signal.SIGKILL)
    of.reactor.advance(0.1)
    assert len(of.processes) == 3


def test_a_worker_that_starts_has_more_time(of: Fixture) -> None:
    first, _ = of.start()
    heartbeats(of, 60, first)
    assert first.signals == []
    heartbeats(of, 1, first)
    assert first.signals == ["KILL"]


def test_a_freeze_of_the_supervisor_kills_no_worker(of: Fixture) -> None:
    first, second = of.start()
    heartbeats(of, 3)
    of.reactor.advance(3600.0)
    assert (first.signals, second.signals) == ([], [])


def test_the_pools_are_responsive_while_all_workers_send_heartbeats(of: Fixture) -> None:
    first, second = of.start()
    heartbeats(of, 5)
    assert of.worker_pools.responsive
    heartbeats(of, 4, second)
    assert not of.worker_pools.responsive
    heartbeats(of, 1)
    assert of.worker_pools.responsive
    second.end(signal=signal.SIGKILL)
    assert of.worker_pools.responsive
    first.end(signal=signal.SIGKILL)
    assert not of.worker_pools.responsive


# A real process

WORKER = """
import json, os, socket, sys
listeners = json.loads(sys.stdin.readline())["listeners"]
names = [socket.socket(fileno=each["descriptor"]).getsockname()[1] for each in listeners]
print(json.dumps({"type": "log", "level": "info", "text": f"listens on {names}"}), flush=True)
print("oh dear", file=sys.stderr, flush=True)
print('{"type":"ready"}', flush=True)
for order in sys.stdin:
    if order == '"hold"\\n':
        print('{"type":"held"}', flush=True)
    if order == '"stop"\\n':
        break
"""
"""A worker as the supervisor sees it."""


class RealProcess(TestCase):
    """The same with processes."""

    def setUp(self) -> None:
        self.patch(worker_pool, "COMMAND", (sys.executable, "-c", WORKER))
        self.said = Said.during(self)
        config = Config(workers=1, restart_min_delay=0.01)
        self.ports = ListeningSockets(["tcp:0:interface=127.0.0.1"], 1, 16)
        self.ports.bind()
        self.addCleanup(self.ports.close)
        self.worker_pools = WorkerPools(real_reactor, config, self.ports, lambda: ((URL,), ""))

    async def test_a_worker_comes_is_killed_is_replaced_and_stops(self) -> None:
        crash = self.said.next("oh dear")
        self.worker_pools.start()
        await self.worker_pools.all_ready
        await crash
        port = self.ports.bound[0].sockets[0].getsockname()[1]
        assert f"info: worker 1: listens on [{port}]" in self.said.lines
        assert "error: worker 1: oh dear" in self.said.lines
        again = self.said.next("is ready")
        os.kill(self._pid(), signal.SIGKILL)
        await again
        assert any("ended: killed by SIGKILL; a replacement starts in 0.01 s" in line for line in self.said.lines)
        await self.worker_pools.stop()
        assert self.said.lines[-1].endswith("ended: exit status 0")

    def _pid(self) -> int:
        ready: Any = next(line for line in self.said.lines if line.endswith("is ready"))
        return int(ready.split("pid ")[1].split(")")[0])
