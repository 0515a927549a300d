"""The table of what addresses use: bounded, and with work that depends on what changes alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from chatd.access.address_usage import AddressUsage, AddressUsageTable, UsageCounts
from chatd.access.token_bucket import TokenBucket
from chatd.config.settings import Config


class World:
    """A table and its clock."""

    def __init__(self, **bounds: Any) -> None:
        self.now = 1000.0
        self.table = AddressUsageTable(Config(**bounds), lambda: self.now, 8)

    def come(self, address: str, count: int = 1) -> None:
        for _ in range(count):
            self.table.connected(address)

    def use(self, address: str, count: float) -> None:
        """Let an address make requests."""
        usage = self.table.find(address)
        assert usage is not None
        usage.requests = usage.requests or TokenBucket(20, 200, self.now, 600)
        usage.requests.spend(count, self.now)
        usage.touch()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note the addresses that are looked at."""
    seen: list[str] = []

    def watched(name: str) -> None:
        look = getattr(AddressUsage, name)

        def noted(usage: AddressUsage, *arguments: Any) -> Any:
            seen.append(usage.address)
            return look(usage, *arguments)

        monkeypatch.setattr(AddressUsage, name, noted)

    watched("matters")
    watched("settled")
    yield seen


def addresses(count: int) -> list[str]:
    return [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count)]


def test_more_busy_addresses_than_are_told_at_once_take_turns() -> None:
    world = World(shared_limits_per_report=1000)
    for address in addresses(1500):
        world.come(address, 8)
    told = [{share.address for share in world.table.report()} for _ in range(3)]
    assert [len(names) for names in told] == [1000, 1000, 1000]
    assert told[0] | told[1] == set(addresses(1500))
    assert told[1] | told[2] == set(addresses(1500))


def test_addresses_that_change_nothing_are_not_looked_at(looked: list[str]) -> None:
    world = World()
    for address in addresses(5000):
        world.come(address)
    for _ in range(3):
        world.table.report()
    looked.clear()
    assert world.table.report() == []
    assert looked == []
    world.use("10.0.0.7", 50)
    assert world.table.report() == [UsageCounts("10.0.0.7", 1, requests=50)]
    assert set(looked) == {"10.0.0.7"}


def test_the_addresses_that_are_looked_at_in_one_go_are_bounded(looked: list[str]) -> None:
    world = World(shared_limits_per_scan=100, shared_limits_per_report=100)
    for address in addresses(1000):
        world.use(address, 1)
    world.now += 60
    for _ in range(10):
        before = len(list(world.table))
        looked.clear()
        world.table.report()
        assert len(looked) <= 300
        assert before - len(list(world.table)) == 100
    assert list(world.table) == []


def test_to_make_room_for_a_new_address_no_other_is_looked_at() -> None:
    world = World(rate_limit_addresses=100)
    for address in addresses(100):
        world.come(address)

    class Unread(dict[str, AddressUsage]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the connected addresses were gone through")

        items = values = __iter__  # type: ignore[assignment]

    world.table._connected = Unread(world.table._connected)
    for number in range(50):
        world.use(f"192.0.2.{number}", 1)
    assert list(world.table._loose) == ["192.0.2.49"]


def test_the_address_that_was_not_heard_of_for_the_longest_time_is_forgotten_first() -> None:
    world = World(rate_limit_addresses=3)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.4"):
        world.use(address, 1)
    assert sorted(world.table) == ["192.0.2.1", "192.0.2.3", "192.0.2.4"]


def test_an_address_that_was_forgotten_is_not_told_of() -> None:
    world = World(rate_limit_addresses=3)
    for address in addresses(10):
        world.use(address, 100)
    assert [share.address for share in world.table.report()] == addresses(10)[-3:]


def test_what_is_told_is_told_once_in_whole_numbers() -> None:
    world = World()
    world.use("192.0.2.1", 10.5)
    assert world.table.report() == [UsageCounts("192.0.2.1", 0, requests=10)]
    world.use("192.0.2.1", 9.75)
    world.table.update([UsageCounts("192.0.2.1", 0)], [UsageCounts("192.0.2.1", 0, requests=10)])
    assert world.table.report() == [UsageCounts("192.0.2.1", 0, requests=10)]


def test_a_connected_address_of_which_nothing_is_left_is_told_of_no_more() -> None:
    world = World()
    world.come("192.0.2.1")
    world.use("192.0.2.1", 100)
    [told] = world.table.report()
    world.table.update([told], [told])
    assert len(world.table.report()) == 1, "what it does on other workers still matters"
    world.now += 5
    assert world.table.report() == []
    assert list(world.table) == ["192.0.2.1"]
