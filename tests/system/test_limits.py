"""A chatd that limits what clients and addresses do, on all workers together; and who is banned."""

import json
import re
import subprocess
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.system.daemon import Daemon, Websocat, hear
from tests.system.network import Cable
from tests.waiting import until

LIMITS = (
    *("--message-rate", "5", "--tuning", "connections_per_address=8"),
    *("--tuning", "room_rate=20", "--tuning", "connection_rate=30"),
    *("--trusted-proxy", "127.0.0.1", "--ban-list", "bans"),
)


OPTIONS = LIMITS
FILES = {"bans": b"# no addresses yet\n"}


def come(daemon: Daemon, address: str, room: str, *protocols: str, worker: int = 0) -> ClientConnection:
    """Connect from an address."""
    return connect(
        daemon.url(room),
        sock=daemon.socket_to(worker) if worker else None,
        additional_headers={"X-Forwarded-For": address},
        subprotocols=protocols or None,  # type: ignore[arg-type]
        compression=None,
        ping_interval=None,
        max_queue=None,
    )


def status_of(daemon: Daemon, address: str, room: str, worker: int = 0) -> int:
    """Give the status with which a connection from an address is answered; it is closed at once."""
    try:
        with come(daemon, address, room, worker=worker):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def post(daemon: Daemon, address: str, room: str) -> tuple[int, str]:
    """Say something over HTTP; give the status and when to try again."""
    try:
        with urlopen(Request(daemon.url(room, "http"), b"hi", {"X-Forwarded-For": address})) as answer:
            return int(answer.status), ""
    except HTTPError as error:
        with error:
            return error.code, error.headers["Retry-After"] or ""


ASKERS = cycle(f"203.0.113.{number}" for number in range(256))
"""Addresses that ask for metrics: one that asks again and again would itself be too fast."""


def counted(daemon: Daemon, name: str, **labels: str) -> float:
    with urlopen(Request(daemon.url("-/metrics", "http"), headers={"X-Forwarded-For": next(ASKERS)})) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                if (sample.name, sample.labels) == (name, labels):
                    return float(sample.value)
    raise AssertionError(f"there is no {name}")


def test_a_pipe_that_is_too_fast_is_read_no_faster_and_loses_nothing(daemon: Daemon) -> None:
    texts = [f"line {number}" for number in range(30)]
    with come(daemon, "192.0.2.1", "pipe?last=0", "chatd.v1") as hearer:
        # All of it is in the server's hands when the pipe is at its end, and the client gone.
        command = ["websocat", "-E", "-H=X-Forwarded-For: 192.0.2.2", daemon.url("pipe")]
        subprocess.run(command, input="\n".join(texts).encode() + b"\n", stdout=subprocess.DEVNULL, check=True)
        heard: list[dict[str, str]] = []
        while len(heard) < 30:
            event = json.loads(hearer.recv(20))
            heard += [event] if event["type"] == "message" else []
    assert [each["text"] for each in heard] == texts
    times = [int(each["time"][17:19]) * 1000 + int(each["time"][20:23]) for each in heard]
    assert all((end - start) % 60_000 >= 1500 for start, end in zip(times, times[20:], strict=False)), times
    until(lambda: counted(daemon, "chatd_slowed_total") >= 1, "that to be counted")


def test_who_is_told_is_told_when_to_try_again(daemon: Daemon) -> None:
    with (
        come(daemon, "192.0.2.3", "told?nick=ann") as named,
        come(daemon, "192.0.2.4", "told", "chatd.v1") as program,
        come(daemon, "192.0.2.5", "told") as bare,
    ):
        assert json.loads(program.recv(20))["limits"]["messages_per_s"] == 5
        for number in range(12):
            named.send(f"n{number}")
            program.send(json.dumps({"type": "publish", "room": "told", "text": f"p{number}", "ref": number}))
        assert hear(named, "* not sent: too fast, try again in 1 s")
        events = [json.loads(program.recv(20))]
        while events[-1]["type"] != "error":
            events.append(json.loads(program.recv(20)))
        assert events[-1]["code"] == "rate_limited"
        assert 0 < events[-1]["retry_after"] <= 1
        bare.send("last")
        said = hear(named, "last")
        assert len([each for each in said if each.startswith("p")]) < 12
    refused = "chatd_refused_messages_total"
    until(lambda: counted(daemon, refused, reason="rate_limited") >= 2, "that to be counted")


def test_who_goes_on_in_spite_of_warnings_is_closed_with_4029(daemon: Daemon) -> None:
    with come(daemon, "192.0.2.6", "flood?nick=ann") as named:
        with pytest.raises(ConnectionClosed) as caught:
            for number in range(10_000):
                named.send(str(number))
            while True:
                named.recv(20)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4029


def test_posts_of_one_address_have_one_pace(daemon: Daemon) -> None:
    answers = [post(daemon, "192.0.2.7", "posts") for _ in range(30)]
    assert answers[:10] == [(201, "")] * 10
    assert (429, "1") in answers
    assert post(daemon, "192.0.2.8", "posts") == (201, "")


def get(daemon: Daemon, address: str, target: str) -> tuple[int, str]:
    """Ask for something over HTTP; give the status and when to try again."""
    try:
        with urlopen(Request(daemon.url(target, "http"), headers={"X-Forwarded-For": address})) as answer:
            return int(answer.status), ""
    except HTTPError as error:
        with error:
            return error.code, error.headers["Retry-After"] or ""


def test_requests_of_one_address_are_limited_whatever_they_ask_for(tmp_path: Path) -> None:
    limits = ("--tuning", "request_rate=2", "--trusted-proxy", "127.0.0.1")
    with Daemon(tmp_path, *limits, workers=1) as daemon:
        asked = [get(daemon, "192.0.2.20", ("ops", "-/rooms", "-/none", "-/metrics")[turn % 4]) for turn in range(60)]
        assert asked[:20] == [(200, ""), (200, ""), (404, ""), (200, "")] * 5
        refused = [status for status in asked if status[0] == 429]
        assert len(refused) > 25
        assert set(refused) <= {(429, "1"), (429, "2")}
        assert get(daemon, "192.0.2.20", "-/healthz") == (200, "")
        assert get(daemon, "192.0.2.21", "ops") == (200, "")
        with come(daemon, "192.0.2.20", "ops", "chatd.v1") as program:
            program.send(json.dumps({"type": "members", "room": "ops", "ref": 1}))
            while (event := json.loads(program.recv(20))).get("ref") != 1:
                pass
            assert (event["code"], event["retry_after"]) == ("rate_limited", 1.0)


def test_twenty_people_behind_one_address_open_the_page_at_once(tmp_path: Path) -> None:
    """With the limits that a server has by itself where others can connect."""
    limits = ("--tuning", "request_rate=20", "--message-rate", "5", "--tuning", "connections_per_address=250")
    with Daemon(tmp_path, *limits, "--trusted-proxy", "127.0.0.1") as daemon, ExitStack() as clients:
        for number in range(20):
            page = Request(daemon.url("ops", "http"), headers={"X-Forwarded-For": "192.0.2.22", "Accept": "text/html"})
            with urlopen(page) as answer:
                assets = re.findall(r'"/(-/assets/[^"]+)"', answer.read().decode())
            assert len(assets) >= 3
            assert [get(daemon, "192.0.2.22", asset) for asset in assets] == [(200, "")] * len(assets)
            place = f"ops?last=50&nick=n{number}&resume=a-key-of-{number}"
            client = clients.enter_context(come(daemon, "192.0.2.22", place, "chatd.v1"))
            client.send(json.dumps({"type": "members", "room": "ops", "ref": 1}))
            client.send(json.dumps({"type": "history", "room": "ops", "limit": 50, "ref": 2}))
            answered: set[str] = set()
            while answered != {"members", "history"}:
                event = json.loads(client.recv(20))
                assert event["type"] != "error"
                answered |= {event["type"]} & {"members", "history"}


def test_one_address_has_no_more_connections_than_it_may_on_all_workers_together(tmp_path: Path) -> None:
    # connection_rate is not set, because the requests of this test begin many connections
    limits = ("--tuning", "connections_per_address=8", "--trusted-proxy", "127.0.0.1")
    with Daemon(tmp_path, *limits) as daemon:
        first, second = daemon.worker_pids()
        with ExitStack() as clients:
            for worker in (first, second):
                for _ in range(4):
                    clients.enter_context(come(daemon, "2001:db8:1::1", "many", worker=worker))
            for worker in (first, second):
                until(lambda at=worker: status_of(daemon, "2001:db8:1::2", "many", at) == 429, "the limit")  # type: ignore[misc]
            assert status_of(daemon, "2001:db8:2::1", "many") == 101
        until(lambda: status_of(daemon, "2001:db8:1::2", "many", second) == 101, "room again")
        until(lambda: counted(daemon, "chatd_refused_total", reason="rate_limited") >= 2, "that to be counted")


def test_one_address_begins_and_makes_no_more_than_it_may(daemon: Daemon) -> None:
    statuses = [status_of(daemon, "192.0.2.10", "begins") for _ in range(80)]
    assert statuses[:20] == [101] * 20
    assert 429 in statuses
    with come(daemon, "192.0.2.11", "lobby", "chatd.v1") as client:
        for number in range(25):
            client.send(json.dumps({"type": "join", "room": f"made{number}", "ref": number}))
        codes: list[str] = []
        while len(codes) < 25:
            event = json.loads(client.recv(20))
            if event.get("ref") is not None:
                codes.append(event.get("code", event["type"]))
        assert codes.count("joined") in (19, 20, 21)
        assert codes.count("rate_limited") == 25 - codes.count("joined")


def test_who_is_put_on_the_list_is_closed_and_does_not_come_in_again(daemon: Daemon) -> None:
    with come(daemon, "198.51.100.7", "bans") as banned, come(daemon, "192.0.2.12", "bans") as other:
        (daemon.folder / "bans").write_text("198.51.100.0/24\n")
        with pytest.raises(ConnectionClosed) as caught:
            banned.recv(20)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "this address is banned")
        for worker in daemon.worker_pids():
            until(lambda at=worker: status_of(daemon, "198.51.100.8", "bans", at) == 403, "the ban")  # type: ignore[misc]
        assert post(daemon, "198.51.100.9", "bans")[0] == 403
        (daemon.folder / "bans").write_text("nonsense\n")
        daemon.wait_for("file_rejected: .*bans, line 1: 'nonsense' is not an address, ")
        assert status_of(daemon, "198.51.100.8", "bans") == 403
        (daemon.folder / "bans").write_text("")
        until(lambda: status_of(daemon, "198.51.100.8", "bans") == 101, "the end of the ban")
        other.send("still here")
    until(lambda: counted(daemon, "chatd_refused_total", reason="banned") >= 2, "that to be counted")


def test_by_itself_those_are_limited_that_come_from_elsewhere(tmp_path: Path) -> None:
    """The daemon listens on all addresses there; it also has a unix socket, which is this host's alone."""
    with Cable() as cable, Daemon(tmp_path, "--listen", "tcp:3000", host=cable.there) as daemon:
        flood = "".join(f"{number}\n" for number in range(40)).encode()

        def told(*command: str) -> int:
            """Say all of it under a nick; give how often that was too fast."""
            said = subprocess.run(["timeout", "3", *command], input=flood, capture_output=True, check=False)
            return said.stdout.count(b"* not sent: too fast")

        url = f"ws://{cable.address}:3000/far?nick=ann"
        assert told(*cable.here, "websocat", "-n", url) >= 20
        near = f"ws-c:unix:{daemon.unix_socket}"
        assert told("websocat", "-n", "--ws-c-uri=ws://localhost/near?nick=ann", "-", near) == 0
        hearer = Websocat(f"ws-c:unix:{daemon.unix_socket}", "--ws-c-uri=ws://localhost/near?last=40", "-")
        try:
            assert len(hearer.wait_for(40)) == 40
        finally:
            hearer.end()
