"""Whatever is thrown at a worker, it lives on, takes no more memory than before, and the others hardly notice."""

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.authority import self_signed
from tests.depth import DEEP
from tests.frames import PONG, frame, handshake
from tests.system.attacker import ATTACKS
from tests.system.daemon import Daemon
from tests.waiting import until

ROUNDS = 6
"""At most: what an attack does it does each time, but what other programs do is sometimes in the way."""
SAMPLES = 80 if DEEP else 40
FLOOR = 0.025
"""Seconds. Below it p99 is what two cores make of four programs and of the other tests: 10 ms, without any attack."""
SLACK = 24_000_000
"""Bytes that a worker may have more than before: buffers of what comes in, a few connections."""


OPTIONS = ("--compress",)
WORKERS = 1


@contextmanager
def attacked(port: int, name: str) -> Iterator[None]:
    """Let somebody do harm, from a machine of its own: its work takes nothing of ours."""
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.system.attacker", name, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as he:
        assert he.stdin is not None
        assert he.stdout is not None
        try:
            assert he.stdout.readline() == b"going\n"
            yield
            assert he.poll() is None, "the attack goes on"
        finally:
            he.stdin.close()
            he.wait(30)


class Pair:
    """Two who talk, and how long each word takes from one to the other."""

    def __init__(self, daemon: Daemon) -> None:
        [worker] = daemon.worker_pids()
        self.talker, self.hearer = daemon.socket_to(worker), daemon.socket_to(worker)
        for each in (self.talker, self.hearer):
            each.sendall(handshake("/pair"))
            assert each.recv(65536).startswith(b"HTTP/1.1 101")

    def p99(self) -> float:
        took = []
        for _ in range(SAMPLES):
            start = time.perf_counter()
            self.talker.sendall(frame(b"hello"))
            assert self.hearer.recv(100).removeprefix(b"\x89\0") == b"\x81\x05hello"  # it may be pinged meanwhile
            took.append(time.perf_counter() - start)
            time.sleep(0.002)  # they are people
        return sorted(took)[int(SAMPLES * 0.99)]

    def close(self) -> None:
        self.talker.close()
        self.hearer.close()


def memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def survives(daemon: Daemon, name: str, port: int) -> None:
    """See that an attack changes next to nothing, and that nothing of it is left behind."""
    [worker] = daemon.worker_pids()
    pair = Pair(daemon)
    try:
        pair.p99()
        before = memory(worker)
        calm, busy = [], []
        for _ in range(ROUNDS):
            calm.append(pair.p99())
            with attacked(port, name):
                busy.append(pair.p99())
                assert memory(worker) <= before + SLACK
            if hardly_noticed := min(busy) <= max(2 * statistics.median(calm), FLOOR):
                break
        assert hardly_noticed, (calm, busy)
    finally:
        pair.close()
    assert daemon.worker_pids() == [worker]
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("name", [each for each in ATTACKS if each not in ("tls_garbage", "half_open")])
def test_the_others_hardly_notice(daemon: Daemon, name: str) -> None:
    survives(daemon, name, daemon.port)


def test_who_begins_tls_and_goes_on_with_something_else_hurts_nobody(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "localhost.pem")
    tls = f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    plain = "tcp:0:interface=127.0.0.1"
    with Daemon(tmp_path / "tls", "--listen", plain, "--listen", tls, workers=1) as daemon:
        port = int(daemon.wait_for(r"wss://127.0.0.1:(\d+)")[1])
        daemon.port = int(daemon.wait_for(r" ws://127.0.0.1:(\d+)")[1])
        survives(daemon, "tls_garbage", port)


def test_ten_thousand_that_say_nothing_keep_nobody_out(daemon: Daemon) -> None:
    [worker] = daemon.worker_pids()
    with attacked(daemon.port, "half_open"):
        for _ in range(10):
            daemon.say("let-in", "hello")
        pair = Pair(daemon)
        assert min(pair.p99() for _ in range(ROUNDS)) <= FLOOR
        pair.close()
        assert open_files(worker) < 4000


def test_who_floods_with_what_is_no_message_is_closed_with_4029(daemon: Daemon) -> None:
    [worker] = daemon.worker_pids()
    client = daemon.socket_to(worker)
    client.sendall(handshake("/flood"))
    client.settimeout(0.01)
    heard, junk = b"", frame(b"", PONG) * 10_000

    def closed() -> bool:
        nonlocal heard
        with contextlib.suppress(TimeoutError):
            client.send(junk)
        with contextlib.suppress(TimeoutError):
            heard += client.recv(65536)
        return b"too fast, in spite of warnings" in heard

    until(closed, "the end of it")
    assert (4029).to_bytes(2) + b"too fast" in heard
    client.close()


def test_nothing_of_it_is_left_behind(daemon: Daemon) -> None:
    [worker] = daemon.worker_pids()
    until(lambda: open_files(worker) < 40, "all that was opened to be closed", 30)
