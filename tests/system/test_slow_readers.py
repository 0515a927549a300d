"""Slow readers: one that stops reading hurts nobody, keeps no memory of ours, and misses nothing that history has."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from chatd.protocol.close_codes import too_slow
from tests.frames import CLOSE, PING, TEXT, close_frame, handshake, heard
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
        # A kernel whose buffer was full for long is asked ever more rarely whether there is room again.
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=120) as raw:
            raw.sendall(handshake("/"))
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += raw.recv(1)
            assert answer.startswith(b"HTTP/1.1 101 ")
            if daemon.worker_of(raw) == worker:
                yield raw
                return


def read_up_to(raw: socket.socket, last: str) -> list[str]:
    """Read up to a text; give all."""
    data, end = bytearray(), last.encode()
    while not data.endswith(end):
        chunk = raw.recv(1 << 20)
        assert chunk, f"the connection ended after {len(data)} bytes"
        data += chunk
    found = heard(b"HTTP/1.1 101 \r\n\r\n" + bytes(data))
    assert {opcode for opcode, _ in found.frames} <= {
        TEXT,
        PING,
    }  # the server asks a client that says nothing for so long
    return found.texts


def read_to_the_close(raw: socket.socket) -> tuple[list[str], bytes]:
    """Read all there is; give the texts and the payload of the Close frame behind them."""
    data = b""
    while b"try again later" not in data[-150:]:
        chunk = raw.recv(1 << 20)
        assert chunk, f"the connection ended after {len(data)} bytes without a Close frame"
        data += chunk
    *texts, (opcode, reason) = heard(b"HTTP/1.1 101 \r\n\r\n" + data).frames
    assert {each for each, _ in texts} <= {TEXT, PING}
    assert opcode == CLOSE
    return [payload.decode() for each, payload in texts if each == TEXT], reason


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


class Talk:
    """Somebody who says numbered messages, which others hear at once."""

    def __init__(self, talker: ClientConnection, *others: ClientConnection) -> None:
        self._talker = talker
        self._others = others
        self.sent = 0

    def go_on(self, count: int) -> None:
        """Say so many more; each is heard before the next one is said."""
        for _ in range(count):
            self._talker.send(text(self.sent))
            for other in self._others:
                assert other.recv(20) == text(self.sent)
            self.sent += 1


def numbers(texts: list[str]) -> list[int]:
    """Give the numbers of texts, which are whole."""
    assert {len(each) for each in texts} == {SIZE}
    return [int(each[:5]) for each in texts]


def test_those_that_stop_reading_hurt_nobody_take_no_memory_and_miss_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-send-buffer", "262144", "--history-size", "5000") as daemon:
        first, second = daemon.worker_pids()
        with (
            daemon.connect_to(first) as talker,
            daemon.connect_to(first) as near,
            daemon.connect_to(second) as far,
            stalled(daemon, first) as slow,
            stalled(daemon, second) as slower,
        ):
            talk = Talk(talker, near, far)
            talk.go_on(800)  # 13 MB: more than the kernel and chatd keep for one that does not read
            before = [memory(pid) for pid in (first, second)]
            talk.go_on(600)
            grown = [memory(pid) - size for pid, size in zip((first, second), before, strict=True)]
            assert max(grown) < 5_000_000  # of 10 MB that each did not read

            for raw in (slow, slower):
                last = text(talk.sent - 1)
                assert numbers(read_up_to(raw, last)) == list(range(talk.sent))
            talk.go_on(3)  # and hears what is said then
            for raw in (slow, slower):
                assert numbers(read_up_to(raw, text(talk.sent - 1))) == list(range(talk.sent - 3, talk.sent))
        assert daemon.log().count("slow_consumers_detected: ") >= 2  # each worker says so


def test_one_that_reads_while_others_talk_on_comes_up_to_them_and_misses_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-send-buffer", "262144", "--history-size", "5000") as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as talker, daemon.connect_to(second) as other, stalled(daemon, second) as slow:
            talk = Talk(talker, other)
            talk.go_on(800)
            got = bytearray()
            while talk.sent < 1000:
                talk.go_on(1)
                got += slow.recv(8 * SIZE)
            while not got.endswith(text(talk.sent - 1).encode()):
                got += slow.recv(1 << 20)
            assert numbers(heard(b"HTTP/1.1 101 \r\n\r\n" + bytes(got)).texts) == list(range(talk.sent))


def test_what_history_has_no_more_is_lost_and_the_client_stays(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-send-buffer", "65536", "--history-size", "100") as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as talker, daemon.connect_to(second) as other, stalled(daemon, second) as slow:
            talk = Talk(talker, other)
            talk.go_on(2600)  # 42 MB: what the kernel has taken for it, and twice what is kept of a busy room
            got = numbers(read_up_to(slow, text(2599)))
            early = next(place for place, number in enumerate([*got, -1]) if number != place)
            late = got[early:]
            assert 100 <= len(late) < 2600 - early
            assert late == list(range(2600 - len(late), 2600))  # what waited for it; then what history still has
            talk.go_on(1)
            assert numbers(read_up_to(slow, text(2600))) == [2600]


def test_without_history_it_is_closed_and_told_what_it_missed(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-send-buffer", "262144", "--history-size", "0") as daemon:
        first, second = daemon.worker_pids()
        with (
            daemon.connect_to(first) as talker,
            daemon.connect_to(first) as near,
            daemon.connect_to(second) as far,
            stalled(daemon, first) as slow,
            stalled(daemon, second) as slower,
        ):
            talk = Talk(talker, near, far)
            talk.go_on(1000)
            for raw in (slow, slower):
                texts, reason = read_to_the_close(raw)
                missed = missed_by(reason)
                assert numbers(texts) == list(range(len(texts)))
                assert 0 < missed <= talk.sent - len(texts)  # it is told when the kernel has taken what waited for it
                raw.sendall(close_frame(1013))
            talk.go_on(3)  # nobody else is closed


def test_one_that_reads_again_in_time_never_falls_behind(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-send-buffer", "16777216", "--history-size", "0") as daemon:
        first, second = daemon.worker_pids()
        with daemon.connect_to(first) as talker, daemon.connect_to(second) as other, stalled(daemon, second) as slow:
            talk = Talk(talker, other)
            talk.go_on(900)
            assert numbers(read_up_to(slow, text(899))) == list(range(900))
            talker.send("and on")
            assert slow.recv(100)[2:] == b"and on"
        assert "slow_consumers_detected: " not in daemon.log()


def test_one_that_never_reads_and_goes_leaves_the_others_alone(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-send-buffer", "65536", workers=1) as daemon:
        [worker] = daemon.worker_pids()
        with daemon.connect() as talker, daemon.connect() as other, stalled(daemon, worker) as slow:
            Talk(talker, other).go_on(800)
            daemon.wait_for("slow_consumers_detected: ")
            slow.close()
            until(lambda: talks(talker, other), "the others to go on")


def talks(one: ClientConnection, other: ClientConnection) -> bool:
    try:
        one.send("still here")
        return other.recv(20) == "still here"
    except ConnectionClosed:
        return False
