"""How much one client, and one address, may do."""

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
    """Limits, and their clock."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.now = 1000.0
        self.limits = RateLimits(config, lambda: self.now)

    def admits(self, address: str = A, *, exposed: bool = True, counted: bool = False) -> str:
        """Give why a connection is refused; empty where it is not."""
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
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:0:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("unix", ""),
        ("", ""),
    ],
)
def test_an_ipv6_address_counts_with_its_network(address: str, counted: str) -> None:
    assert group(address) == counted


def test_a_limit_is_a_number_off_or_what_auto_stands_for() -> None:
    assert [limit(text, 7) for text in ("auto", "off", "2.5")] == [7, 0, 2.5]


# A client


def test_by_itself_it_limits_those_that_come_from_elsewhere() -> None:
    limits = World(Config()).limits
    assert limits.client_rate(A, exposed=False) is None
    rate = limits.client_rate(A, exposed=True)
    assert rate is not None
    assert rate.messages_per_second == 5
    assert rate.take_some([1] * 11)[0] == 10


def test_a_number_is_for_all_and_off_for_nobody() -> None:
    off: Any = dict.fromkeys(("byte_rate", "address_message_rate", "address_byte_rate", "request_rate"), "off")
    numbers = World(Config(message_rate="2", message_burst=3, **off)).limits
    for exposed in (False, True):
        rate = numbers.client_rate(A, exposed=exposed)
        assert rate is not None
        assert rate.take_some([10**9] * 4)[0] == 3
    assert World(Config(message_rate="off", **off)).limits.client_rate(A, exposed=True) is None


def test_the_longest_message_may_always_be_said() -> None:
    config = Config(message_rate="off", byte_rate="10", max_message_size=1000)
    rate = World(config).limits.client_rate(A, exposed=True)
    assert rate is not None
    assert rate.take(1000) == 0
    assert rate.take(1000) > 0


# An address


def test_it_has_no_more_connections_than_it_may(world: World) -> None:
    for _ in range(3):
        assert world.admits() == ""
        world.limits.connected(A)
    assert world.admits() == "3 connections from one address at most"
    assert (world.refused.status, world.refused.code) == (429, "rate_limited")
    assert world.admits(B) == ""
    world.limits.disconnected(A)
    assert world.admits() == ""


def test_one_that_is_counted_already_is_not_counted_twice(world: World) -> None:
    for _ in range(3):
        world.limits.connected(A)
        assert world.admits(counted=True) == ""
    world.limits.connected(A)
    assert world.admits(counted=True) != ""


def test_it_begins_no_more_than_it_may_in_a_minute(world: World) -> None:
    assert [world.admits() for _ in range(6)] == [""] * 6
    assert world.admits() == "6 new connections a minute from one address at most"
    assert world.refused.headers == (("Retry-After", "10"),)
    world.now += 10
    assert world.admits() == ""
    assert world.admits() != ""


def test_all_of_a_network_is_one(world: World) -> None:
    for last in range(3):
        world.limits.connected(f"2001:db8::{last}")
    assert world.admits("2001:db8::99") != ""
    assert world.admits("2001:db8:0:1::1") == ""


def test_a_unix_socket_has_no_address_that_could_do_too_much(world: World) -> None:
    for _ in range(20):
        assert world.admits("unix") == ""
        world.limits.connected("unix")
    assert world.enters("a", "unix")


def test_a_worker_lets_in_so_many_in_a_second_whoever_they_are() -> None:
    world = World(Config(handshake_rate="2"))
    assert [world.admits(A), world.admits(B)] == ["", ""]
    assert world.admits("192.0.2.3") == "too many come at once; try again"
    assert world.refused.status == 503
    world.now += 0.5
    assert world.admits() == ""


def test_who_comes_too_often_takes_no_place_from_the_others() -> None:
    world = World(Config(handshake_rate="3", connection_rate="1", connections_per_address="2"))
    assert [world.admits(A)] + [world.admits(A)[:1] for _ in range(9)] == [""] + ["1"] * 9
    for _ in range(3):
        world.limits.connected(B)
    assert [world.admits(B)[:1] for _ in range(9)] == ["2"] * 9
    assert [world.admits("192.0.2.3"), world.admits("192.0.2.4")] == ["", ""]


def test_rooms_that_are_known_are_not_made(world: World) -> None:
    assert [world.enters(room) for room in ("a", "a", "b", "a", "b", "c")] == [True] * 5 + [False]
    assert world.enters("a", B)
    world.now += 30
    assert world.enters("c")


def test_posts_of_an_address_have_one_pace(world: World) -> None:
    for _ in range(10):
        world.limits.post(A, 5, exposed=True)
    with pytest.raises(Refused) as caught:
        world.limits.post(A, 5, exposed=True)
    assert (caught.value.status, caught.value.headers) == (429, (("Retry-After", "1"),))
    world.limits.post(B, 5, exposed=True)


def test_who_has_said_something_is_forgotten_once_it_might_say_as_much_again(world: World) -> None:
    world.limits.post(A, 5, exposed=True)
    world.limits.report()
    assert set(world.limits.usages) == {A}
    world.now += 1
    world.limits.report()
    assert set(world.limits.usages) == set()


def test_on_listeners_of_this_host_nothing_is_limited_by_itself() -> None:
    world = World(Config())
    for number in range(2000):
        assert world.admits(exposed=False) == ""
        world.limits.connected(A)
        world.limits.enter(A, str(number), exposed=False)
        world.limits.post(A, 1000, exposed=False)
    assert world.admits(exposed=True) != ""


def test_no_more_addresses_are_kept_than_may_be_and_none_with_connections_is_forgotten() -> None:
    world = World(replace(CONFIG, rate_limit_addresses=10))
    for _ in range(3):
        world.limits.connected(A)
    for number in range(100):
        world.admits(f"198.51.100.{number}")
    assert len(list(world.limits.usages)) == 10
    assert world.admits() != ""


def test_a_crowd_counts_who_is_in_it(world: World) -> None:
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


# What it asks


def asks(world: World, count: int, address: str = A, **options: bool) -> int:
    """Let an address make requests; give how many were taken."""
    taken = 0
    for _ in range(count):
        try:
            world.limits.request(address, exposed=True, **options)
        except Refused as refused:
            world.refused = refused
        else:
            taken += 1
    return taken


def test_an_address_makes_ten_seconds_worth_of_requests_at_once_and_is_then_told_to_wait() -> None:
    world = World(Config())
    assert asks(world, 300) == 200
    assert (world.refused.status, world.refused.code) == (429, "rate_limited")
    assert world.refused.message == "20 requests a second from one address at most"
    assert world.refused.headers == (("Retry-After", "1"),)
    assert asks(world, 1, B) == 1
    world.now += 1
    assert asks(world, 300) == 20


def test_twenty_people_behind_one_address_open_the_page_at_once() -> None:
    world = World(Config())
    for _ in range(20):
        assert world.admits() == ""
        assert asks(world, 4) == 4, "the page, its style, script and icon"
        world.limits.charge(A, 1, exposed=True)  # the handshake
        rate = world.limits.client_rate(A, exposed=True)
        assert rate is not None
        assert [rate.ask(), rate.ask()] == [0, 0], "who is there, and history"
        rate.read(5000)


def test_health_checks_have_a_bucket_of_their_own() -> None:
    world = World(Config())
    assert asks(world, 300) == 200
    assert asks(world, 300, probe=True) == 200
    world.now += 1
    assert [asks(world, 100), asks(world, 100, probe=True)] == [20, 20]


def test_what_an_address_read_keeps_it_waiting_up_to_a_bound() -> None:
    world = World(Config())
    world.limits.read(A, 65_536 * 240, exposed=True)
    assert asks(world, 1) == 0
    assert world.refused.headers == (("Retry-After", "3"),)
    for _ in range(10):
        world.limits.read(A, 65_536 * 1000, exposed=True)
    assert asks(world, 1) == 0
    assert world.refused.headers == (("Retry-After", "31"),)
    world.now += 30.1
    assert asks(world, 1) == 1


def test_who_recovers_what_it_missed_may_owe_for_it() -> None:
    world = World(Config())
    world.limits.read(A, 65_536 * 300, exposed=True)
    assert asks(world, 1) == 0
    assert asks(world, 500, recovers=True) == 201
    assert world.refused.status == 429


def test_requests_of_this_host_are_not_limited_by_themselves() -> None:
    world = World(Config())
    for _ in range(1000):
        world.limits.request(A, exposed=False)
        world.limits.request(A, exposed=False, probe=True)
        world.limits.read(A, 10**6, exposed=False)
    assert list(world.limits.usages) == []
    for _ in range(1000):
        world.limits.request("unix", exposed=True)


# What all its clients say


def test_all_clients_of_an_address_together_have_limits_too() -> None:
    world = World(Config(message_rate="off", byte_rate="off", address_message_rate="100"))
    paces = [world.limits.client_rate(A, exposed=True) for _ in range(3)]
    taken = [rate.take_some([1] * 150)[0] for rate in paces if rate is not None]
    assert taken == [150, 50, 0]
    elsewhere = world.limits.client_rate(B, exposed=True)
    assert elsewhere is not None
    assert elsewhere.take(1) == 0


def test_their_text_is_limited_together() -> None:
    world = World(Config(message_rate="off", byte_rate="off", address_message_rate="off"))
    paces = [world.limits.client_rate(A, exposed=True) for _ in range(2)]
    taken = [rate.take_some([16_384] * 100)[0] for rate in paces if rate is not None]
    assert taken == [64, 0]


def test_posts_take_from_what_an_address_may_say() -> None:
    world = World(Config(message_rate="5", address_message_rate="6"))
    rate = world.limits.client_rate(A, exposed=True)
    assert rate is not None
    assert rate.take_some([1] * 20)[0] == 10
    for _ in range(2):
        world.limits.post(A, 5, exposed=True)
    with pytest.raises(Refused):
        world.limits.post(A, 5, exposed=True)


# With other workers


def test_what_an_address_has_on_other_workers_counts(world: World) -> None:
    for _ in range(2):
        world.limits.connected(A)
    [told] = world.limits.report()
    assert told == UsageCounts(A, 2, 0, 0)
    world.limits.update([told], [UsageCounts(A, 3, 0, 0)])
    assert world.admits() != ""
    world.limits.update(world.limits.report(), [UsageCounts(A, 2, 0, 0)])
    assert world.admits() == ""


def test_what_an_address_had_elsewhere_does_not_count_when_that_is_long_ago(world: World) -> None:
    for _ in range(2):
        world.limits.connected(A)
    told = world.limits.report()
    world.limits.update(told, [UsageCounts(A, 40, 0, 0)])
    world.now += 15
    assert world.admits() != ""
    world.now += 1
    assert world.admits() == ""


def test_what_it_begins_on_other_workers_counts_from_when_it_is_known(world: World) -> None:
    for _ in range(2):
        world.admits()
        world.enters("a")
    told = world.limits.report()
    assert told == [UsageCounts(A, 0, 2, 1)]
    world.limits.update(told, [UsageCounts(A, 0, 2, 1)])
    world.admits()
    world.admits()
    told = world.limits.report()
    world.limits.update(told, [UsageCounts(A, 0, 6, 2)])  # two here, two elsewhere
    assert world.admits() == "6 new connections a minute from one address at most"
    assert not world.enters("b")


def test_what_others_did_before_is_not_held_against_it(world: World) -> None:
    world.admits()
    world.admits()
    world.limits.update(world.limits.report(), [UsageCounts(A, 0, 5000, 900)])
    assert world.admits() == ""


def test_a_broker_that_lost_what_it_knew_costs_nobody_anything(world: World) -> None:
    world.admits()
    world.admits()
    world.limits.update(world.limits.report(), [UsageCounts(A, 0, 50, 0)])
    world.admits()
    world.admits()
    world.limits.update(world.limits.report(), [UsageCounts(A, 0, 2, 0)])
    assert world.admits() == ""


def test_those_who_do_next_to_nothing_are_not_told_of_and_forgotten(world: World) -> None:
    world.admits()
    world.limits.connected(B)
    assert world.limits.report() == []
    world.now += 60
    world.limits.report()
    assert set(world.limits.usages) == {B}


def test_that_an_address_has_no_connection_any_more_is_told_once(world: World) -> None:
    for _ in range(2):
        world.limits.connected(A)
    world.limits.report()
    for _ in range(2):
        world.limits.disconnected(A)
    assert world.limits.report() == [UsageCounts(A, 0, 0, 0)]
    assert world.limits.report() == []


def test_of_who_was_busy_it_is_asked_what_it_does_elsewhere_until_that_does_not_matter(world: World) -> None:
    for _ in range(2):
        world.admits()
    world.limits.update(world.limits.report(), [UsageCounts(A, 0, 2, 0)])
    assert world.limits.report() == [UsageCounts(A, 0, 0, 0)]
    world.now += 60
    assert world.limits.report() == []
    assert len(list(world.limits.usages)) == 0
