"""What is wrong around it: full disks, brokers that refuse, clocks that are set, a frozen parent, too little memory."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.broker.server import Client, Server
from tests.frames import handshake
from tests.system.daemon import CHATD, Daemon, hear, stopped
from tests.waiting import until

OWN_MOUNTS = ["unshare", "--mount", "--propagation=private", *([] if os.geteuid() == 0 else ["--map-root-user"])]


class Witness:
    """A program in a room: what it says is acknowledged or refused, and told apart."""

    def __init__(self, client: ClientConnection, room: str) -> None:
        self.client, self.room = client, room
        self.number = 0
        self.acknowledged: list[str] = []

    def says(self) -> None:
        """Say one more thing."""
        self.number += 1
        text = f"{self.room} {self.number}"
        self.client.send(json.dumps({"type": "publish", "room": self.room, "text": text, "ref": self.number}))

    def is_told(self, kind: str) -> bool:
        """Say one more thing; whether, of all that it said, an answer of that kind comes by and by."""
        self.says()
        found = False
        with contextlib.suppress(TimeoutError):
            while True:
                event = json.loads(self.client.recv(0.1))
                if event["type"] == "ack":
                    self.acknowledged.append(f"{self.room} {event['ref']}")
                found = found or event.get("code", event["type"]) == kind
        return found

    def is_taken(self) -> bool:
        return self.is_told("ack")

    def is_refused(self) -> bool:
        return self.is_told("unavailable")


@contextmanager
def witness(daemon: Daemon, room: str, worker: int = 0) -> Iterator[Witness]:
    """Let a program be there that says things."""
    sock = daemon.socket_to(worker) if worker else None
    with daemon.connect(f"{room}?nick=witness", "chatd.v1", sock=sock) as client:
        yield Witness(client, room)


def post(daemon: Daemon, room: str) -> int:
    try:
        with urlopen(Request(daemon.url(room, "http"), b"posted")) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def verified(daemon: Daemon, log: Path, *broker: str) -> str:
    """Give what ``chatd verify`` says of a log; it finds nothing wrong."""
    done = subprocess.run([CHATD, "verify", *broker, str(log)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The chat log


FULL = "cat /dev/zero > {logs}/filler 2>/dev/null || true", "rm {logs}/filler"
READ_ONLY = "mount -t tmpfs -o ro chatd {logs}", "umount {logs}"


@pytest.mark.parametrize(("wrong", "mended"), [FULL, READ_ONLY], ids=["full", "read-only"])
def test_what_can_not_be_logged_is_refused_and_all_goes_on_when_it_can_again(
    tmp_path: Path, wrong: str, mended: str
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    disk = f'mount -t tmpfs -o size=256k chatd {logs} && exec "$@"'
    options = ("--listen", "tcp:0:interface=127.0.0.1", "--data-dir", str(tmp_path / "state"))
    with Daemon(tmp_path, *options, host=[*OWN_MOUNTS, "sh", "-euc", disk, "sh"]) as daemon:
        daemon.port = int(daemon.wait_for(r" ws://127.0.0.1:(\d+)")[1])

        def run(command: str) -> None:
            keep = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
            within = ["nsenter", f"--target={daemon.process.pid}", "--mount", "--root", *keep, "sh", "-euc"]
            subprocess.run([*within, command.format(logs=logs)], check=True)

        worker = daemon.worker_pids()[0]
        with witness(daemon, "disk", worker) as program, daemon.connect("disk?nick=ann") as named:
            assert program.is_taken()
            run(wrong)
            until(program.is_refused, "a refusal")
            until(lambda: post(daemon, "disk") == 503, "a refusal of the other")
            until(lambda: _is_told(named), "a line that says so")
            with daemon.connect("disk") as bare:
                until(lambda: _is_closed(bare) == 1013, "the end of a pipe")
            run(mended)
            until(program.is_taken, "the end of it")
            assert daemon.worker_pids()[0] == worker
        found = Path(f"/proc/{daemon.process.pid}/root{logs}/chat.log")
        log = tmp_path / "copy.log"
        log.write_bytes(found.read_bytes())
        texts = [line.split(" ", 4)[4] for line in log.read_text().splitlines()]
        assert [each for each in texts if each.startswith("disk ")] == program.acknowledged
        assert "each is in the logs once" in verified(daemon, log, "--data-dir", str(tmp_path / "state"))


def _is_closed(client: ClientConnection) -> int | None:
    """Let it say something more; give the code with which it is closed, if it is."""
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        client.send("does this go?")
        client.recv(0.05)
    return client.close_code


def _is_told(named: ClientConnection) -> bool:
    named.send("does this go?")
    return "* not sent: the chat log cannot be written" in str(named.recv(20))


LOCK_HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
"""Another writer of the chat log, at work."""


@contextmanager
def frozen_writer(daemon: Daemon) -> Iterator[None]:
    """Have the lock of the chat log held by a process that is frozen."""
    command = [sys.executable, "-c", LOCK_HOLDER, str(daemon.folder / "logs" / ".chat.log.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        with stopped(holder.pid):
            yield
        holder.kill()


def next_events(program: Witness, count: int) -> list[str]:
    """Give the codes or types of the next events."""
    events = [json.loads(program.client.recv(20)) for _ in range(count)]
    return [event.get("code", event["type"]) for event in events]


def test_while_a_frozen_process_holds_the_log_a_worker_serves_on_and_refuses_in_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path, workers=1) as daemon, witness(daemon, "ops") as program:
        until(program.is_taken, "an acknowledgement")
        with frozen_writer(daemon):
            program.says()
            for _ in range(20):  # each is a turn of the worker's, after that in which the message was taken
                program.client.send('{"type":"ping"}')
                assert next_events(program, 1) == ["pong"]
            assert next_events(program, 1) == ["unavailable"]
            daemon.wait_for("chat_log_write_failed: .*: another process holds")
        until(program.is_taken, "the end of it")
        assert daemon.texts() == program.acknowledged


def test_what_is_said_while_a_frozen_process_holds_the_log_comes_in_its_order_when_it_goes_on(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, workers=2) as daemon,
        witness(daemon, "ops", daemon.worker_pids()[0]) as program,
        daemon.connect_to(daemon.worker_pids()[1], "ops") as hearer,
    ):
        until(program.is_taken, "an acknowledgement")

        def comes() -> bool:
            with frozen_writer(daemon):
                for number in range(20):
                    if number < 3:
                        program.says()
                    program.client.send('{"type":"ping"}')
                    if next_events(program, 1) != ["pong"]:  # the machine is so slow that a second has passed
                        return program.is_told("nothing")
            return next_events(program, 3) == ["ack"] * 3

        until(comes, "three acknowledgements")
        assert daemon.texts()[-3:] == [f"ops {number}" for number in range(program.number - 2, program.number + 1)]
        assert [str(hearer.recv(20)).rpartition(": ")[2] for _ in daemon.texts()] == daemon.texts()


def test_a_stop_ends_in_time_while_frozen_processes_hold_the_log_and_are_the_broker(tmp_path: Path) -> None:
    patient = ("--tuning", "stop_timeout=15")  # a busy machine takes longer than the usual 4 seconds
    with Daemon(tmp_path, *patient, workers=1) as daemon, witness(daemon, "ops") as program:
        until(program.is_taken, "an acknowledgement")
        silent = daemon.socket_to(daemon.worker_pids()[0])
        silent.sendall(handshake("/ops"))  # and it never answers a Close frame
        assert silent.recv(12) == b"HTTP/1.1 101"
        os.kill(daemon.broker_pid(), signal.SIGSTOP)
        program.says()
        until(lambda: len(daemon.texts()) > len(program.acknowledged), "the message to be logged")
        with frozen_writer(daemon), silent:
            daemon.process.terminate()
            daemon.wait_for("logged_messages_unpublished: 1 ")
            daemon.process.wait(30)
        assert not re.search("worker_stop_timed_out|Unhandled", daemon.log())
        assert daemon.texts()[-1] == f"ops {program.number}"  # what became of it could not be logged


# The broker


def out_of_memory(broker: Client, server: Server) -> Callable[[], object]:
    broker.ask("CONFIG", "SET", "maxmemory", "1")
    return lambda: broker.ask("CONFIG", "SET", "maxmemory", "0")


def read_only_replica(broker: Client, server: Server) -> Callable[[], object]:
    broker.ask("REPLICAOF", "127.0.0.1", "1")
    return lambda: broker.ask("REPLICAOF", "NO", "ONE")


def without_replicas(broker: Client, server: Server) -> Callable[[], object]:
    broker.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    return lambda: broker.ask("CONFIG", "SET", "min-replicas-to-write", "0")


def that_can_not_save(broker: Client, server: Server) -> Callable[[], object]:
    """MISCONF: the last snapshot failed, for where it is to be written there is something else."""
    [_, folder] = broker.ask("CONFIG", "GET", "dir")
    blocked = Path(folder.decode(), "dump.rdb")
    blocked.mkdir()
    broker.ask("CONFIG", "SET", "save", "3600 1")
    broker.ask("SET", "unsaved", "1")
    broker.ask("BGSAVE")
    until(lambda: b"rdb_last_bgsave_status:err" in broker.ask("INFO", "persistence"), "the snapshot to fail")

    def mend() -> None:
        blocked.rmdir()
        broker.ask("CONFIG", "SET", "save", "")

    return mend


def asked(daemon: Daemon, path: str) -> tuple[int, str]:
    """Give the status and the body of an answer."""
    try:
        with urlopen(daemon.url(path, "http"), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("goes_wrong", "code"),
    [
        (out_of_memory, "OOM"),
        (read_only_replica, "READONLY"),
        (without_replicas, "NOREPLICAS"),
        (that_can_not_save, "MISCONF"),
    ],
)
def test_while_the_broker_refuses_to_write_nothing_is_taken_all_is_read_and_it_goes_on_by_itself(
    tmp_path: Path, goes_wrong: Callable[[Client, Server], Callable[[], object]], code: str
) -> None:
    server = Server()
    try:
        server.start("--dir", str(tmp_path))
        with Daemon(tmp_path / "chatd", "--redis", server.url) as daemon, Client(server.path) as broker:
            with witness(daemon, "refusing") as program, daemon.connect("refusing") as hearer:
                until(program.is_taken, "it to be taken")
                mend = goes_wrong(broker, server)
                until(program.is_refused, "a refusal")
                workers = daemon.worker_pids()
                until(lambda: not any(map(daemon.ready, workers)), "each worker to know, also where nobody writes")
                status, why = asked(daemon, "-/readyz")
                assert (status, json.loads(why)["error"]) == (503, "unavailable")
                assert code in why
                until(lambda: "\nchatd_buses_live 0.0\n" in asked(daemon, "-/metrics")[1], "the metrics to say so")
                for path in ("-/healthz", "refusing", "refusing/members", "-/rooms", "new", "new/members"):
                    assert (path, asked(daemon, path)[0]) == (path, 200)
                assert "refusing 1" in asked(daemon, "refusing")[1]
                with daemon.connect("new") as pipe, daemon.connect("new", "chatd.v1") as reader:
                    assert json.loads(reader.recv(20))["nick"] is None
                    assert json.loads(reader.recv(20))["epoch"] == "none"
                    reader.send('{"type":"join","room":"refusing","since":{"last":5}}')
                    assert json.loads(reader.recv(20))["messages"][0]["text"] == "refusing 1"
                    reader.send('{"type":"history","room":"refusing"}')
                    assert json.loads(reader.recv(20))["messages"][0]["text"] == "refusing 1"
                    assert daemon.log().count("Traceback") == 0
                    mend()
                    until(lambda: all(map(daemon.ready, workers)), "each worker to be ready again by itself")
                    with daemon.connect("new") as talker:
                        talker.send("it goes on")
                    assert pipe.recv(20) == "it goes on"
                    told: list[dict[str, object]] = []
                    while not told or told[-1].get("text") != "it goes on":
                        told.append(json.loads(reader.recv(20)))
                    assert "gap" not in {each["type"] for each in told}
                until(program.is_taken, "the end of it")
                last = program.acknowledged[-1]
                heard = [each.removeprefix("witness: ") for each in hear(hearer, f"witness: {last}")]
                assert [each for each in heard if each in program.acknowledged] == program.acknowledged
            log = daemon.folder / "logs/chat.log"
            assert "each is in the logs once" in verified(daemon, log, "--redis", server.url)
    finally:
        server.close()


# The clock


def test_a_clock_that_is_set_changes_nothing_but_the_times(tmp_path: Path) -> None:
    [library] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Daemon(tmp_path, env=env) as daemon:
        first, second = daemon.worker_pids()
        with witness(daemon, "clock", first) as one, witness(daemon, "clock", second) as other:
            for step in ("+0", "+3600", "-3600", "+0", "+1800", "-30"):
                offset.write_text(step)
                until(one.is_taken, "it to be taken")
                until(other.is_taken, "it to be taken")
            said = one.number + other.number
            with daemon.connect(f"clock?last={said}") as late:
                heard = [str(late.recv(20)) for _ in range(said)]
            assert len(set(heard)) == said
        hours = {line[:13] for line in daemon.chat_lines()}
        assert len(hours) >= 3, "the clock was set"
        assert daemon.worker_pids() == [first, second], "nobody was taken for dead"
        assert "Traceback" not in daemon.log()
        assert not [line for line in daemon.log().splitlines() if "broker_unavailable: " in line]


# Its own processes


def test_while_the_parent_is_frozen_workers_serve_on_and_none_is_taken_for_dead_after_it(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--tuning", "worker_heartbeat_timeout=4") as daemon:
        workers = daemon.worker_pids()
        with stopped(daemon.process.pid):
            end = time.monotonic() + 6  # longer than a worker may be silent
            while time.monotonic() < end:
                daemon.say("frozen", "hello")
        daemon.say("frozen", "hello again")
        os.kill(daemon.process.pid, signal.SIGHUP)
        daemon.wait_for("drain_started: ")
        assert "sent no heartbeat" not in daemon.log()
        assert not set(workers) & {int(pid) for pid in _killed(daemon)}


def _killed(daemon: Daemon) -> list[str]:
    return [line.rpartition("(pid ")[2].partition(")")[0] for line in daemon.log().splitlines() if "killed by" in line]


def test_a_worker_without_memory_costs_its_own_clients_at_most_and_the_service_goes_on(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-message-size", "1048576", "--history-size", "0") as daemon:
        poor, rich = daemon.worker_pids()
        with daemon.connect_to(rich, "memory?nick=rich") as other, daemon.connect_to(rich, "memory") as hearer:
            used = int(Path(f"/proc/{poor}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
            subprocess.run(["prlimit", f"--pid={poor}", f"--as={used + 1_000_000}:"], check=True)
            for _ in range(20):
                try:
                    with daemon.connect_to(poor, "hungry") as client:
                        for _ in range(20):
                            client.send("x" * 1_000_000)
                except (ConnectionClosed, OSError, EOFError, AssertionError):
                    break
            other.send("still here")
            assert hear(hearer, "rich: still here")
        if poor in daemon.worker_pids():
            subprocess.run(["prlimit", f"--pid={poor}", "--as=unlimited:"], check=True)
        until(lambda: len(daemon.worker_pids()) == 2, "two workers")
        daemon.say("after", "all is well")


CRASHES = """\
import os, sys
if "chatd.worker" in sys.orig_argv and os.path.exists(os.environ["CRASH"]):
    print("I can not start", file=sys.stderr)
    os._exit(3)
"""


def test_a_worker_that_crashes_at_its_start_is_tried_again_ever_more_rarely_and_why_is_said(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(CRASHES)
    flag = tmp_path / "crash"
    flag.touch()
    env = {"PYTHONPATH": str(tmp_path / "path"), "CRASH": str(flag)}
    with Daemon(tmp_path / "chatd", "--listen", "tcp:0:interface=127.0.0.1", env=env, wait=False) as daemon:
        for wait in ("0.1", "0.2"):
            daemon.wait_for(
                rf"worker_ended: .* ended: exit status 3: I can not start; a replacement starts in {wait} s"
            )
        assert "_ready: " not in daemon.log()
        flag.unlink()
        daemon.wait_for("server_ready: ")


# A broker of little memory


def _kept(daemon: Daemon, room: str) -> int:
    """Return how many messages of a room can be read yet."""
    with urlopen(daemon.url(f"{room}?last=1000", "http")) as answer:
        return len(answer.read().splitlines())


def test_a_flood_of_many_rooms_drops_old_histories_and_stops_nobody(tmp_path: Path) -> None:
    flood = [f"{number} {'x' * 16_000}" for number in range(64)]
    with Daemon(tmp_path, "--redis-maxmemory", "32MiB") as daemon:
        with daemon.connect("other") as hearer, daemon.connect("other") as speaker:
            for number in range(50):
                daemon.say(f"flood{number}", *flood)
                speaker.send(f"line {number}")
            lines = [f"line {number}" for number in range(50)]
            assert hear(hearer, lines[-1]) == lines
        assert _kept(daemon, "flood0") < 64
        assert _kept(daemon, "flood0") <= _kept(daemon, "flood49")
        with urlopen(daemon.url("-/metrics", "http")) as answer:
            metrics = answer.read().decode()
        assert re.search(r"^chatd_histories_dropped_total [1-9]", metrics, re.MULTILINE)
        assert re.search(r"^chatd_broker_memory_limit_bytes 3.3554432e\+07$", metrics, re.MULTILINE)
        daemon.wait_for("history_eviction_started: .* of 32 MiB")
        texts = daemon.texts()
        assert sorted(text for text in texts if "xxx" in text) == sorted(flood * 50)
        assert [text for text in texts if text.startswith("line ")] == lines
