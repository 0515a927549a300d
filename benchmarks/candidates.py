"""The servers that are measured: how each is started, how one sees that it is ready, what it is made of.

All run on loopback, on a free port, in a folder of their own that goes away with them.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from benchmarks import processes
from benchmarks.generator import ROOT, pinned
from chatd.supervisor.private_broker import find_server

PEERS = ROOT / "benchmarks" / "peers"
"""Servers that are not ours."""
SEED = ROOT / "build" / "seed"
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
"""Where Debian's libnginx-mod-nchan puts it."""
START_SECONDS = 30.0
STOP_SECONDS = 15.0


class NotReady(Exception):
    """A server did not start; its text is the end of what it said."""


@dataclass(frozen=True)
class Program:
    """One program of a server: its command, and what it prints when it is ready."""

    command: Sequence[str]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a server is to run."""

    folder: Path
    port: int
    workers: int
    broker: bool
    """Whether workers talk through a broker; a server that always does, or never can, takes no notice."""
    options: Sequence[str] = ()
    """What else is on chatd's command line."""


@dataclass(frozen=True)
class Candidate:
    """A kind of server that can be measured."""

    name: str
    title: str
    programs: Callable[[Place], list[Program]]
    """Gives what must run for it, in the order to start."""
    lacks: Callable[[], str] = lambda: ""
    """Says in a sentence what it lacks to run on this machine, if anything."""
    echo: bool = False
    """Whether a sender gets its own messages too."""
    scales: bool = True
    """Whether it can have workers."""


@dataclass(frozen=True)
class Server:
    """A running candidate."""

    port: int
    start_seconds: float
    roots: Sequence[int]
    folder: Path

    def workers(self) -> list[int]:
        """Give the ids of chatd's workers among them."""
        return [pid for pid in self.processes() if b"chatd.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def said(self) -> str:
        """Give what its programs have said so far."""
        return "".join(log.read_text(errors="replace") for log in self.folder.glob("*.log"))

    def processes(self) -> list[int]:
        """Give the ids of all its processes: parents, workers, brokers."""
        return processes.family(self.roots)


def _chatd(place: Place) -> list[Program]:
    twistd = str(Path(sys.executable).with_name("twistd"))
    listen = f"tcp:{place.port}:interface=127.0.0.1"
    options = ["--listen", listen, "--workers", str(place.workers), "--tuning", "worker_connections=20000"]
    options += ["--tuning", "log_repeat_interval=0", *place.options]  # what befalls clients is counted in the log
    return [Program([twistd, "-n", "--pidfile=", "chatd", *options], "is ready:")]


def _seed(place: Place) -> list[Program]:
    settings = {"PORT": str(place.port), "WORKERS": str(place.workers), "NODE_ENV": "production"}
    server = ["node", str(SEED / "server.js")]
    if not place.broker:
        return [Program(server, "ready", settings)]
    path = str(place.folder / "broker.sock")
    broker = [find_server(), "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
    return [Program(broker, "Ready to accept connections"), Program(server, "ready", {**settings, "REDIS": path})]


def _naive(place: Place) -> list[Program]:
    return [Program([sys.executable, str(PEERS / "naive.py"), str(place.port)], "ready")]


def _uws(place: Place) -> list[Program]:
    return [Program([sys.executable, str(PEERS / "uws.py"), str(place.port)], "ready")]


def _nchan(place: Place) -> list[Program]:
    template = Template((PEERS / "nchan.conf").read_text())
    names = {"module": NCHAN, "workers": place.workers, "port": place.port}
    (place.folder / "nginx.conf").write_text(template.substitute(names))
    command = ["nginx", "-p", str(place.folder), "-c", "nginx.conf", "-e", "stderr"]
    return [Program(command, "start worker process")]


def _lacks_seed() -> str:
    return "" if (SEED / "server.js").exists() and shutil.which("node") else "Node or its packages are not installed"


def _lacks_uws() -> str:
    tried = subprocess.run([sys.executable, "-c", "import socketify"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "socketify or the library libuv it needs is not installed"


def _lacks_nchan() -> str:
    return "" if NCHAN.exists() and shutil.which("nginx") else "nginx and its module Nchan are not installed"


CANDIDATES = {
    each.name: each
    for each in (
        Candidate("chatd", "chatd", _chatd),
        Candidate("seed", "Node: ws, ioredis", _seed, _lacks_seed),
        Candidate("naive", "Autobahn as it comes", _naive, scales=False),
        Candidate("nchan", "Nchan (C)", _nchan, _lacks_nchan, echo=True),
        Candidate("uws", "uWebSockets (C++)", _uws, _lacks_uws, echo=True, scales=False),
    )
}


def free_port() -> int:
    """Give a TCP port that nobody has on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    candidate: Candidate, *, workers: int, broker: bool, cores: str = "", options: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a candidate, pinned to cores, from ready to the end of the ``with``. Raises NotReady."""
    disk = ROOT / "build"  # /tmp may be memory
    disk.mkdir(exist_ok=True)
    temporary = tempfile.TemporaryDirectory(prefix=f"{candidate.name}-", dir=disk)
    with temporary as name, contextlib.ExitStack() as stack:
        place = Place(Path(name), free_port(), workers, broker, options)
        began = time.perf_counter()
        roots = [stack.enter_context(_started(program, place.folder, cores)) for program in candidate.programs(place)]
        yield Server(place.port, time.perf_counter() - began, roots, place.folder)


@contextlib.contextmanager
def _started(program: Program, folder: Path, cores: str) -> Iterator[int]:
    log = folder / f"{Path(program.command[0]).name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(cores, program.command),
            cwd=folder,
            env={**os.environ, **program.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(program.ready, log, process)
        yield process.pid
    finally:
        everybody = processes.family([process.pid])
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        for pid in processes.alive(everybody):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _wait_for(words: str, log: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while words not in (said := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > end:
            raise NotReady(f"{process.args!r}: {said[-1000:]}")
        time.sleep(0.005)
