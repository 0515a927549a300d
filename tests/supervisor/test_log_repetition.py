"""Trouble that comes again and again, on a clock."""

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.supervisor.log_repetition import LogRepetition
from tests.fakes import Events


class House:
    """A log of which trouble is said once a minute."""

    def __init__(self, seconds: float = 60.0, most: int = 10) -> None:
        self.clock = Clock()
        self.events = Events()
        self.repetition = LogRepetition(self.events, seconds, most, self.clock.seconds)
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
            self.repetition.look()


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
        house.log.warn("the bus is away", trouble="bus")
        house.wait(2)
        house.log.info("the bus is back", trouble="bus", over=True)
        house.wait(2)

    outage()
    assert house.said == ["the bus is away", "the bus is back"]
    for _ in range(5):
        outage()
    assert house.said == []
    house.wait(40)
    assert house.said == ["the bus is back (5 more in 60 s)"]


def test_an_outage_that_goes_on_at_the_end_of_the_minute_is_said_to_and_its_end_is_said_at_once(house: House) -> None:
    house.log.warn("the bus is away", trouble="bus")
    house.log.info("the bus is back", trouble="bus", over=True)
    house.log.warn("the bus is away", trouble="bus")
    house.wait(60)
    house.log.info("the bus is back", trouble="bus", over=True)
    assert house.said == [
        "the bus is away",
        "the bus is back",
        "the bus is away (1 more in 60 s)",
        "the bus is back",
    ]


def test_the_same_from_several_workers_is_the_same(house: House) -> None:
    for worker in (1, 2, 3):
        house.log.warn("worker {worker}: {text}", worker=worker, text="slow readers: 3", kind="slow readers: {clients}")
    house.log.warn("worker {worker}: {text}", worker=1, text="something else", kind="something else")
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
    house.repetition.say_all()
    assert house.said == [f"trouble of kind {number} (1 more in 0 s)" for number in range(90, 100)]


def test_what_was_counted_is_said_at_the_end(house: House) -> None:
    for _ in range(3):
        house.log.warn("trouble")
    house.repetition.say_all()
    assert house.said == ["trouble", "trouble (2 more in 0 s)"]


def test_all_can_be_said() -> None:
    house = House(seconds=0)
    for _ in range(3):
        house.log.warn("trouble")
    house.repetition.look()
    assert house.said == ["trouble"] * 3
