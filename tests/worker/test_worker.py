"""A worker: its parts alone, and a real one driven over its pipes as the parent does."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect, unix_connect

from chatd.chatlog.lock import LogLock
from chatd.config.settings import Config
from chatd.protocol.close_codes import too_slow
from chatd.runtime.ipc import (
    DRAIN,
    HOLD,
    LISTEN,
    STOP,
    Assignment,
    Heartbeat,
    ListeningSocket,
    LogRecord,
    PublishingStopped,
    Ready,
    Report,
    encode,
    read_report,
)
from chatd.worker.worker import InheritedSockets, SupervisorPipe
from tests.broker.server import Server
from tests.frames import CLOSE, Heard, close_frame, frame, handshake, heard, websocket_over_tls
from tests.waiting import until

# Its lifeline


class Orders:
    """Stands where the worker is, and remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def order(self, order: str) -> None:
        self.heard.append(order)

    def stop(self) -> None:
        self.heard.append("the end")


class Pipe:
    """A lifeline and its two ends."""

    def __init__(self) -> None:
        self.orders = Orders()
        orders: Any = self.orders
        self.supervisor_pipe = SupervisorPipe(orders, most=800)
        self.transport: Any = StringTransport()
        self.supervisor_pipe.makeConnection(self.transport)

    def said(self) -> list[Report]:
        return [read_report(line) for line in self.transport.value().splitlines()]


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def test_orders_are_passed_on(pipe: Pipe) -> None:
    data = encode(HOLD) + encode(STOP)
    pipe.supervisor_pipe.dataReceived(data[:4])
    pipe.supervisor_pipe.dataReceived(data[4:])
    assert pipe.orders.heard == [HOLD, STOP]


def test_the_end_of_the_pipe_stops_the_worker(pipe: Pipe) -> None:
    pipe.supervisor_pipe.connectionLost()
    assert pipe.orders.heard == ["the end"]


def test_a_report_is_a_line(pipe: Pipe) -> None:
    pipe.supervisor_pipe.say(Ready())
    pipe.supervisor_pipe.say(LogRecord("info", "two\nlines"))
    assert pipe.said() == [Ready(), LogRecord("info", "two\nlines")]


def test_what_the_parent_waits_for_is_never_dropped(pipe: Pipe) -> None:
    pipe.transport.producer.pauseProducing()
    pipe.supervisor_pipe.say(Ready())
    pipe.supervisor_pipe.say(LogRecord("info", "lost"))
    pipe.supervisor_pipe.say(PublishingStopped())
    assert pipe.said() == [Ready(), PublishingStopped()]


def test_what_a_parent_does_not_read_is_dropped_and_counted(pipe: Pipe) -> None:
    pipe.transport.producer.pauseProducing()
    for _ in range(3):
        pipe.supervisor_pipe.say(LogRecord("info", "lost"))
    assert pipe.said() == []
    pipe.transport.producer.resumeProducing()
    pipe.supervisor_pipe.say(PublishingStopped())
    [dropped, stopped] = pipe.said()
    assert isinstance(dropped, LogRecord)
    assert (dropped.event, stopped) == ("log_events_dropped", PublishingStopped())
    assert dropped.text == "dropped 3 log events because the supervisor did not read them"


def test_drops_are_told_once(pipe: Pipe) -> None:
    pipe.transport.producer.pauseProducing()
    pipe.supervisor_pipe.say(LogRecord("info", "lost"))
    for _ in range(3):
        pipe.transport.producer.resumeProducing()
    assert len(pipe.said()) == 1


def test_an_event_of_ours_goes_to_the_servers_own_log(pipe: Pipe) -> None:
    Logger(namespace="chatd.room", observer=pipe.supervisor_pipe).info("{who} is here", who="ann", event="greeted")
    assert pipe.said() == [LogRecord("info", "ann is here", namespace="chatd.room", event="greeted")]


def test_numbers_and_reasons_go_along_and_what_clients_are_called_does_not(pipe: Pipe) -> None:
    log = Logger(namespace="chatd.room", observer=pipe.supervisor_pipe)
    log.warn("{count} of {who} in {room}: {why}", count=3, who="ann", room="ops", why="it is full")
    [said] = pipe.said()
    assert isinstance(said, LogRecord)
    assert said.fields == {"count": 3, "why": "it is full"}


def test_what_others_say_goes_there_from_warnings_on(pipe: Pipe) -> None:
    log = Logger(namespace="twisted.web", observer=pipe.supervisor_pipe)
    log.info("chatter")
    log.warn("careful")
    Logger(namespace="chatd.room", observer=pipe.supervisor_pipe).debug("details")
    assert pipe.said() == [LogRecord("warn", "careful", namespace="twisted.web")]


def test_an_event_is_cut_to_a_share_of_the_longest_line(pipe: Pipe) -> None:
    Logger(namespace="chatd.room", observer=pipe.supervisor_pipe).info("{text}", text="x" * 1000)
    [said] = pipe.said()
    assert isinstance(said, LogRecord)
    assert said.text == "x" * 100


def test_a_failure_goes_there_with_its_traceback(pipe: Pipe) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        Logger(namespace="chatd.room", observer=pipe.supervisor_pipe).failure("it failed")
    (report,) = pipe.said()
    assert isinstance(report, LogRecord)
    assert report.level == "critical"
    assert report.text.startswith("it failed\nTraceback")


def test_before_there_is_a_pipe_reports_are_dropped() -> None:
    orders: Any = Orders()
    SupervisorPipe(orders, most=800).say(Ready())


# The sockets it inherits


class Adopting:
    """A reactor that adopts sockets, and remembers which."""

    def __init__(self) -> None:
        self.adopted: list[tuple[int, int, Any]] = []

    def seconds(self) -> float:
        return 42.0

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> str:  # noqa: N802 - Twisted's name
        assert not os.get_blocking(descriptor)
        self.adopted.append((descriptor, family, factory))
        return "a port"


@pytest.fixture
def descriptor() -> int:
    """Give a descriptor of a listening socket, for the code under test to close."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        return os.dup(listening.fileno())


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("endpoint", ["tcp:3000", "tcp6:3000", "unix:/run/none.sock", "haproxy:tcp:3000"])
def test_an_endpoint_uses_the_inherited_socket(descriptor: int, endpoint: str) -> None:
    reactor = Adopting()
    inherited = InheritedSockets(reactor, ListeningSocket(endpoint, descriptor))
    serverFromString(inherited, endpoint).listen(Factory())
    assert [each[:2] for each in reactor.adopted] == [(descriptor, int(socket.AF_INET))]
    assert not is_open(descriptor)


def test_an_endpoint_with_tls_uses_the_inherited_socket_with_tls(descriptor: int, certificate: Path) -> None:
    reactor = Adopting()
    endpoint = f"ssl:3000:privateKey={certificate}:certKey={certificate}"
    inherited = InheritedSockets(reactor, ListeningSocket(endpoint, descriptor))
    serverFromString(inherited, endpoint).listen(Factory())
    ((_, _, factory),) = reactor.adopted
    assert isinstance(factory, TLSMemoryBIOFactory)
    assert not is_open(descriptor)


def test_for_anything_else_it_is_the_real_reactor() -> None:
    assert InheritedSockets(Adopting(), ListeningSocket("tcp:0", 3)).seconds() == 42.0


# A real one


class RunningWorker:
    """A worker process, driven over its pipes."""

    def __init__(self, assignment: Assignment | None, descriptors: tuple[int, ...]) -> None:
        self.reports: list[Report] = []
        """What it said, but for how it is."""
        self.heartbeats: list[Heartbeat] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "chatd.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if assignment is not None:
            self.tell(assignment)
            self.tell(LISTEN)

    def tell(self, value: Assignment | str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(encode(value))
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_for(self, report: Report) -> None:
        until(lambda: report in self.reports, f"{report} among {self.reports}")

    def wait_for_event(self, event: str) -> None:
        until(lambda: event in self.events(), f"{event} in {self.reports}")

    def events(self) -> list[str]:
        """Return the ids of all log events so far."""
        return [report.event for report in self.reports if isinstance(report, LogRecord)]

    def exit_status(self) -> int:
        return self.process.wait(20)

    def end(self) -> str:
        """End it, if it has not ended yet; give what it wrote to standard error."""
        assert self.process.stderr is not None
        self.process.kill()
        self.process.wait()
        self._reader.join()
        with self.process.stderr as stderr:
            said = stderr.read().decode()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return said

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                report = read_report(line)
                if isinstance(report, Heartbeat):
                    self.heartbeats.append(report)
                else:
                    self.reports.append(report)


class Station:
    """Starts a worker on a port of its own, with a room on the broker of its own."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.broker = broker
        self.port = 0

    @contextmanager
    def worker(
        self, endpoint: str = "tcp:0:interface=127.0.0.1", *, path: str = "", broker: str = "", **options: Any
    ) -> Iterator[RunningWorker]:
        """Run a worker that is ready where there is a broker; see in the end that it wrote nothing to its stderr."""
        family = socket.AF_UNIX if path else socket.AF_INET
        with socket.socket(family) as listening:
            listening.bind(path or ("127.0.0.1", 0))
            listening.listen()
            self.port = 0 if path else listening.getsockname()[1]
            listener = ListeningSocket(endpoint, listening.fileno())
            config = Config(chat_log=str(self.folder / "chat.log"), **{"redis_prefix": uuid.uuid4().hex, **options})
            assignment = Assignment(config, (broker or self.broker,), (listener,))
            worker = RunningWorker(assignment, (listening.fileno(),))
            try:
                if not broker:
                    worker.wait_for(Ready())
                yield worker
            finally:
                said = worker.end()
        assert said == ""

    def client(self, path: str = "/") -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None)

    def raw(self, data: bytes) -> socket.socket:
        """Give a socket on which data is sent."""
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        client.sendall(data)
        return client

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def station(tmp_path: Path, valkey_url: str) -> Station:
    return Station(tmp_path, valkey_url)


def close_code(client: ClientConnection) -> int | None:
    """Wait until the server closes; give the code."""
    with pytest.raises(ConnectionClosed):
        client.recv(20)
    return client.close_code


def talks(first: ClientConnection, second: ClientConnection) -> bool:
    """Tell whether what the first one says reaches the second one."""
    first.send("hello\n")
    return second.recv(20) == "hello"


def test_a_worker_that_is_ready_serves_and_logs(station: Station) -> None:
    with station.worker() as worker, station.client() as ann, station.client() as bob:
        assert talks(ann, bob)
        assert (station.folder / "chat.log").read_text().count("hello") == 1
        assert station.get("/-/healthz") == (200, "ok\n")
        assert station.get("/-/readyz") == (200, "ready\n")
        assert worker.reports == [Ready()]


def test_the_heartbeat_before_a_worker_is_ready_says_that_the_broker_is_there(station: Station) -> None:
    with station.worker(worker_heartbeat_interval=1000.0) as worker:
        assert [heartbeat.away for heartbeat in worker.heartbeats] == ["not connected yet", ""]


def test_hold_publishes_what_was_taken_and_says_so(station: Station) -> None:
    with station.worker() as worker, station.client() as ann, station.client() as bob:
        assert talks(ann, bob)
        worker.tell(HOLD)
        worker.wait_for(PublishingStopped())
        ann.send("too late")
        worker.tell(STOP)
        assert close_code(bob) == 1001
        assert "too late" not in (station.folder / "chat.log").read_text()


def test_hold_leaves_the_port_to_whoever_else_has_it(station: Station) -> None:
    def listens(pid: int) -> bool:
        """Whether a process has a socket that listens (proc(5): state 0A)."""
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
        return any(os.readlink(each) in listening for each in Path(f"/proc/{pid}/fd").iterdir())

    with station.worker() as worker:
        assert listens(worker.process.pid)
        worker.tell(HOLD)
        worker.wait_for(PublishingStopped())
        until(lambda: not listens(worker.process.pid), "the port to be left")


def test_stop_closes_the_clients_with_1001_and_ends(station: Station) -> None:
    with station.worker() as worker, station.client() as ann, station.client("/ops") as bob:
        worker.tell(STOP)
        assert (close_code(ann), close_code(bob)) == (1001, 1001)
        assert worker.exit_status() == 0


def test_stop_does_not_wait_for_a_client_that_does_not_answer(station: Station) -> None:
    with station.worker(close_timeout=0.05) as worker, station.client() as ann, station.raw(handshake()) as silent:
        assert silent.recv(12) == b"HTTP/1.1 101"
        worker.tell(STOP)
        assert close_code(ann) == 1001
        assert worker.exit_status() == 0
        with pytest.raises(ConnectionResetError):
            while silent.recv(4096):
                pass


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_one_that_has_drained_ends_when_the_broker_has_the_positions_of_its_clients_or_it_is_told_to(
    tmp_path: Path, told_to_stop: bool
) -> None:
    with Server() as broker:
        broker.start()
        station = Station(tmp_path, broker.url)
        options: dict[str, Any] = {"drain_timeout": 0, "redis_prefix": "p", "stop_timeout": 0.5}
        with station.worker(**options) as worker, station.client("/ops?resume=a-key-of-mine") as client:
            with broker.unreachable():
                worker.tell(DRAIN)
                assert close_code(client) == 1012
                worker.wait_for_event("drain_delayed")
                if told_to_stop:
                    worker.tell(STOP)
                    assert worker.exit_status() == 0
            assert worker.exit_status() == 0
            left = broker.ask("HGET", "p:place:a-key-of-mine:ops", "session") == b""
            assert left is not told_to_stop


def test_stop_does_not_wait_for_whoever_holds_the_lock_of_the_chat_log(tmp_path: Path) -> None:
    log = tmp_path / "chat.log"
    lock = LogLock(str(log))
    knobs: dict[str, Any] = {"stop_publish_timeout": 0.1, "stop_timeout": 1.0, "chat_log_lock_timeout": 1000.0}
    with Server() as server:
        server.start()
        station = Station(tmp_path, server.url)
        with station.worker(**knobs) as worker, station.client() as ann:
            server.freeze()
            ann.send("hello")
            until(lambda: log.exists() and "hello" in log.read_text(), "the message to be logged")
            until(lock.take, "the lock")
            worker.tell(HOLD)
            worker.tell(STOP)
            assert worker.exit_status() == 0
            worker.wait_for_event("logged_messages_unpublished")
            lock.close()
        assert not any("Unhandled" in report.text for report in worker.reports if isinstance(report, LogRecord))


@pytest.mark.parametrize(
    "stop", [RunningWorker.hang_up, lambda worker: worker.process.terminate()], ids=["end of the pipe", "SIGTERM"]
)
def test_without_a_parent_or_when_told_to_end_it_stops_in_order(
    station: Station, stop: Callable[[RunningWorker], None]
) -> None:
    with station.worker() as worker, station.client() as ann:
        stop(worker)
        assert close_code(ann) == 1001
        assert worker.exit_status() == 0


def test_ctrl_c_is_for_the_parent(station: Station) -> None:
    with station.worker() as worker, station.client() as ann, station.client() as bob:
        worker.process.send_signal(signal.SIGINT)
        assert talks(ann, bob)
        worker.tell(STOP)
        assert worker.exit_status() == 0
        assert worker.reports == [Ready()]


def test_one_that_gets_no_assignment_ends() -> None:
    worker = RunningWorker(None, ())
    worker.hang_up()
    assert worker.exit_status() == 0
    assert worker.end() == ""
    assert worker.reports == []


def test_one_without_a_broker_serves_and_is_not_ready(station: Station) -> None:
    with station.worker(broker=f"unix://{station.folder}/none.sock", subscribe_timeout=0.1) as worker:
        assert station.get("/-/healthz") == (200, "ok\n")
        status, body = station.get("/-/readyz")
        assert (status, json.loads(body)["error"]) == (503, "unavailable")
        worker.tell(STOP)
        assert worker.exit_status() == 0
        assert Ready() not in worker.reports


def test_one_that_cannot_adopt_its_port_says_why_and_ends(station: Station) -> None:
    config = Config(chat_log=str(station.folder / "chat.log"))
    listener = ListeningSocket("tcp:0", 99)
    worker = RunningWorker(Assignment(config, (station.broker,), (listener,)), ())
    assert worker.exit_status() == 1
    assert worker.end() == ""
    assert worker.events() == ["socket_inheritance_failed"]


def test_tls_serves_both_websockets_and_http(station: Station, certificate: Path) -> None:
    trust = ssl.create_default_context(cafile=str(certificate))
    with station.worker(f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1") as worker:
        address = ("127.0.0.1", station.port)
        with websocket_over_tls(address, trust) as ann, websocket_over_tls(address, trust) as bob:
            ann.sendall(frame(b"hello"))
            assert bob.recv(7) == b"\x81\x05hello"
            with urlopen(f"https://localhost:{station.port}/-/healthz", timeout=20, context=trust) as answer:
                assert answer.read() == b"ok\n"
            worker.tell(STOP)
            assert ann.recv(4)[2:] == (1001).to_bytes(2)
        assert worker.exit_status() == 0


def test_a_unix_socket_serves_too(station: Station) -> None:
    path = str(station.folder / "chatd.sock")
    with station.worker(f"unix:{path}", path=path), unix_connect(path, uri="ws://localhost/") as ann:
        with unix_connect(path, uri="ws://localhost/") as bob:
            assert talks(ann, bob)
        assert " -@unix " in (station.folder / "chat.log").read_text()


def test_a_client_that_never_reads_falls_behind_and_hurts_nobody(station: Station) -> None:
    with (
        station.worker(max_send_buffer=100_000, client_report_interval=0.05) as worker,
        station.client() as ann,
        station.client() as bob,
        station.raw(handshake()) as deaf,
    ):
        assert deaf.recv(12) == b"HTTP/1.1 101"
        for _ in range(700):  # 11 MB: more than the kernel keeps for one socket
            ann.send("x" * 16_000)
            assert len(bob.recv(20)) == 16_000
        worker.wait_for_event("slow_consumers_detected")
        assert talks(ann, bob)


@pytest.mark.parametrize("ended", ["by a ping without an answer", "by a stop"])
def test_what_had_not_reached_a_client_that_was_given_up_is_sent_to_it_again(station: Station, ended: str) -> None:
    """It vanished without a word: its kernel takes no more, and nobody answers."""
    lines = [f"{number:04d}".ljust(4000, "x") for number in range(500)]
    patience = 0.3 if "ping" in ended else 60.0
    prefix = uuid.uuid4().hex
    options: dict[str, Any] = {
        "ping_interval": patience,
        "pong_timeout": patience,
        "stalled_client_timeout": patience,
        "close_timeout": 0.2,
        "redis_prefix": prefix,
    }
    with station.worker(**options) as worker, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(20)
        deaf.connect(("127.0.0.1", station.port))
        deaf.sendall(handshake("/?resume=abcdefgh"))
        assert deaf.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 101"
        with station.client() as ann, station.client() as bob:
            for line in lines:
                ann.send(line)
                assert bob.recv(20) == line
        if "stop" in ended:
            worker.tell(STOP)
            assert worker.exit_status() == 0
        else:
            until(lambda: deaf.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\7", "the client to be given up")
        had = deaf.recv(10_000_000, socket.MSG_PEEK).count(b"\x81\x7e")
    with station.worker(redis_prefix=prefix), station.client("/?resume=abcdefgh") as back:
        got = [back.recv(20)]
        while got[-1] != lines[-1]:
            got.append(back.recv(20))
    assert got == lines[len(lines) - len(got) :]
    assert len(lines) - len(got) <= had < len(lines)  # from where it had come to, or before that


class SlowOverTls:
    """Three clients over TLS: one says 700 messages, one hears them, and one begins to read when they are said."""

    COUNT, PAYLOAD = 700, b"x" * 16_000

    def __init__(self, station: Station, certificate: Path) -> None:
        self.endpoint = f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1"
        self._trust = ssl.create_default_context(cafile=str(certificate))
        self._station = station

    @contextmanager
    def reading(self) -> Iterator[Callable[[Callable[[bytes], bool]], Heard]]:
        """Say all; give what then reads as the slow one until its last bytes are as they should be."""
        address = ("127.0.0.1", self._station.port)
        with (
            websocket_over_tls(address, self._trust) as ann,
            websocket_over_tls(address, self._trust) as bob,
            websocket_over_tls(address, self._trust) as slow,
        ):
            for number in range(self.COUNT):
                ann.sendall(frame(b"%03d" % number + self.PAYLOAD))
                left = 16_007
                while left:
                    left -= len(bob.recv(left))
            ann.sendall(frame(b"that is all"))

            def read(ends: Callable[[bytes], bool]) -> Heard:
                data = bytearray()
                while not ends(bytes(data[-200:])):
                    chunk = slow.recv(1_000_000)
                    assert chunk, data[-200:]
                    data += chunk
                return heard(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + bytes(data))

            yield read


def test_over_tls_a_client_that_reads_again_gets_all(station: Station, certificate: Path) -> None:
    clients = SlowOverTls(station, certificate)
    with station.worker(clients.endpoint, max_send_buffer=100_000) as worker, clients.reading() as read:
        worker.wait_for_event("slow_consumers_detected")
        *texts, last = read(lambda tail: tail.endswith(b"that is all")).texts
    assert [text[:3] for text in texts] == [f"{number:03d}" for number in range(clients.COUNT)]
    assert last == "that is all"


def test_over_tls_and_without_history_a_client_that_reads_again_is_told_what_it_missed(
    station: Station, certificate: Path
) -> None:
    clients = SlowOverTls(station, certificate)
    with (
        station.worker(clients.endpoint, max_send_buffer=100_000, history_size=0, close_timeout=60),
        clients.reading() as read,
    ):
        *texts, last = read(lambda tail: b"read too slowly" in tail).frames
    assert [text[:3] for _, text in texts] == [b"%03d" % number for number in range(len(texts))]
    missed = int(last[1].split()[3])
    assert last == (CLOSE, (1013).to_bytes(2) + too_slow(missed).reason.encode())
    assert 0 < missed <= clients.COUNT - len(texts)  # it is told when the kernel has taken what waited for it


def read_to_the_end(client: socket.socket) -> bytes:
    """Read until the connection ends, in order."""
    data = b""
    while chunk := client.recv(1_000_000):
        data += chunk
    return data


def test_a_slow_client_that_closes_hears_all_that_waited_for_it_and_the_connection_ends(station: Station) -> None:
    count = 900  # 14 MB: some of it waits for the client to read
    with (
        station.worker(max_send_buffer=100_000_000, close_timeout=600),
        station.client() as ann,
        station.client() as bob,
        station.raw(handshake()) as slow,
    ):
        for _ in range(count):
            ann.send("x" * 16_000)
            assert len(bob.recv(20)) == 16_000
        slow.sendall(close_frame())
        answer = heard(read_to_the_end(slow))
    assert [len(text) for text in answer.texts] == [16_000] * count
    assert answer.close_code == 1000


def test_over_tls_a_close_ends_the_connection_at_once(station: Station, certificate: Path) -> None:
    trust = ssl.create_default_context(cafile=str(certificate))
    endpoint = f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1"
    with (
        station.worker(endpoint, close_timeout=600),
        websocket_over_tls(("127.0.0.1", station.port), trust) as client,
    ):
        client.sendall(close_frame())
        assert read_to_the_end(client) == b"\x88\x02\x03\xe8"


def test_a_head_far_too_long_is_answered_on_a_real_socket(station: Station) -> None:
    with station.worker(), station.raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 102_400) as client:
        assert client.recv(65_536).startswith(b"HTTP/1.1 431 ")
