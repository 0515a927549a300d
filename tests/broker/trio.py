"""A master, its replica and three Sentinels, all real, to be killed, frozen and failed over."""

import os
import random
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import hiredis

from chatd.config.broker_url import SENTINEL_PORT
from chatd.supervisor.private_broker import find_server
from tests.waiting import until

SERVICE = "chat"
PORT = 6379


@dataclass(frozen=True)
class Spot:
    """Where a server runs: an address, and the words that run a command there."""

    address: str
    host: Sequence[str] = ()


def spots(count: int) -> list[Spot]:
    """Give addresses on loopback that nobody else uses: no port has to be found that is free."""
    network = f"127.{random.randrange(1, 255)}.{random.randrange(256)}"
    return [Spot(f"{network}.{number}") for number in range(1, count + 1)]


class Node:
    """One process: a server or a Sentinel, that is asked through a unix socket."""

    def __init__(self, spot: Spot, path: Path, port: int, lines: Sequence[str], *, password: str) -> None:
        """Take where it runs, its name in its folder, the lines of its configuration, and the password it asks for."""
        folder, name = path.parent, path.name
        self.spot = spot
        self.port = port
        self.path = str(folder / f"{name}.sock")
        self._password = password
        self._command = [*spot.host, find_server(), str(folder / f"{name}.conf")]
        if name.startswith("sentinel"):
            self._command.append("--sentinel")
        own = [f"port {port}", f"bind {spot.address}", f"unixsocket {self.path}", f"dir {folder}", "protected-mode no"]
        if password:
            own.append(f"requirepass {password}")
        (folder / f"{name}.conf").write_text("\n".join([*own, *lines, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, until it takes connections."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet)
        until(self._listens, "a server to listen")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.path) == 0

    def ask(self, *command: str | int) -> Any:
        """Send one command and give its answer; errors are raised."""
        commands = [("AUTH", self._password)] if self._password else []
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(self.path)
            reader = hiredis.Reader()
            for each in (*commands, command):
                client.sendall(hiredis.pack_command(each))  # type: ignore[arg-type]
                while (answer := reader.gets()) is False:
                    if not (data := client.recv(65536)):
                        raise ConnectionResetError("the server hung up")
                    reader.feed(data)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def role(self) -> str:
        """Say what it is; nothing where it just drops its clients, for it becomes another."""
        try:
            return str(self.ask("ROLE")[0].decode())
        except OSError:
            return ""

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Trio:
    """All of them, from ``with`` to the end of it."""

    def __init__(
        self,
        servers: Sequence[Spot] = (),
        sentinels: Sequence[Spot] = (),
        *,
        password: str = "",
        sentinel_password: str = "",
        down_after: int = 500,
    ) -> None:
        """Take where they run; the passwords they ask for, and the milliseconds of silence after which one is down."""
        self._folder = tempfile.TemporaryDirectory(prefix="chatd-test-")
        folder = Path(self._folder.name)
        loopback = spots(5)
        servers, sentinels = servers or loopback[:2], sentinels or loopback[2:]
        master = servers[0].address
        self.servers: list[Node] = []
        for number, spot in enumerate(servers):
            lines = ['save ""', "repl-diskless-sync-delay 0", f"replica-announce-ip {spot.address}"]
            lines += [f"masterauth {password}"] if password else []
            lines += [f"replicaof {master} {PORT}"] if number else []
            self.servers.append(Node(spot, folder / f"server{number}", PORT, lines, password=password))
        lines = [
            f"sentinel monitor {SERVICE} {master} {PORT} 2",
            f"sentinel down-after-milliseconds {SERVICE} {down_after}",
            f"sentinel failover-timeout {SERVICE} 5000",
            *([f"sentinel auth-pass {SERVICE} {password}"] if password else []),
            *([f"sentinel sentinel-pass {sentinel_password}"] if sentinel_password else []),
        ]
        self.sentinels = [
            Node(
                spot,
                folder / f"sentinel{number}",
                SENTINEL_PORT,
                [*lines, f"sentinel announce-ip {spot.address}"],
                password=sentinel_password,
            )
            for number, spot in enumerate(sentinels)
        ]

    @property
    def url(self) -> str:
        """What chatd is to be given."""
        hosts = ",".join(f"{each.spot.address}:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def __enter__(self) -> Self:
        try:
            for each in [*self.servers, *self.sentinels]:
                each.start()
            until(self.is_whole, "the Sentinels to know each other and the replica")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for each in [*self.sentinels, *self.servers]:
            each.kill()
        self._folder.cleanup()

    def is_whole(self) -> bool:
        """Whether all know each other, and the replica has what the master has."""
        others = f"slaves={len(self.servers) - 1},sentinels={len(self.sentinels)}".encode()
        if not all(others in each.ask("INFO", "sentinel") for each in self.sentinels):
            return False
        try:
            replicas = [each.ask("ROLE")[3] for each in self.servers if each is not self.master()]
        except (OSError, IndexError):  # it becomes one just now
            return False
        return replicas == [b"connected"] * (len(self.servers) - 1)

    def master(self) -> Node | None:
        """Give the server that all Sentinels name."""
        named = {each.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[0].decode() for each in self.sentinels}
        return next((each for each in self.servers if {each.spot.address} == named), None)
