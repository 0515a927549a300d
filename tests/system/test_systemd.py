"""The systemd units: what they promise, held against systemd's own tools and a real chatd."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.authority import self_signed
from tests.system.daemon import TWISTD, Daemon
from tests.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICE = DEPLOY / "chatd.service"
MOST_EXPOSURE = 2.0


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if found_one := re.match(r"(\w+)=(.*)", line):
            found.setdefault(found_one[1], []).append(found_one[2])
    return found


@pytest.mark.parametrize("unit", ["chatd.service", "chatd.socket"])
def test_the_units_verify(unit: str) -> None:
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing; get it with: sudo apt install systemd"
    done = subprocess.run(["systemd-analyze", "verify", DEPLOY / unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_leaves_memory_to_the_system_and_is_not_slowed_down_for_it() -> None:
    found = directives(SERVICE)
    assert found["MemoryMax"] == ["80%"]
    assert "MemoryHigh" not in found


def test_the_service_is_little_exposed_and_each_exception_is_explained() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--json=short", str(SERVICE)]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    open_ones = {row["json_field"]: row for row in rows if row["set"] is False}
    exposure = sum(float(row["exposure"] or 0) for row in open_ones.values())
    assert exposure <= MOST_EXPOSURE, open_ones.keys()
    said = SERVICE.read_text()
    for row in open_ones.values():
        name = re.split(r"[=/]", row["name"])[0]
        assert re.search(rf"# .*{name}", said) or name in ("RestrictAddressFamilies", "DeviceAllow", "UMask"), name
    overall = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={int(MOST_EXPOSURE * 10)}", str(SERVICE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert overall.returncode == 0, overall.stdout[-200:]


class Manager:
    """What listens where a service says how it is."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify.sock")
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def listen(self) -> list[str]:
        while True:
            try:
                self.heard += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def wait_for(self, pattern: str) -> str:
        """Wait until it has heard that; give it, and forget what came before."""

        def look() -> str | None:
            for place, line in enumerate(self.listen()):
                if re.fullmatch(pattern, line):
                    self.heard = self.heard[place + 1 :]
                    return line
            return None

        found = until(look, f"{pattern} among {self.heard}")
        assert found is not None
        return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def environment(manager: Manager, watchdog: float = 2.0) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(watchdog * 1e6))}


def test_a_service_says_when_it_is_ready_how_it_is_and_when_it_stops(tmp_path: Path, manager: Manager) -> None:
    with Daemon(tmp_path, env=environment(manager)) as daemon:
        manager.wait_for("READY=1")
        assert [daemon.log().count(f"{name}_ready: ") for name in ("worker", "server")] == [2, 1]
        with daemon.connect("ops") as one, daemon.connect("dev") as other:
            # The rooms of one worker are said: both clients may be on it, or one on each.
            manager.wait_for("STATUS=clients: 2, rooms: [12], messages/s: 0, broker: ok")
            for number in range(100):
                one.send(str(number))
            other.send("hello")
            # One line has all of them, or two lines.
            manager.wait_for(r"STATUS=clients: 2, rooms: [12], messages/s: [1-9]\d*, broker: ok")
            manager.wait_for("WATCHDOG=1")
        os.kill(daemon.broker_pid(), signal.SIGSTOP)
        try:
            manager.wait_for(r"STATUS=clients: 0, .* broker: away: .+")
            manager.wait_for("WATCHDOG=1")  # it is not our fault
        finally:
            os.kill(daemon.broker_pid(), signal.SIGCONT)
        manager.wait_for(r"STATUS=.* broker: ok")
        daemon.process.terminate()
        manager.wait_for("STOPPING=1")


def test_a_start_that_waits_for_its_broker_says_so_and_asks_for_more_time(tmp_path: Path, manager: Manager) -> None:
    redis = ("--config", "chatd.toml", "--redis", f"unix://{tmp_path}/none.sock", "--workers", "2")
    (tmp_path / "chatd.toml").touch()
    with Daemon(tmp_path, *redis, wait=False, env=environment(manager)) as daemon:
        manager.wait_for(r"EXTEND_TIMEOUT_USEC=\d+")
        manager.wait_for(r"STATUS=starting: 0 of 2 workers are ready; broker: .+")
        (tmp_path / "chatd.toml").write_text("wrokers = 3\n")
        daemon.process.send_signal(signal.SIGHUP)  # what becomes of that is not the end of the start
        daemon.wait_for("reload_refused: ")
        manager.wait_for(r"EXTEND_TIMEOUT_USEC=\d+")
        assert "READY=1" not in manager.listen()


def test_a_reload_is_told_and_what_became_of_it(tmp_path: Path, manager: Manager) -> None:
    file = tmp_path / "chatd.toml"
    file.write_text("drain = 0.1\n")
    with Daemon(tmp_path, "--config", "chatd.toml", env=environment(manager)) as daemon:
        manager.wait_for("READY=1")
        daemon.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1")
        assert int(manager.wait_for(r"MONOTONIC_USEC=\d+").split("=")[1]) > 0
        manager.wait_for("READY=1")
        file.write_text("drain = x\n")
        daemon.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
        assert "(not reloaded: " in manager.wait_for("STATUS=.*")


def test_the_watchdog_is_not_fed_while_a_worker_is_frozen_and_again_once_it_is_replaced(
    tmp_path: Path, manager: Manager
) -> None:
    with Daemon(tmp_path, "--tuning", "worker_heartbeat_timeout=6", env=environment(manager)) as daemon:
        manager.wait_for("READY=1")
        frozen = daemon.worker_pids()[0]
        os.kill(frozen, signal.SIGSTOP)
        daemon.wait_for("sent no heartbeat for 6 s and is killed")
        fed = manager.listen().count("WATCHDOG=1")
        assert fed < 5, "it is fed each second while all answer"
        manager.heard.clear()
        manager.wait_for("WATCHDOG=1")
        assert frozen not in daemon.worker_pids()


def test_workers_cannot_speak_for_the_service(tmp_path: Path, manager: Manager) -> None:
    with Daemon(tmp_path, env=environment(manager)) as daemon:
        for pid in daemon.children():
            names = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in names
            assert b"WATCHDOG_USEC" not in names


# The service's own command, with the system calls that it leaves


def commands(folder: Path, directive: str) -> list[list[str]]:
    """Give commands of the unit, for files in a folder."""
    found = directives(SERVICE)[directive]
    for place, name in (("/etc/chatd", "etc"), ("/var/log/chatd", "log"), ("/var/lib/chatd", "lib")):
        (folder / name).mkdir(exist_ok=True)
        found = [command.replace(place, str(folder / name)) for command in found]
    return list(map(shlex.split, found))


def configuration(folder: Path, listen: str) -> None:
    """Write the unit's example of a configuration file, for files in a folder."""
    text = (DEPLOY / "chatd.toml").read_text()
    text = text.replace("/var/log/chatd", str(folder / "log")).replace("/var/lib/chatd", str(folder / "lib"))
    text = re.sub(r"(?m)^address = .*$", f'address = ["{listen}"]', text)
    (folder / "etc" / "chatd.toml").write_text(f"drain_timeout = 0.2\n{text}")


class Service:
    """A command that runs until the end of the test, and what it says."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        found = until(lambda: re.search(pattern, self.said()[after:]), f"{pattern!r} in what the service says")
        assert found is not None
        return found

    def said(self) -> str:
        return self._log.read_text()


@contextmanager
def running(folder: Path, *command: str, env: dict[str, str] | None = None) -> Iterator[Service]:
    log = folder / "service.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env={**os.environ, **(env or {})})
    try:
        yield Service(process, log)
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()


def test_with_the_system_calls_that_the_unit_leaves_all_of_it_works(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "localhost.pem")
    [command] = commands(tmp_path, "ExecStart")
    configuration(tmp_path, f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1")
    sandbox = [sys.executable, "-m", "tests.system.sandbox", str(SERVICE)]
    path = f"{Path(TWISTD).parent}:{os.environ['PATH']}"
    root = {"PATH": path, "PYTHONPATH": f"{DEPLOY.parent}:{os.environ.get('PYTHONPATH', '')}"}
    with running(tmp_path, *sandbox, *command, env=root) as service:
        port = int(service.wait_for(r"connect with: websocat wss://127.0.0.1:(\d+)\n")[1])
        trust = ssl.create_default_context(cafile=str(pem))
        url = f"wss://localhost:{port}/"
        with connect(url, ssl=trust) as one, connect(url, ssl=trust) as other:
            one.send("hello")
            assert other.recv(20) == "hello"
        after = len(service.said())
        service.process.send_signal(signal.SIGHUP)
        service.wait_for(r"chatd \S+ is ready", after)
        assert "Permission" not in service.said()
        assert "Operation not permitted" not in service.said()
    assert "hello" in (tmp_path / "log" / "chat.log").read_text()
    assert (tmp_path / "lib" / "broker" / "lineage").exists()


def test_a_reload_needs_no_other_package_and_fails_where_the_file_cannot_be_used(tmp_path: Path) -> None:
    [start], reload = commands(tmp_path, "ExecStart"), commands(tmp_path, "ExecReload")
    configuration(tmp_path, "tcp:0:interface=127.0.0.1")
    file = tmp_path / "etc" / "chatd.toml"
    good = file.read_text()

    def done(pid: int) -> tuple[bool, str]:
        """Run the commands as systemd does, up to the first that fails; give what that one says."""
        env = {**os.environ, "PATH": str(Path(TWISTD).parent), "MAINPID": str(pid)}
        for command in reload:
            ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            if ran.returncode:
                return False, ran.stdout + ran.stderr
        return True, ""

    with running(tmp_path, *start, env={"PATH": f"{Path(TWISTD).parent}:{os.environ['PATH']}"}) as service:
        service.wait_for(r"chatd \S+ is ready")
        file.write_text(f"wrokers = 3\n{good}")
        assert done(service.process.pid) == (
            False,
            f"twistd chatd: {file}: wrokers is not an option (did you mean workers?)\n",
        )
        file.write_text(good)
        after = len(service.said())
        assert done(service.process.pid) == (True, "")
        service.wait_for(r"chatd \S+ is ready", after)
        assert service.said().count("reloading:") == 1


# Socket activation


def test_two_workers_take_connections_on_the_sockets_that_systemd_passes(tmp_path: Path) -> None:
    activate = shutil.which("systemd-socket-activate")
    assert activate, "systemd-socket-activate is missing; get it with: sudo apt install systemd"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        ports = [one.getsockname()[1], six.getsockname()[1]]
    listen = [f"--listen=127.0.0.1:{ports[0]}", f"--listen=[::1]:{ports[1]}", "--fdname=four:six"]
    chatd = [TWISTD, "--nodaemon", "--pidfile=", "chatd", "--workers", "2", "--drain-timeout", "0.2"]
    chatd += ["--listen", "systemd:domain=INET:name=four", "--listen", "systemd:domain=INET6:name=six"]
    with running(tmp_path, activate, *listen, "-E", "PATH", "-E", "PYTHONPATH", *chatd) as service:
        service.wait_for("Listening on")
        socket.create_connection(("127.0.0.1", ports[0])).close()  # it starts with the first connection
        service.wait_for(r"chatd \S+ is ready: 2 workers")
        pids = [int(pid) for pid in re.findall(r"worker \d \(pid (\d+)\) is ready", service.said())]

        with ExitStack() as stack:
            clients = []

            def both() -> bool:
                """Whether both workers have a connection that stays open."""
                for host, port in (("127.0.0.1", ports[0]), ("[::1]", ports[1])):
                    clients.append(stack.enter_context(connect(f"ws://{host}:{port}/", compression=None)))
                return all(_connections(pid) for pid in pids)

            until(both, "both workers to have clients")
            clients[0].send("through systemd")
            assert clients[-1].recv(20) == "through systemd"
            after = len(service.said())
            service.process.send_signal(signal.SIGHUP)
            service.wait_for(r"chatd \S+ is ready", after)
            with connect(f"ws://127.0.0.1:{ports[0]}/") as again, connect(f"ws://[::1]:{ports[1]}/") as other:
                again.send("after a reload")
                assert other.recv(20) == "after a reload"


def test_the_connections_that_start_it_are_served_on_each_socket_of_one_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("::", 0), family=socket.AF_INET6) as six:
        four, both = one.getsockname()[1], six.getsockname()[1]
    listen = [f"--listen=127.0.0.1:{four}", f"--listen=[::]:{both}", f"--listen={tmp_path}/web.sock"]
    listen += ["--fdname=chatd:chatd:web"]
    chatd = [
        TWISTD,
        "--nodaemon",
        "--pidfile=",
        "chatd",
        "--workers",
        "2",
        "--listen",
        "systemd:domain=INET:name=chatd",
    ]
    curl = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--write-out",
        "%{http_code}",
        "--output",
        "/dev/null",
    ]
    with (
        running(tmp_path, "systemd-socket-activate", *listen, "-E", "PATH", "-E", "PYTHONPATH", *chatd) as service,
        ExitStack() as stack,
    ):
        service.wait_for("(?s)Listening on.*Listening on.*Listening on")
        asked = [
            stack.enter_context(subprocess.Popen([*curl, *words], stdout=subprocess.PIPE, text=True))
            for words in (
                [f"http://127.0.0.1:{both}/ops"],
                [f"http://127.0.0.1:{both}/ops", "--data", "of six"],
                [f"http://127.0.0.1:{four}/ops"],
                [f"http://127.0.0.1:{four}/ops", "--data", "of four"],
            )
        ]
        with connect(f"ws://127.0.0.1:{both}/ops", compression=None, open_timeout=60) as client:
            client.send("of a WebSocket")
            assert [each.communicate()[0] for each in asked] == ["200", "201", "200", "201"]
            log = tmp_path / "logs" / "chat.log"
            until(lambda: log.exists() and log.read_bytes().count(b"\n") == 3, "three lines in the log")
        assert "systemd passed sockets that no --listen option uses: web (descriptor 5)" in service.said()
    said = [line.split(" ") for line in log.read_text().splitlines()]
    assert {" ".join(words[4:]): words[2] for words in said} == {
        "of six": "-@127.0.0.1",
        "of four": "-@127.0.0.1",
        "of a WebSocket": "-@127.0.0.1",
    }


def _connections(pid: int) -> int:
    """Count the TCP connections that a process has."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
        inodes |= {row[9] for row in rows if row[3] == "01"}
    found = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += os.readlink(each)[8:-1] in inodes
        except OSError:
            continue
    return found


def test_the_socket_unit_names_what_the_example_of_the_configuration_asks_for() -> None:
    [name] = directives(DEPLOY / "chatd.socket")["FileDescriptorName"]
    assert f'"systemd:name={name}"' in (DEPLOY / "chatd.toml").read_text()
