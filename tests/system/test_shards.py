"""Rooms that are spread over two brokers: each shard has its own outage."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from chatd.config.broker_url import broker_address
from chatd.rooms.sharding import score
from tests.broker.server import Server
from tests.system.daemon import Daemon
from tests.system.program import Program, program
from tests.system.test_http import ask
from tests.waiting import until

OPTIONS = ("--tuning", "publish_timeout=1")


class Spread:
    """Two brokers, two daemons on both, and a room on each broker."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.servers = [stack.enter_context(Server()) for _ in range(2)]
        for server in self.servers:
            server.start()
        urls = [server.url for server in self.servers]
        self.identities = [broker_address(url).identity for url in urls]
        self.rooms = [self._room_of(identity) for identity in self.identities]
        self.redis = [word for url in urls for word in ("--redis", url)]
        backwards = [word for url in reversed(urls) for word in ("--redis", url)]
        self.here = stack.enter_context(Daemon(folder / "here", *self.redis, *OPTIONS))
        self.there = stack.enter_context(Daemon(folder / "there", *backwards, *OPTIONS))

    def _room_of(self, identity: str) -> str:
        names = (f"room-{number}" for number in range(1000))
        return next(name for name in names if identity == max(self.identities, key=lambda each: score(each, name)))


@pytest.fixture
def spread(tmp_path: Path) -> Iterator[Spread]:
    with ExitStack() as stack:
        yield Spread(tmp_path, stack)


def test_rooms_of_both_brokers_are_shared_by_hosts_that_name_them_in_another_order(spread: Spread) -> None:
    for room in spread.rooms:
        with spread.here.connect(room) as one, spread.there.connect(room) as other:
            one.send(f"to {room}")
            assert other.recv(20) == f"to {room}"
    listed = {each["room"] for each in ask(spread.here, "GET", "/-/rooms")[1]["rooms"]}
    assert set(spread.rooms) <= listed


def test_a_program_is_in_rooms_of_both_and_no_two_messages_have_one_id(spread: Spread) -> None:
    first, second = spread.rooms
    with program(spread.here, first) as bot:
        assert bot.ask("join", room=second)["type"] == "joined"
        acks = [bot.ask("publish", room=room, text="hello") for room in (first, second) * 3]
        assert [ack["type"] for ack in acks] == ["ack"] * 6
        assert len({ack["id"] for ack in acks}) == 6


def test_one_dead_broker_stops_its_rooms_alone(spread: Spread, tmp_path: Path) -> None:
    dead, alive = spread.rooms
    with (
        spread.here.connect(dead) as stuck,
        spread.here.connect(alive) as one,
        spread.there.connect(alive) as other,
        program(spread.here, alive) as bot,
    ):
        assert bot.ask("join", room=dead)["type"] == "joined"
        spread.servers[0].freeze()
        spread.here.wait_for("broker_unavailable: ")
        one.send("still here")
        assert other.recv(20) == "still here"
        refused = until(lambda: refusal(bot, dead), "what goes to the dead one to be refused")
        assert refused["retry_after"] > 0
        assert bot.ask("publish", room=alive, text="me too")["type"] == "ack"
        assert other.recv(20) == "me too"
        assert until(lambda: close_code(stuck), "a pipe into the dead one to be closed") == 1013
        with urlopen(f"http://127.0.0.1:{spread.here.port}/-/readyz", timeout=20) as answer:
            said = answer.read().decode()
        assert said.startswith("ready, but for message bus: ")
        assert spread.identities[0] in said
        assert spread.identities[1] not in said
        assert ask(spread.here, "POST", f"/{alive}", "by hand", **{"Content-Type": "text/plain"})[0] == 201
        assert spread.here.log().count("broker_unavailable: ") == 1
        spread.servers[0].thaw()
        spread.here.wait_for("broker_available: ")
    for daemon in (spread.here, spread.there):
        for pid in daemon.worker_pids():
            until(lambda pid=pid, daemon=daemon: daemon.ready(pid), "all to be well")  # type: ignore[misc]
    spread.here.say(dead, "back again")
    command = [sys.executable, "-c", "from chatd.cli import main; main()", "verify", *spread.redis]
    logs = [str(tmp_path / name / "logs") for name in ("here", "there")]
    done = subprocess.run([*command, *logs], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def close_code(client: ClientConnection) -> int:
    """Say something; give the code where the client is closed, and what it said not on its way, as above."""
    try:
        client.send("lost?")
        client.recv(0.5)
    except TimeoutError:
        return 0
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else 1006
    return 0


def refusal(bot: Program, room: str) -> dict[str, Any] | None:
    """Say something; give the answer where it is refused for now, and not on its way to a broker that seems well."""
    bot.client.send(json.dumps({"type": "publish", "ref": "dead", "room": room, "text": "not now"}))
    try:
        answer: dict[str, Any] = json.loads(bot.client.recv(0.5))
    except TimeoutError:
        return None
    return answer if answer["type"] == "error" and answer["code"] == "unavailable" else None


def test_who_starts_while_one_is_dead_serves_the_others(spread: Spread, tmp_path: Path) -> None:
    spread.servers[0].kill()
    room = spread.rooms[1]
    with (
        Daemon(tmp_path / "late", *spread.redis, *OPTIONS) as late,
        late.connect(room) as one,
        spread.here.connect(room) as other,
    ):
        one.send("here I am")
        assert other.recv(20) == "here I am"
