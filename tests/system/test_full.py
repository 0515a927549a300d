"""More connections than a worker may have, by its limit or by the files that it may open."""

import socket
from contextlib import ExitStack
from pathlib import Path

from tests.frames import handshake
from tests.system.daemon import Daemon
from tests.waiting import until


def dial(daemon: Daemon, stack: ExitStack) -> tuple[socket.socket, bytes]:
    """Ask for a WebSocket; give the connection and the answer, empty where it was dropped."""
    one = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
    try:
        one.sendall(handshake())
        return one, one.recv(65536)
    except ConnectionError:
        return one, b""


def test_each_worker_accepts_its_share_of_the_connections_and_no_more(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--max-connections", "20") as daemon, ExitStack() as stack:
        daemon.wait_for(r"connection_limit_set: connection limit: 20 \(10 per worker")
        answers = [dial(daemon, stack) for _ in range(60)]
        inside = [one for one, answer in answers if answer.startswith(b"HTTP/1.1 101 ")]
        refused = [answer for _, answer in answers if not answer.startswith(b"HTTP/1.1 101 ")]
        assert len(inside) == 20
        assert all(answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in answer for answer in refused)
        daemon.wait_for("connection_limit_reached: the limit of 10 ")
        inside.pop().close()
        until(lambda: dial(daemon, stack)[1].startswith(b"HTTP/1.1 101 "), "room for one more")


def ask(one: socket.socket, target: str) -> int:
    """Send a request on a connection that was opened before; give the status, 0 where it is gone."""
    try:
        one.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = one.recv(65536)
    except ConnectionError:
        return 0
    return int(answer.split()[1]) if answer else 0


def test_who_begins_with_a_probe_counts_with_its_next_request_and_the_server_still_tells_its_health(
    tmp_path: Path,
) -> None:
    with Daemon(tmp_path, "--max-connections", "20") as daemon, ExitStack() as stack:
        held: list[socket.socket] = []
        for _ in range(40):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
            assert ask(one, "/-/healthz") == 200, "healthy, though full"
            held.append(one)
        statuses = [ask(one, "/ops") for one in held]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) <= 20
        refused = next(one for one, status in zip(held, statuses, strict=True) if status == 503)
        assert ask(refused, "/-/healthz") == 0, "that connection is at its end"
        until(lambda: dial(daemon, stack)[1].startswith(b"HTTP/1.1 503 "), "the server to be full again")
        another = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20))
        assert ask(another, "/-/metrics") == 200
        assert ask(another, "/-/rooms") == 503


def test_an_address_has_no_more_connections_behind_probes_than_it_may(tmp_path: Path) -> None:
    limits = ("--tuning", "connections_per_address=10", "--tuning", "request_rate=off")
    with Daemon(tmp_path, *limits, workers=1) as daemon, ExitStack() as stack:
        held = []
        for _ in range(15):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20)))
            assert ask(held[-1], "/-/healthz") == 200
        statuses = [ask(one, "/ops") for one in held]
        assert [statuses.count(429), statuses.count(200)] == [5, 10]


def test_where_few_files_may_be_open_the_rest_is_refused_and_all_goes_on(tmp_path: Path) -> None:
    few = ("prlimit", "--nofile=300:300")
    with Daemon(tmp_path, "--listen", "tcp:0:interface=127.0.0.1", host=few) as daemon, ExitStack() as stack:
        daemon.wait_for(r"connection_limit_set: connection limit: 344 \(172 per worker, which may open 300 files\)")
        answers = [dial(daemon, stack) for _ in range(700)]
        inside = [one for one, answer in answers if answer.startswith(b"HTTP/1.1 101 ")]
        refused = [answer for _, answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
        assert len(inside) == 344
        assert refused
        assert {answer[:13] for _, answer in answers} <= {b"HTTP/1.1 101 ", b"HTTP/1.1 503 ", b""}
        inside[0].sendall(b"\x81\x85\0\0\0\0hello")
        assert inside[-1].recv(7) == b"\x81\x05hello"
        assert daemon.texts() == ["hello"]
        for one in inside[1:150]:
            one.close()
        until(lambda: dial(daemon, stack)[1].startswith(b"HTTP/1.1 101 "), "room")
        assert "Too many open files" not in daemon.log()
        assert "EMFILE" not in daemon.log()
        assert len(daemon.log().splitlines()) < 40
