"""A process's metrics: written each second, and added up when somebody asks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.config.settings import Config
from chatd.monitoring import meter, prometheus
from chatd.monitoring.meter import Meter, NoMetrics
from chatd.monitoring.metrics import JOINS
from chatd.monitoring.prometheus import MetricsFolder
from tests.fakes import Events

CONFIG = Config(metrics_seconds=1.0, metrics_kept_seconds=0.5)


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


class House:
    """A meter on a clock."""

    def __init__(self, path: str) -> None:
        self.reactor = FakeReactor()
        self.late: list[float] = []
        self.meter = Meter(self.reactor, path, CONFIG, self.late.append)

    def ask(self) -> list[Any]:
        answers: list[Any] = []
        self.meter.exposed().addBoth(answers.append)
        return answers

    def work(self) -> None:
        for each in [self.reactor.pool.work.pop(0) for _ in self.reactor.pool.work[:]]:
            each()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsFolder]:
    monkeypatch.setattr(prometheus, "PLACES", (str(tmp_path),))
    monkeypatch.setattr(JOINS, "value", 0)
    made = MetricsFolder()
    yield made
    made.remove()


@pytest.fixture
def house(folder: MetricsFolder) -> Iterator[House]:
    made = House(folder.take())
    made.meter.start()
    yield made
    made.meter.stop()
    assert made.reactor.getDelayedCalls() == []


def test_the_process_is_looked_at_each_second_and_told_how_late(house: House) -> None:
    house.reactor.advance(1)
    house.reactor.advance(1.25)
    house.reactor.advance(1)
    assert house.late == [0, 0, 0.25, 0]


def test_what_was_counted_is_written_each_second(house: House, folder: MetricsFolder) -> None:
    JOINS.value = 7
    assert b"chatd_joins_total 0.0\n" in prometheus.expose(folder.path)
    house.reactor.advance(1)
    assert b"chatd_joins_total 7.0\n" in prometheus.expose(folder.path)


def test_what_was_counted_last_is_not_lost(folder: MetricsFolder) -> None:
    house = House(folder.take())
    house.meter.start()
    JOINS.value = 8
    house.meter.stop()
    assert b"chatd_joins_total 8.0\n" in prometheus.expose(folder.path)


def test_who_asks_gets_what_this_process_counted_up_to_now(house: House) -> None:
    JOINS.value = 5
    answer = house.ask()
    assert answer == []  # a thread is at it
    house.work()
    assert b"chatd_joins_total 5.0\n" in answer[0]


def test_many_who_ask_at_once_cost_one_sum(house: House) -> None:
    answers = [house.ask() for _ in range(100)]
    assert len(house.reactor.pool.work) == 1
    house.work()
    assert {bytes(answer[0]) for answer in answers} == {answers[0][0]}


def test_a_sum_is_good_for_a_moment(house: House) -> None:
    house.ask()
    house.work()
    JOINS.value = 9
    house.reactor.advance(0.4)
    assert b"chatd_joins_total 0.0\n" in house.ask()[0]
    house.reactor.advance(0.2)
    answer = house.ask()
    house.work()
    assert b"chatd_joins_total 9.0\n" in answer[0]


def test_who_leaves_does_not_take_the_answer_of_others_along(house: House) -> None:
    leaving = house.meter.exposed()
    leaving.addErrback(lambda _: None)
    answer = house.ask()
    leaving.cancel()
    house.work()
    assert answer[0].startswith(b"# HELP ")


def test_a_process_without_a_share_has_no_metrics() -> None:
    house = House("")
    house.meter.start()
    assert house.ask()[0].check(NoMetrics)
    house.meter.stop()


def test_where_nothing_can_be_written_it_is_said_and_the_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    monkeypatch.setattr(meter.log, "observer", events)
    house = House(f"{tmp_path}/gone/1")
    house.meter.start()
    assert events.said[0][0] == "warn"
    assert events.said[0][1].startswith("there are no metrics: ")
    assert house.ask()[0].check(NoMetrics)
