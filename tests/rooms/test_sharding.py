from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from chatd.broker.presence_list import OccupiedRoom
from chatd.broker.publish_queue import NotPublished
from chatd.config.broker_url import broker_address
from chatd.protocol.message import StreamPosition
from chatd.rooms.sharding import Shard, Shards
from tests.rows import rows

ROOMS = [f"room-{number}" for number in range(2000)]
NAMES = ["a:6379", "b:6379", "c:6379", "d:6379"]


class Part:
    """A bus, a hub and an intake at once, as far as they are asked here."""

    def __init__(self, away: str = "") -> None:
        self.away = self.unreachable = away
        self.publisher = self.presence = self.resume_positions = self
        self.accepted = 3
        self.rooms = {"ops"}
        self.did: list[str] = []
        self.listed: Any = ([], False)

    def probe(self) -> "Deferred[None]":
        return fail(NotPublished(self.away)) if self.away else succeed(None)

    def list_rooms(self) -> "Deferred[Any]":
        return succeed(self.listed)

    def __getattr__(self, name: str) -> Any:
        def do() -> "Deferred[None]":
            self.did.append(name)
            return succeed(None)

        return do


def shards(*parts: Any) -> Shards:
    return Shards([Shard(name, part, part) for name, part in zip(NAMES, parts, strict=False)])


def homes(names: list[str], rooms: list[str]) -> list[str]:
    """Return the broker of each room."""
    parts: dict[str, Any] = {name: Part() for name in names}
    made = Shards([Shard(name, part, part) for name, part in parts.items()])
    names_of = {id(part): name for name, part in parts.items()}
    return [names_of[id(made.hub(room))] for room in rooms]


# Where rooms are


@given(st.permutations(NAMES), st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=20))
def test_the_order_of_the_options_does_not_matter(names: list[str], rooms: list[str]) -> None:
    assert homes(names, rooms) == homes(NAMES, rooms)


def test_rooms_are_spread_about_evenly() -> None:
    counts = Counter(homes(NAMES, ROOMS))
    assert set(counts) == set(NAMES)
    assert all(400 < count < 600 for count in counts.values())


def test_where_a_broker_is_added_only_the_rooms_that_it_wins_move() -> None:
    before, after = homes(NAMES[:3], ROOMS), homes(NAMES, ROOMS)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {NAMES[3]}
    assert 400 < len(moved) < 600


def test_a_room_is_where_it_always_was() -> None:
    """What has been decided stays so: hosts of different versions must find the same broker."""
    assert homes(NAMES[:3], ["lobby", "ops", "dev", "räksmörgås"]) == ["a:6379", "c:6379", "a:6379", "c:6379"]


@rows(
    ("one", "other"),
    [
        ("redis://broker", "rediss://ann:secret@broker:6379/0"),
        ("redis://broker", "redis://broker/1"),
        ("redis+sentinel://a,b/chat", "rediss+sentinel://:secret@b:26379,c/chat"),
    ],
)
def test_a_broker_has_one_identity_however_it_is_reached(one: str, other: str) -> None:
    assert broker_address(one).identity == broker_address(other).identity


@rows(
    ("one", "other"),
    [
        ("redis://broker", "redis://broker:6380"),
        ("redis://broker", "redis+sentinel://broker/broker"),
        ("redis+sentinel://a/chat", "redis+sentinel://a/other"),
        ("unix:///a", "unix:///b"),
    ],
)
def test_different_brokers_have_different_identities(one: str, other: str) -> None:
    assert broker_address(one).identity != broker_address(other).identity


# How they are


def test_one_that_is_away_is_named_among_several_and_alone_it_needs_no_name() -> None:
    assert shards(Part(), Part("refused"), Part("silent")).away == "b:6379: refused; c:6379: silent"
    assert shards(Part("refused")).away == "refused"
    assert shards(Part(), Part()).away == ""


def test_a_probe_says_what_is_wrong_with_each() -> None:
    told: list[list[str]] = []
    for made in (shards(Part(), Part("refused")), shards(Part("refused")), shards(Part(), Part())):
        made.probe().addCallback(told.append)
    assert told == [["b:6379: refused"], ["refused"], []]


def test_what_is_about_all_is_done_with_each() -> None:
    parts = [Part(), Part()]
    made = shards(*parts)
    made.start()
    made.hold()
    made.broadcast()
    made.saved()
    made.stop()
    for part in parts:
        # each part is bus, hub and intake in one
        assert part.did == ["start", "start", "hold", "flushed", "broadcast", "saved", "flushed", "stop", "stop"]


def test_messages_and_rooms_are_counted_over_all() -> None:
    made = shards(Part(), Part())
    assert (made.accepted, made.room_count) == (6, 2)
    assert shards(Part()).room_count == 1


class Unlisted(dict[str, None]):
    """Rooms that may be counted, not looked at."""

    def __iter__(self) -> Any:
        raise AssertionError("a room was looked at")


@rows("brokers", [1, 2])
def test_counting_rooms_looks_at_none_of_them(brokers: int) -> None:
    parts: list[Any] = [Part() for _ in range(brokers)]
    for part in parts:
        part.rooms = Unlisted.fromkeys(map(str, range(1000)))
    assert shards(*parts).room_count == 1000 * brokers


def test_rooms_are_listed_by_name_and_there_may_be_more_where_one_has_more() -> None:
    def room(name: str) -> OccupiedRoom:
        return OccupiedRoom(name, 1, StreamPosition("e", 1))

    one, other = Part(), Part()
    one.listed, other.listed = ([room("b"), room("d")], False), ([room("a"), room("c")], True)
    told: list[Any] = []
    shards(one, other).list_rooms().addCallback(told.append)
    [(listed, more)] = told
    assert [each.room for each in listed] == ["a", "b", "c", "d"]
    assert more


def test_rooms_of_a_broker_that_is_away_are_not_listed_and_there_may_be_more() -> None:
    one, other = Part(), Part("refused")
    one.listed = ([OccupiedRoom("a", 1, StreamPosition("e", 1))], False)
    told: list[Any] = []
    made = shards(one, other)
    made.list_rooms().addCallback(told.append)
    assert [each.room for each in told[0][0]] == ["a"]
    assert told[0][1]
    assert not made.unreachable
    assert shards(Part("refused"), Part("silent")).unreachable == "refused"


def test_a_list_that_one_broker_refuses_fails_as_that_one_does() -> None:
    refuses, answers = Part(), Part()
    refuses.list_rooms = lambda: fail(NotPublished("no"))  # type: ignore[method-assign]
    failed: list[Any] = []
    shards(refuses, answers).list_rooms().addErrback(lambda failure: failed.append(failure.value))
    assert [str(error) for error in failed] == ["no"]


def test_a_list_that_nobody_waits_for_any_more_is_cancelled() -> None:
    part = Part()
    part.list_rooms = Deferred  # type: ignore[method-assign]
    failed: list[Any] = []
    listing = shards(part).list_rooms().addErrback(lambda failure: failed.append(failure.type))
    listing.cancel()
    assert failed == [CancelledError]
