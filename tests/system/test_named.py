"""People at terminals: nicks, lines of the server, commands, beside bare clients in one room."""

import re
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.broker.server import Server
from tests.system.daemon import Daemon, Websocat, hear
from tests.system.test_http import count
from tests.waiting import until


def ask(client: ClientConnection, command: str) -> str:
    """Give the first line that is answered to a command."""
    client.send(command)
    return str(client.recv(20))


def who(client: ClientConnection) -> str:
    """Give who is there; what others do meanwhile is passed over."""
    answer = ask(client, "/who")
    while not answer.startswith("* here:"):
        answer = str(client.recv(20))
    return answer


# What each of them sees


def test_two_terminals_with_nicks_and_a_bare_one_see_each_other(daemon: Daemon) -> None:
    ann, bob, bare = Websocat(daemon.url("a?nick=ann")), Websocat(daemon.url("a?nick=bob")), Websocat(daemon.url("a"))
    try:
        with daemon.connect("a?nick=watcher") as watcher:
            until(lambda: who(watcher) == "* here: ann, bob, watcher and 1 without a nick", "all to be there")
            ann.type("hello")
            assert hear(watcher, "ann: hello")[-1] == "ann: hello"
            bare.type("who is there?")
            assert watcher.recv(20) == "who is there?"
            bob.type("/me waves")
            assert watcher.recv(20) == "* bob waves"
            bob.type("/quit")
            assert watcher.recv(20) == "* bob left"
        said = {"ann: hello", "who is there?", "* bob waves", "* bob left", "* watcher left"}
        until(lambda: "* watcher left" in ann.lines(), "the last line")
        assert [line for line in ann.lines() if line in said] == [
            "who is there?",
            "* bob waves",
            "* bob left",
            "* watcher left",
        ]
        until(lambda: "* closing: you left" in bob.lines(), "the last line")
        assert bob.lines()[-3:] == ["ann: hello", "who is there?", "* closing: you left"]
        assert bare.wait_for(2) == ["ann: hello", "* bob waves"]  # nothing of who came and went
    finally:
        for terminal in (ann, bob, bare):
            terminal.end()


def test_everybody_on_any_worker_is_told_who_comes_goes_and_is_called_anew(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with daemon.connect_to(first, "b?nick=near") as near, daemon.connect_to(second, "b?nick=far") as far:
        assert near.recv(20) == "* far joined"
        with daemon.connect_to(first, "b?nick=ann") as ann:
            assert ask(ann, "/nick anna") == "* you are anna"
        told = ["* ann joined", "* ann is now anna", "* anna left"]
        assert [[str(client.recv(20)) for _ in told] for client in (near, far)] == [told, told]


def test_nobody_is_told_of_its_own_coming_and_of_a_bare_client_nobody_is(daemon: Daemon) -> None:
    with daemon.connect("c?nick=ann") as ann, daemon.connect("c") as bare:
        bare.send("hello")
        assert ann.recv(20) == "hello"


def test_what_comes_is_safe_for_a_terminal_and_unchanged_for_a_pipe(daemon: Daemon) -> None:
    text = "a\x1b[2Jb\u202ec\td"
    with daemon.connect("d?nick=ann") as ann, daemon.connect("d") as pipe, daemon.connect("d") as talker:
        talker.send(text)
        assert (ann.recv(20), pipe.recv(20)) == ("a\\x1b[2Jb\\u202ec\td", text)


def test_what_was_said_before_comes_with_its_names(daemon: Daemon) -> None:
    with daemon.connect("e?nick=ann") as ann, daemon.connect("e") as bare:
        ann.send("hello")
        ann.send("/me waves")
        assert [bare.recv(20), bare.recv(20)] == ["ann: hello", "* ann waves"]
    with daemon.connect("e?nick=bob&last=2") as bob, daemon.connect("e?last=2") as bare:
        for client in (bob, bare):
            assert [client.recv(20), client.recv(20)] == ["ann: hello", "* ann waves"]


def test_the_log_says_who_it_was(daemon: Daemon) -> None:
    with daemon.connect("f?nick=ann") as ann, daemon.connect("f") as bare:
        ann.send("hello")
        ann.send("/me waves")
        assert [bare.recv(20), bare.recv(20)] == ["ann: hello", "* ann waves"]
    rows = [line.split(" ", 4) for line in daemon.chat_lines()]
    assert [(row[2], row[4]) for row in rows if row[1] == "f"] == [
        ("ann@127.0.0.1", "hello"),
        ("*ann@127.0.0.1", "waves"),
    ]


# Nicks


@pytest.mark.parametrize("worker", [0, 1], ids=["the same worker", "another worker"])
def test_a_nick_that_another_has_gets_a_number(daemon: Daemon, worker: int) -> None:
    workers, room = daemon.worker_pids(), f"g{worker}"
    with daemon.connect_to(workers[0], f"{room}?nick=ann") as ann:
        with daemon.connect_to(workers[worker], f"{room}?nick=ANN") as other:
            assert other.recv(20) == "* ANN is taken, you are ANN*2"
            assert ann.recv(20) == "* ANN*2 joined"
            other.send("hello")
            assert ann.recv(20) == "ANN*2: hello"
            assert ask(other, "/nick ann") == "* ann is taken, you are ann*2"
            assert ann.recv(20) == "* ANN*2 is now ann*2"
        assert ann.recv(20) == "* ann*2 left"
    until(lambda: count(daemon, room) == 0, "ann to be gone, for the other worker too")
    with daemon.connect_to(workers[worker], f"{room}?nick=ann") as again:
        assert ask(again, "/who") == "* here: ann"  # it is free


def test_a_nick_is_one_in_each_room(daemon: Daemon) -> None:
    with daemon.connect("h?nick=ann"), daemon.connect("i?nick=ann") as ann:
        assert ask(ann, "/who") == "* here: ann"


# Commands


def test_each_command_is_answered_to_the_asker_alone(daemon: Daemon) -> None:
    with daemon.connect("j?nick=ann") as ann, daemon.connect("j?nick=bob") as bob:
        assert ann.recv(20) == "* bob joined"
        ann.send("/help")
        shown = hear(ann, "* //TEXT: say /TEXT")
        assert [line.split(":")[0] for line in shown] == [
            "* /help",
            "* /who",
            "* /nick NAME",
            "* /last [N]",
            "* /me TEXT",
            "* /ping",
            "* /quit",
            "* //TEXT",
        ]
        assert ask(ann, "/who") == "* here: ann, bob"
        assert ask(ann, "/foo") == "* no such command: /foo (try /help)"
        assert ask(ann, "/last x") == "* usage: /last [N]"
        assert ask(ann, "/nick a:b") == '* a nick must not hold ":"'
        assert re.fullmatch(r"\* pong after \d+\.\d ms", ask(ann, "/ping"))
        ann.send("//who")
        assert bob.recv(20) == "ann: /who"


def test_the_last_lines_can_be_asked_for(daemon: Daemon) -> None:
    with daemon.connect("k?nick=ann") as ann, daemon.connect("k") as bare:
        for number in range(30):
            bare.send(f"line {number}")
            assert ann.recv(20) == f"line {number}"
        assert [ask(ann, "/last 2"), ann.recv(20)] == ["line 28", "line 29"]
        assert [ask(ann, "/last"), *(ann.recv(20) for _ in range(19))] == [f"line {number}" for number in range(10, 30)]


# What goes wrong


def test_before_the_server_closes_it_says_why(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, daemon.connect("?nick=ann") as ann, daemon.connect() as bare:
        daemon.process.terminate()
        assert ann.recv(20) == "* closing: the server stops"
        for client in (ann, bare):
            with pytest.raises(ConnectionClosed):
                client.recv(20)
            assert client.close_code == 1001


def test_a_line_that_cannot_be_sent_now_is_given_back(tmp_path: Path) -> None:
    with Server() as server:
        server.start()
        with (
            Daemon(tmp_path, "--redis", server.url) as daemon,
            daemon.connect("?nick=ann") as ann,
            daemon.connect() as bare,
        ):
            server.kill()
            daemon.wait_for("broker_unavailable: ")
            assert ask(ann, "hello") == "* not sent: the message bus is away, try again in 5 s"
            server.start()
            daemon.wait_for("broker_available: ")
            ann.send("hello again")
            assert bare.recv(20) == "ann: hello again"


def test_who_comes_back_is_told_how_many_lines_are_lost(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--history-size", "10") as daemon:
        with daemon.connect("?nick=ann&resume=a-key-of-mine"):
            pass
        texts = [str(number) for number in range(50)]
        daemon.say("", *texts)
        with daemon.connect("?nick=ann&resume=a-key-of-mine") as ann:
            assert hear(ann, "49") == ["* 40 lines lost", *texts[-10:]]
