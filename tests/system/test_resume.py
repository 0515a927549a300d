"""A client that comes back with its key to a real chatd gets exactly what it missed: on any worker, after any end."""

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from chatd.protocol.close_codes import TAKEN_OVER
from tests.broker.server import Client, Server
from tests.frames import close_frame, frame, handshake, heard
from tests.system.daemon import Daemon, Websocat, free_port, hear, is_running
from tests.waiting import until

OPTIONS = ("--history-size", "5000", "--data-dir", "state")


def wait_for_place(daemon: Daemon, room: str, offset: int) -> None:
    """Wait until it is known that the client has got all up to an offset."""

    def look() -> bool:
        with Client(str(daemon.folder / "state" / "broker" / "broker.sock")) as broker:
            return bool(broker.ask("HGET", f"chatd:place:{KEY}:{room}", "offset") == str(offset).encode())

    until(look, f"the place {offset}")


KEY = "a-key.of~mine"


def come(daemon: Daemon, worker: int, room: str, *, key: str = KEY, echo: bool = False) -> ClientConnection:
    """Connect to a worker with a key."""
    return connect(
        daemon.url(f"{room}?resume={key}" + ("&echo=1" if echo else "")),
        sock=daemon.socket_to(worker),
        compression=None,
        ping_interval=None,
        max_queue=None,
    )


def hear_to_the_end(client: ClientConnection) -> list[str]:
    """Give what a client hears until its connection ends."""
    texts: list[str] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            texts.append(str(client.recv(20)))
    return texts


class Talker:
    """Somebody who says one number after the other, from ``with`` to the end of it."""

    def __init__(self, daemon: Daemon, room: str) -> None:
        self._daemon = daemon
        self._room = room
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self.said = 0

    def __enter__(self) -> "Talker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _talk(self) -> None:
        with self._daemon.connect(self._room) as client:
            while not self._ended.wait(0.001):
                client.send(f"{self.said:06d}")
                self.said += 1
            client.send("the end")


# Back in order


@pytest.mark.parametrize("back_on", [0, 1], ids=["the same worker", "another worker"])
def test_it_gets_exactly_what_was_said_while_it_was_away(daemon: Daemon, back_on: int) -> None:
    room, workers = f"a{back_on}", daemon.worker_pids()
    for absence in range(5):
        with come(daemon, workers[back_on * absence % 2], room) as client:
            missed = [f"{absence} {number}" for number in range(7)] if absence else []
            daemon.say(room, f"live {absence}")
            assert hear(client, f"live {absence}") == [*missed, f"live {absence}"]
        daemon.say(room, *[f"{absence + 1} {number}" for number in range(7)])


def test_a_program_brings_its_key_as_a_subprotocol_and_is_back(daemon: Daemon) -> None:
    sessions = []
    for turn in range(2):
        with daemon.connect("by-protocol", "chatd.v1", "resume.a-key.by~protocol") as client:
            assert client.subprotocol == "chatd.v1"
            sessions.append(json.loads(client.recv(20))["session"])
            joined = json.loads(client.recv(20))
            assert [message["text"] for message in joined["messages"]] == ["missed"] * turn
        daemon.say("by-protocol", "missed")
    assert sessions[0] == sessions[1]


def test_what_was_heard_does_not_come_again(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with come(daemon, first, "b") as client:
        daemon.say("b", "once")
        assert hear(client, "once") == ["once"]
    for worker in (second, first, first):
        with come(daemon, worker, "b") as client, pytest.raises(TimeoutError):
            client.recv(0.3)


def test_an_unknown_key_begins_now(daemon: Daemon) -> None:
    daemon.say("c", "old")
    with come(daemon, daemon.worker_pids()[0], "c", key="never-seen-before") as client:
        daemon.say("c", "new")
        assert hear(client, "new") == ["new"]


def test_an_unknown_key_may_ask_for_the_last_lines_and_a_known_one_gets_what_it_missed(daemon: Daemon) -> None:
    daemon.say("d", "one", "two", "three")
    url = daemon.url("d?last=2&resume=a-key-of-mine")
    with connect(url, compression=None) as client:
        assert [client.recv(20), client.recv(20)] == ["two", "three"]
    daemon.say("d", "four", "five", "six")
    with connect(url, compression=None) as client:
        assert hear(client, "six") == ["four", "five", "six"]


def test_each_key_and_each_room_has_a_place_of_its_own(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with come(daemon, first, "e"), come(daemon, first, "e:e"):
        pass
    daemon.say("e", "one")
    daemon.say("e:e", "uno")
    with come(daemon, second, "e", key="another-key"):
        pass
    daemon.say("e", "two")
    with come(daemon, second, "e:e") as client:
        assert hear(client, "uno") == ["uno"]
    with come(daemon, first, "e") as client:
        assert hear(client, "two") == ["one", "two"]
    with come(daemon, first, "e", key="another-key") as client:
        assert hear(client, "two") == ["two"]


def test_what_history_has_no_more_is_lost_and_the_rest_comes(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--history-size", "10") as daemon:
        first, second = daemon.worker_pids()
        with come(daemon, first, "ops"):
            pass
        texts = [str(number) for number in range(50)]
        daemon.say("ops", *texts)
        with come(daemon, second, "ops") as client:
            assert hear(client, "49") == texts[-10:]


# Its own lines


@pytest.mark.parametrize("back_on", [0, 1], ids=["the same worker", "another worker"])
@pytest.mark.parametrize("echo", [False, True])
def test_its_own_lines_of_an_earlier_connection_come_only_with_echo(daemon: Daemon, back_on: int, echo: bool) -> None:
    room, workers = f"f{back_on}{echo}", daemon.worker_pids()
    with daemon.connect(room) as other, daemon.socket_to(workers[0]) as raw:
        raw.sendall(handshake(f"/{room}?resume={KEY}"))
        assert raw.recv(12) == b"HTTP/1.1 101"
        raw.sendall(frame(b"mine") + close_frame())  # at once: its place is before what it said
        assert other.recv(20) == "mine"
        other.send("theirs")
        with come(daemon, workers[back_on], room, echo=echo) as client:
            assert hear(client, "theirs") == [*(["mine"] if echo else []), "theirs"]
            client.send("mine now")
            assert other.recv(20) == "mine now"
            other.send("and on")
            assert hear(client, "and on") == [*(["mine now"] if echo else []), "and on"]


# Two with one key


@pytest.mark.parametrize("newer_on", [0, 1], ids=["the same worker", "another worker"])
def test_the_newer_of_two_takes_over_and_the_older_is_closed(daemon: Daemon, newer_on: int) -> None:
    room, workers = f"g{newer_on}", daemon.worker_pids()
    with come(daemon, workers[0], room) as older:
        daemon.say(room, "one")
        assert hear(older, "one") == ["one"]
        wait_for_place(daemon, room, 1)
        with come(daemon, workers[newer_on], room) as newer:
            assert hear_to_the_end(older) == []
            assert (older.close_code, older.close_reason) == (TAKEN_OVER.code, TAKEN_OVER.reason)
            daemon.say(room, "two")
            assert hear(newer, "two") == ["two"]


def test_whoever_takes_over_while_others_talk_loses_nothing(daemon: Daemon) -> None:
    shares: list[list[str]] = []
    with contextlib.ExitStack() as stack, Talker(daemon, "h") as talker:
        older: ClientConnection | None = None
        for worker in daemon.worker_pids() * 2 + daemon.worker_pids()[:1] * 2:
            newer = stack.enter_context(come(daemon, worker, "h"))
            if older is not None:
                shares.append(hear_to_the_end(older))
                assert older.close_code == TAKEN_OVER.code
            said = talker.said
            until(lambda said=said: talker.said > said + 20, "some more to be said")  # type: ignore[misc]
            older = newer
        talker.__exit__()
        shares.append(hear(newer, "the end"))
    numbers = [[int(text) for text in share if text != "the end"] for share in shares]
    for share in numbers:
        assert share == list(range(share[0], share[0] + len(share)))
    for before, after in itertools.pairwise(numbers):
        assert after[0] <= before[-1] + 1  # what was on its way when it was taken over may come twice
    assert numbers[-1][-1] == talker.said - 1


def test_of_two_that_come_back_again_and_again_one_keeps_the_place_on_any_worker(daemon: Daemon) -> None:
    room, workers = "fought-for", daemon.worker_pids()
    with contextlib.ExitStack() as stack:
        older = stack.enter_context(come(daemon, workers[0], room))
        for turn in range(1, 50):
            try:
                newer = stack.enter_context(come(daemon, workers[turn % 2], room))
            except InvalidStatus as refused:
                answer = refused.response
                break
            assert hear_to_the_end(older) == []
            older = newer
        assert (answer.status_code, json.loads(answer.body)["error"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
        assert turn > 5
        target = f"/{room}?resume={KEY}"
        for ask in (
            handshake(f"{target}&nick=ann"),
            handshake(target, Sec_WebSocket_Protocol="chatd.v1"),
            f"GET {target}&follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        ):
            with daemon.socket_to(workers[0]) as raw:
                raw.sendall(ask)
                assert raw.recv(12) == b"HTTP/1.1 429"
        daemon.say(room, "one")
        assert hear(older, "one") == ["one"]
    daemon.wait_for("resume_keys_contested: ")
    with come(daemon, workers[0], room) as back:  # nobody has it now
        daemon.say(room, "two")
        assert hear(back, "two") == ["two"]


@pytest.mark.parametrize("noticed", [True, False], ids=["reset", "unnoticed"])
def test_one_whose_connections_break_again_and_again_is_always_let_in(daemon: Daemon, noticed: bool) -> None:
    room, worker = f"flapping{noticed}", daemon.worker_pids()[0]
    broken: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            raw = stack.enter_context(daemon.socket_to(worker, buffer=4096))  # and reads nothing
            raw.sendall(handshake(f"/{room}?resume={KEY}"))
            assert raw.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 101"
            if noticed:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.close()
            else:
                daemon.say(room, *["x" * 16_000] * 2)  # does not reach it any more
                broken.append(raw)
        if broken:
            until(lambda: all(map(is_closed, broken[:-1])), "those that do not answer to be dropped")
        with come(daemon, worker, room):
            pass


def is_closed(raw: socket.socket) -> bool:
    """Whether the server has reset a connection (TCP_CLOSE)."""
    return raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\7"


# Gone without a word


def kernel_has(raw: socket.socket, count: int) -> list[str]:
    """Give the texts that the client's kernel has whole, of so many bytes."""
    data = raw.recv(count, socket.MSG_PEEK)
    frames = len(data.partition(b"\r\n\r\n")[2]) // (LINE + 4)
    return heard(data[: data.index(b"\r\n\r\n") + 4 + frames * (LINE + 4)]).texts


LINE = 4000


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "silent"])
@pytest.mark.parametrize("back_on", [0, 1], ids=["the same worker", "another worker"])
def test_one_that_vanished_gets_what_had_not_reached_it(daemon: Daemon, back_on: int, reset: bool) -> None:
    room, workers = f"i{back_on}{reset}", daemon.worker_pids()
    lines = [f"{number:04d}".ljust(LINE, "x") for number in range(1000)]
    with daemon.socket_to(workers[0], buffer=4096) as raw:  # and reads nothing
        raw.sendall(handshake(f"/{room}?resume={KEY}"))
        assert raw.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 101"
        daemon.say(room, *lines)
        had = kernel_has(raw, 10_000_000)
        assert had == lines[: len(had)] != lines
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        with come(daemon, workers[back_on], room) as client:
            got = hear(client, lines[-1])
    assert got == lines[len(lines) - len(got) :]  # all up to the last one
    assert len(had) + len(got) >= len(lines)  # from where it had come to


def test_of_one_that_vanished_long_after_it_got_all_nothing_comes_again(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    with come(daemon, first, "j") as client:
        daemon.say("j", "old")
        assert hear(client, "old") == ["old"]
        wait_for_place(daemon, "j", 1)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.shutdown(socket.SHUT_RD)
        client.socket.close()
    daemon.say("j", "missed")
    with come(daemon, second, "j") as client:
        assert hear(client, "missed") == ["missed"]


def test_a_killed_worker_costs_its_clients_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--history-size", "10000") as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(second, "ops") as talker, come(daemon, first, "ops") as client:
            for number in range(100):
                talker.send(str(number))
            before = hear(client, "99")
            os.kill(first, signal.SIGKILL)
            assert hear_to_the_end(client) == []
            for number in range(100, 200):
                talker.send(str(number))
            with come(daemon, second, "ops") as again:
                after = hear(again, "199")
    assert before == [str(number) for number in range(100)]
    assert after == [str(number) for number in range(200 - len(after), 200)]
    assert len(after) >= 100


# A reload while the broker is away


def test_what_it_read_while_the_broker_was_away_does_not_come_again_after_the_reload(tmp_path: Path) -> None:
    lines = [f"{number:03d}".ljust(LINE, "x") for number in range(200)]  # all of them fit into its backlog
    with Server() as broker:
        broker.start()
        with Daemon(tmp_path, "--redis", broker.url, "--drain-timeout", "1", workers=1) as daemon:
            [old] = daemon.worker_pids()
            raw = daemon.socket_to(old, buffer=4096)
            with connect(daemon.url(f"ops?resume={KEY}"), sock=raw, compression=None, max_queue=1) as slow:
                daemon.say("ops", *lines)
                before = len(daemon.log())
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for("server_ready: ", after=before)
                with broker.unreachable():
                    assert hear_to_the_end(slow) == lines
                    assert slow.close_code == 1012
                    daemon.wait_for(rf"drain_delayed: |\(pid {old}\) ended", after=before)
            until(lambda: not is_running(old), "the old worker to end")
            with connect(daemon.url(f"ops?resume={KEY}"), compression=None) as back:
                daemon.say("ops", "the end")
                assert hear(back, "the end") == ["the end"]


# The whole of it, again and again


def test_a_websocat_that_reconnects_misses_no_line_of_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    port = free_port()
    listen = (
        "--listen",
        f"tcp:{port}:interface=127.0.0.1",
        "--data-dir",
        str(tmp_path / "state"),
        "--history-size",
        "10000",
    )
    said: list[str] = []
    uri = f"--ws-c-uri=ws://127.0.0.1:{port}/ops?resume={KEY}"
    terminal = Websocat("-", "--text", uri, f"autoreconnect:ws-c:tcp:127.0.0.1:{port}")
    try:
        for life in range(4):
            with Daemon(tmp_path, *listen) as daemon, contextlib.ExitStack() as clients:
                daemon.port = port
                talker, hearer = (clients.enter_context(daemon.connect("ops")) for _ in range(2))
                while not terminal.lines():  # it is not there yet
                    talker.send("hello")
                    assert hearer.recv(20) == "hello"
                for number in range(500):
                    said.append(f"{life} {number}")
                    talker.send(said[-1])
                    if number == 400:
                        until(lambda: said[-101] in terminal.lines(), "it to be back")
                hear(hearer, said[-1])  # they are in order by then; who else has heard them nobody knows
                if life < 3:
                    daemon.kill()
        until(lambda: terminal.lines()[-1] == said[-1], "the last line")
        printed = [line for line in terminal.lines() if line != "hello"]
    finally:
        terminal.end()
    assert list(dict.fromkeys(printed)) == said  # none is missing, and all are in order
