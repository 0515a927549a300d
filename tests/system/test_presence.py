"""Who is in a room: the same on all workers and hosts, in the order of the messages, whatever dies."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection

from tests.broker.server import Server
from tests.system.daemon import Daemon, hear
from tests.system.program import Event, program
from tests.system.test_http import count
from tests.system.test_named import ask
from tests.waiting import until

OPTIONS = ("--tuning", "presence_limit=6")


def nicks(members: Event) -> list[str | None]:
    """Give the nicks that an answer lists, in the order in which they came."""
    return [each["nick"] for each in members["members"]]


# Everywhere the same


def test_whoever_asks_is_told_of_all_workers(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with (
        daemon.connect_to(first, "a?nick=ann") as ann,
        daemon.connect_to(second, "a?nick=bob") as bob,
        daemon.connect_to(second, "a"),
        program(daemon, "a?nick=bot", first) as bot,
    ):
        assert [ann.recv(20), ann.recv(20), bob.recv(20)] == ["* bob joined", "* bot joined", "* bot joined"]
        for client in (ann, bob):
            assert ask(client, "/who") == "* here: ann, bob, bot and 1 without a nick"
        answer = bot.ask("members", room="a")
        assert (nicks(answer), answer["count"]) == (["ann", "bob", None, "bot"], 4)


def test_two_daemons_on_one_broker_have_one_room(tmp_path: Path) -> None:
    with Server() as server:
        server.start()
        with (
            Daemon(tmp_path / "here", "--redis", server.url) as here,
            Daemon(tmp_path / "there", "--redis", server.url) as there,
            here.connect("ops?nick=ann") as ann,
            program(there, "ops") as bot,
        ):
            with there.connect("ops?nick=ann") as other:
                assert other.recv(20) == "* ann is taken, you are ann*2"
                assert ann.recv(20) == "* ann*2 joined"
                assert ask(other, "/who") == ask(ann, "/who") == "* here: ann, ann*2 and 1 without a nick"
                assert nicks(bot.ask("members", room="ops")) == ["ann", None, "ann*2"]
            assert ann.recv(20) == "* ann*2 left"


def test_who_comes_and_goes_stands_at_one_place_in_the_order_of_the_messages(daemon: Daemon) -> None:
    workers = daemon.worker_pids()
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(program(daemon, "c", worker)) for worker in workers]
        for turn in range(20):
            with daemon.connect_to(workers[turn % 2], f"c?nick=ann{turn}") as one:
                for line in ("hello", "and on", f"/nick bob{turn}"):
                    one.send(line)
                while one.recv(20) != f"* you are bob{turn}":
                    pass  # the last words of the one before
                for line in ("well", "bye"):
                    one.send(line)
        until(lambda: count(daemon, "c") == len(watchers), "the last one to be gone")
        daemon.say("c", "the end")
        heard = [[about(each) for each in watcher.hear_up_to("the end") if each["nick"]] for watcher in watchers]
    for share in heard:
        for turn in range(20):
            of_this = [line for line in share if line.split()[1] in (f"ann{turn}", f"bob{turn}")]
            assert of_this == [
                f"join ann{turn}",
                f"says ann{turn} hello",
                f"says ann{turn} and on",
                f"nick bob{turn}",
                f"says bob{turn} well",
                f"says bob{turn} bye",
                f"leave bob{turn}",
            ]
    assert heard[0] == heard[1]


def about(event: Event) -> str:
    """Say in a line what an event tells of somebody who has a nick."""
    return f"{event.get('event', 'says')} {event['nick']} {event.get('text', '')}".rstrip()


def test_a_room_that_is_too_large_has_a_count_and_tells_of_nobody(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        ann = stack.enter_context(daemon.connect("d?nick=ann"))
        bot = stack.enter_context(program(daemon, "d"))
        for worker in daemon.worker_pids() * 2:
            stack.enter_context(daemon.connect_to(worker, "d"))
        assert ask(ann, "/who") == "* here: ann and 5 without a nick"
        with daemon.connect("d?nick=bob") as bob:  # the seventh
            assert ask(bob, "/who") == "* 7 members are here"
            answer = bot.ask("members", room="d")
            assert (answer["members"], answer["count"]) == (None, 7)
            bob.send("hello")
            assert hear(ann, "bob: hello") == ["bob: hello"]
            with daemon.connect("d?nick=ann") as other:
                assert other.recv(20) == "* ann is taken, you are ann*2"  # nicks are one in large rooms too
        with daemon.connect("d") as bare:
            bare.send("the end")
            assert hear(ann, "the end") == ["the end"]


# Coming back


def come(daemon: Daemon, worker: int, room: str, nick: str) -> ClientConnection:
    """Connect somebody with a nick and a resume key."""
    return daemon.connect_to(worker, f"{room}?nick={nick}&resume=the-key-of-{nick}")


def test_who_is_back_within_ten_seconds_was_never_away(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with daemon.connect_to(first, "e?nick=watcher") as watcher:
        with come(daemon, first, "e", "ann"), come(daemon, first, "e", "bob"), come(daemon, first, "e", "eve"):
            assert [watcher.recv(20) for _ in range(3)] == ["* ann joined", "* bob joined", "* eve joined"]
        with come(daemon, first, "e", "ann") as ann, come(daemon, second, "e", "bob") as bob:
            with daemon.connect_to(second, "e?nick=ann") as other:
                assert other.recv(20) == "* ann is taken, you are ann*2"
            assert hear(watcher, "* ann*2 left") == ["* ann*2 joined", "* ann*2 left"]
            assert hear(watcher, "* eve left") == ["* eve left"]  # who went as they did, and is not back
            ann.send("here")
            bob.send("here")
            assert {watcher.recv(20), watcher.recv(20)} == {"ann: here", "bob: here"}


def test_who_comes_back_before_its_last_connection_is_missed_gets_its_nick_back(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with (
        daemon.connect_to(first, "f?nick=ann") as old_ann,
        program(daemon, "f?nick=bot", first) as old_bot,
        daemon.connect_to(second, "f?nick=ann") as ann,
        program(daemon, "f?nick=bot", second) as bot,
    ):
        assert hear(ann, "* ann is taken, you are ann*2")
        assert bot.welcome["nick"] == "bot*2"
        old_ann.close()
        heard = hear(ann, "* you are ann")  # the answer may overtake the news, on another connection to the broker
        old_bot.client.close()
        told = bot.hear("nick")
        assert (told["nick"], told["was"], "ref" in told) == ("bot", "bot*2", False)
        assert "* ann left" in [*heard, *hear(ann, "* bot*2 is now bot")]
        ann.send("hello")
        assert bot.hear_up_to("hello")[-1]["nick"] == "ann"
        assert nicks(bot.ask("members", room="f")) == ["ann", "bot"]


# What dies


def test_the_members_of_a_killed_worker_are_gone_within_a_minute(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(second, "ops?nick=ann") as ann, daemon.connect_to(first, "ops?nick=bob"):
            assert ann.recv(20) == "* bob joined"
            killed = time.monotonic()
            os.kill(first, signal.SIGKILL)
            assert ann.recv(60) == "* bob left"
            assert time.monotonic() - killed < 60
            assert ask(ann, "/who") == "* here: ann"
            with daemon.connect("ops?nick=bob") as bob:  # the nick is free
                assert ask(bob, "/who") == "* here: ann, bob"


@pytest.mark.parametrize("options", [(), ("--data-dir", "state")], ids=["that kept nothing", "with its state"])
def test_a_broker_that_starts_anew_changes_nobody(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Daemon(tmp_path, *options) as daemon:
        first, second = daemon.worker_pids()
        with (
            daemon.connect_to(first, "ops?nick=ann") as ann,
            daemon.connect_to(second, "ops?nick=bob") as bob,
            program(daemon, "ops?nick=bot", second) as bot,
        ):
            assert [ann.recv(20), ann.recv(20), bob.recv(20)] == ["* bob joined", "* bot joined", "* bot joined"]
            os.kill(daemon.broker_pid(), signal.SIGKILL)
            daemon.wait_for("broker_available: ")
            until(lambda: bot.ask("members", room="ops").get("count") == 3, "all to be there again")
            assert nicks(bot.ask("members", room="ops")) == ["ann", "bob", "bot"]
            with daemon.connect("ops?nick=bob") as other:
                assert other.recv(20) == "* bob is taken, you are bob*2"
                for client in (ann, bob):
                    heard = [line for line in hear(client, "* bob*2 joined") if line != "* some lines may be lost"]
                    assert heard == ["* bob*2 joined"]
