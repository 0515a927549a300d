"""The rate limits of a client and of an address."""

from dataclasses import replace
from typing import Any

import pytest

from chatd.access.address_usage import UsageCounts, group
from chatd.access.rate_limits import ConnectionsByAddress, RateLimits
from chatd.config.settings import Config
from chatd.config.values import limit
from chatd.protocol.http_head import Refused
from tests.rows import rows

CONFIG = Config(connections_per_address="3", connection_rate="6", room_rate="2", handshake_rate="off", message_rate="5")
A, B = "192.0.2.1", "192.0.2.2"


class World:
    """Rate limits, and their clock."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.now = 1000.0
        self.limits = RateLimits(config, lambda: self.now)

    def admits(self, address: str = A, *, exposed: bool = True, counted: bool = False) -> str:
        """Return why a connection is refused; empty if it is admitted."""
        try:
            self.limits.admit(address, exposed=exposed, counted=counted)
        except Refused as refused:
            self.refused = refused
            return refused.message
        return ""

    def enters(self, room: str, address: str = A) -> bool:
        try:
            self.limits.enter(address, room, exposed=True)
        except Refused:
            return False
        return True


@pytest.fixture
def world() -> World:
    return World()


@rows(
    ("address", "counted"),
    [
        *(("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64")),
        ("2001:db8::ffff:0:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        *(("unix", ""), ("", "")),
    ],
)
def test_an_ipv6_address_counts_with_its_network(address: str, counted: str) -> None:
    assert group(address) == counted


def test_a_limit_is_a_number_off_or_auto() -> None:
    assert [limit(text, 7) for text in ("auto", "off", "2.5")] == [7, 0, 2.5]


# A client


def test_auto_limits_clients_of_other_hosts() -> None:
    limits = World(Config()).limits
    assert limits.client_rate(A, exposed=False) is None
    rate = limits.client_rate(A, exposed=True)
    assert rate is not None
    assert rate.messages_per_second == 5
    assert rate.take_some([1] * 11)[0] == 10


def test_a_number_limits_all_clients_and_off_none() -> None:
    off: Any = dict.fromkeys(("byte_rate", "address_message_rate", "address_byte_rate", "request_rate"), "off")
    numbers = World(Config(message_rate="2", message_burst=3, **off)).limits
    for exposed in (False, True):
        rate = numbers.client_rate(A, exposed=exposed)
        assert rate is not None
        assert rate.take_some([10**9] * 4)[0] == 3
    assert World(Config(message_rate="off", **off)).limits.client_rate(A, exposed=True) is None


def test_the_longest_message_can_always_be_published() -> None:
    config = Config(message_rate="off", byte_rate="10", max_message_size=1000)
    rate = World(config).limits.client_rate(A, exposed=True)
    assert rate is not None
    assert rate.take(1000) == 0
    assert rate.take(1000) > 0


# An address


def test_the_connections_of_an_address_are_limited(world: World) -> None:
    for _ in range(3):
        assert world.admits() == ""
        world.limits.usages.connected(A)
    assert world.admits() == "3 connections from one address at most"
    assert (world.refused.status, world.refused.code) == (429, "rate_limited")
    assert world.admits(B) == ""
    assert world.admits(counted=True) == ""  # it is one of the three
    world.limits.usages.connected(A)
    assert world.admits(counted=True) != ""
    for _ in range(2):
        world.limits.usages.disconnected(A)
    assert world.admits() == ""


def test_the_new_connections_of_an_address_are_limited(world: World) -> None:
    assert [world.admits() for _ in range(6)] == [""] * 6
    assert world.admits() == "6 new connections a minute from one address at most"
    assert world.refused.headers == (("Retry-After", "10"),)
    world.now += 10
    assert world.admits() == ""
    assert world.admits() != ""


def test_an_ipv6_network_is_one_address(world: World) -> None:
    for last in range(3):
        world.limits.usages.connected(f"2001:db8::{last}")
    assert world.admits("2001:db8::99") != ""
    assert world.admits("2001:db8:0:1::1") == ""


def test_clients_of_a_unix_socket_are_not_limited(world: World) -> None:
    for _ in range(20):
        assert world.admits("unix") == ""
        world.limits.usages.connected("unix")
    assert world.enters("a", "unix")


def test_the_handshakes_of_all_addresses_are_limited() -> None:
    world = World(Config(handshake_rate="2"))
    assert [world.admits(A), world.admits(B)] == ["", ""]
    assert world.admits("192.0.2.3") == "too many come at once; try again"
    assert world.refused.status == 503
    world.now += 0.5
    assert world.admits() == ""


def test_refused_connections_do_not_use_up_the_handshake_rate() -> None:
    world = World(Config(handshake_rate="3", connection_rate="1", connections_per_address="2"))
    assert [world.admits(A)] + [world.admits(A)[:1] for _ in range(9)] == [""] + ["1"] * 9
    for _ in range(3):
        world.limits.usages.connected(B)
    assert [world.admits(B)[:1] for _ in range(9)] == ["2"] * 9
    assert [world.admits("192.0.2.3"), world.admits("192.0.2.4")] == ["", ""]


def test_the_new_rooms_of_an_address_are_limited(world: World) -> None:
    assert [world.enters(room) for room in ("a", "a", "b", "a", "b", "c")] == [True] * 5 + [False]
    assert world.enters("a", B)
    world.now += 30
    assert world.enters("c")


def test_the_posts_of_an_address_share_one_rate_limit(world: World) -> None:
    for _ in range(10):
        world.limits.post(A, 5, exposed=True)
    with pytest.raises(Refused) as caught:
        world.limits.post(A, 5, exposed=True)
    assert (caught.value.status, caught.value.headers) == (429, (("Retry-After", "1"),))
    world.limits.post(B, 5, exposed=True)


def test_an_address_is_forgotten_when_its_buckets_are_full(world: World) -> None:
    world.limits.post(A, 5, exposed=True)
    world.limits.usages.report()
    assert set(world.limits.usages) == {A}
    world.now += 1
    world.limits.usages.report()
    assert set(world.limits.usages) == set()


def test_nothing_is_limited_by_default_on_loopback_listeners() -> None:
    world = World(Config())
    for number in range(2000):
        assert world.admits(exposed=False) == ""
        world.limits.usages.connected(A)
        world.limits.enter(A, str(number), exposed=False)
        world.limits.post(A, 1000, exposed=False)
    assert world.admits(exposed=True) != ""


def test_the_table_of_addresses_is_bounded_and_keeps_connected_ones() -> None:
    world = World(replace(CONFIG, rate_limit_addresses=10))
    for _ in range(3):
        world.limits.usages.connected(A)
    for number in range(100):
        world.admits(f"198.51.100.{number}")
    assert len(list(world.limits.usages)) == 10
    assert world.admits() != ""


def test_connections_are_counted_by_address(world: World) -> None:
    crowd: ConnectionsByAddress[str] = ConnectionsByAddress(world.limits)
    for member in ("x", "y", "z"):
        crowd.add(member, A)
    assert (len(crowd), sorted(crowd), "x" in crowd) == (3, ["x", "y", "z"], True)
    assert world.admits() != ""
    crowd.discard("x")
    crowd.discard("x")
    crowd.discard("never")
    assert world.admits() == ""
    assert world.limits.crowded(A) is False
    for number in range(5):
        crowd.add(f"more {number}", A)
    assert world.limits.crowded(A) is True


# Requests


def requests(world: World, count: int, address: str = A, **options: bool) -> int:
    """Make requests from an address; return how many were accepted."""
    taken = 0
    for _ in range(count):
        try:
            world.limits.request(address, exposed=True, **options)
        except Refused as refused:
            world.refused = refused
        else:
            taken += 1
    return taken


def test_the_burst_of_requests_is_ten_seconds_worth() -> None:
    world = World(Config())
    assert requests(world, 300) == 200
    assert (world.refused.status, world.refused.code) == (429, "rate_limited")
    assert world.refused.message == "20 requests a second from one address at most"
    assert world.refused.headers == (("Retry-After", "1"),)
    assert requests(world, 1, B) == 1
    world.now += 1
    assert requests(world, 300) == 20


def test_twenty_clients_behind_one_address_open_the_page_at_once() -> None:
    world = World(Config())
    for _ in range(20):
        assert world.admits() == ""
        assert requests(world, 4) == 4, "the page, its style, script and icon"
        world.limits.charge(A, 1, exposed=True)  # the handshake
        rate = world.limits.client_rate(A, exposed=True)
        assert rate is not None
        assert [rate.ask(), rate.ask()] == [0, 0], "members and history"
        rate.read(5000)


def test_health_checks_have_a_bucket_of_their_own() -> None:
    world = World(Config())
    assert requests(world, 300) == 200
    assert requests(world, 300, probe=True) == 200
    world.now += 1
    assert [requests(world, 100), requests(world, 100, probe=True)] == [20, 20]


def test_reading_much_delays_requests_up_to_a_bound() -> None:
    world = World(Config())
    world.limits.read(A, 65_536 * 240, exposed=True)
    assert requests(world, 1) == 0
    assert world.refused.headers == (("Retry-After", "3"),)
    for _ in range(10):
        world.limits.read(A, 65_536 * 1000, exposed=True)
    assert requests(world, 1) == 0
    assert world.refused.headers == (("Retry-After", "31"),)
    world.now += 30.1
    assert requests(world, 1) == 1


def test_recovery_may_go_into_debt() -> None:
    world = World(Config())
    world.limits.read(A, 65_536 * 300, exposed=True)
    assert requests(world, 1) == 0
    assert requests(world, 500, recovers=True) == 201
    assert world.refused.status == 429


@rows("address, exposed", [(A, False), ("unix", True)])
def test_requests_of_this_host_are_not_limited_by_default(address: str, *, exposed: bool) -> None:
    world = World(Config())
    for _ in range(1000):
        world.limits.request(address, exposed=exposed)
        world.limits.request(address, exposed=exposed, probe=True)
        world.limits.read(address, 10**6, exposed=exposed)
    assert list(world.limits.usages) == []


# Messages of all clients of an address


@rows("messages_per_second, sizes, taken", [("100", [1] * 150, [150, 50, 0]), ("off", [16_384] * 100, [64, 0, 0])])
def test_messages_and_text_of_all_clients_of_an_address_are_limited(
    messages_per_second: str, sizes: list[int], taken: list[int]
) -> None:
    world = World(Config(message_rate="off", byte_rate="off", address_message_rate=messages_per_second))
    rates = [world.limits.client_rate(A, exposed=True) for _ in range(3)]
    assert [rate.take_some(sizes)[0] for rate in rates if rate is not None] == taken
    other = world.limits.client_rate(B, exposed=True)
    assert other is not None
    assert other.take(1) == 0


def test_posts_and_messages_share_the_limit_of_an_address() -> None:
    world = World(Config(message_rate="5", address_message_rate="6"))
    rate = world.limits.client_rate(A, exposed=True)
    assert rate is not None
    assert rate.take_some([1] * 20)[0] == 10
    for _ in range(2):
        world.limits.post(A, 5, exposed=True)
    with pytest.raises(Refused):
        world.limits.post(A, 5, exposed=True)


# Usage on other workers


def test_connections_on_other_workers_count_for_15_seconds(world: World) -> None:
    for _ in range(2):
        world.limits.usages.connected(A)
    reported = world.limits.usages.report()
    assert reported == [UsageCounts(A, 2, 0, 0)]
    world.limits.usages.update(reported, [UsageCounts(A, 3, 0, 0)])
    assert world.admits() != ""
    world.limits.usages.update(world.limits.usages.report(), [UsageCounts(A, 2, 0, 0)])
    assert world.admits() == ""
    world.limits.usages.update(world.limits.usages.report(), [UsageCounts(A, 40, 0, 0)])
    world.now += 15
    assert world.admits() != ""
    world.now += 1
    assert world.admits() == ""


def test_connections_and_rooms_begun_on_other_workers_count_once_known(world: World) -> None:
    for _ in range(2):
        world.admits()
        world.enters("a")
    reported = world.limits.usages.report()
    assert reported == [UsageCounts(A, 0, 2, 1)]
    world.limits.usages.update(reported, [UsageCounts(A, 0, 2, 1)])
    world.admits()
    world.admits()
    reported = world.limits.usages.report()
    world.limits.usages.update(reported, [UsageCounts(A, 0, 6, 2)])  # two here, two elsewhere
    assert world.admits() == "6 new connections a minute from one address at most"
    assert not world.enters("b")


def test_earlier_usage_on_other_workers_does_not_count(world: World) -> None:
    world.admits()
    world.admits()
    world.limits.usages.update(world.limits.usages.report(), [UsageCounts(A, 0, 5000, 900)])
    assert world.admits() == ""


def test_counts_that_the_broker_lost_are_not_charged(world: World) -> None:
    world.admits()
    world.admits()
    world.limits.usages.update(world.limits.usages.report(), [UsageCounts(A, 0, 50, 0)])
    world.admits()
    world.admits()
    world.limits.usages.update(world.limits.usages.report(), [UsageCounts(A, 0, 2, 0)])
    assert world.admits() == ""


def test_addresses_with_little_usage_are_not_reported(world: World) -> None:
    world.admits()
    world.limits.usages.connected(B)
    assert world.limits.usages.report() == []
    world.now += 60
    world.limits.usages.report()
    assert set(world.limits.usages) == {B}


def test_the_end_of_the_last_connection_is_reported_once(world: World) -> None:
    for _ in range(2):
        world.limits.usages.connected(A)
    world.limits.usages.report()
    for _ in range(2):
        world.limits.usages.disconnected(A)
    assert world.limits.usages.report() == [UsageCounts(A, 0, 0, 0)]
    assert world.limits.usages.report() == []


def test_a_busy_address_is_reported_until_its_usage_elsewhere_does_not_matter(world: World) -> None:
    for _ in range(2):
        world.admits()
    world.limits.usages.update(world.limits.usages.report(), [UsageCounts(A, 0, 2, 0)])
    assert world.limits.usages.report() == [UsageCounts(A, 0, 0, 0)]
    world.now += 60
    assert world.limits.usages.report() == []
    assert len(list(world.limits.usages)) == 0
