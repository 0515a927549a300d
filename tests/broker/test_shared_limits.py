"""What addresses do on several workers, added up in the real Valkey."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from chatd.access.rate_limits import RateLimits
from chatd.broker.queries import Script
from chatd.broker.shared_limits import SharedLimits
from chatd.config.settings import Config
from chatd.protocol.http_head import Refused
from tests.broker.server import Client

A, B = "192.0.2.1", "2001:db8::1"
LIMITS: Any = {"connections_per_address": "20", "connection_rate": "30", "message_rate": "off", "byte_rate": "off"}
LIMITS |= {"address_message_rate": "20", "address_byte_rate": "8000"}


class Asking:
    """Asks the broker at once."""

    def __init__(self, broker: Client) -> None:
        self.broker = broker
        self.asked: list[list[bytes]] = []
        self.away = False
        self.error: Exception | None = None

    def ask(self, script: Script, keys: list[bytes], arguments: Callable[[bytes], list[Any]]) -> "Deferred[Any]":
        self.asked.append(keys)
        if self.error is not None:
            return fail(self.error)
        if self.away:
            return Deferred()
        return succeed(self.broker.ask("EVAL", script.source, len(keys), *keys, *arguments(b"")))


class Worker:
    """One of several workers."""

    def __init__(self, clock: Clock, broker: Client, config: Config, name: str) -> None:
        self.limits = RateLimits(config, clock.seconds)
        self.asking = Asking(broker)
        asking: Any = self.asking
        self.shares = SharedLimits(clock, asking, config, name)
        self.shares.share(self.limits)

    def asks(self, count: int) -> int:
        """Make so many requests; give how many were taken."""
        taken = 0
        for _ in range(count):
            try:
                self.limits.request(A, exposed=True)
            except Refused:
                continue
            taken += 1
        return taken

    def says(self, count: int, size: int) -> int:
        """Say so many messages of a size; give how many may be said at once."""
        pace = self.limits.client_rate(A, exposed=True)
        assert pace is not None
        return pace.take_some([size] * count)[0]

    def comes(self, count: int = 1, address: str = A) -> int:
        """Let so many connections come; give how many were let in."""
        taken = 0
        for _ in range(count):
            try:
                self.limits.admit(address, exposed=True, counted=False)
            except Refused:
                continue
            self.limits.usages.connected(address)
            taken += 1
        return taken


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers(clock: Clock, valkey_url: str) -> Iterator[Sequence[Worker]]:
    config = Config(**LIMITS, redis_prefix=f"t{uuid.uuid4().hex[:8]}")
    with Client(valkey_url.removeprefix("unix://")) as broker:
        yield [Worker(clock, broker, config, f"w{number}") for number in range(3)]


def test_connections_count_on_all_workers_together(clock: Clock, workers: Sequence[Worker]) -> None:
    one, other, third = workers
    assert [one.comes(12), other.comes(5)] == [12, 5]
    clock.advance(1)
    clock.advance(1)
    assert third.comes(2) == 2  # of what it was told nothing yet
    clock.advance(1)
    assert third.comes(20) == 1
    assert third.comes(5, B) == 5
    for _ in range(12):
        one.limits.usages.disconnected(A)
    clock.advance(1)
    clock.advance(1)
    assert third.comes(5) == 5


def test_arrivals_count_on_all_workers_together(clock: Clock, workers: Sequence[Worker]) -> None:
    one, other, _ = workers
    for worker in (one, other):
        worker.comes(2)
    clock.advance(1)
    for worker in (one, other):
        worker.comes(9)
        for _ in range(11):
            worker.limits.usages.disconnected(A)
    clock.advance(1)
    clock.advance(1)
    assert one.comes(30) < 30 - 11 - 8


def test_requests_count_on_all_workers_together(clock: Clock, workers: Sequence[Worker]) -> None:
    one, other, third = workers
    for worker in workers:
        assert worker.asks(100) == 100
    for _ in range(2):
        clock.advance(1)
    assert third.asks(50) == 50
    for _ in range(2):
        clock.advance(1)
    assert [one.asks(200), other.asks(200)] == [0, 30], "of 200, and 20 each second, others took what they are told of"


def test_messages_count_on_all_workers_together(clock: Clock, workers: Sequence[Worker]) -> None:
    said = 0
    for _ in range(40):
        said += sum(worker.says(100, 1) for worker in workers)
        clock.advance(1)
    assert 40 * 20 * 0.8 < said < 40 * 20 * 1.4, "each worker for itself would have taken 2,400"


def test_bytes_count_on_all_workers_together(clock: Clock, workers: Sequence[Worker]) -> None:
    said = 0
    for _ in range(40):
        said += 1000 * sum(worker.says(19, 1000) for worker in workers)
        clock.advance(1)
    assert 40 * 8000 * 0.8 < said < 40 * 8000 * 1.4, "each worker for itself would have taken 960,000"


def test_a_worker_that_died_is_counted_no_more(workers: Sequence[Worker], clock: Clock) -> None:
    one, other, _ = workers
    one.comes(15)
    other.comes(5)
    clock.advance(1)
    clock.advance(1)
    assert other.comes(1) == 0
    broker, [key] = one.asking.broker, one.asking.asked[0]
    one.shares.stop()
    told, _, at = broker.ask("HGET", key, "w:w0").partition(b" ")
    broker.ask("HSET", key, "w:w0", told + b" %d" % (int(at) - 16))
    clock.advance(1)
    assert other.comes(15) == 15


def test_an_address_that_does_nothing_is_forgotten(workers: Sequence[Worker], clock: Clock) -> None:
    workers[0].comes(5)
    clock.advance(1)
    [key] = workers[0].asking.asked[0]
    assert 0 < workers[0].asking.broker.ask("TTL", key) <= 120


def test_while_the_broker_is_away_each_workers_own_count_holds(clock: Clock, workers: Sequence[Worker]) -> None:
    one, other, _ = workers
    for each in workers:
        each.asking.away = True
    assert [one.comes(25), other.comes(25)] == [20, 20]
    for _ in range(5):
        clock.advance(1)
    assert len(one.asking.asked) == 1, "nothing piles up"


def test_a_broker_that_refuses_is_asked_again(clock: Clock, workers: Sequence[Worker]) -> None:
    one = workers[0]
    one.comes(5)
    one.asking.error = RuntimeError("no")
    with capturedLogs() as events:
        clock.advance(1)
    assert [each["log_level"] for each in events] == [LogLevel.critical]
    one.asking.error = None
    clock.advance(1)
    assert len(one.asking.asked) == 2


def test_who_does_next_to_nothing_is_not_told_of(clock: Clock, workers: Sequence[Worker]) -> None:
    workers[0].comes(1)
    clock.advance(1)
    assert workers[0].asking.asked == []


def test_when_it_stops_nothing_is_left(clock: Clock, workers: Sequence[Worker]) -> None:
    for each in workers:
        each.shares.stop()
        each.shares.stop()
    assert not clock.getDelayedCalls()
