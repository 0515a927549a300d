"""The metrics of several processes, added up; a new process continues the counters of a dead one."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.config.settings import Config
from chatd.monitoring import prometheus
from chatd.monitoring.metrics import DELIVERY_SECONDS, JOINS, ROOMS
from chatd.monitoring.prometheus import Meter, MetricsDirectory, MetricsFile, NoMetrics, expose
from tests.fakes import Events

CONFIG = Config(metrics_write_interval=1.0, metrics_ttl=0.5)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create directories below a temporary one, and reset the metrics of this process."""
    monkeypatch.setattr(prometheus, "PLACES", (str(tmp_path / "none"), str(tmp_path)))
    monkeypatch.setattr(JOINS, "value", 0)
    monkeypatch.setattr(ROOMS, "value", 0)
    monkeypatch.setattr(DELIVERY_SECONDS, "total", 0.0)
    monkeypatch.setattr(DELIVERY_SECONDS, "counts", DELIVERY_SECONDS.counts)
    DELIVERY_SECONDS.counts[:] = [0] * len(DELIVERY_SECONDS.counts)
    return tmp_path


@pytest.fixture
def folder(place: Path) -> Iterator[MetricsDirectory]:
    made = MetricsDirectory()
    yield made
    made.remove()


def value(folder: MetricsDirectory, name: str) -> float | None:
    found = re.search(rf"^{re.escape(name)} (\S+)$", expose(folder.path).decode(), re.MULTILINE)
    return float(found[1]) if found else None


def test_the_files_of_processes_are_added_up(folder: MetricsDirectory) -> None:
    one, two = MetricsFile(folder.allocate()), MetricsFile(folder.allocate())
    JOINS.value, ROOMS.value = 3, 2
    one.write()
    JOINS.value, ROOMS.value = 5, 1
    two.write()
    assert value(folder, "chatd_joins_total") == 8
    assert value(folder, "chatd_rooms") == 3


def test_all_metrics_are_there_from_the_beginning(folder: MetricsDirectory) -> None:
    MetricsFile(folder.allocate())
    assert value(folder, 'chatd_refused_total{reason="late"}') == 0
    assert value(folder, 'chatd_delivery_seconds_bucket{le="0.0005"}') == 0
    assert value(folder, "chatd_delivery_seconds_count") == 0


def test_buckets_are_exposed_cumulatively(folder: MetricsDirectory) -> None:
    share = MetricsFile(folder.allocate())
    for seconds in (0.0004, 0.0015, 0.0015, 99):
        DELIVERY_SECONDS.observe(seconds)
    share.write()
    bounds = ("0.0005", "0.001", "0.002", "+Inf")
    assert [value(folder, f'chatd_delivery_seconds_bucket{{le="{le}"}}') for le in bounds] == [1, 1, 3, 4]
    assert value(folder, "chatd_delivery_seconds_count") == 4
    assert value(folder, "chatd_delivery_seconds_sum") == pytest.approx(99.0034)


def test_the_next_process_counts_on_from_a_dead_one(folder: MetricsDirectory) -> None:
    path = folder.allocate()
    share = MetricsFile(path)
    JOINS.value, ROOMS.value = 10, 4
    share.write()
    share.close()
    folder.release(path)
    assert value(folder, "chatd_joins_total") == 10
    assert value(folder, "chatd_rooms") is None  # what it gauged is no more
    JOINS.value, ROOMS.value = 0, 0
    assert folder.allocate() == path
    share = MetricsFile(path)
    JOINS.value, ROOMS.value = 2, 1
    share.write()
    assert value(folder, "chatd_joins_total") == 12
    assert value(folder, "chatd_rooms") == 1


def test_a_thousand_deaths_leave_no_more_files(folder: MetricsDirectory) -> None:
    for _ in range(1000):
        for path in [folder.allocate(), folder.allocate()]:
            folder.release(path)
    first, second = folder.allocate(), folder.allocate()
    assert first != second
    for path in (first, second):
        MetricsFile(path)
    assert len(os.listdir(folder.path)) == 6


def test_unchanged_numbers_are_not_written(folder: MetricsDirectory) -> None:
    path = folder.allocate()
    share = MetricsFile(path)
    share.write()
    name = f"{folder.path}/counter_1.db"
    Path(name).chmod(0o600)
    before = Path(name).read_bytes()
    share.write()
    assert Path(name).read_bytes() == before


def test_a_folder_is_private_and_removed(place: Path) -> None:
    made = MetricsDirectory()
    assert os.stat(made.path).st_mode & 0o777 == 0o700
    made.remove()
    assert not os.path.exists(made.path)


def test_an_abandoned_folder_is_removed(place: Path) -> None:
    used, left, young = MetricsDirectory(), place / f"{prometheus.PREFIX}left", place / f"{prometheus.PREFIX}young"
    for folder in (left, young):
        folder.mkdir()
        (folder / "counter_1.db").touch()
    for path in (used.path, left):
        os.utime(path, (0, 0))
    MetricsDirectory().remove()
    assert (os.path.exists(used.path), left.exists(), young.exists()) == (True, False, True)
    used.remove()


def test_a_full_disk_is_an_error_before_files_are_mapped(
    folder: MetricsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        MetricsFile(folder.allocate())


class FakePool:
    """A pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def callInThreadWithCallback(  # noqa: N802 - Twisted's name
        self, done: Callable[[bool, Any], None], function: Callable[..., Any], *args: Any, **options: Any
    ) -> None:
        self.work.append(lambda: done(True, function(*args, **options)))


class FakeReactor(Clock):
    """A clock with a pool of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = FakePool()

    def getThreadPool(self) -> FakePool:  # noqa: N802 - Twisted's name
        return self.pool

    def callFromThread(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:  # noqa: N802
        function(*args, **options)


class MeterOnClock:
    """A meter on a clock, and threads that the test runs."""

    def __init__(self, path: str) -> None:
        self.reactor = FakeReactor()
        self.late: list[float] = []
        self.meter = Meter(self.reactor, path, CONFIG, self.late.append)

    def ask(self) -> list[Any]:
        answers: list[Any] = []
        self.meter.exposed().addBoth(answers.append)
        return answers

    def work(self) -> None:
        for work in [self.reactor.pool.work.pop(0) for _ in self.reactor.pool.work[:]]:
            work()


@pytest.fixture
def on_clock(folder: MetricsDirectory) -> Iterator[MeterOnClock]:
    made = MeterOnClock(folder.allocate())
    made.meter.start()
    yield made
    made.meter.stop()
    assert made.reactor.getDelayedCalls() == []


def test_the_process_is_measured_each_second_with_the_delay_of_the_timer(on_clock: MeterOnClock) -> None:
    on_clock.reactor.advance(1)
    on_clock.reactor.advance(1.25)
    on_clock.reactor.advance(1)
    assert on_clock.late == [0, 0, 0.25, 0]


def test_metrics_are_written_each_second_and_at_the_stop(on_clock: MeterOnClock, folder: MetricsDirectory) -> None:
    JOINS.value = 7
    assert b"chatd_joins_total 0.0\n" in expose(folder.path)
    on_clock.reactor.advance(1)
    assert b"chatd_joins_total 7.0\n" in expose(folder.path)
    JOINS.value = 8
    on_clock.meter.stop()
    assert b"chatd_joins_total 8.0\n" in expose(folder.path)


def test_a_request_gets_the_current_numbers_of_this_process(on_clock: MeterOnClock) -> None:
    JOINS.value = 5
    answer = on_clock.ask()
    assert answer == []  # a thread is at it
    on_clock.work()
    assert b"chatd_joins_total 5.0\n" in answer[0]


def test_simultaneous_requests_share_one_sum(on_clock: MeterOnClock) -> None:
    answers = [on_clock.ask() for _ in range(100)]
    assert len(on_clock.reactor.pool.work) == 1
    on_clock.work()
    assert {bytes(answer[0]) for answer in answers} == {answers[0][0]}


def test_a_sum_is_used_for_half_a_second(on_clock: MeterOnClock) -> None:
    on_clock.ask()
    on_clock.work()
    JOINS.value = 9
    on_clock.reactor.advance(0.4)
    assert b"chatd_joins_total 0.0\n" in on_clock.ask()[0]
    on_clock.reactor.advance(0.2)
    answer = on_clock.ask()
    on_clock.work()
    assert b"chatd_joins_total 9.0\n" in answer[0]


def test_a_cancelled_request_does_not_affect_others(on_clock: MeterOnClock) -> None:
    leaving = on_clock.meter.exposed()
    leaving.addErrback(lambda _: None)
    answer = on_clock.ask()
    leaving.cancel()
    on_clock.work()
    assert answer[0].startswith(b"# HELP ")


def test_a_process_without_a_path_has_no_metrics() -> None:
    on_clock = MeterOnClock("")
    on_clock.meter.start()
    assert on_clock.ask()[0].check(NoMetrics)
    on_clock.meter.stop()


def test_a_failure_to_open_the_files_is_logged_and_the_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    monkeypatch.setattr(prometheus.log, "observer", events)
    on_clock = MeterOnClock(f"{tmp_path}/gone/1")
    on_clock.meter.start()
    assert events.said[0][0] == "warn"
    assert events.said[0][1].startswith("metrics are unavailable: ")
    assert on_clock.ask()[0].check(NoMetrics)
