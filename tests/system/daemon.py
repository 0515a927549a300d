"""A real chatd for the system tests: started by twistd in a folder of its own, watched through its logs and /proc."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.waiting import until

TWISTD = str(Path(sys.executable).parent / "twistd")
CHATD = str(Path(sys.executable).parent / "chatd")


class Daemon:
    """``twistd -n chatd`` on a port of its own, from ``with`` to the end of it."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        workers: int = 2,
        any_port: bool = True,
        host: Sequence[str] = (),
        wait: bool = True,
        stdin: int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Take its folder and its options; the words that run a command on another host, where it is to be there.

        Where a configuration file is among the options it says how many workers there are.

        Without ``wait`` it is up to the test to wait until it is ready. On another host, or then, it is to be reached
        through ``unix_socket``.
        """
        self.folder = folder
        self.port = 0
        self.unix_socket = "" if wait and not host else str(folder / "chatd.sock")
        self._options = options
        self._workers = workers
        self._any_port = any_port and "--listen" not in options
        self._host = host
        self._wait = wait
        self._stdin = stdin
        self._env = {**os.environ, **env} if env else None

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "server.log").write_bytes(b"")
        self.start()
        return self

    def start(self) -> None:
        """Start it, again where it was killed."""
        before = len(self.log())
        command = [*self._host, TWISTD, "--nodaemon", "--pidfile=", "chatd", *self._options]
        if not any(option.startswith("log_repeat_interval=") for option in self._options):
            command += ["--tuning", "log_repeat_interval=0"]  # tests wait for events
        command += ["--log-format", "json"]
        if "--config" not in self._options:
            command += ["--workers", str(self._workers)]
        if self._any_port:
            command += ["--listen", "tcp:0:interface=127.0.0.1"]
        if self.unix_socket:
            command += ["--listen", f"unix:{self.unix_socket}"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._env,
                stdin=self._stdin,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            if self._wait:
                self.wait_until_ready(after=before)
        except BaseException:
            self._end()
            raise

    def wait_until_ready(self, *, after: int = 0) -> None:
        """Wait until it says that it is ready, and learn its port."""
        self.wait_for("server_ready: ", after=after)
        words = r"(?:connect with: websocat wss?|PROXY protocol): ?(?://)?[^ ]*?:(\d+)\n"
        self.port = int(self.wait_for(words, after=after)[1])

    def kill(self) -> None:
        """Kill all of it, the parent first, as the kernel would where memory runs out: its broker follows by itself."""
        children = self.children()
        self.process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        until(lambda: not any(map(is_running, children)), "the end of all")

    def __exit__(self, error: object, *_: object) -> None:
        self._end()
        if error is not None:
            print(self.log())

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()

    # What it says

    def log(self) -> str:
        """Return the id and text of each event in the server's log, and each line that is no event."""
        text = (self.folder / "server.log").read_text()
        return "".join(map(_event_text, text[: text.rfind("\n") + 1].splitlines()))

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait for a pattern, such as an event id, in ``log`` beyond its first ``after`` characters."""

        def look() -> re.Match[str] | None:
            if self.process.poll() is not None and not re.search(pattern, self.log()[after:]):
                raise AssertionError(f"chatd ended with {self.process.returncode}:\n{self.log()}")
            return re.search(pattern, self.log()[after:])

        found = until(look, f"{pattern!r} in the server's log")
        assert found is not None
        return found

    def chat_lines(self, path: str = "logs/chat.log") -> list[str]:
        """Give the lines of the chat log; one that does not end is a failure.

        Who reads a file while it is written to may see the first pages of a write and not yet its last (read(2) and
        write(2) take no lock together on every file system): such a line ends a moment later.
        """
        file = self.folder / path
        text = b""

        def ends() -> bool:
            nonlocal text
            text = file.read_bytes() if file.exists() else b""
            return not text or text.endswith(b"\n")

        until(ends, "the chat log's last line to end")
        return text.decode().split("\n")[:-1]

    def texts(self, path: str = "logs/chat.log") -> list[str]:
        """Give the texts in the chat log, as they stand there."""
        return [line.split(" ", 4)[4] for line in self.chat_lines(path)]

    # Its processes

    def children(self) -> list[int]:
        """Give the process ids of workers and broker."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == self.process.pid]

    def worker_pids(self) -> list[int]:
        """Give those of the workers."""
        return [pid for pid in self.children() if "chatd.worker" in _command(pid)]

    def broker_pid(self) -> int:
        """Give that of the private broker."""
        [pid] = self.broker_pids()
        return pid

    def broker_pids(self) -> list[int]:
        """Give it where there is one: it may have died just now."""
        return [pid for pid in self.children() if "-server" in _command(pid)]

    def worker_of(self, client: socket.socket) -> int:
        """Give the process id of the worker that holds a client's connection."""
        theirs = client.getsockname()[1]
        return until(lambda: self._holder(theirs), "a worker to take the connection")

    def _holder(self, theirs: int) -> int | None:
        ours = self.port
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[1].endswith(f":{ours:04X}") and fields[2].endswith(f":{theirs:04X}"):
                for pid in self.worker_pids():
                    if f"socket:[{fields[9]}]" in _open_files(pid):
                        return pid
        return None

    def ready(self, worker: int) -> bool:
        """Whether a worker says that it is ready."""
        while True:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
                if self.worker_of(client) == worker:
                    client.sendall(b"GET /-/readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    return client.recv(65536).startswith(b"HTTP/1.1 200 ")

    # Its clients

    def url(self, room: str = "", scheme: str = "ws") -> str:
        """Give the URL of a room."""
        return f"{scheme}://127.0.0.1:{self.port}/{room}"

    def socket_to(self, worker: int, buffer: int = 0) -> socket.socket:
        """Give a socket that the worker with that process id has taken: the kernel chooses, so until it did.

        Nothing was said on it yet: who asks for a room on the way is seen there, and takes a place or a nick along.
        """
        while True:
            raw = socket.socket()
            if buffer:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            raw.settimeout(20)
            raw.connect(("127.0.0.1", self.port))
            if self.worker_of(raw) == worker:
                return raw
            raw.close()

    def connect(self, room: str = "", *protocols: str, sock: socket.socket | None = None) -> ClientConnection:
        """Connect a client that is not ours, and that offers these subprotocols."""
        return connect(
            self.url(room),
            sock=sock,
            subprotocols=[Subprotocol(each) for each in protocols] or None,
            compression=None,
            ping_interval=None,
            max_size=None,
            max_queue=None,
        )

    def connect_to(self, worker: int, room: str = "", *protocols: str) -> ClientConnection:
        """Connect a client to the worker with that process id."""
        return self.connect(room, *protocols, sock=self.socket_to(worker))

    def say(self, room: str, *texts: str) -> None:
        """Say texts in a room, and see them there."""
        with self.connect(room) as talker, self.connect(room) as hearer:
            for text in texts:
                talker.send(text)
            for text in texts:
                assert text in hear(hearer, text)  # somebody else may still be speaking


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, *command: str, errors: int | None = None) -> None:
        self._lines: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def type(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def lines(self) -> list[str]:
        """Give what it has printed up to now."""
        assert self.process.stdout is not None
        data = self.process.stdout.read() or b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [line.decode() for line in lines]
        return self._lines

    def wait_for(self, count: int) -> list[str]:
        """Wait until it has printed so many lines; give them."""
        until(lambda: len(self.lines()) >= count, f"{count} lines; there are {len(self._lines)}: {self._lines[-3:]}")
        return self._lines

    def end(self) -> None:
        """Close the terminal."""
        with self.process:
            self.process.kill()


class Websocat(Terminal):
    """A terminal with websocat in it."""

    def __init__(self, url: str, *options: str) -> None:
        super().__init__("websocat", *options, url, errors=subprocess.DEVNULL)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Freeze a process."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _event_text(line: str) -> str:
    if not line.startswith('{"time"'):
        return line + "\n"
    event = json.loads(line)
    return f"{event['event'] or event['namespace']}: {event['text']}\n"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _open_files(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(each))
        except FileNotFoundError:
            continue
    return found


def hear(client: ClientConnection, last: str) -> list[str]:
    """Give what a client hears, up to a text."""
    texts: list[str] = []
    while texts[-1:] != [last]:
        texts.append(str(client.recv(20)))
    return texts


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def is_running(pid: int) -> bool:
    """Whether a process is there and not just a zombie that waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
