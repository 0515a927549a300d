"""When rooms are compared, with a history and a probe that the test answers."""

from collections.abc import Callable, Sequence

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from chatd.broker.liveness import Comparison
from chatd.broker.publish_queue import NotPublished
from chatd.config.settings import Config
from chatd.protocol.message import StreamPosition
from tests.fakes import Events


class Table:
    """A comparison, and all that it asks."""

    def __init__(self, *rooms: str) -> None:
        self.rooms = list(rooms)
        self.clock = Clock()
        self.asked: list[tuple[str, ...]] = []
        self.checked: list[tuple[str, ...]] = []
        self.compared: list[tuple[str, StreamPosition]] = []
        self.presences_compared: list[tuple[str, ...]] = []
        self.waiting: list[Deferred[list[StreamPosition]]] = []
        self.probes: list[Deferred[None]] = []
        config = Config(offset_check_interval=10, rooms_per_offset_check=2)
        self.comparison = Comparison(
            self.clock,
            config,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            rooms=lambda: list(self.rooms),
            probe=self.probe,
            recover=lambda room, top: self.compared.append((room, top)),
        )

    def tops(self, rooms: Sequence[str]) -> "Deferred[list[StreamPosition]]":
        self.asked.append(tuple(rooms))
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def check(self, rooms: Sequence[str]) -> "Deferred[Callable[[], None]]":
        self.checked.append(tuple(rooms))
        return succeed(lambda: self.presences_compared.append(tuple(rooms)))

    def probe(self) -> "Deferred[None]":
        self.probes.append(Deferred())
        return self.probes[-1]

    def answer(self, *offsets: int) -> None:
        """Say where the rooms that were asked for last stand."""
        self.waiting[-1].callback([StreamPosition("e", offset) for offset in offsets])

    def round(self, *offsets: int) -> None:
        """Answer, and let the probe come back."""
        self.answer(*offsets)
        self.probes[-1].callback(None)


def test_it_compares_at_its_time_again_and_again() -> None:
    table = Table("a")
    table.comparison.start()
    table.clock.advance(9.9)
    assert table.asked == []
    for _ in range(2):
        table.clock.advance(10)
        table.round(1)
    assert table.asked == [("a",)] * 2


def test_a_top_counts_once_the_probe_that_was_sent_behind_it_is_back() -> None:
    table = Table("a", "b")
    table.comparison.run()
    assert table.probes == []
    table.answer(1, 2)
    assert table.compared == []
    table.probes[0].callback(None)
    assert table.compared == [("a", StreamPosition("e", 1)), ("b", StreamPosition("e", 2))]


def test_many_rooms_are_compared_in_steps() -> None:
    table = Table("a", "b", "c")
    table.comparison.run()
    assert table.asked == [("a", "b")]
    table.round(1, 2)
    assert table.asked == [("a", "b"), ("c",)]
    table.round(3)
    assert [room for room, _ in table.compared] == ["a", "b", "c"]


def test_without_rooms_nothing_is_asked() -> None:
    table = Table()
    table.comparison.run()
    assert (table.asked, table.probes) == ([], [])


def test_what_is_asked_for_while_it_runs_is_done_once_behind_it() -> None:
    table = Table("a")
    for _ in range(3):
        table.comparison.run()
    assert len(table.asked) == 1
    table.rooms.append("b")
    table.round(1)
    assert table.asked == [("a",), ("a", "b")]
    table.round(1, 1)
    assert len(table.asked) == 2


def test_a_probe_that_is_lost_is_no_trouble_and_the_next_time_is_as_ever(events: Events) -> None:
    table = Table("a")
    table.comparison.run()
    table.answer(1)
    table.probes[0].errback(NotPublished("the link broke"))
    assert (table.compared, events.said) == ([], [])
    table.comparison.run()
    table.round(2)
    assert table.compared == [("a", StreamPosition("e", 2))]


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no")])
def test_what_goes_wrong_is_said_and_the_next_time_is_as_ever(events: Events, error: Exception) -> None:
    table = Table("a")
    table.comparison.run()
    table.waiting[0].errback(error)
    assert events.said == [("critical", "comparing the received offsets with those of the broker failed")]
    table.comparison.run()
    table.round(2)
    assert table.compared == [("a", StreamPosition("e", 2))]


def test_once_stopped_it_asks_and_compares_nothing_more(events: Events) -> None:
    table = Table("a")
    table.comparison.start()
    for _ in range(2):
        table.comparison.run()
    table.answer(1)
    table.comparison.stop()
    table.probes[0].callback(None)
    assert (table.compared, table.asked, table.clock.getDelayedCalls()) == ([], [("a",)], [])
    assert events.said == []
