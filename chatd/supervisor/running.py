"""The chatds with a private broker that run on this host: found by the sockets on which their brokers listen."""

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
"""All unix sockets of this host, those of other users too (proc(5))."""

_LISTENING = re.compile(rb"\S+ \S+ \S+ 00010000 0001 01 +[0-9]+ (/.*)")
_TEMPORARY = re.compile(r"chatd-[0-9]+-.*")


@dataclass(frozen=True)
class RunningInstance:
    """A chatd that runs here."""

    socket: str
    """The path of its broker's socket."""
    uid: int
    """The user that it runs as."""

    @property
    def state(self) -> str:
        """Its state folder, if the socket is in it."""
        folder = os.path.dirname(self.socket)
        return os.path.dirname(folder) if os.path.basename(folder) == BROKER else ""

    @property
    def option(self) -> str:
        """The option of ``chatd verify`` that names it."""
        return f"--state {shlex.quote(self.state)}" if self.state else f"--redis unix://{quote(self.socket)}"

    @property
    def user(self) -> str:
        """The name of its user."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def place(self) -> str:
        """Return the folder in which it was started, and its ports, for people."""
        parent = _parent(self._broker())
        folder = f"started in {os.readlink(f'/proc/{parent}/cwd')}"
        ports = sorted(_ports(parent))
        return f"{folder}, {'port' if len(ports) == 1 else 'ports'} {', '.join(map(str, ports))}" if ports else folder

    def _broker(self) -> int:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.socket)
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)


def find_running() -> list[RunningInstance]:
    """List the chatds that have a private broker, those of this user first."""
    with contextlib.suppress(OSError):  # another system than Linux
        paths = {os.fsdecode(found[1]) for found in map(_LISTENING.fullmatch, _lines(UNIX_SOCKETS)) if found}
        found = [RunningInstance(path, _owner(path)) for path in sorted(filter(_is_broker, paths))]
        return sorted(found, key=lambda each: each.uid != os.getuid())
    return []


def _lines(path: str) -> list[bytes]:
    return Path(path).read_bytes().splitlines()


def _is_broker(path: str) -> bool:
    """Whether a socket is that of a chatd's private broker: in a temporary folder, or in the state folder."""
    folder, name = os.path.split(path)
    if name != SOCKET:
        return False
    above, folder_name = os.path.split(folder)
    if folder_name != BROKER:
        return bool(_TEMPORARY.fullmatch(folder_name)) and os.path.lexists(path)
    return os.path.exists(os.path.join(above, LOCK)) or not os.access(above, os.X_OK)


def _owner(path: str) -> int:
    """Return who owns a file, or the nearest of its folders that may be looked at."""
    while True:
        try:
            return os.stat(path).st_uid
        except OSError:
            path = os.path.dirname(path)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def _ports(pid: int) -> Iterator[int]:
    """Give the TCP ports on which a process listens."""
    inodes = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(each).encode())
    ports = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6
            for row in _lines(f"/proc/{pid}/net/{name}")[1:]:
                fields = row.split()
                if fields[3] == b"0A" and b"socket:[%b]" % fields[9] in inodes:
                    ports.add(int(fields[1].rpartition(b":")[2], 16))
    yield from ports
