"""A Valkey server of a test's own, to be frozen, killed and started again, and a blocking client for it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import hiredis

from chatd.supervisor.private_broker import find_server
from tests.waiting import until

Error = hiredis.ReplyError
"""What the server did not carry out."""


class Client:
    """A blocking connection to the server with this socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def ask(self, *command: str | bytes | int) -> Any:
        """Send one command and give its answer; errors are raised."""
        self.send(*command)
        return self.read()

    def send(self, *command: str | bytes | int) -> None:
        """Send one command, whose answer is for ``read``."""
        self._socket.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]

    def read(self) -> Any:
        """Wait for what the server says next."""
        while (answer := self._reader.gets()) is False:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the server hung up")
            self._reader.feed(data)
        if isinstance(answer, Exception):
            raise answer
        return answer


def find_tls_server() -> str:
    """Give a server that speaks TLS: Debian's, which is the same program as this; run by no service."""
    program = shutil.which("redis-check-rdb")
    assert program, "redis-check-rdb is missing; get it with: sudo apt install redis-tools"
    return program


class Server:
    """One server process at a time on one socket path; ``close`` leaves nothing behind."""

    def __init__(self, host: Sequence[str] = (), program: str = "") -> None:
        """Take the words that run a command on another host, where it is to be there, and a program other than ours."""
        self._host = host
        self._folder = tempfile.TemporaryDirectory(prefix="chatd-test-")
        self.path = str(Path(self._folder.name, "broker.sock"))
        self.url = f"unix://{self.path}"
        self._program = str(Path(self._folder.name, "redis-server"))
        os.symlink(program or find_server(), self._program)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, *options: str) -> None:
        """Run it, until its socket takes connections."""
        command = [*self._host, self._program, "--port", "0", "--unixsocket", self.path]
        command += ["--save", "", "--dir", self._folder.name]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([*command, *options], stdout=quiet, stderr=quiet)
        until(self._listens, "the Valkey server to listen")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.path) == 0

    def ask(self, *command: str | bytes | int) -> Any:
        """Send one command and give its answer."""
        with Client(self.path) as client:
            return client.ask(*command)

    def freeze(self) -> None:
        """Stop it in its tracks; its connections stay."""
        self._signal(signal.SIGSTOP)
        assert self._process
        state = Path(f"/proc/{self._process.pid}/stat")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the server to be frozen")

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Cut its connections, and let none through."""
        hidden = self.path + ".hidden"
        os.rename(self.path, hidden)
        try:
            with Client(hidden) as client:
                for kind in ("normal", "pubsub"):
                    client.ask("CLIENT", "KILL", "TYPE", kind)
            yield
        finally:
            os.rename(hidden, self.path)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and take its folder away."""
        self.kill()
        self._folder.cleanup()

    def _signal(self, number: int) -> None:
        assert self._process
        os.kill(self._process.pid, number)
