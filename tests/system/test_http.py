"""Rooms over HTTP, with curl and plain sockets against the real daemon: followers are members like any other."""

import http.client
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.system.daemon import Daemon, Terminal, Websocat, stopped
from tests.waiting import until

OPTIONS = ("--max-send-buffer", "65536", "--tuning", "publish_timeout=2")


def ask(daemon: Daemon, method: str, target: str, body: str = "", **headers: str) -> tuple[int, Any]:
    """Send a request on a connection of its own; give status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    try:
        connection.request(method, target, body.encode() or None, {"Accept": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def post(daemon: Daemon, target: str, text: str) -> Any:
    """Say something; give where it stands."""
    status, answer = ask(daemon, "POST", target, text, **{"Content-Type": "text/plain"})
    assert status == 201, answer
    return answer


def count(daemon: Daemon, room: str) -> int:
    """Give how many members a room has."""
    number: int = ask(daemon, "GET", f"/{room}/members")[1]["count"]
    return number


class Curl(Terminal):
    """curl that follows a room."""

    def __init__(self, daemon: Daemon, target: str, *options: str) -> None:
        room = target.partition("?")[0]
        before = count(daemon, room)
        super().__init__("curl", "-sN", *options, daemon.url(target, "http"), errors=subprocess.DEVNULL)
        until(lambda: count(daemon, room) > before, "curl to be there")

    def data(self) -> list[Any]:
        """Give the data of all events that came."""
        return [json.loads(line.removeprefix("data: ")) for line in self.lines() if line.startswith("data: ")]

    def ids(self) -> list[str]:
        """Give their ids."""
        return [line.removeprefix("id: ") for line in self.lines() if line.startswith("id: ")]


EVENTS = ("-H", "Accept: text/event-stream")


def test_what_is_said_with_one_request_is_heard_by_all(daemon: Daemon) -> None:
    curl, program = Curl(daemon, "all?follow=1"), Curl(daemon, "all", *EVENTS)
    ann = Websocat(daemon.url("all?nick=ann"))
    try:
        until(lambda: count(daemon, "all") == 3, "all to be there")
        where = post(daemon, "/all?nick=ci", "build 8 is green")
        assert curl.wait_for(1)[-1] == ann.wait_for(1)[-1] == "ci: build 8 is green"
        until(lambda: len(program.data()) == 1, "the event")
        assert program.ids() == [f"{where['epoch']}-{where['offset']}"]
        assert program.data()[0]["id"] == where["id"]
        ann.type("thanks")
        assert curl.wait_for(2)[-1] == "ann: thanks"
        until(lambda: [each["text"] for each in program.data()] == ["build 8 is green", "thanks"], "the other event")
    finally:
        for each in (curl, program, ann):
            each.end()
    assert [each["text"] for each in ask(daemon, "GET", "/all")[1]] == ["build 8 is green", "thanks"]
    assert daemon.texts()[-2:] == ["build 8 is green", "thanks"]
    until(lambda: count(daemon, "all") == 0, "all to have left")


def test_a_follower_with_a_nick_is_seen(daemon: Daemon) -> None:
    with daemon.connect("seen?nick=ann") as ann:
        curl = Curl(daemon, "seen?follow=1&nick=zoe")
        try:
            assert ann.recv(20) == "* zoe joined"
        finally:
            curl.end()
        assert ann.recv(20) == "* zoe left"


def test_an_id_is_said_once_over_any_connection(daemon: Daemon) -> None:
    said = json.dumps({"text": "once", "nick": "ci", "id": "build-8"})
    answers = [ask(daemon, "POST", "/ids", said, **{"Content-Type": "application/json"}) for _ in range(6)]
    assert [status for status, _ in answers] == [201] * 6
    assert {answer["offset"] for _, answer in answers} == {1}
    assert [answer.get("duplicate", False) for _, answer in answers] == [False, *[True] * 5]
    assert [each["text"] for each in ask(daemon, "GET", "/ids")[1]] == ["once"]


def test_another_address_cannot_use_up_an_id(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--trusted-proxy", "127.0.0.1") as daemon:

        def say(text: str, address: str) -> bool:
            """Say something with an id that is always the same; return whether it was a duplicate."""
            said = json.dumps({"text": text, "nick": "ci", "id": "build-8"})
            headers = {"Content-Type": "application/json", "X-Forwarded-For": address}
            status, answer = ask(daemon, "POST", "/ids", said, **headers)
            assert status == 201
            return bool(answer.get("duplicate", False))

        assert [say("one", "192.0.2.1"), say("two", "192.0.2.2"), say("one", "192.0.2.1")] == [False, False, True]
        assert [say("three", "2001:db8::1"), say("three", "2001:db8::2")] == [False, True]
        heard = ask(daemon, "GET", "/ids")[1]
        assert [(each["text"], each["id"]) for each in heard] == [
            ("one", "build-8"),
            ("two", "build-8"),
            ("three", "build-8"),
        ]
        assert len({each["session"] for each in heard}) == 1  # it does not tell the addresses


def test_nobody_posts_under_the_nick_of_somebody_who_is_there(daemon: Daemon) -> None:
    with daemon.connect("named?nick=ann") as ann:
        for nick in ("ann", "ANN", "%D0%B0nn"):  # the last has a Cyrillic letter
            for _ in range(4):  # on any worker
                status, answer = ask(daemon, "POST", f"/named?nick={nick}", "pay me")
                assert (status, answer["error"]) == (409, "nick_in_use")
        post(daemon, "/named?nick=anna", "hello")
        assert ann.recv(20) == "anna: hello"
        ann.send("/quit")
        until(lambda: count(daemon, "named") == 0, "ann to be gone")
    post(daemon, "/named?nick=ann", "hello")
    assert [each["nick"] for each in ask(daemon, "GET", "/named")[1]] == ["anna", "ann"]


def test_events_go_on_where_they_broke_off(daemon: Daemon) -> None:
    heard: list[str] = []
    last = ""
    for turn in range(5):
        curl = Curl(daemon, "again", *EVENTS, *(("-H", f"Last-Event-ID: {last}") if last else ()))
        try:
            post(daemon, "/again", f"while {turn}")
            wanted = 1 + (turn > 0)
            until(lambda: len(curl.data()) >= wanted, f"{wanted} events")  # noqa: B023 - called at once
            heard += [each["text"] for each in curl.data()]
            last = curl.ids()[-1]
        finally:
            curl.end()
        until(lambda: count(daemon, "again") == 0, "curl to be gone")
        post(daemon, "/again", f"after {turn}")
    assert heard == ["while 0", *(text for turn in range(1, 5) for text in (f"after {turn - 1}", f"while {turn}"))]


def test_a_follower_that_does_not_read_gets_all_of_it_later(daemon: Daemon) -> None:
    with socket.socket() as slow, daemon.connect("slow?nick=ann") as other:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(120)  # a kernel whose buffer was full for long is asked ever more rarely
        slow.connect(("127.0.0.1", daemon.port))
        slow.sendall(b"GET /slow?follow=1 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        data = slow.recv(65536)
        texts = [f"{number} {'x' * 10_000}" for number in range(700)]  # more than the kernel keeps
        with daemon.connect("slow") as talker:
            for each in texts:
                talker.send(each)
            for each in texts:
                assert other.recv(20) == each, "nobody else waits"
        daemon.wait_for("slow_consumers_detected: .*: 1")
        parts = [data.partition(b"\r\n\r\n")[2]]
        while not parts[-1].endswith(b"x\n") or b"".join(parts).count(b"\n") < len(texts):
            parts.append(slow.recv(1 << 20))
        assert b"".join(parts).decode().splitlines() == texts


def test_one_connection_takes_many_requests(daemon: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    for number in range(100):
        connection.request("POST", "/many", str(number), {"Content-Type": "text/plain"})
        assert json.load(connection.getresponse())["offset"] == number + 1
    connection.request("GET", "/many?last=100")
    assert connection.getresponse().read().decode().split() == [str(number) for number in range(100)]
    connection.close()


def test_a_body_that_is_too_large_is_answered(daemon: Daemon, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * 900_000)
    command = ["curl", "-s", "-w", "%{http_code}", "--data-binary", f"@{body}", daemon.url("large", "http")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.endswith("413"), done


def test_nothing_is_taken_while_the_bus_is_away(daemon: Daemon) -> None:
    with stopped(daemon.broker_pid()):
        daemon.wait_for("broker_unavailable: ")
        until(lambda: ask(daemon, "POST", "/away", "lost?", **{"Content-Type": "text/plain"})[0] == 503, "a refusal")
    daemon.wait_for("broker_available: ")
    assert post(daemon, "/away", "taken")["room"] == "away"


def test_a_worker_that_is_killed_breaks_the_stream_visibly(daemon: Daemon) -> None:
    post(daemon, "/broken", "before")
    curl = Curl(daemon, "broken?last=1", *EVENTS)
    try:
        until(lambda: len(curl.data()) == 1, "the event")
        for worker in daemon.worker_pids():
            os.kill(worker, signal.SIGKILL)
        assert curl.process.wait(20) in (18, 56), "not as if it had been meant to end"
    finally:
        curl.end()
    plain = {"Content-Type": "text/plain"}
    until(lambda: ask(daemon, "POST", "/broken", "after", **plain)[0] == 201, "a worker to be back")

    def texts() -> list[str]:  # either worker answers, and one may not be back yet
        status, said = ask(daemon, "GET", "/broken")
        return [each["text"] for each in said] if status == 200 else []

    until(lambda: texts() == ["before", "after"], "the other one to be back, and what was said before and after")


def test_a_stop_ends_streams_as_they_are_meant_to_end(tmp_path: Path) -> None:
    with Daemon(tmp_path / "stop") as other:
        lines, events = Curl(other, "stop?follow=1"), Curl(other, "stop?last=0", *EVENTS)
        try:
            post(other, "/stop", "the last")
            other.process.terminate()
            assert (lines.process.wait(20), events.process.wait(20)) == (0, 0)
            assert lines.lines() == ["the last", "* closing: the server stops"]
            assert [each["type"] for each in events.data()] == ["message", "bye"]
        finally:
            lines.end()
            events.end()
