"""What was said before somebody came: ``last=N`` on a real chatd, from either worker and while others talk."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.server import Client
from tests.system.daemon import Daemon, Websocat, hear
from tests.system.program import program
from tests.waiting import until

OPTIONS = ("--history-size", "20")


def refusal(daemon: Daemon, target: str) -> tuple[int, str]:
    """Give the status and the message with which a handshake is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    message: str = json.loads(answer.read())["message"]
    connection.close()
    return answer.status, message


def test_the_last_lines_come_first_on_each_worker_and_then_what_is_said(daemon: Daemon) -> None:
    daemon.say("a", "one", "two", "three", "four")
    for number, worker in enumerate(daemon.worker_pids()):
        with daemon.connect_to(worker, "a?last=3") as client, daemon.connect("a") as talker:
            talker.send(f"live {number}")
            expected = ["two", "three", "four", "live 0", "live 1"][number : number + 4]
            assert hear(client, f"live {number}") == expected


@pytest.mark.parametrize("query", ["", "?last=0"])
def test_who_does_not_ask_hears_nothing_old(daemon: Daemon, query: str) -> None:
    daemon.say("b", "old")
    with daemon.connect(f"b{query}") as client:
        daemon.say("b", "new")
        assert hear(client, "new") == ["new"]


@pytest.mark.parametrize("asked", ["20", "21", "1000000", "9" * 18])
def test_there_are_no_more_than_history_keeps(daemon: Daemon, asked: str) -> None:
    room = f"c{len(asked)}"
    texts = [str(number) for number in range(45)]
    daemon.say(room, *texts)
    with daemon.connect(f"{room}?last={asked}") as client:
        assert hear(client, "44") == texts[-20:]


def test_of_a_batch_of_many_only_as_many_as_were_asked_for_come(daemon: Daemon) -> None:
    daemon.say("d", *map(str, range(15)))
    for count in range(1, 16):
        with daemon.connect(f"d?last={count}") as client:
            assert hear(client, "14") == [str(number) for number in range(15 - count, 15)]


def test_an_empty_room_has_nothing_to_tell(daemon: Daemon) -> None:
    with daemon.connect("e?last=20") as client:
        daemon.say("e", "first")
        assert hear(client, "first") == ["first"]


def test_with_echo_its_own_lines_follow(daemon: Daemon) -> None:
    daemon.say("f", "one", "two")
    with daemon.connect("f?last=1&echo=1") as client:
        client.send("mine")
        assert hear(client, "mine") == ["two", "mine"]
    with daemon.connect("f?last=2") as client:  # another connection: what the last one said is another's
        assert hear(client, "mine") == ["two", "mine"]


def test_rooms_have_a_history_each(daemon: Daemon) -> None:
    daemon.say("g", "of g")
    daemon.say("g:g", "of g:g")
    with daemon.connect("g?last=5") as one, daemon.connect("g:g?last=5") as other:
        assert (one.recv(20), other.recv(20)) == ("of g", "of g:g")


def test_a_terminal_shows_the_last_lines_and_goes_on(daemon: Daemon) -> None:
    daemon.say("h", "one", "two", "three")
    terminal = Websocat(daemon.url("h?last=2"))
    try:
        assert terminal.wait_for(2) == ["two", "three"]
        daemon.say("h", "four")
        assert terminal.wait_for(3) == ["two", "three", "four"]
    finally:
        terminal.end()


def test_who_comes_while_others_talk_misses_nothing_and_hears_nothing_twice(daemon: Daemon) -> None:
    ended = threading.Event()

    def talk() -> None:
        with daemon.connect("i") as talker:
            number = 0
            while not ended.is_set():
                for _ in range(20):
                    talker.send(f"{number:06d}")
                    number += 1
                ended.wait(0.002)

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        with daemon.connect("i") as hearer:
            hearer.recv(20)
        for worker in daemon.worker_pids() * 10:
            with daemon.connect_to(worker, "i?last=20") as client:
                numbers = [int(client.recv(20)) for _ in range(200)]
                assert numbers == list(range(numbers[0], numbers[0] + 200))
    finally:
        ended.set()
        talking.join()


@pytest.mark.parametrize(
    "parameter", ["last=x", "last=-1", "last=", "resume=short", "resume=a%20b%20c%20d%20e", "echo=2"]
)
def test_a_bad_value_is_refused_with_one_line_that_says_which(daemon: Daemon, parameter: str) -> None:
    status, message = refusal(daemon, f"/ops?{parameter}")
    assert status == 400
    assert message.startswith(parameter.partition("=")[0] + " must be ") and message.isprintable()


@pytest.mark.parametrize("options", [("--history-size", "0"), ("--history-ttl", "0")])
def test_without_history_nobody_hears_anything_old(tmp_path: Path, options: tuple[str, str]) -> None:
    with Daemon(tmp_path, *options) as daemon:
        daemon.say("ops", "old")
        with daemon.connect("ops?last=5") as client:
            daemon.say("ops", "new")
            assert hear(client, "new") == ["new"]


def test_what_is_older_than_it_is_kept_is_not_heard(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--history-ttl", "1.5") as daemon:
        daemon.say("ops", "old")

        def comes() -> list[str]:
            with daemon.connect("ops?last=5") as client, daemon.connect("ops") as talker:
                talker.send("new")
                return hear(client, "new")

        assert comes() == ["old", "new"]
        until(lambda: "old" not in comes(), "the line to be too old")
        assert comes()[-1] == "new"


# An entry that can't be read


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run a chatd whose room ops has a third line that can't be read in its history."""
    with Daemon(tmp_path_factory.mktemp("chatd"), "--data-dir", "state") as daemon:
        for text in ("one", "two", "three", "four", "five"):
            daemon.say("ops", text)
        with Client(str(daemon.folder / "state" / "broker" / "broker.sock")) as broker:
            [key] = broker.ask("KEYS", "chatd:history:*:ops")
            entries = broker.ask("XRANGE", key, "-", "+")
            broker.ask("DEL", key)
            for id, (name, value) in entries:
                broker.ask("XADD", key, id, name, b"garbage" if id == b"3-0" else value)
        yield daemon


def get(daemon: Daemon, target: str) -> tuple[int, str]:
    """Give the status and the body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    connection.request("GET", target)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_over_http_an_entry_that_cannot_be_read_costs_only_itself(spoiled: Daemon) -> None:
    assert get(spoiled, "/ops?last=20") == (200, "one\ntwo\nfour\nfive\n")


def test_who_comes_back_is_told_of_an_entry_that_cannot_be_read_and_gets_all_else(spoiled: Daemon) -> None:
    with program(spoiled, "ops") as other:
        epoch = other.joined["epoch"]
        other.ask("leave", room="ops")
        joined = other.ask("join", room="ops", since={"epoch": epoch, "offset": 1})
    assert [event["text"] for event in joined["messages"]] == ["two", "four", "five"]
    assert (joined["recovered"], joined["lost"]) == (False, 1)
    spoiled.wait_for("history_entry_unreadable: ")


def test_a_stream_tells_the_gap_where_an_entry_cannot_be_read(spoiled: Daemon) -> None:
    with program(spoiled, "ops") as other:
        epoch = other.joined["epoch"]
    connection = http.client.HTTPConnection("127.0.0.1", spoiled.port, timeout=20)
    connection.request("GET", "/ops", headers={"Accept": "text/event-stream", "Last-Event-ID": f"{epoch}-1"})
    answer = connection.getresponse()
    kinds: list[str] = []
    while len(kinds) < 4:
        line = answer.readline().decode()
        kinds += [line.split()[1]] if line.startswith("event: ") else []
    connection.close()
    assert kinds == ["message", "gap", "message", "message"]
