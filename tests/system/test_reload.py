"""A reload: another configuration, other certificates, other workers, and no line lost on the way."""

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.authority import self_signed
from tests.depth import DEEP
from tests.frames import websocket_over_tls
from tests.system.daemon import Daemon, is_running, stopped
from tests.system.flock import Flock
from tests.waiting import until


class Configured(Daemon):
    """A daemon with a configuration file."""

    def __init__(self, folder: Path, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.file = folder / "chatd.toml"
        self.write(**options)
        super().__init__(folder, "--config", "chatd.toml", any_port="listen" not in options)

    def write(self, **options: Any) -> None:
        """Write the file."""
        lines = [f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in options.items()]
        self.file.write_text("".join(lines))

    def hang_up(self) -> int:
        """Send the signal; give how long the log was."""
        before = len(self.log())
        self.process.send_signal(signal.SIGHUP)
        return before

    def reload(self, **options: Any) -> None:
        """Reload, with these options in the file, and wait until it is done."""
        if options:
            self.write(**options)
        self.wait_for("server_ready: ", after=self.hang_up())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Configured]:
    with Configured(tmp_path, workers=2, drain=0.5, max_message_size=100) as running:
        yield running


def test_new_clients_find_the_new_configuration_and_old_ones_are_told_to_come_back(daemon: Configured) -> None:
    old = daemon.worker_pids()
    with (
        daemon.connect("ops") as bare,
        daemon.connect("ops?nick=ann") as named,
        daemon.connect("ops?nick=prog", "chatd.v1") as program,
        daemon.connect("ops?nick=bob", "chatd.v1") as other,
    ):
        daemon.reload(workers=3, drain=0.5, max_message_size=200)
        assert len(set(daemon.worker_pids()) - set(old)) == 3
        with daemon.connect("ops") as one, daemon.connect("ops") as two:
            one.send("x" * 200)
            assert two.recv(20) == "x" * 200
        said, code = last_words(bare)  # it is closed at a moment of its own within the drain time
        assert said in ("", "x" * 200)
        assert code == 1012
        assert last_words(named) == ("* closing: the server restarts; come back", 1012)
        byes = [json.loads(last_words(each)[0]) for each in (program, other)]
        assert [(bye["type"], bye["code"]) for bye in byes] == [("bye", 1012)] * 2
        assert 0 < byes[0]["reconnect_after"] != byes[1]["reconnect_after"]
    until(lambda: not any(map(is_running, old)), "the old workers to end")


def last_words(client: Any) -> tuple[str, int]:
    """Give the last thing a client hears, and the code it is closed with."""
    said = ""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            said = client.recv(20)
    assert caught.value.rcvd is not None
    return said, caught.value.rcvd.code


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wrokers": 3}, r"wrokers is not an option \(did you mean workers\?\)"),
        ({"workers": -1}, "workers: -1 is too small; the minimum is 0"),
        ({"redis": "redis://127.0.0.1:1"}, "--redis can only be changed by a restart"),
        ({"state": "kept"}, "--data-dir can only be changed by a restart"),
        ({"broker-memory": "64MiB"}, "--redis-maxmemory can only be changed by a restart"),
        ({"origin": ["nonsense"]}, "nonsense"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_changes(
    daemon: Configured, options: dict[str, Any], said: str
) -> None:
    workers = daemon.worker_pids()
    with daemon.connect() as one, daemon.connect() as other:
        daemon.write(workers=2, **options) if "workers" not in options else daemon.write(**options)
        daemon.wait_for(f"reload_refused: .*{said}", after=daemon.hang_up())
        one.send("still here")
        assert other.recv(20) == "still here"
    assert daemon.worker_pids() == workers


def test_a_port_that_somebody_else_has_changes_nothing_and_one_that_is_free_is_listened_on(tmp_path: Path) -> None:
    here = "tcp:0:interface=127.0.0.1"
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Configured(tmp_path, workers=2, listen=[here]) as daemon,
        daemon.connect() as one,
        daemon.connect() as other,
    ):
        listen = [here, f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"]
        daemon.write(workers=2, listen=listen)
        daemon.wait_for("reload_refused: .*: Address already in use", after=daemon.hang_up())
        one.send("still here")
        assert other.recv(20) == "still here"
        taken.close()
        daemon.reload()
        daemon.port = int(listen[1].split(":")[1])
        with daemon.connect() as new:
            one.send("come in")
            assert new.recv(20) == "come in"


def test_new_sockets_take_no_connections_for_workers_that_never_come(tmp_path: Path) -> None:
    with Configured(tmp_path, workers=1) as daemon, stopped(daemon.broker_pid()):
        [serving] = daemon.worker_pids()
        daemon.write(workers=4)
        before = daemon.hang_up()
        new = until(lambda: [each for each in daemon.worker_pids() if each != serving], "a new worker")
        for _ in range(20):  # of four sockets the kernel would hardly choose the first one each time
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
                client.sendall(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        os.kill(new[0], signal.SIGKILL)
        daemon.wait_for("reload_refused: .*: worker", after=before)


def test_a_port_is_opened_to_others_by_a_reload(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Configured(tmp_path, workers=2, drain=0.2, listen=[f"tcp:{port}:interface=127.0.0.1"]) as daemon:
        daemon.reload(workers=2, drain=0.2, listen=[f"tcp:{port}", f"tcp6:{port}"])
        until(lambda: len(daemon.worker_pids()) == 2, "the old workers to end")
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            with socket.create_connection((host, port), timeout=10) as client:
                client.sendall(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_unix_socket_stays_as_it_is_over_reloads(tmp_path: Path) -> None:
    path = tmp_path / "chatd.sock"
    listen = ["tcp:0:interface=127.0.0.1", f"unix:{path}:mode=660"]
    with Configured(tmp_path, workers=2, drain=0.1, listen=listen) as daemon:
        made = path.stat()
        for _ in range(2):
            old = daemon.worker_pids()
            daemon.reload()
            until(lambda old=old: not any(map(is_running, old)), "the old workers to end")  # type: ignore[misc]
            assert (path.stat().st_ino, stat.S_IMODE(path.stat().st_mode)) == (made.st_ino, 0o660)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.sendall(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        listening = subprocess.run(["ss", "-lxH"], capture_output=True, text=True, check=True).stdout
        [queue] = [row.split()[3] for row in listening.splitlines() if str(path) in row]
        assert queue == "1024"
        assert "socket_inheritance_failed" not in daemon.log()
    assert not path.exists()


def test_a_renewed_certificate_is_served_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "localhost.pem")
    listen = f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    with Daemon(tmp_path / "tls", "--listen", listen, "--drain-timeout", "0.2") as running:
        address = ("127.0.0.1", running.port)
        before = pem.read_bytes()
        with websocket_over_tls(address, ssl.create_default_context(cafile=str(pem))):
            pem.write_bytes(b"no certificate")
            running.process.send_signal(signal.SIGHUP)
            running.wait_for("reload_refused: ")
            pem.write_bytes(before)
        with websocket_over_tls(address, ssl.create_default_context(cafile=str(pem))):
            pass
        self_signed(tmp_path / "localhost.pem")  # another key, in the same file
        assert pem.read_bytes() != before
        after = len(running.log())
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("server_ready: ", after=after)
        until(lambda: _trusted(address, pem), "the new certificate")


def _trusted(address: tuple[str, int], pem: Path) -> bool:
    try:
        with websocket_over_tls(address, ssl.create_default_context(cafile=str(pem))):
            return True
    except ssl.SSLCertVerificationError:
        return False


def test_http_goes_on_and_its_connections_end_with_their_next_answer(daemon: Configured) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:

        def ask() -> bytes:
            client.sendall(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            return answer.lower()

        assert b"connection: close" not in ask()
        daemon.reload(workers=2, drain=20)
        # The parent logs the reload when it has told the old workers to drain; a request may still be faster than that.
        until(lambda: b"connection: close" in ask(), "the last answer on this connection")
        assert client.recv(1) == b""


def test_a_reader_of_events_is_told_when_to_come_back(daemon: Configured) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
        client.sendall(b"GET /ops HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        heard = client.recv(65536)
        assert heard.startswith(b"HTTP/1.1 200 ")
        daemon.reload()
        while data := client.recv(65536):
            heard += data
    assert b'"code":1012' in heard
    assert heard.endswith(b"0\r\n\r\n")


def test_two_signals_at_once_are_two_reloads_at_most(daemon: Configured) -> None:
    before = daemon.hang_up()
    daemon.wait_for("reload_started: ", after=before)
    for _ in range(5):
        daemon.hang_up()
    daemon.wait_for("(?s)(server_ready: .*){2}", after=before)
    until(lambda: len(daemon.worker_pids()) == 2, "the old workers to end")
    assert daemon.log()[before:].count("reload_started: ") == 2


def test_a_stop_ends_those_that_drain_too(daemon: Configured) -> None:
    with daemon.connect() as client:
        daemon.reload(workers=2, drain=60)
        until(lambda: len(daemon.worker_pids()) == 3, "the old worker without clients to end")
        children = daemon.children()
        daemon.process.terminate()
        assert last_words(client)[1] in (1001, 1012)
    daemon.process.wait(15)
    assert not any(map(is_running, children))


def test_a_stop_during_a_reload_leaves_no_socket_of_it(tmp_path: Path) -> None:
    here, new = "tcp:0:interface=127.0.0.1", tmp_path / "new.sock"
    with Configured(tmp_path, workers=2, listen=[here]) as daemon:
        daemon.write(workers=2, listen=[here, f"unix:{new}"])
        daemon.wait_for("reload_started: ", after=daemon.hang_up())
        assert new.exists()
        daemon.process.terminate()
        daemon.process.wait(15)
    assert not new.exists()


RELOADS = 4 if DEEP else 2


def test_reloads_lose_no_line_and_refuse_no_connection(tmp_path: Path) -> None:
    with Configured(tmp_path, workers=2, drain=2, history=100_000) as daemon:
        listening = {_inode(each) for each in _listening(daemon)}
        with Flock(daemon.port, listeners=500, publishers=4, pace=0.02) as flock:
            for turn in range(RELOADS):
                daemon.reload(workers=(3, 2)[turn % 2], drain=2, history=100_000)
            until(lambda: len(daemon.worker_pids()) == 2, "the last of the old workers to end")
            lines = flock.finish()
        said_again = daemon.texts().count("duplicate")
        logged = [text for text in daemon.texts() if text != "duplicate"]
        assert len(logged) == len(lines) + said_again
        assert set(logged) == set(lines)
        codes = [code for each in flock.listeners for code in each.codes()]
        assert set(codes) == {1012, 1000}
        assert codes.count(1012) >= 500
        assert all(each.byes for each in flock.publishers)
        assert listening <= {_inode(each) for each in _listening(daemon)}


def _listening(daemon: Daemon) -> list[list[str]]:
    """Give the listening sockets on the daemon's port, as proc(5) has them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[3] == "0A" and row[1].endswith(f":{daemon.port:04X}")]


def _inode(row: list[str]) -> str:
    return row[9]
