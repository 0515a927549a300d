"""Programs that speak ``chatd.v1``, beside people and pipes in one room."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.broker.server import Server
from tests.system.daemon import Daemon
from tests.system.program import PROTOCOL, Event, Program, program

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


OPTIONS = ("--tuning", "rooms_per_client=3", "--max-send-buffer", "65536")


def publish(one: Program, room: str, *texts: str) -> list[int]:
    """Publish one after the other; give their offsets."""
    return [one.ask("publish", room=room, text=text)["offset"] for text in texts]


def texts(messages: list[Event]) -> list[str]:
    """Give the texts of messages."""
    return [each["text"] for each in messages]


# One room


def test_it_is_told_who_it_is_then_where_the_room_stands(daemon: Daemon) -> None:
    with daemon.connect("a") as bare, program(daemon, "a?nick=bot") as bot:
        assert bot.client.subprotocol == PROTOCOL
        assert bot.welcome["nick"] == "bot"
        assert bot.welcome["limits"] == {"message_bytes": 16384, "messages_per_s": None, "rooms": 3}
        assert (bot.joined["room"], bot.joined["offset"], bot.joined["messages"]) == ("a", 0, [])
        assert (bot.joined["recovered"], bot.joined["lost"]) == (True, 0)
        bare.send("hello")
        assert bot.hear("message")["offset"] == 1


def test_a_message_is_one_to_people_pipes_and_programs(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with (
        daemon.connect_to(first, "b") as bare,
        daemon.connect_to(second, "b?nick=ann") as ann,
        program(daemon, "b", first) as other,
        program(daemon, "b?nick=bot", second) as bot,
    ):
        assert ann.recv(20) == "* bot joined"
        ack = bot.ask("publish", room="b", text="built", id="c-81")
        assert (ann.recv(20), bare.recv(20)) == ("bot: built", "bot: built")
        heard = other.hear("message")
        assert re.fullmatch(TIME, heard["time"])
        assert heard == {
            **{name: ack[name] for name in ("room", "epoch", "offset", "id", "time")},
            "type": "message",
            "session": bot.welcome["session"],
            "nick": "bot",
            "text": "built",
        }
        ann.send("/me nods")
        heard = other.hear("message")
        assert (heard["nick"], heard["text"], heard["action"]) == ("ann", "nods", True)
        bare.send("fine")
        heard = other.hear("message")
        assert (heard["nick"], heard["text"]) == (None, "fine")


def test_it_is_told_who_comes_goes_and_is_called_anew(daemon: Daemon) -> None:
    with program(daemon, "c") as bot:
        with daemon.connect("c?nick=ann") as ann, daemon.connect("c"):
            ann.send("/nick anna")
            assert ann.recv(20) == "* you are anna"
        events = [bot.hear("presence") for _ in range(5)]
    seen = [(each["event"], each["nick"], each.get("was")) for each in events]
    assert [each for each in seen if each[1]] == [
        ("join", "ann", None),
        ("nick", "anna", "ann"),
        ("leave", "anna", None),
    ]
    assert sorted(event for event, nick, _ in seen if nick is None) == ["join", "leave"]
    assert len({each["session"] for each in events}) == 2


def test_an_ack_says_that_the_message_is_in_the_chat_log(daemon: Daemon) -> None:
    with program(daemon, "d") as bot:
        for number in range(100):
            ack = bot.ask("publish", room="d", text=f"line {number}")
            assert (ack["type"], ack["offset"]) == ("ack", number + 1)
            [line] = [line for line in daemon.chat_lines() if line.endswith(f" line {number}")]
            assert line.split(" ")[:2] == [ack["time"], "d"] and line.split(" ")[3] == ack["id"]


def test_the_same_id_twice_is_one_message(daemon: Daemon) -> None:
    with program(daemon, "e") as bot, daemon.connect("e") as bare, program(daemon, "e") as other:
        first = bot.ask("publish", room="e", text="once", id="c-1")
        again = bot.ask("publish", room="e", text="once", id="c-1")
        assert (again["offset"], again["id"], again["duplicate"]) == (first["offset"], "c-1", True)
        assert other.ask("publish", room="e", text="mine", id="c-1")["offset"] == 2  # an author's ids are its own
        assert [bare.recv(20), bare.recv(20)] == ["once", "mine"]
    rows = [line.split(" ", 4) for line in daemon.chat_lines()]
    logged = [(row[2], row[4]) for row in rows if row[1] == "e"]
    assert logged == [("-@127.0.0.1", "once"), ("-@127.0.0.1", "once"), ("!", "duplicate"), ("-@127.0.0.1", "mine")]
    ids = [row[3] for row in rows if row[1] == "e"]
    assert ids[1] == ids[2] != ids[0]


def test_with_a_resume_key_an_id_holds_over_connections(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with program(daemon, "f?resume=a-key-of-mine", first) as bot:
        ack = bot.ask("publish", room="f", text="once", id="c-1")
    with program(daemon, "f?resume=a-key-of-mine", second) as bot:
        again = bot.ask("publish", room="f", text="once", id="c-1")
        assert (again["offset"], again.get("duplicate")) == (ack["offset"], True)


# Coming back


@pytest.mark.parametrize("worker", [0, 1], ids=["the same worker", "another worker"])
def test_since_gives_exactly_what_was_missed(daemon: Daemon, worker: int) -> None:
    room, workers = f"g{worker}", daemon.worker_pids()
    with program(daemon, room, workers[0]) as bot:
        daemon.say(room, "heard")
        last = bot.hear("message")
    daemon.say(room, "one", "two", "three")
    with program(daemon, f"other-{room}", workers[worker]) as bot:
        joined = bot.ask("join", room=room, since={"epoch": last["epoch"], "offset": last["offset"]})
        assert texts(joined["messages"]) == ["one", "two", "three"]
        assert (joined["recovered"], joined["lost"], joined["offset"]) == (True, 0, 4)
        daemon.say(room, "four")
        assert [each["text"] for each in bot.hear_up_to("four") if each["type"] == "message"] == ["four"]
        joined = bot.ask("join", room=room, since={"epoch": last["epoch"], "offset": 3})  # again, in the room
        assert texts(joined["messages"]) == ["three", "four"]


def test_the_last_few_can_be_asked_for_in_the_url_and_in_a_join(daemon: Daemon) -> None:
    daemon.say("h", *map(str, range(10)))
    with program(daemon, "h?last=3") as bot:
        assert texts(bot.joined["messages"]) == ["7", "8", "9"]
        assert texts(bot.ask("join", room="h", since={"last": 2})["messages"]) == ["8", "9"]
        assert texts(bot.ask("history", room="h", limit=2)["messages"]) == ["8", "9"]
        assert texts(bot.ask("history", room="h", limit=2, before=9)["messages"]) == ["6", "7"]


def test_who_comes_from_another_epoch_is_told_that_nobody_knows_what_it_lost(daemon: Daemon) -> None:
    daemon.say("i", "said")
    with program(daemon, "other-i") as bot:
        joined = bot.ask("join", room="i", since={"epoch": "gone", "offset": 7})
        assert (joined["recovered"], joined["lost"], joined["offset"]) == (False, None, 1)


def test_what_history_has_no_more_is_counted(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--history-size", "10") as daemon, program(daemon, "ops") as bot:
        daemon.say("ops", *map(str, range(50)))
        bot.hear_up_to("49")
        joined = bot.ask("join", room="ops", since={"epoch": bot.joined["epoch"], "offset": 5})
        assert (joined["recovered"], joined["lost"]) == (False, 35)
        assert texts(joined["messages"]) == [str(number) for number in range(40, 50)]


# Requests


def test_each_request_is_answered_and_a_wrong_one_harms_nobody(daemon: Daemon) -> None:
    with program(daemon, "j?nick=bot") as bot:
        assert bot.ask("ping") == {"type": "pong", "ref": 1}
        answer = bot.ask("members", room="j")
        assert answer["count"] == 1
        [member] = answer["members"]
        assert (member["session"], member["nick"]) == (bot.welcome["session"], "bot")
        assert re.fullmatch(TIME, member["since"])
        assert bot.ask("nick", nick="botty") == {"type": "nick", "nick": "botty", "was": "bot", "ref": 3}
        for code, request in (
            ("bad_request", {"type": "dance"}),
            ("bad_request", {"type": "publish", "room": "j"}),
            ("bad_request", {"type": "nick", "nick": "a b"}),
            ("bad_request", {"type": "auth", "token": "x"}),
            ("bad_room", {"type": "join", "room": "-"}),
            ("not_joined", {"type": "publish", "room": "elsewhere", "text": "hi"}),
            ("too_large", {"type": "publish", "room": "j", "text": "x" * 16385}),
        ):
            answer = bot.ask(**request)
            assert (answer["type"], answer["code"]) == ("error", code)
        bot.client.send("not JSON")
        assert bot.hear("error")["code"] == "bad_request"
        assert publish(bot, "j", "x" * 16384) == [1]


def test_one_connection_may_be_in_several_rooms(daemon: Daemon) -> None:
    with program(daemon, "k1") as bot:
        assert [bot.ask("join", room=room)["type"] for room in ("k2", "k3")] == ["joined", "joined"]
        assert bot.ask("join", room="k4")["code"] == "forbidden"
        assert publish(bot, "k1", "a", "b") + publish(bot, "k2", "a") == [1, 2, 1]
        daemon.say("k3", "of k3")
        daemon.say("k2", "of k2")
        assert [(each["room"], each["text"]) for each in (bot.hear("message"), bot.hear("message"))] == [
            ("k3", "of k3"),
            ("k2", "of k2"),
        ]
        assert bot.ask("leave", room="k3")["type"] == "left"
        assert bot.ask("publish", room="k3", text="x")["code"] == "not_joined"
        assert bot.ask("join", room="k4")["type"] == "joined"


# What goes wrong


def test_one_that_reads_slowly_gets_everything_once_and_in_order(daemon: Daemon) -> None:
    slow = connect(
        daemon.url("l"),
        sock=daemon.socket_to(daemon.worker_pids()[0], buffer=65_536),
        subprotocols=[Subprotocol(PROTOCOL)],
        compression=None,
        ping_interval=None,
        max_size=None,
        max_queue=1,  # it reads no more than it is asked to,
        close_timeout=0.1,  # not even the answer to its Close
    )
    with slow:
        late = Program(slow)
        daemon.say("l", *[f"{number:04d}".ljust(16_000, "x") for number in range(700)])
        daemon.wait_for("slow_consumers_detected: .*: 1")
        messages = [late.hear("message") for _ in range(700)]
        assert [each["offset"] for each in messages] == list(range(1, 701))
        assert [each["text"][:4] for each in messages] == [f"{number:04d}" for number in range(700)]
        daemon.say("l", "on")
        assert late.hear("message")["text"] == "on"
        assert late.events == []


def test_what_cannot_be_published_now_is_said_with_when_it_may_be(tmp_path: Path) -> None:
    with Server() as server:
        server.start()
        with Daemon(tmp_path, "--redis", server.url) as daemon, program(daemon, "ops") as bot:
            server.kill()
            daemon.wait_for("broker_unavailable: ")
            answer = bot.ask("publish", room="ops", text="hello", id="c-1")
            assert (answer["code"], answer["retry_after"]) == ("unavailable", 5)
            assert daemon.texts() == []
            server.start()
            daemon.wait_for("broker_available: ")
            assert bot.ask("publish", room="ops", text="hello", id="c-1")["type"] == "ack"


def test_the_last_thing_it_hears_is_why_and_when_to_come_back(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, program(daemon) as one, program(daemon) as other:
        daemon.process.terminate()
        byes = []
        for bot in (one, other):
            *_, bye = rest(bot)
            assert (bye["type"], bye["code"], bye["reason"]) == ("bye", 1001, "the server stops")
            assert bot.client.close_code == 1001
            byes.append(bye)
        assert all(0.1 <= bye["reconnect_after"] <= 5 for bye in byes)


def rest(bot: Program) -> Iterator[Event]:
    """Give all that it hears until the connection ends."""
    yield from bot.events
    try:
        while True:
            yield json.loads(bot.client.recv(20))
    except ConnectionClosed:
        return
