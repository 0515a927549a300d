import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as real_reactor
from twisted.trial.unittest import TestCase

from chatd import __version__
from chatd.config.settings import Config
from chatd.config.values import BadValue
from chatd.runtime.ipc import HOLD, STOP, PublishingStopped, Ready, encode, read_assignment
from chatd.supervisor import worker_pool
from chatd.supervisor.private_broker import find_server
from chatd.supervisor.service import ChatService
from tests.supervisor.children import FakeProcess, FakeReactor, Said
from tests.supervisor.test_reload import WORKER

CONFIG = Config(listen=("tcp:0:interface=127.0.0.1",), workers=2)
REDIS = "redis://ann:secret@192.0.2.7:6380/3"


class Fixture:
    """A daemon whose children are none."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.over: list[str] = []
        self.daemon: ChatService

    def make(
        self,
        *,
        redis: str = "",
        listen: tuple[str, ...] = CONFIG.listen,
        chat_log: str = "chat.log",
        state: str = "",
        **more: Any,
    ) -> ChatService:
        config = Config(listen=listen, workers=2, redis=(redis,) if redis else (), chat_log=chat_log, data_dir=state)
        config = replace(config, **more)
        self.daemon = ChatService(self.reactor, config, "" if redis else "/opt/valkey-server", lambda: config)
        return self.daemon

    def start(self, *, redis: str = "", listen: tuple[str, ...] = CONFIG.listen, **more: Any) -> list[FakeProcess]:
        self.make(redis=redis, listen=listen, **more)
        self.daemon.privilegedStartService()
        self.daemon.startService()
        return self.reactor.processes

    def stop(self) -> list[str]:
        self.daemon.stopService().addCallback(lambda _: self.over.append("stopped"))
        return self.over


@pytest.fixture(autouse=True)
def _of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run as any user, for root is warned; where a chat log may be made."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.chdir(tmp_path_factory.mktemp("logs"))


@pytest.fixture
def of() -> Iterator[Fixture]:
    made = Fixture()
    yield made
    if made.daemon.running:
        made.stop()
    for process in reversed(made.reactor.processes):
        if not process.gone:
            process.end()


def urls(said: Said) -> list[str]:
    return [line.split("websocat ")[1] for line in said.lines if "websocat" in line]


def orders(process: FakeProcess) -> list[str]:
    return [json.loads(line) for line in process.told[2:]]


# Starting


@pytest.mark.parametrize(("uid", "warned"), [(0, True), (1000, False)])
def test_root_is_warned(of: Fixture, said: Said, monkeypatch: pytest.MonkeyPatch, uid: int, warned: bool) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    of.start()
    assert any(line.startswith("warn: chatd runs as root; ") for line in said.lines) is warned


def test_ports_are_bound_before_privileges_are_shed_and_nothing_is_started_yet(of: Fixture, tmp_path: Path) -> None:
    path = str(tmp_path / "chat.sock")
    daemon = of.make(listen=(f"unix:{path}",))
    assert not os.path.exists(path)
    daemon.privilegedStartService()
    assert os.path.exists(path)
    assert of.reactor.processes == []
    daemon.startService()


def test_a_port_that_cannot_be_had_ends_the_start(of: Fixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        daemon = of.make(listen=(f"tcp:{other.getsockname()[1]}:interface=127.0.0.1",))
        with pytest.raises(BadValue, match="Address already in use"):
            daemon.privilegedStartService()
    assert of.reactor.processes == []


def test_the_broker_is_started_before_the_workers_which_are_told_of_it(of: Fixture) -> None:
    broker, *workers = of.start()
    assert "/opt/valkey-server" in broker.command
    assert [worker.command for worker in workers] == [list(worker_pool.COMMAND)] * 2
    told = [read_assignment(worker.told[0]) for worker in workers]
    expected = (f"unix://{broker.folder}/broker.sock",), ""
    assert [(assignment.brokers, assignment.lineage) for assignment in told] == [expected] * 2


def test_with_a_redis_server_no_broker_is_started_and_the_data_dir_is_left_alone(of: Fixture, tmp_path: Path) -> None:
    processes = of.start(redis=REDIS, data_dir=str(tmp_path / "state"))
    assert [process.command for process in processes] == [list(worker_pool.COMMAND)] * 2
    told = [read_assignment(process.told[0]) for process in processes]
    assert [(assignment.brokers, assignment.lineage) for assignment in told] == [((REDIS,), "")] * 2
    assert list(tmp_path.iterdir()) == []


def test_chat_log_and_data_dir_are_relative_to_where_it_was_started_wherever_twistd_goes(
    of: Fixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    daemon = of.make(chat_log="logs/chat.log", data_dir="state")
    daemon.privilegedStartService()
    monkeypatch.chdir("/")
    daemon.startService()
    broker, *workers = of.reactor.processes
    assert broker.folder == str(tmp_path / "state" / "broker")
    lineage = Path(broker.folder, "lineage").read_text().split()[0]
    for assignment in (read_assignment(worker.told[0]) for worker in workers):
        assert assignment.config.chat_log == str(tmp_path / "logs" / "chat.log")
        assert (assignment.config.data_dir, assignment.lineage) == (str(tmp_path / "state"), lineage)


# Ready


def test_once_all_are_ready_the_log_says_where_to_connect_and_where_the_chat_log_is(
    of: Fixture, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    _, first, second = of.start()
    first.say(encode(Ready()))
    assert urls(said) == []
    second.say(encode(Ready()))
    ready, connect, chat_log, connections = said.lines[-4:]
    assert ready == f"info: chatd {__version__} is ready: 2 workers, messages go through a private Valkey"
    host, port = connect.removeprefix("info: connect with: websocat ws://").split(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port))):
        pass
    assert chat_log == f"info: chat log: {tmp_path}/chat.log"
    assert re.fullmatch(r"info: connection limit: \d+ \(\d+ per worker, which may open .+ files\)", connections)


def test_each_way_to_connect_is_said(of: Fixture, said: Said, tmp_path: Path) -> None:
    for worker in of.start(listen=(*CONFIG.listen, f"unix:{tmp_path}/chat.sock"))[1:]:
        worker.say(encode(Ready()))
    assert [url.split(":")[0] for url in urls(said)] == ["ws", "--ws-c-uri=ws"]


@pytest.mark.parametrize(
    ("listen", "keys", "warned"),
    [("tcp:0", (), True), ("tcp:0", ("/etc/chatd/key.pem",), False), (CONFIG.listen[0], (), False)],
    ids=["everybody", "with tokens", "loopback"],
)
def test_it_is_warned_of_ports_that_everybody_may_use(
    of: Fixture, said: Said, listen: str, keys: tuple[str, ...], warned: bool
) -> None:
    *_, worker = of.start(listen=(listen,), auth_key=keys, workers=1)
    worker.say(encode(Ready()))
    assert " is ready: 1 worker, " in "".join(said.lines)
    port = urls(said)[0].rpartition(":")[2]
    warning = f"warn: anyone who can reach port {port} can read and write; see --auth-key"
    assert said.lines.count(warning) == warned


def test_the_password_of_the_redis_server_is_not_said(of: Fixture, said: Said) -> None:
    for worker in of.start(redis=REDIS):
        worker.say(encode(Ready()))
    assert said.lines[2].endswith("messages go through redis://192.0.2.7:6380/3")
    assert "secret" not in "".join(said.lines)


# Reload


def test_an_error_of_ours_during_a_reload_is_told_and_the_next_reload_is_tried(
    of: Fixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Said
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify.sock"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
        _, *workers = of.start()
        for worker in workers:
            worker.say(encode(Ready()))
        monkeypatch.setattr(of.daemon, "_reread", lambda: 1 / 0)
        for _ in range(2):
            of.daemon._sighup()
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(65536).decode().split("\n"))
    told = [lines[0] for lines in heard if not lines[0].startswith("STATUS")]
    assert told == ["READY=1", *["RELOADING=1", "READY=1"] * 2]
    assert heard[-1][1].endswith("(not reloaded: internal error, see the log)")
    assert said.lines[-2:] == ["critical: reloading failed"] * 2


# Stopping


def test_a_stop_closes_the_ports_at_once_so_that_another_chatd_may_start(of: Fixture, tmp_path: Path) -> None:
    of.start(listen=(f"unix:{tmp_path}/chat.sock",))
    of.stop()
    assert list(tmp_path.iterdir()) == []


def test_workers_hold_then_stop_then_the_broker_ends(of: Fixture, said: Said) -> None:
    broker, first, second = of.start()
    of.stop()
    assert orders(first) == orders(second) == [HOLD]
    for worker in (first, second):
        worker.say(encode(PublishingStopped()))
    assert orders(first) == orders(second) == [HOLD, STOP]
    first.end()
    assert broker.signals == []
    second.end()
    assert (broker.signals, of.over) == (["TERM"], [])
    broker.end()
    assert of.over == ["stopped"]
    assert said.lines[-1] == "info: chatd has stopped"
    assert of.reactor.getDelayedCalls() == []


def test_a_stop_takes_ten_seconds_at_most_however_stubborn_the_children_are(of: Fixture) -> None:
    broker, first, second = of.start()
    begun = of.reactor.seconds()
    of.stop()
    while not all("KILL" in process.signals for process in of.reactor.processes):
        of.reactor.advance(0.1)
        for worker in (first, second):
            if "KILL" in worker.signals and not worker.gone:
                worker.end(signal=9)
    broker.end(signal=9)
    assert of.over == ["stopped"]
    assert of.reactor.seconds() - begun <= 10.0


@pytest.mark.parametrize("redis", ["", REDIS])
def test_without_a_running_broker_of_ours_the_stop_is_over_when_the_workers_are(of: Fixture, redis: str) -> None:
    *broker, first, second = of.start(redis=redis)
    for process in broker:
        process.end(signal=9)
    of.stop()
    first.end()
    assert of.over == []
    second.end()
    assert of.over == ["stopped"]


def test_one_that_never_started_stops_at_once(of: Fixture) -> None:
    of.make().privilegedStartService()
    assert of.stop() == ["stopped"]


def test_workers_that_become_ready_during_a_stop_make_nobody_connect(of: Fixture, said: Said) -> None:
    _, *workers = of.start()
    of.stop()
    for worker in workers:
        worker.say(encode(Ready()))
    assert urls(said) == []


class RealChildren(TestCase):
    """The same with a real broker, and processes for workers."""

    async def test_all_start_and_none_is_left(self) -> None:
        self.patch(worker_pool, "COMMAND", (sys.executable, "-c", WORKER))
        said = Said.during(self)
        ready = said.next("is ready: 2 workers")
        daemon = ChatService(real_reactor, CONFIG, find_server(), lambda: CONFIG)
        daemon.privilegedStartService()
        daemon.startService()
        await ready
        pids = [event["pid"] for event in said.events if "pid" in event]
        pids += [int(line.split("pid ")[1].split(")")[0]) for line in said.lines if line.endswith("is ready")]
        assert len(pids) == 3
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: ASYNC240 - /proc does not block
        await daemon.stopService()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: ASYNC240 - /proc does not block
