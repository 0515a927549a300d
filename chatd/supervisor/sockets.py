"""Endpoint strings to bound sockets: what ``--listen`` names, held by the parent for as long as it lives.

For each TCP port there is a socket a worker, all on the same address (SO_REUSEPORT): the kernel spreads
connections over them, and what waits in a dead worker's queue waits for its replacement. Sockets that can't be
had several times (unix, or passed by systemd) are shared by all workers.

A socket is kept from one generation of workers to the next, for what waits in its queue is lost with it. Where the next
one has fewer workers, they share the sockets that are left over; where it has more, sockets are added.

Any of Twisted's endpoint strings works, wrappers too: it is parsed with a reactor façade that only binds and
remembers. The worker parses the same string with one that uses the inherited socket.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from chatd.config.listen import expects_proxy_header, split_endpoint
from chatd.config.settings import LOOPBACK_LISTEN
from chatd.config.values import BadValue
from chatd.runtime.ipc import ListeningSocket
from chatd.runtime.tls import read_identity

Place = tuple[object, ...]

DESCRIPTOR = "descriptor"
"""The first part of the place of a socket that systemd passed; the second is the number of its descriptor."""
FIRST_DESCRIPTOR = 3
UNNAMED = "unknown"
"""What systemd calls a socket for which LISTEN_FDNAMES has no name."""
UNIX_MODE = 0o660
"""The mode of a unix socket whose endpoint string has none: its owner and its group may connect."""


@dataclass(slots=True)
class BoundEndpoint:
    """What one endpoint string was bound to."""

    endpoint: str
    """An endpoint string that a worker, which inherits the socket, can parse."""
    sockets: list[socket.socket]
    """One a worker, or a single one that all share."""
    secure: bool = False
    path: str = ""
    """A unix socket's, to be removed in the end."""
    place: "Place" = ()
    """What was asked for: the same place is bound only once."""

    def sockets_for(self, worker: int, workers: int) -> list[socket.socket]:
        """Give the sockets of a worker (0, 1, 2 …): its own, and those that are left over."""
        return [self.sockets[worker % len(self.sockets)], *self.sockets[workers:]]

    @property
    def family(self) -> int:
        """Return the family of its address: AF_INET, AF_INET6 or AF_UNIX."""
        return self.sockets[0].family

    def hint(self, name: str = "") -> str:
        """Say how to connect, in a line for the log; name is the one that a request must give, if there is one."""
        if self.family == socket.AF_UNIX:
            path = self.sockets[0].getsockname()
            return f"connect with: websocat --ws-c-uri=ws://{name or 'localhost'}/ - ws-c:unix:{path}"
        host, port = self.sockets[0].getsockname()[:2]
        if ip_address(host).is_unspecified:  # the name of this host need not lead to it
            host = "::1" if ":" in host else "localhost"
        host = name or host
        place = f"{f'[{host}]' if ':' in host else host}:{port}"
        if expects_proxy_header(self.endpoint):
            return f"for a proxy that speaks the PROXY protocol: {place}"
        return f"connect with: websocat {'wss' if self.secure else 'ws'}://{place}"


@dataclass
class _Binder:
    """Looks like a reactor to whoever parses an endpoint string; binds, does not listen to anything."""

    endpoint: str
    copies: int
    backlog: int
    held: "HeldSockets | None"
    bound: BoundEndpoint | None = field(default=None, init=False)

    def listenTCP(self, port: int, factory: object, backlog: int = 50, interface: str = "") -> "_Binder":
        return self._bind(port, interface, secure=isinstance(factory, TLSMemoryBIOFactory))

    def listenSSL(
        self, port: int, factory: object, contextFactory: object, backlog: int = 50, interface: str = ""
    ) -> "_Binder":
        return self._bind(port, interface, secure=True)

    def listenUNIX(
        self, address: str, factory: object, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> "_Binder":
        if not _has_mode(self.endpoint):  # Twisted's default lets everybody connect
            mode = UNIX_MODE
        place = ("unix", os.path.abspath(address))
        self.bound = self._take(place) or _listening_unix(address, mode, self.backlog)
        self.bound.place = place
        return self

    def _bind(self, port: int, interface: str, *, secure: bool) -> "_Binder":
        place = ("tcp", interface, port)
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        self.bound = self._take(place) or BoundEndpoint("", [])
        sockets = self.bound.sockets
        address = sockets[0].getsockname()[:2] if sockets else (interface, port)
        if not sockets and not (self.held and self.held.has_port(family, port)):
            # Sockets that share a port do not ask who else has it; one that is alone does.
            with _bound(family, address, exclusive=True) as alone:
                alone.listen(self.backlog)
                address = alone.getsockname()[:2]
        sockets += [_bound(family, address) for _ in range(self.copies - len(sockets))]
        if self.held is None:
            for one in sockets:
                one.listen(self.backlog)
        self.bound.secure, self.bound.place = secure, place
        return self

    def _take(self, place: Place) -> "BoundEndpoint | None":
        return self.held.take(place) if self.held is not None else None


@dataclass
class _Passed(_Binder):
    """The same, for an endpoint on a socket that systemd passed: there is nothing to bind."""

    descriptor: int

    def _bind(self, port: int, interface: str, *, secure: bool) -> "_Binder":
        place = (DESCRIPTOR, self.descriptor)
        self.bound = self._take(place) or BoundEndpoint(
            "", [socket.socket(fileno=os.dup(self.descriptor))], place=place
        )
        return self


class HeldSockets:
    """What is bound already, each to be taken once."""

    def __init__(self, bound: Sequence[BoundEndpoint]) -> None:
        """Take what is bound."""
        self._bound = list(bound)
        self._ports = {(each.family, each.sockets[0].getsockname()[1]) for each in bound if each.place[0] == "tcp"}

    def take(self, place: Place) -> BoundEndpoint | None:
        """Give what is bound to a place, as a value of its own with the same sockets."""
        for index, each in enumerate(self._bound):
            if each.place == place:
                del self._bound[index]
                return replace(each, sockets=list(each.sockets))
        return None

    def has_port(self, family: int, port: int) -> bool:
        """Whether the port is ours already, on whatever address."""
        return (family, port) in self._ports


def _has_mode(endpoint: str) -> bool:
    """Whether the string of an endpoint on a unix socket gives its mode: ``mode=600``, or behind the path."""
    _, _, positional, named = split_endpoint(endpoint)
    return "mode" in named or len(positional) > 1


def _listening_unix(address: str, mode: int, backlog: int) -> BoundEndpoint:
    remove_stale(address)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.bind(address)
        os.chmod(address, mode)
        one.listen(backlog)
    except BaseException:
        one.close()
        raise
    return BoundEndpoint("", [one], path=os.path.abspath(address))


def _bound(family: int, address: tuple[str, int], *, exclusive: bool = False) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not exclusive:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one


def remove_stale(path: str) -> None:
    """Remove a unix socket on which nobody listens any more."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(BlockingIOError):
            probe.setblocking(False)  # where the queue is full somebody listens: do not wait for room
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def bind(endpoint: str, copies: int, backlog: int, held: HeldSockets | None = None) -> list[BoundEndpoint]:
    """Bind what one endpoint string names, for that many workers, unless it is held already. Raises BadValue.

    It listens; but TCP sockets that are new beside what is held do not yet. Of the sockets that systemd passed, several
    may have the one name.
    """
    try:
        wrappers, kind, positional, named = split_endpoint(endpoint)
        found = find_passed(*positional, **named) if kind == "systemd" else []
    except BadValue as error:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(error)}") from error
    except (TypeError, ValueError) as error:
        raise BadValue(f"{endpoint!r} is no server endpoint: {_one_line(error)}") from error
    if kind != "systemd":
        return [_bind(endpoint, _Binder(endpoint, copies, backlog, held))]
    # A worker gets the socket, and needs to know no more of it than what is put around it.
    around = ":".join([*wrappers, "tcp:0"])
    return [_bind(around, _Passed(endpoint, copies, backlog, held, descriptor)) for descriptor in found]


def check_identity(endpoint: str) -> None:
    """Check the files of an ssl: endpoint. Raise BadValue.

    Call this before ``bind``: Twisted asks the terminal for the password of an encrypted key.
    """
    try:
        read_identity(endpoint)
    except (BadValue, OSError) as error:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(error)}") from error


def _bind(endpoint: str, binder: _Binder) -> BoundEndpoint:
    failures: list[Failure] = []
    try:
        serverFromString(binder, endpoint).listen(Factory()).addErrback(failures.append)
    except (BadValue, OSError) as error:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(error)}") from error
    except Exception as error:
        raise BadValue(f"{endpoint!r} is no server endpoint: {_one_line(error)}") from error
    if failures:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(failures[0].value)}") from failures[0].value
    if binder.bound is None:
        raise BadValue(f"{endpoint!r} names no listening socket")
    binder.bound.endpoint = endpoint
    return binder.bound


def _one_line(error: object) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if file := getattr(error, "filename", None):
        said = f"{os.fsdecode(file)!r}: {said}"
    return " ".join(str(said).split())


class ListeningSockets:
    """All that chatd listens on."""

    def __init__(self, endpoints: Sequence[str], copies: int, backlog: int) -> None:
        """Take the endpoint strings (none: LOOPBACK_LISTEN) and the number of workers."""
        self._endpoints = endpoints or LOOPBACK_LISTEN
        self._optional = () if endpoints else LOOPBACK_LISTEN[1:]
        self._copies = copies
        self._backlog = backlog
        self.bound: list[BoundEndpoint] = []

    def bind(self, before: "ListeningSockets | None" = None) -> None:
        """Bind everything, or nothing; what was bound before is used again, and stays open. Raises BadValue.

        Beside what was bound before, new TCP sockets wait for ``listen``: the kernel would give them connections that
        nobody takes before the new workers are ready, and that are reset where these never are.
        """
        held = HeldSockets(before.bound) if before is not None else None
        try:
            for endpoint in self._endpoints:
                try:
                    self.bound += bind(endpoint, self._copies, self._backlog, held)
                except BadValue:
                    if endpoint not in self._optional or _has_ipv6():
                        raise
        except BadValue:
            self.close(before)
            raise

    def listen(self) -> None:
        """Take connections on those sockets, too, that do not yet. Raises OSError."""
        for one in (one for each in self.bound for one in each.sockets):
            if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                one.listen(self._backlog)

    def close(self, but: "ListeningSockets | None" = None) -> None:
        """Close everything but what others need."""
        needed = {one for each in but.bound for one in each.sockets} if but is not None else set()
        bound, self.bound = self.bound, []
        for each in bound:
            for one in set(each.sockets) - needed:
                one.close()
            if each.path and not needed.issuperset(each.sockets):
                with contextlib.suppress(OSError):  # it was removed; or made by root, and we run as another user
                    os.unlink(each.path)

    def unused(self) -> list[str]:
        """Name the sockets that systemd passed and that nothing is to listen on."""
        return unused_passed([each.place[1] for each in self.bound if each.place[0] == DESCRIPTOR])

    def hints(self, names: Sequence[str] = ()) -> list[str]:
        """Say how to connect, a line for each way. Names are those by which alone the server is to be asked for."""
        name = next((each for each in ("localhost", *names) if each in names), "")
        if self._optional:
            return [f"connect with: websocat ws://{name or 'localhost'}:{self.bound[0].sockets[0].getsockname()[1]}"]
        hints = list(dict.fromkeys(each.hint(name) for each in self.bound))
        return [each for each in hints if (same := each.replace("[::1]", "localhost")) == each or same not in hints]

    def exposed(self) -> list[int]:
        """List the TCP ports to which other hosts can connect."""
        firsts = (each.sockets[0] for each in self.bound if each.family != socket.AF_UNIX)
        places = (one.getsockname()[:2] for one in firsts)
        return sorted({port for host, port in places if not ip_address(host.partition("%")[0]).is_loopback})


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def inheritance(
    bound: Sequence[BoundEndpoint], worker: int, workers: int, first: int
) -> tuple[tuple[ListeningSocket, ...], dict[int, int]]:
    """Give what a worker (0, 1, …, of so many) listens on, and as childFDs takes it, in descriptors from first on."""
    sockets = [(each, one) for each in bound for one in each.sockets_for(worker, workers)]
    listeners = [ListeningSocket(each.endpoint, descriptor) for descriptor, (each, _) in enumerate(sockets, first)]
    return tuple(listeners), {descriptor: one.fileno() for descriptor, (_, one) in enumerate(sockets, first)}


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


def find_passed(domain: str = "", index: str | None = None, name: str | None = None) -> list[int]:
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


def unused_passed(used: Sequence[object]) -> list[str]:
    """Name the sockets that systemd passed beside those that are used."""
    return [f"{name} (descriptor {each})" for each, name in passed().items() if each not in used]
