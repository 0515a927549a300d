"""What happens when parts of it die, freeze or go away, with every line accounted for."""

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.broker.server import Server
from tests.system.daemon import TWISTD, Daemon, is_running
from tests.waiting import until


class Listener:
    """Gathers what a client hears, until its connection ends."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.heard: list[str] = []
        self.close_code: int | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for message in self.client:
                self.heard.append(str(message))
        except ConnectionClosed:
            pass
        self.close_code = self.client.close_code

    def wait_for(self, text: str) -> None:
        """Wait until it has heard a text."""
        until(lambda: text in self.heard, f"{text!r}; heard {len(self.heard)}, last {self.heard[-3:]}")

    def wait_for_end(self) -> int | None:
        """Wait until the connection has ended; give the close code."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.close_code


def test_a_killed_worker_is_replaced_and_the_others_notice_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as lost, daemon.connect_to(second) as kept, daemon.connect_to(second) as talker:
            listener = Listener(kept)
            lost_listener = Listener(lost)
            talker.send("before")
            listener.wait_for("before")
            os.kill(first, signal.SIGKILL)
            daemon.wait_for(
                rf"worker_ended: worker \d \(pid {first}\) ended: killed by SIGKILL; a replacement starts in 0.1 s"
            )
            assert lost_listener.wait_for_end() == 1006
            talker.send("meanwhile")
            listener.wait_for("meanwhile")
            until(lambda: len(daemon.worker_pids()) == 2, "the replacement")
            [third] = set(daemon.worker_pids()) - {second}
            daemon.wait_for(rf"worker_ready: worker \d \(pid {third}\)")
            with daemon.connect_to(third) as back:
                back.send("after")
                listener.wait_for("after")
                talker.send("to the new one")
                assert back.recv(20) == "to the new one"
                listener.wait_for("to the new one")
            assert listener.heard == ["before", "meanwhile", "after", "to the new one"]
        assert daemon.texts() == ["before", "meanwhile", "after", "to the new one"]


def test_connections_that_wait_for_a_dead_worker_are_served_by_its_replacement(tmp_path: Path) -> None:
    with Daemon(tmp_path, workers=1) as daemon:
        [worker] = daemon.worker_pids()
        os.kill(worker, signal.SIGKILL)
        until(lambda: not is_running(worker), "the worker's end")
        with daemon.connect() as one, daemon.connect() as other:  # refused, if its socket had been closed
            one.send("hello")
            assert other.recv(20) == "hello"


def test_a_sender_is_closed_with_1013_when_the_bus_stays_away_and_a_listener_is_not(tmp_path: Path) -> None:
    with (
        Server() as server,
        Daemon(tmp_path, "--redis", server.url, "--tuning", "publish_timeout=1", wait=False) as daemon,
    ):
        server.start()
        daemon.wait_until_ready()
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as talker, daemon.connect_to(second) as quiet, daemon.connect_to(first) as near:
            sender, listener = Listener(talker), Listener(quiet)
            near.send("before")
            listener.wait_for("before")
            server.kill()
            until(lambda: not any(map(daemon.ready, daemon.worker_pids())), "both workers to know")
            talker.send("lost?")
            assert sender.wait_for_end() == 1013
            assert "lost?" not in daemon.texts()  # it was not taken
            assert listener.close_code is None
            server.start()
            daemon.wait_for("broker_available: ")
            near.send("again")
            listener.wait_for("again")
        assert listener.heard == ["before", "again"]


def test_a_killed_parent_leaves_nobody_behind(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        children = daemon.children()
        assert len(children) == 3
        with daemon.connect() as client:
            listener = Listener(client)
            client.send("before")
            until(lambda: daemon.texts() == ["before"], "the line in the log")
            daemon.process.kill()
            until(lambda: not any(map(is_running, children)), "the end of workers and broker")
            assert listener.wait_for_end() == 1001
    assert daemon.texts() == ["before"]
    folders = list(Path("/tmp").glob(f"chatd-{daemon.process.pid}-*"))
    with Daemon(tmp_path):  # sweeps what the killed one could not
        assert not [each for each in folders if each.exists()]


def test_sigterm_delivers_what_was_taken_then_closes_with_1001(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        first, second = daemon.worker_pids()
        children = daemon.children()
        with daemon.connect_to(first) as talker, daemon.connect_to(second) as far, daemon.connect_to(first) as near:
            listeners = [Listener(far), Listener(near)]
            sender = Listener(talker)
            sent = 0
            with contextlib.suppress(ConnectionClosed):
                while True:
                    talker.send(f"{sent}")
                    sent += 1
                    if sent == 1000:  # so much is taken for sure; what follows is under way when the signal comes
                        listeners[0].wait_for("999")
                    if sent == 2000:
                        daemon.process.terminate()
            codes = [each.wait_for_end() for each in [*listeners, sender]]
        assert daemon.process.wait(15) == -signal.SIGTERM  # twistd ends itself by the signal that stopped it
        logged = daemon.texts()
        assert codes == [1001, 1001, 1001]
        assert logged == [str(number) for number in range(len(logged))]
        assert len(logged) >= 1000
        assert [each.heard for each in listeners] == [logged, logged]  # every line that was taken, and no other
        assert not any(map(is_running, children))
        assert "killed" not in daemon.log()
        assert "Unhandled" not in daemon.log()


def test_ctrl_c_in_the_terminal_stops_in_order_too(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, daemon.connect() as client:
        listener = Listener(client)
        children = daemon.children()
        os.killpg(daemon.process.pid, signal.SIGINT)  # as a terminal does it: to all that were started in it
        assert daemon.process.wait(15) == -signal.SIGINT  # twistd ends itself by the signal that stopped it
        assert listener.wait_for_end() == 1001
        assert not any(map(is_running, children))


def test_sigterm_to_the_whole_group_loses_no_line_either(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as one, daemon.connect_to(second) as other, daemon.connect_to(first) as near:
            listener = Listener(near)
            with contextlib.suppress(ConnectionClosed):
                for number in range(100_000):
                    one.send(f"one {number}")
                    other.send(f"other {number}")
                    if number == 2000:  # so much is taken for sure; what follows is under way when the signal comes
                        listener.wait_for("one 2000")
                        listener.wait_for("other 2000")
                    if number == 2500:
                        os.killpg(daemon.process.pid, signal.SIGTERM)  # as a shell's kill %1 does
            assert listener.wait_for_end() == 1001
        daemon.process.wait(15)
        logged = daemon.texts()
        assert len(logged) > 2000
        assert sorted(listener.heard) == sorted(logged)


def test_a_closed_terminal_stops_it_in_order(tmp_path: Path) -> None:
    terminal, inside = os.openpty()
    with Daemon(tmp_path, stdin=inside) as daemon, daemon.connect() as client:
        os.close(inside)
        listener = Listener(client)
        children = daemon.children()
        os.close(terminal)
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.process.wait(15) == 0
        assert listener.wait_for_end() == 1001
        assert not any(map(is_running, children))
        assert "server_stopped: " in daemon.log()


def test_a_log_renamed_under_load_loses_no_line(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        first, second = daemon.worker_pids()
        logs = tmp_path / "logs"
        rotated = []
        with daemon.connect_to(first) as one, daemon.connect_to(second) as other, daemon.connect() as watcher:
            listener = Listener(watcher)
            for turn in range(4):
                for number in range(500):
                    one.send(f"one {turn} {number}")
                    other.send(f"other {turn} {number}")
                listener.wait_for(f"one {turn} 499")
                listener.wait_for(f"other {turn} 499")
                if turn < 3:
                    rotated.append(f"logs/chat.log.{turn}")
                    os.rename(logs / "chat.log", tmp_path / rotated[-1])
                    until((logs / "chat.log").exists, "a new log", seconds=3)
        texts = [text for path in [*rotated, "logs/chat.log"] for text in daemon.texts(path)]
        assert sorted(texts) == sorted(listener.heard)
        assert len(texts) == len(set(texts)) == 4000


def test_an_unwritable_log_refuses_messages_and_says_so_once(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        worker = daemon.worker_pids()[0]
        with daemon.connect_to(worker) as other, daemon.connect_to(worker) as one:
            listener = Listener(other)
            one.send("before")
            listener.wait_for("before")
            os.rename(tmp_path / "logs", tmp_path / "moved")
            (tmp_path / "logs").write_text("not a folder")
            daemon.wait_for("chat_log_write_failed: ")

            def refused() -> bool:  # the other worker may have said so, and this one be about to notice
                with contextlib.suppress(ConnectionClosed):
                    one.send("taken or refused")
                return one.close_code is not None

            until(refused, "a refusal")
            assert one.close_code == 1013
            heard_before = listener.heard
        with daemon.connect_to(worker) as other, daemon.connect_to(worker) as one:
            listener = Listener(other)
            (tmp_path / "logs").unlink()
            daemon.wait_for("chat_log_write_recovered: ")
            one.send("after")
            listener.wait_for("after")
            assert listener.heard == ["after"]
        assert daemon.texts() == ["after"]
        assert daemon.texts("moved/chat.log") == heard_before  # what was taken was heard, and logged
        assert [daemon.log().count(f"chat_log_write_{state}: ") for state in ("failed", "recovered")] == [1, 1]


def test_two_chatds_on_one_redis_share_their_rooms(tmp_path: Path, valkey_url: str) -> None:
    with (
        Daemon(tmp_path / "a", "--redis", valkey_url) as here,
        Daemon(tmp_path / "b", "--redis", valkey_url) as there,
        Daemon(tmp_path / "c", "--redis", valkey_url, "--redis-prefix", "other") as apart,
    ):
        assert len(here.children()) == len(here.worker_pids()) == 2  # no broker of its own
        with here.connect("ops") as one, there.connect("ops") as other, apart.connect("ops") as stranger:
            one.send("from here")
            assert other.recv(20) == "from here"
            other.send("from there")
            assert one.recv(20) == "from there"
            stranger.send("only to myself")
            one.send("last")
            assert other.recv(20) == "last"
        assert here.texts() == ["from here", "last"]
        assert there.texts() == ["from there"]


def run_chatd(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Start chatd with options that must end it at once."""
    command = [TWISTD, "-n", "--pidfile=", "chatd", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--workers", "many"], '--workers: "many" is not a number; use 0 for one per core'),
        (["--listen", "tcp:3000:interface=nowhere.invalid"], "cannot listen on tcp:3000:interface=nowhere.invalid: "),
        (["--listen", "carrier-pigeon:1"], '--listen: "carrier-pigeon:1" is not an address'),
        (["--redis", "http://localhost"], "--redis: not the URL of a Redis server; use redis://"),
        (["--max-message-size", "0"], "--max-message-size: 0 is too small; the minimum is 1"),
        (
            ["--tuning", "publish_timeout=-1"],
            '--tuning: "publish_timeout": -1 is too small; the minimum is 0',
        ),
        (["--chat-log", "/tmp"], '--chat-log: "/tmp" is a folder'),
        (["--wokers", "2"], "there is no option --wokers (did you mean --workers?)"),
        (["serve"], "it takes options only, and 'serve' is none"),
    ],
)
def test_a_bad_value_ends_at_once_with_one_line(tmp_path: Path, options: list[str], complaint: str) -> None:
    done = run_chatd(tmp_path, *options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert os.listdir(tmp_path) == []


def test_an_occupied_port_ends_at_once_with_one_line(tmp_path: Path) -> None:
    with Daemon(tmp_path / "first") as first:
        done = run_chatd(tmp_path, "--listen", f"tcp:{first.port}:interface=127.0.0.1")
    assert done.returncode == 1
    assert done.stderr == (
        f"twistd chatd: cannot listen on tcp:{first.port}:interface=127.0.0.1: Address already in use\n"
    )
