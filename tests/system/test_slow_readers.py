"""Slow readers: one that stops reading hurts nobody, is told what it missed, and keeps no memory of ours."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from chatd.closing import too_slow
from tests.frames import CLOSE, TEXT, close_frame, handshake, heard
from tests.system.daemon import Daemon
from tests.waiting import until

SIZE = 16_000
"""Characters of a message."""


def text(number: int) -> str:
    return f"{number:05d}" + "x" * (SIZE - 5)


@contextmanager
def stalled(daemon: Daemon, worker: int) -> Iterator[socket.socket]:
    """Give a client of a worker that has read the answer to its handshake, and then reads no more by itself."""
    while True:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as raw:
            raw.sendall(handshake("/"))
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += raw.recv(1)
            assert answer.startswith(b"HTTP/1.1 101 ")
            if daemon.worker_of(raw) == worker:
                yield raw
                return


def read_to_the_close(raw: socket.socket) -> tuple[list[str], bytes]:
    """Read all there is; give the texts and the payload of the Close frame behind them."""
    data = b""
    while b"try again later" not in data[-150:]:
        chunk = raw.recv(1 << 20)
        assert chunk, f"the connection ended after {len(data)} bytes without a Close frame"
        data += chunk
    *texts, (opcode, reason) = heard(b"HTTP/1.1 101 \r\n\r\n" + data).frames
    assert {each for each, _ in texts} == {TEXT}
    assert opcode == CLOSE
    return [payload.decode() for _, payload in texts], reason


def missed_by(reason: bytes) -> int:
    """Give how many messages a Close frame says were missed."""
    found = re.search(rb"\d+", reason[2:])
    assert found, reason
    assert reason == (1013).to_bytes(2) + too_slow(int(found[0])).reason.encode()
    return int(found[0])


def memory(pid: int) -> int:
    """Give the bytes of memory that a process has."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_one_that_stops_reading_hurts_nobody_and_is_told_what_it_missed(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-backlog", "262144") as daemon:
        first, second = daemon.worker_pids()
        with (
            daemon.connect_to(first) as talker,
            daemon.connect_to(first) as near,
            daemon.connect_to(second) as far,
            stalled(daemon, first) as slow,
            stalled(daemon, second) as slower,
        ):
            sent = 0

            def talk(count: int) -> None:
                nonlocal sent
                for _ in range(count):
                    talker.send(text(sent))
                    assert near.recv(20) == far.recv(20) == text(sent)
                    sent += 1

            talk(800)  # 13 MB: more than the kernel and chatd keep for one that does not read
            before = [memory(pid) for pid in (first, second)]
            talk(1000)
            grown = [memory(pid) - size for pid, size in zip((first, second), before, strict=True)]
            assert max(grown) < 8_000_000  # of 16 MB that two clients did not read

            for raw in (slow, slower):
                texts, reason = read_to_the_close(raw)
                missed = missed_by(reason)
                assert texts == [text(number) for number in range(len(texts))]
                assert 0 < missed <= sent - len(texts)  # it is told when the kernel has taken what waited for it
                said = len(daemon.log())
                raw.sendall(close_frame(1013))
                daemon.wait_for(rf"\bslow readers that were closed: 1; messages they missed: {missed}\b", after=said)
            talk(3)  # nobody else is closed
        assert daemon.log().count("slow readers that were closed") == 2


def test_one_that_reads_again_in_time_misses_nothing(tmp_path: Path) -> None:
    count = 300
    with Daemon(tmp_path, "--max-backlog", "16777216") as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as talker, daemon.connect_to(second) as other, stalled(daemon, second) as slow:
            for number in range(count * 3):
                talker.send(text(number))
            for number in range(count * 3):
                assert other.recv(20) == text(number)
            data = b""
            while len(data) < count * 3 * (SIZE + 4):
                data += slow.recv(1 << 20)
            assert heard(b"HTTP/1.1 101 \r\n\r\n" + data).texts == [text(number) for number in range(count * 3)]
            talker.send("and on")
            assert slow.recv(100)[2:] == b"and on"
        assert "slow readers that were closed" not in daemon.log()


def test_one_that_never_reads_again_is_dropped(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-backlog", "65536", workers=1) as daemon:
        [worker] = daemon.worker_pids()
        with daemon.connect() as talker, daemon.connect() as other, stalled(daemon, worker) as slow:
            for number in range(800):
                talker.send(text(number))
                assert other.recv(20) == text(number)
            slow.close()
            daemon.wait_for(r"slow readers that were closed: 1; messages they missed: \d+")
            until(lambda: talks(talker, other), "the others to go on")


def talks(one: ClientConnection, other: ClientConnection) -> bool:
    try:
        one.send("still here")
        return other.recv(20) == "still here"
    except ConnectionClosed:
        return False
