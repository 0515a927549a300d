"""Socket activation: the sockets that systemd passed to this process, by their names (sd_listen_fds_with_names(3)).

Twisted (26.10) takes the variables out of the environment when its endpoints are imported, knows one socket of each
name, and none without a name. So this reads what the environment was when the process started (proc(5)).
"""

import os
import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from chatd.config.values import BadValue

FIRST_DESCRIPTOR = 3
UNNAMED = "unknown"
"""What systemd calls a socket for which LISTEN_FDNAMES has no name."""


@cache  # a daemon asks before it forks, too, and is another process after that
def passed() -> dict[int, str]:
    """Return the name of each descriptor that systemd passed."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    started_with = {name: os.fsdecode(value) for name, _, value in (each.partition(b"=") for each in entries)}
    count = started_with.get(b"LISTEN_FDS", "")
    if started_with.get(b"LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = started_with.get(b"LISTEN_FDNAMES", "").split(":")
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    return {each: names[place] if names[place:] and names[place] else UNNAMED for place, each in enumerate(descriptors)}


def find(domain: str = "", index: str | None = None, name: str | None = None) -> list[int]:
    """Return the descriptors that the arguments of a systemd: endpoint mean. Raise BadValue if there are none.

    ``chatd.config.listen`` has checked the arguments. The domain changes nothing: a socket knows its own family.
    """
    if name is not None:
        wanted, found = f'named "{name}"', [each for each, its in passed().items() if its == name]
    else:
        wanted, found = f"with index {index}", [*passed()][int(index or 0) :][:1]
    if not found:
        raise BadValue(f"systemd passed no socket {wanted}; it passed: {', '.join(passed().values()) or 'none'}")
    for each in found:
        _check(each)
    return found


def _check(descriptor: int) -> None:
    """See that a descriptor is a socket to which clients can connect. Raise BadValue."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as one:
            listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise BadValue(f"descriptor {descriptor}, which systemd passed, is no socket") from error
    if not listens:
        why = "takes no connections; its unit needs ListenStream= and Accept=no"
        raise BadValue(f"descriptor {descriptor}, which systemd passed, {why}")


def unused(used: Sequence[object]) -> list[str]:
    """Name the sockets that systemd passed beside those that are used."""
    return [f"{name} (descriptor {each})" for each, name in passed().items() if each not in used]
