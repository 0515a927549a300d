"""A client of a stream that vanishes: its packets are dropped, and nobody closes the connection."""

import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import msgspec
import pytest

from chatd.config.settings import Config
from tests.system.daemon import Daemon
from tests.system.network import Cable
from tests.waiting import until

HERE = "10.77.0.1"
SOON = [word for name in ("tcp_keepalive_time=2", "tcp_keepalive_interval=1") for word in ("--tuning", name)]

FOLLOW = """
import socket, ssl, sys
open_ones = []
for port, tls, proxied, path, accept in (line.split(" ") for line in sys.argv[2:]):
    connection = socket.create_connection((sys.argv[1], int(port)), 20)
    if proxied == "1":
        connection.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\\r\\n")
    if tls == "1":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    head = f"GET {path} HTTP/1.1\\r\\nHost: {sys.argv[1]}\\r\\nAccept: {accept}\\r\\n\\r\\n"
    connection.sendall(head.encode())
    while b"\\r\\n\\r\\n" not in (head := connection.recv(4096)):
        assert head, path
    open_ones.append(connection)
print("all follow", flush=True)
sys.stdin.read()
"""
"""Follows rooms from another host, and holds the connections."""


class Local(HTTPConnection):
    """A connection to the daemon that needs no network."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__("localhost", timeout=20)
        self._path = daemon.unix_socket

    def connect(self) -> None:
        self.sock = socket(AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(daemon: Daemon, method: str, target: str, body: str = "") -> Any:
    """Give the JSON of an answer."""
    connection = Local(daemon)
    try:
        connection.request(method, target, body or None)
        return msgspec.json.decode(connection.getresponse().read())
    finally:
        connection.close()


def members(daemon: Daemon, room: str) -> list[str]:
    """Give the nicks of those in a room."""
    return sorted(member["nick"] for member in ask(daemon, "GET", f"/{room}/members")["members"])


@pytest.fixture
def cable() -> Iterator[Cable]:
    with Cable() as cable:
        yield cable


def test_clients_whose_packets_are_dropped_are_gone_in_time(tmp_path: Path, cable: Cable, certificate: Path) -> None:
    assert Config().stream_heartbeat_interval + Config().vanished_seconds < 90  # as docs/reliability.md promises
    ports = [
        f"tcp:4001:interface={HERE}",
        f"ssl:4002:privateKey={certificate}:certKey={certificate}:interface={HERE}",
        f"haproxy:tcp:4003:interface={HERE}",
    ]
    listen = [word for port in ports for word in ("--listen", port)]
    with Daemon(
        tmp_path, *listen, *SOON, "--tuning", "stream_heartbeat_interval=2", workers=1, host=cable.here
    ) as daemon:
        asked = [
            f"{port} {tls} {proxied} /{room}{port}?follow=1&nick=ann {accept}"
            for port, tls, proxied in ((4001, 0, 0), (4002, 1, 0), (4003, 0, 1))
            for room, accept in (("silent", "text/plain"), ("beating", "application/json"), ("loud", "text/plain"))
        ]
        rooms = [f"{room}{port}" for port in (4001, 4002, 4003) for room in ("silent", "beating", "loud")]
        client = subprocess.Popen(
            [*cable.there, sys.executable, "-c", FOLLOW, HERE, *asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"all follow\n"
            assert [members(daemon, room) for room in rooms] == [["ann"]] * len(rooms)
            cable.cut()
            for port in (4001, 4002, 4003):
                ask(daemon, "POST", f"/loud{port}", "is anybody there?")
            for room in rooms:
                until(lambda room=room: not members(daemon, room), f"{room} to be empty", 40)  # type: ignore[misc]
        finally:
            client.kill()
            client.communicate()
