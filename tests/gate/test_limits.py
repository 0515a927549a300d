"""How much one client, and one address, may do."""

from dataclasses import replace

import pytest

from chatd.config import BadValue, Config, limit, options
from chatd.gate.limits import Crowd, Limits, Share, group
from chatd.wire.handshake import Refused

CONFIG = Config(limit_connections="3", limit_arrivals="6", limit_rooms="2", limit_handshakes="off", limit_messages="5")
A, B = "192.0.2.1", "192.0.2.2"


class World:
    """Limits, and their clock."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.now = 1000.0
        self.limits = Limits(config, lambda: self.now)

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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("text", ["", "5x", "0", "-1", "nan", "inf", "1e10", "on", "5/s"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    checks = {each.name: each.metadata["check"] for each in options()}
    for name in ("limit_messages", "limit_bytes", "limit_connections", "limit_arrivals", "limit_rooms"):
        with pytest.raises(BadValue, match="must be auto, off or a number over 0"):
            checks[name](text)


def test_a_limit_is_a_number_off_or_what_auto_stands_for() -> None:
    assert [limit(text, 7) for text in ("auto", "off", "2.5")] == [7, 0, 2.5]


# A client


def test_by_itself_it_limits_those_that_come_from_elsewhere() -> None:
    limits = World(Config()).limits
    assert limits.pace(exposed=False) is None
    pace = limits.pace(exposed=True)
    assert pace is not None
    assert pace.messages_per_second == 5
    assert pace.take_some([1] * 11)[0] == 10


def test_a_number_is_for_all_and_off_for_nobody() -> None:
    numbers = World(Config(limit_messages="2", limit_bytes="off", limit_burst=3)).limits
    for exposed in (False, True):
        pace = numbers.pace(exposed=exposed)
        assert pace is not None
        assert pace.take_some([10**9] * 4)[0] == 3
    assert World(Config(limit_messages="off", limit_bytes="off")).limits.pace(exposed=True) is None


def test_the_longest_message_may_always_be_said() -> None:
    config = Config(limit_messages="off", limit_bytes="10", max_message=1000)
    pace = World(config).limits.pace(exposed=True)
    assert pace is not None
    assert pace.take(1000) == 0
    assert pace.take(1000) > 0


# An address


def test_it_has_no_more_connections_than_it_may(world: World) -> None:
    for _ in range(3):
        assert world.admits() == ""
        world.limits.came(A)
    assert world.admits() == "3 connections from one address at most"
    assert (world.refused.status, world.refused.code) == (429, "rate_limited")
    assert world.admits(B) == ""
    world.limits.left(A)
    assert world.admits() == ""


def test_one_that_is_counted_already_is_not_counted_twice(world: World) -> None:
    for _ in range(3):
        world.limits.came(A)
        assert world.admits(counted=True) == ""
    world.limits.came(A)
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
        world.limits.came(f"2001:db8::{last}")
    assert world.admits("2001:db8::99") != ""
    assert world.admits("2001:db8:0:1::1") == ""


def test_a_unix_socket_has_no_address_that_could_do_too_much(world: World) -> None:
    for _ in range(20):
        assert world.admits("unix") == ""
        world.limits.came("unix")
    assert world.enters("a", "unix")


def test_a_worker_lets_in_so_many_in_a_second_whoever_they_are() -> None:
    world = World(Config(limit_handshakes="2"))
    assert [world.admits(A), world.admits(B)] == ["", ""]
    assert world.admits("192.0.2.3") == "too many come at once; try again"
    assert world.refused.status == 503
    world.now += 0.5
    assert world.admits() == ""


def test_who_comes_too_often_takes_no_place_from_the_others() -> None:
    world = World(Config(limit_handshakes="3", limit_arrivals="1", limit_connections="2"))
    assert [world.admits(A)] + [world.admits(A)[:1] for _ in range(9)] == [""] + ["1"] * 9
    for _ in range(3):
        world.limits.came(B)
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
    assert set(world.limits._known) == {A}
    world.now += 1
    world.limits.report()
    assert set(world.limits._known) == set()


def test_on_listeners_of_this_host_nothing_is_limited_by_itself() -> None:
    world = World(Config())
    for number in range(2000):
        assert world.admits(exposed=False) == ""
        world.limits.came(A)
        world.limits.enter(A, str(number), exposed=False)
        world.limits.post(A, 1000, exposed=False)
    assert world.admits(exposed=True) != ""


def test_no_more_addresses_are_kept_than_may_be_and_none_with_connections_is_forgotten() -> None:
    world = World(replace(CONFIG, limit_addresses=10))
    for _ in range(3):
        world.limits.came(A)
    for number in range(100):
        world.admits(f"198.51.100.{number}")
    assert len(world.limits._known) == 10
    assert world.admits() != ""


def test_a_crowd_counts_who_is_in_it(world: World) -> None:
    crowd: Crowd[str] = Crowd(world.limits)
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


# With other workers


def test_what_an_address_has_on_other_workers_counts(world: World) -> None:
    for _ in range(2):
        world.limits.came(A)
    [told] = world.limits.report()
    assert told == Share(A, 2, 0, 0)
    world.limits.learn([told], [Share(A, 3, 0, 0)])
    assert world.admits() != ""
    world.limits.learn(world.limits.report(), [Share(A, 2, 0, 0)])
    assert world.admits() == ""


def test_what_an_address_had_elsewhere_does_not_count_when_that_is_long_ago(world: World) -> None:
    for _ in range(2):
        world.limits.came(A)
    told = world.limits.report()
    world.limits.learn(told, [Share(A, 40, 0, 0)])
    world.now += 15
    assert world.admits() != ""
    world.now += 1
    assert world.admits() == ""


def test_what_it_begins_on_other_workers_counts_from_when_it_is_known(world: World) -> None:
    for _ in range(2):
        world.admits()
        world.enters("a")
    told = world.limits.report()
    assert told == [Share(A, 0, 2, 1)]
    world.limits.learn(told, [Share(A, 0, 2, 1)])
    world.admits()
    world.admits()
    told = world.limits.report()
    world.limits.learn(told, [Share(A, 0, 6, 2)])  # two here, two elsewhere
    assert world.admits() == "6 new connections a minute from one address at most"
    assert not world.enters("b")


def test_what_others_did_before_is_not_held_against_it(world: World) -> None:
    world.admits()
    world.admits()
    world.limits.learn(world.limits.report(), [Share(A, 0, 5000, 900)])
    assert world.admits() == ""


def test_a_broker_that_lost_what_it_knew_costs_nobody_anything(world: World) -> None:
    world.admits()
    world.admits()
    world.limits.learn(world.limits.report(), [Share(A, 0, 50, 0)])
    world.admits()
    world.admits()
    world.limits.learn(world.limits.report(), [Share(A, 0, 2, 0)])
    assert world.admits() == ""


def test_those_who_do_next_to_nothing_are_not_told_of_and_forgotten(world: World) -> None:
    world.admits()
    world.limits.came(B)
    assert world.limits.report() == []
    world.now += 60
    world.limits.report()
    assert set(world.limits._known) == {B}


def test_that_an_address_has_no_connection_any_more_is_told_once(world: World) -> None:
    for _ in range(2):
        world.limits.came(A)
    world.limits.report()
    for _ in range(2):
        world.limits.left(A)
    assert world.limits.report() == [Share(A, 0, 0, 0)]
    assert world.limits.report() == []


def test_of_who_was_busy_it_is_asked_what_it_does_elsewhere_until_that_does_not_matter(world: World) -> None:
    for _ in range(2):
        world.admits()
    world.limits.learn(world.limits.report(), [Share(A, 0, 2, 0)])
    assert world.limits.report() == [Share(A, 0, 0, 0)]
    world.now += 60
    assert world.limits.report() == []
    assert len(world.limits._known) == 0
