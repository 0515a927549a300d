"""The table of usage by address: bounded, and with work for changed addresses only."""

from collections.abc import Callable, Iterator
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

    def connect(self, address: str, count: int = 1) -> None:
        for _ in range(count):
            self.table.connected(address)

    def use(self, address: str, count: float) -> None:
        """Charge an address for requests."""
        usage = self.table.find(address)
        assert usage is not None
        usage.requests = usage.requests or TokenBucket(20, 200, self.now, 600)
        usage.requests.spend(count, self.now)
        usage.touch()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the addresses whose usage is checked."""
    addresses: list[str] = []

    def record(method: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(usage: AddressUsage, *arguments: Any) -> Any:
            addresses.append(usage.address)
            return method(usage, *arguments)

        return recorded

    for name in ("matters", "settled"):
        monkeypatch.setattr(AddressUsage, name, record(getattr(AddressUsage, name)))
    return addresses


def addresses(count: int) -> list[str]:
    return [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count)]


def test_busy_addresses_take_turns_in_reports() -> None:
    world = World(shared_limits_per_report=1000)
    for address in addresses(1500):
        world.connect(address, 8)
    reported = [{usage.address for usage in world.table.report()} for _ in range(3)]
    assert [len(names) for names in reported] == [1000, 1000, 1000]
    assert reported[0] | reported[1] == set(addresses(1500))
    assert reported[1] | reported[2] == set(addresses(1500))


def test_unchanged_addresses_are_not_checked(checked: list[str]) -> None:
    world = World()
    for address in addresses(5000):
        world.connect(address)
    for _ in range(3):
        world.table.report()
    checked.clear()
    assert world.table.report() == []
    assert checked == []
    world.use("10.0.0.7", 50)
    assert world.table.report() == [UsageCounts("10.0.0.7", 1, requests=50)]
    assert set(checked) == {"10.0.0.7"}


def test_the_addresses_checked_in_one_report_are_bounded(checked: list[str]) -> None:
    world = World(shared_limits_per_scan=100, shared_limits_per_report=100)
    for address in addresses(1000):
        world.use(address, 1)
    world.now += 60
    for _ in range(10):
        before = len(list(world.table))
        checked.clear()
        world.table.report()
        assert len(checked) <= 300
        assert before - len(list(world.table)) == 100
    assert list(world.table) == []


def test_a_new_address_needs_no_search_for_one_to_forget() -> None:
    world = World(rate_limit_addresses=100)
    for address in addresses(100):
        world.connect(address)

    class Unread(dict[str, AddressUsage]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the connected addresses were gone through")

        items = values = __iter__  # type: ignore[assignment]

    world.table._connected = Unread(world.table._connected)
    for number in range(50):
        world.use(f"192.0.2.{number}", 1)
    assert list(world.table._loose) == ["192.0.2.49"]


def test_the_address_without_usage_for_the_longest_time_is_forgotten_first_and_not_reported() -> None:
    world = World(rate_limit_addresses=3)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.4"):
        world.use(address, 100)
    assert sorted(world.table) == ["192.0.2.1", "192.0.2.3", "192.0.2.4"]
    assert sorted(usage.address for usage in world.table.report()) == sorted(world.table)


def test_usage_is_reported_once_in_whole_numbers() -> None:
    world = World()
    world.use("192.0.2.1", 10.5)
    assert world.table.report() == [UsageCounts("192.0.2.1", 0, requests=10)]
    world.use("192.0.2.1", 9.75)
    world.table.update([UsageCounts("192.0.2.1", 0)], [UsageCounts("192.0.2.1", 0, requests=10)])
    assert world.table.report() == [UsageCounts("192.0.2.1", 0, requests=10)]


def test_a_connected_address_with_full_buckets_is_not_reported() -> None:
    world = World()
    world.connect("192.0.2.1")
    world.use("192.0.2.1", 100)
    [reported] = world.table.report()
    world.table.update([reported], [reported])
    assert len(world.table.report()) == 1, "what it does on other workers still matters"
    world.now += 5
    assert world.table.report() == []
    assert list(world.table) == ["192.0.2.1"]
