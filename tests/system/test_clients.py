"""The programs of docs/clients: what they say stands in the room once, what they hear is everything, once, in order."""

import json
import re
import secrets
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from websockets import Subprotocol
from websockets.sync.client import ClientConnection, connect

from tests.depth import DEEP
from tests.system.daemon import Daemon, Terminal
from tests.system.scissors import Scissors
from tests.waiting import until

CLIENTS = Path(__file__).parents[2] / "docs" / "clients"
PROGRAMS = {
    "python": (sys.executable, str(CLIENTS / "chat.py")),
    "javascript": ("node", str(Path(__file__).with_name("terminal.js"))),
}
CUTS = 20 if DEEP else 8
AHEAD = 100
"""Lines of others that may be said before the program has heard the first of them: all must fit between two cuts."""
UNHEARD = 5
"""Lines of its own that may be typed before it has heard the first of them."""


class Room:
    """A room as somebody is in it whose connection nobody cuts."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self._connection: ClientConnection = connect(
            daemon.url(f"{name}?echo=1"), subprotocols=[Subprotocol("chatd.v1")], compression=None, max_queue=None
        )
        self._heard: list[str] = []
        self.name = name
        self.said = 0

    def __enter__(self) -> Self:
        self._connection.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def say(self) -> None:
        """Say another line."""
        request = {"type": "publish", "room": self.name, "text": f"theirs {self.said}"}
        self._connection.send(json.dumps(request))
        self.said += 1

    def heard(self, last: str) -> list[str]:
        """Give the lines of the room, as the programs print them, up to a line."""
        while f"{self.name} {last}" not in self._heard:
            event = json.loads(self._connection.recv(20))
            if event["type"] == "message":
                self._heard.append(f"{self.name} {event['nick'] or '-'}: {event['text']}")
        return self._heard


@pytest.fixture
def rooms(daemon: Daemon) -> Iterator[list[Room]]:
    """Give two rooms that no other test has."""
    with Room(daemon, secrets.token_hex(4)) as first, Room(daemon, secrets.token_hex(4)) as second:
        yield [first, second]


def come(terminals: list[Terminal], program: str, scissors: Scissors, rooms: list[Room]) -> Terminal:
    """Start a program; give it once it is in both rooms."""
    first, *others = [room.name for room in rooms]
    terminal = Terminal(*PROGRAMS[program], scissors.url(f"{first}?nick=ann"), *others)
    terminals.append(terminal)

    def is_in(room: Room) -> bool:
        room.say()
        return any(line.startswith(room.name) for line in terminal.lines())

    for room in rooms:
        until(partial(is_in, room), f"the program to hear {room.name}")
    return terminal


def leave(terminal: Terminal) -> None:
    """Let it go, once all that was typed is in the room."""
    assert terminal.process.stdin is not None
    terminal.process.stdin.close()
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_it_says_stands_there_once_and_it_hears_everything_once_in_order_however_often_it_is_cut(
    daemon: Daemon, terminals: list[Terminal], rooms: list[Room], program: str
) -> None:
    with Scissors(daemon.port) as scissors:
        terminal = come(terminals, program, scissors, rooms)
        heard = {room.name: room.said - 1 for room in rooms}
        scissors.cut_at_random()
        mine = 0

        def talk() -> bool:
            nonlocal mine
            if mine < UNHEARD or f"{rooms[0].name} ann: mine {mine - UNHEARD}" in terminal.lines():
                terminal.type(f"mine {mine}")
                mine += 1
            for room in rooms:
                if f"{room.name} -: theirs {max(heard[room.name], room.said - AHEAD)}" in terminal.lines():
                    for _ in range(3):
                        room.say()
            return scissors.cut >= CUTS

        until(talk, f"{CUTS} cuts", 60)
        scissors.open()
        leave(terminal)
        lines = terminal.lines()
    [first, _] = rooms
    said = first.heard(f"ann: mine {mine - 1}")
    assert [line for line in said if "mine" in line] == [f"{first.name} ann: mine {number}" for number in range(mine)]
    assert not [line for line in lines if line.startswith("*")]
    for room in rooms:
        its = [line for line in lines if line.startswith(room.name)]
        everything = room.heard(f"-: theirs {room.said - 1}")
        start = everything.index(its[0])
        assert its == everything[start : start + len(its)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_tells_how_many_messages_are_lost(tmp_path: Path, terminals: list[Terminal], program: str) -> None:
    with (
        Daemon(tmp_path, "--history-size", "10") as daemon,
        Scissors(daemon.port) as scissors,
        Room(daemon, "ops") as room,
    ):
        terminal = come(terminals, program, scissors, [room])
        room.heard(f"-: theirs {room.said - 1}")
        until(lambda: f"ops -: theirs {room.said - 1}" in terminal.lines(), "it to hear all")
        before = room.said
        scissors.close()
        for _ in range(15):
            room.say()
        room.heard(f"-: theirs {room.said - 1}")
        scissors.open()
        until(lambda: f"ops -: theirs {room.said - 1}" in terminal.lines(), "it to be back")
        told = terminal.lines()
    there = told.index(f"ops -: theirs {before - 1}")
    assert told[there + 1 :] == [
        "* ops: 5 lost",
        *[f"ops -: theirs {number}" for number in range(before + 5, before + 15)],
    ]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_percent_sign_that_encodes_nothing_stands_for_itself(
    daemon: Daemon, terminals: list[Terminal], program: str
) -> None:
    terminal = Terminal(*PROGRAMS[program], daemon.url("100%zz%C3%A9"))
    terminals.append(terminal)
    terminal.type("hello")
    until(lambda: "100%zzé -: hello" in terminal.lines(), "it to hear itself")


@pytest.mark.parametrize("page", sorted(CLIENTS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_shows_the_programs_as_they_are(page: Path) -> None:
    shown = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", page.read_text(), re.DOTALL)
    for name, text in shown:
        assert text == (CLIENTS / name).read_text(), name
    assert len(shown) == len(re.findall("<!-- file", page.read_text()))
