"""The chatds with a private broker that run on this host, found by the unix sockets of their brokers."""

import contextlib
import os
import pwd
import re
import shlex
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from chatd.supervisor.data_dir import BROKER, LOCK
from chatd.supervisor.private_broker import SOCKET

UNIX_SOCKETS = "/proc/net/unix"
"""The unix sockets of all processes in this network namespace (proc(5))."""

_LISTENING = re.compile(rb"\S+ \S+ \S+ 00010000 0001 01 +[0-9]+ (/.*)")
_TEMPORARY = re.compile(r"chatd-[0-9]+-.*")


@dataclass(frozen=True)
class RunningInstance:
    """A chatd with a private broker that runs on this host."""

    socket: str
    """The path of its broker's socket."""
    uid: int
    """The user id of its processes."""

    @property
    def state(self) -> str:
        """Return its state folder; empty if the socket is elsewhere."""
        directory = os.path.dirname(self.socket)
        return os.path.dirname(directory) if os.path.basename(directory) == BROKER else ""

    @property
    def option(self) -> str:
        """Return the option of ``chatd verify`` for this chatd."""
        return f"--data-dir {shlex.quote(self.state)}" if self.state else f"--redis unix://{quote(self.socket)}"

    @property
    def user(self) -> str:
        """Return the name of its user."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def place(self) -> str:
        """Return the directory in which it was started, and its ports, for people."""
        supervisor = _parent(self._broker_pid())
        directory = f"started in {os.readlink(f'/proc/{supervisor}/cwd')}"
        ports = sorted({*_ports(supervisor)})
        if not ports:
            return directory
        return f"{directory}, {'port' if len(ports) == 1 else 'ports'} {', '.join(map(str, ports))}"

    def _broker_pid(self) -> int:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.socket)
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)


def find_running() -> list[RunningInstance]:
    """Return the chatds that have a private broker, those of this user first."""
    with contextlib.suppress(OSError):  # another system than Linux
        paths = {os.fsdecode(found[1]) for found in map(_LISTENING.fullmatch, _lines(UNIX_SOCKETS)) if found}
        found = [RunningInstance(path, _owner(path)) for path in sorted(filter(_is_broker, paths))]
        return sorted(found, key=lambda instance: instance.uid != os.getuid())
    return []


def _lines(path: str) -> list[bytes]:
    return Path(path).read_bytes().splitlines()


def _is_broker(path: str) -> bool:
    """Return whether a path is that of a private broker's socket: in a temporary directory, or in a state folder."""
    directory, name = os.path.split(path)
    state = os.path.dirname(directory)
    if name != SOCKET:
        return False
    if os.path.basename(directory) != BROKER:
        return bool(_TEMPORARY.fullmatch(os.path.basename(directory))) and os.path.lexists(path)
    return os.path.exists(os.path.join(state, LOCK)) or not os.access(state, os.X_OK)


def _owner(path: str) -> int:
    """Return the owner of a file, or of the nearest directory above it that can be read."""
    while True:
        try:
            return os.stat(path).st_uid
        except OSError:
            path = os.path.dirname(path)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def _ports(pid: int) -> Iterator[int]:
    """Yield the TCP ports on which a process listens; a port may come twice."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(descriptor).encode())
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6
            for row in _lines(f"/proc/{pid}/net/{name}")[1:]:
                fields = row.split()
                if fields[3] == b"0A" and b"socket:[%b]" % fields[9] in inodes:
                    yield int(fields[1].rpartition(b":")[2], 16)
