"""Three hosts, two shards, three Sentinels, and cables that are pulled: all the others go on, every line is accounted
for (``accounting``)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chatd.config.broker_url import broker_address
from chatd.rooms.sharding import score
from tests.broker.server import Server
from tests.broker.trio import Spot, Trio
from tests.system.crowd import Crowd, Member
from tests.system.daemon import Daemon
from tests.system.network import Lan
from tests.waiting import until

HOSTS = ("one", "two", "three")


class Place:
    """Everything: chatd and a Sentinel on each of three hosts, a broker alone, and another one with a replica."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.lan = stack.enter_context(Lan(*HOSTS, "alone", "first", "second"))
        spots = {name: Spot(self.lan.addresses[name], self.lan.hosts[name]) for name in self.lan.hosts}
        alone = stack.enter_context(Server(spots["alone"].host))
        alone.start("--port", "6379", "--bind", spots["alone"].address, "--protected-mode", "no")
        servers, sentinels = [spots["first"], spots["second"]], [spots[name] for name in HOSTS]
        self.trio = stack.enter_context(Trio(servers, sentinels, down_after=1000))
        self.urls = [f"redis://{spots['alone'].address}", self.trio.url]
        names = [broker_address(url).identity for url in self.urls]
        rooms = [f"room{number}" for number in range(100)]
        home = {room: max(names, key=lambda name: score(name, room)) for room in rooms}
        self.alone, self.doubled = (next(room for room in rooms if home[room] == name) for name in names)
        self.daemons = {
            name: stack.enter_context(
                Daemon(
                    folder / name,
                    *(word for url in self.urls for word in ("--redis", url)),
                    *("--history-size", "100000", "--tuning", "publish_timeout=60"),
                    workers=1,
                    host=self.lan.hosts[name],
                )
            )
            for name in HOSTS
        }
        self.crowd = stack.enter_context(Crowd())
        for name, daemon in self.daemons.items():
            for room in (self.alone, self.doubled):
                self.crowd.member(daemon, f"{name}-{room}-bare", room=room)
                self.crowd.member(daemon, f"{name}-{room}-keyed", room=room, key=f"key-{name}-{room}")
        self.crowd.wait_for_all()
        for name, daemon in self.daemons.items():
            for room in (self.alone, self.doubled):
                self.crowd.sender(daemon, f"{name}-{room}", room=room, pace=0.01)

    def members(self, *, host: str = "", room: str = "") -> list[Member]:
        """Give those who are on a host, in a room."""
        return [
            each for each in self.crowd.members if each.life.name.startswith(host) and each.life.room.startswith(room)
        ]

    def wait_for(self, pattern: str, *hosts: str, after: dict[str, int]) -> None:
        """Wait for a line in the logs of hosts."""
        for name in hosts:
            self.daemons[name].wait_for(pattern, after=after[name])

    def marks(self) -> dict[str, int]:
        """Say how long the logs are now."""
        return {name: len(daemon.log()) for name, daemon in self.daemons.items()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def test_cables_are_pulled_and_every_line_is_accounted_for(place: Place) -> None:
    crowd, lan = place.crowd, place.lan
    crowd.wait_for_more(200)

    lan.cut("three")  # a host: both its shards are away, the other hosts go on
    place.wait_for(
        rf"broker_unavailable: the broker {place.urls[0]}\S* .*: silent", "three", after=(before := place.marks())
    )
    place.wait_for(r"broker_unavailable: the broker redis\+sentinel://\S+ .*: silent", "three", after=before)
    crowd.wait_for_more(200, [*place.members(host="one"), *place.members(host="two")])
    lan.mend("three")
    place.wait_for(rf"broker_available: the broker {place.urls[0]}", "three", after=before)
    place.wait_for(r"broker_available: the broker redis\+sentinel://", "three", after=before)
    crowd.wait_for_more(200)
    assert all("broker_unavailable: " not in place.daemons[name].log() for name in ("one", "two"))

    before = place.marks()
    lan.cut("alone")  # a shard: its rooms wait, the others go on
    place.wait_for(rf"broker_unavailable: the broker {place.urls[0]}\S* .*: silent", *HOSTS, after=before)
    crowd.wait_for_more(200, place.members(room=place.doubled))
    lan.mend("alone")
    place.wait_for(rf"broker_available: the broker {place.urls[0]}", *HOSTS, after=before)
    crowd.wait_for_more(200)
    assert all("sentinel" not in daemon.log()[before[name] :] for name, daemon in place.daemons.items())

    before = place.marks()
    lan.cut("first")  # a master: the Sentinels make another one, the rooms of the other shard go on
    place.wait_for(r"broker_unavailable: the broker redis\+sentinel://", *HOSTS, after=before)
    crowd.wait_for_more(200, place.members(room=place.alone))
    place.wait_for(r"broker_available: the broker redis\+sentinel://", *HOSTS, after=before)
    crowd.wait_for_more(200)
    lan.mend("first")
    until(lambda: place.trio.servers[0].role() == "slave", "the former master to follow the new one")
    crowd.wait_for_more(200)
    assert all(place.urls[0] not in daemon.log()[before[name] :] for name, daemon in place.daemons.items())

    found = crowd.finish(list(place.daemons.values()))
    assert (found.refused, found.again) == (0, 0)
