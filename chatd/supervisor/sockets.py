"""Listening sockets: bound from the endpoint strings of ``--listen``, and held by the supervisor while it lives.

Each TCP port has one socket per worker, all on the same address (SO_REUSEPORT). The kernel spreads connections over
them, and connections in the queue of a dead worker wait for its replacement. A socket that can exist only once (unix,
or passed by systemd) is shared by all workers.

A reload keeps the sockets, because the connections in their queues would be lost with them. If the new pool has fewer
workers, they share the sockets that are left over. If it has more, sockets are added.

Every endpoint string of Twisted works, with wrappers: the supervisor parses it with a reactor that only binds, and the
worker with one that uses the inherited socket. Sockets that systemd passed (sd_listen_fds_with_names(3)) are found by
the environment of the process when it started (proc(5)). Twisted (26.10) removes these variables when its endpoints
are imported, knows one socket of each name, and none without a name.
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

from chatd.config.listen import expects_proxy_header, has_ipv6, split_endpoint
from chatd.config.settings import LOOPBACK_LISTEN
from chatd.config.values import BadValue
from chatd.runtime.ipc import ListeningSocket
from chatd.runtime.tls import read_identity

Place = tuple[object, ...]

DESCRIPTOR = "descriptor"
"""The first part of the place of a socket that systemd passed; the second part is its descriptor."""
FIRST_DESCRIPTOR = 3
UNNAMED = "unknown"
"""The name that systemd uses for a socket without a name in LISTEN_FDNAMES."""
UNIX_MODE = 0o660
"""The mode of a unix socket whose endpoint string has none: owner and group may connect."""


@dataclass(slots=True)
class BoundEndpoint:
    """One endpoint string and the sockets that are bound for it."""

    endpoint: str
    """The endpoint string for a worker that inherits a socket."""
    sockets: list[socket.socket]
    """One socket per worker, or a single one that all share."""
    secure: bool = False
    metrics: bool = False
    """Whether it is an endpoint of ``--metrics-listen``."""
    path: str = ""
    """The file of a unix socket, which is removed at the end."""
    place: "Place" = ()
    """The place to which it is bound; a reload does not bind the same place again."""

    def sockets_for(self, worker: int, workers: int) -> list[socket.socket]:
        """Return the sockets of a worker (0, 1, 2 …): its own, and those that are left over."""
        return [self.sockets[worker % len(self.sockets)], *self.sockets[workers:]]

    @property
    def family(self) -> int:
        """Return the address family: AF_INET, AF_INET6 or AF_UNIX."""
        return self.sockets[0].family

    def metrics_hint(self) -> str:
        """Return where the metrics are, for the log."""
        address = self.sockets[0].getsockname()
        if self.family == socket.AF_UNIX:
            return f"metrics: {address}"
        return f"metrics: http{'s' * self.secure}://{_host_and_port(*address[:2])}/-/metrics"

    def hint(self, name: str = "") -> str:
        """Return how to connect, for the log. Name is the host name that a request must have, if any."""
        if self.family == socket.AF_UNIX:
            path = self.sockets[0].getsockname()
            return f"connect with: websocat --ws-c-uri=ws://{name or 'localhost'}/ - ws-c:unix:{path}"
        host, port = self.sockets[0].getsockname()[:2]
        if ip_address(host).is_unspecified:  # the host name may resolve to another address
            host = "::1" if ":" in host else "localhost"
        host = name or host
        address = _host_and_port(host, port)
        if expects_proxy_header(self.endpoint):
            return f"for a proxy that speaks the PROXY protocol: {address}"
        return f"connect with: websocat {'wss' if self.secure else 'ws'}://{address}"


def _host_and_port(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


@dataclass
class _Binder:
    """The reactor for an endpoint string: its ``listen…`` methods bind sockets and do not accept connections."""

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
        self.bound = self._take_held(place) or _listening_unix(address, mode, self.backlog)
        self.bound.place = place
        return self

    def _bind(self, port: int, interface: str, *, secure: bool) -> "_Binder":
        place = ("tcp", interface, port)
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        self.bound = self._take_held(place) or BoundEndpoint("", [])
        sockets = self.bound.sockets
        address = sockets[0].getsockname()[:2] if sockets else (interface, port)
        if not sockets and not (self.held and self.held.has_port(family, port)):
            # With SO_REUSEPORT a bind succeeds even if another chatd has the port; without it, it fails.
            with _bound(family, address, exclusive=True) as alone:
                alone.listen(self.backlog)
                address = alone.getsockname()[:2]
        sockets += [_bound(family, address) for _ in range(self.copies - len(sockets))]
        if self.held is None:
            for listening in sockets:
                listening.listen(self.backlog)
        self.bound.secure, self.bound.place = secure, place
        return self

    def _take_held(self, place: Place) -> "BoundEndpoint | None":
        return self.held.take(place) if self.held is not None else None


@dataclass
class _Passed(_Binder):
    """The same for an endpoint on a socket that systemd passed, which is bound already."""

    descriptor: int

    def _bind(self, port: int, interface: str, *, secure: bool) -> "_Binder":
        place = (DESCRIPTOR, self.descriptor)
        self.bound = self._take_held(place) or BoundEndpoint(
            "", [socket.socket(fileno=os.dup(self.descriptor))], place=place
        )
        return self


def _check_apart(endpoint: str, metrics: Sequence[BoundEndpoint], chat: Sequence[BoundEndpoint]) -> None:
    """Raise BadValue if a listener for metrics has the address of one for clients.

    At a start the second bind fails. At a reload the port is held, and both would accept connections.
    """
    for found in metrics:
        for other in chat:
            if found.place[0] != "tcp" or other.place[0] != "tcp" or found.family != other.family:
                continue
            (host, port), (other_host, other_port) = (bound.sockets[0].getsockname()[:2] for bound in (found, other))
            anywhere = ip_address(host).is_unspecified or ip_address(other_host).is_unspecified
            if port == other_port and (anywhere or host == other_host):
                raise BadValue(f"--metrics-listen {endpoint}: --listen has port {port} already; use another one")


class HeldSockets:
    """The endpoints that are bound before a reload, each to be used once."""

    def __init__(self, bound: Sequence[BoundEndpoint]) -> None:
        self._bound = list(bound)
        self._ports = {
            (endpoint.family, endpoint.sockets[0].getsockname()[1]) for endpoint in bound if endpoint.place[0] == "tcp"
        }

    def take(self, place: Place) -> BoundEndpoint | None:
        """Remove and return the endpoint of a place, as a copy with the same sockets; None if there is none."""
        for index, endpoint in enumerate(self._bound):
            if endpoint.place == place:
                del self._bound[index]
                return replace(endpoint, sockets=list(endpoint.sockets), metrics=False)
        return None

    def has_port(self, family: int, port: int) -> bool:
        """Return whether a port is bound, on any address."""
        return (family, port) in self._ports


def _has_mode(endpoint: str) -> bool:
    """Return whether an endpoint string has a mode for its unix socket: ``mode=600``, or the second argument."""
    _, _, positional, named = split_endpoint(endpoint)
    return "mode" in named or len(positional) > 1


def _listening_unix(address: str, mode: int, backlog: int) -> BoundEndpoint:
    remove_stale(address)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(address)
        os.chmod(address, mode)
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return BoundEndpoint("", [listening], path=os.path.abspath(address))


def _bound(family: int, address: tuple[str, int], *, exclusive: bool = False) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not exclusive:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def remove_stale(path: str) -> None:
    """Remove a unix socket on which no process listens any more."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(BlockingIOError):
            probe.setblocking(False)  # if the queue is full, a process listens
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def bind(endpoint: str, copies: int, backlog: int, held: HeldSockets | None = None) -> list[BoundEndpoint]:
    """Bind the sockets of one endpoint string for so many workers, and use those that are held. Raise BadValue.

    All of them listen, but for new TCP sockets beside those that are held. Several sockets that systemd passed may have
    one name, therefore there may be several results.
    """
    try:
        wrappers, scheme, positional, named = split_endpoint(endpoint)
        found = find_passed(*positional, **named) if scheme == "systemd" else []
    except BadValue as error:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(error)}") from error
    except (TypeError, ValueError) as error:
        raise BadValue(f"{endpoint!r} is not a server endpoint: {_one_line(error)}") from error
    if scheme != "systemd":
        return [_bind(endpoint, _Binder(endpoint, copies, backlog, held))]
    # The worker inherits the socket, and needs the string only for its wrappers.
    wrapped = ":".join([*wrappers, "tcp:0"])
    return [_bind(wrapped, _Passed(endpoint, copies, backlog, held, descriptor)) for descriptor in found]


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
        raise BadValue(f"{endpoint!r} is not a server endpoint: {_one_line(error)}") from error
    if failures:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(failures[0].value)}") from failures[0].value
    if binder.bound is None:
        raise BadValue(f"{endpoint!r} names no listening socket")
    binder.bound.endpoint = endpoint
    return binder.bound


def _one_line(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if file := getattr(error, "filename", None):
        text = f"{os.fsdecode(file)!r}: {text}"
    return " ".join(str(text).split())


class ListeningSockets:
    """All endpoints of ``--listen`` and ``--metrics-listen``, from ``bind`` to ``close``.

    An endpoint for metrics has one socket for all workers, so that each worker answers while others are replaced.
    """

    def __init__(self, endpoints: Sequence[str], copies: int, backlog: int, metrics: Sequence[str] = ()) -> None:
        """Set the endpoint strings (none: LOOPBACK_LISTEN), the number of workers, the length of the queues, and the
        endpoint strings for metrics.
        """
        self._metrics = metrics
        self._endpoints = endpoints or LOOPBACK_LISTEN
        self._optional = () if endpoints else LOOPBACK_LISTEN[1:]
        self._copies = copies
        self._backlog = backlog
        self.bound: list[BoundEndpoint] = []

    def bind(self, before: "ListeningSockets | None" = None) -> None:
        """Bind all endpoints, or none. Use the sockets of ``before`` again, and leave them open. Raise BadValue.

        Beside those, new TCP sockets do not accept connections until ``listen``: the kernel would give them connections
        that wait until the new workers are ready, and are reset if these never are.
        """
        held = HeldSockets(before.bound) if before is not None else None
        try:
            for endpoint in self._endpoints:
                try:
                    self.bound += bind(endpoint, self._copies, self._backlog, held)
                except BadValue:
                    if endpoint not in self._optional or has_ipv6():
                        raise
            for endpoint in self._metrics:
                found = bind(endpoint, 1, self._backlog, held)
                _check_apart(endpoint, found, self.bound)
                self.bound += [replace(bound, metrics=True) for bound in found]
        except BadValue:
            self.close(before)
            raise

    def listen(self) -> None:
        """Listen on all sockets that do not listen yet. Raise OSError."""
        for bound in self._sockets():
            if not bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                bound.listen(self._backlog)

    def close(self, but: "ListeningSockets | None" = None) -> None:
        """Close all sockets that ``but`` does not use, and remove the files of unix sockets."""
        needed = but._sockets() if but is not None else set()
        endpoints, self.bound = self.bound, []
        for endpoint in endpoints:
            for unneeded in set(endpoint.sockets) - needed:
                unneeded.close()
            if endpoint.path and not needed.issuperset(endpoint.sockets):
                with contextlib.suppress(OSError):  # already removed, or root's, and we run as another user
                    os.unlink(endpoint.path)

    def _sockets(self) -> set[socket.socket]:
        return {bound for endpoint in self.bound for bound in endpoint.sockets}

    def unused(self) -> list[str]:
        """Return the names of the sockets that systemd passed and no endpoint uses."""
        used = {endpoint.place[1] for endpoint in self.bound if endpoint.place[0] == DESCRIPTOR}
        return [f"{name} (descriptor {number})" for number, name in passed().items() if number not in used]

    def hints(self, names: Sequence[str] = ()) -> list[str]:
        """Return how to connect, for the log. Names are the host names that requests may have; empty: any."""
        name = next((known for known in ("localhost", *names) if known in names), "")
        if self._optional:
            return [f"connect with: websocat ws://{name or 'localhost'}:{self.bound[0].sockets[0].getsockname()[1]}"]
        hints = list(dict.fromkeys(endpoint.hint(name) for endpoint in self.bound if not endpoint.metrics))
        return [hint for hint in hints if (same := hint.replace("[::1]", "localhost")) == hint or same not in hints]

    def metrics_hints(self) -> list[str]:
        """Return where the metrics are, for the log."""
        return [endpoint.metrics_hint() for endpoint in self.bound if endpoint.metrics]

    def exposed(self) -> list[int]:
        """Return the TCP ports for chat to which other hosts can connect."""
        chat = [endpoint for endpoint in self.bound if not endpoint.metrics]
        tcp = (endpoint.sockets[0] for endpoint in chat if endpoint.family != socket.AF_UNIX)
        addresses = (bound.getsockname()[:2] for bound in tcp)
        return sorted({port for host, port in addresses if not ip_address(host.partition("%")[0]).is_loopback})


def inheritance(
    bound: Sequence[BoundEndpoint], worker: int, workers: int, first: int
) -> tuple[tuple[ListeningSocket, ...], dict[int, int]]:
    """Return the sockets that a worker (0, 1, …) of so many inherits, and the childFDs for them from ``first`` on."""
    sockets = [(endpoint, inherited) for endpoint in bound for inherited in endpoint.sockets_for(worker, workers)]
    listeners = [
        ListeningSocket(endpoint.endpoint, descriptor, endpoint.metrics)
        for descriptor, (endpoint, _) in enumerate(sockets, first)
    ]
    return tuple(listeners), {descriptor: bound.fileno() for descriptor, (_, bound) in enumerate(sockets, first)}


@cache  # a daemon asks before it forks as well, and has another process id afterwards
def passed() -> dict[int, str]:
    """Return the name of each descriptor that systemd passed."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    started_with = {name: os.fsdecode(value) for name, _, value in (entry.partition(b"=") for entry in entries)}
    count = started_with.get(b"LISTEN_FDS", "")
    if started_with.get(b"LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = started_with.get(b"LISTEN_FDNAMES", "").split(":")
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    names += [""] * (len(descriptors) - len(names))
    return {descriptor: name or UNNAMED for descriptor, name in zip(descriptors, names, strict=False)}


def find_passed(domain: str = "", index: str | None = None, name: str | None = None) -> list[int]:
    """Return the descriptors that the arguments of a systemd: endpoint select. Raise BadValue if there are none.

    ``chatd.config.listen`` has checked the arguments. The domain changes nothing: a socket knows its own family.
    """
    if name is not None:
        wanted, found = f'named "{name}"', [number for number, known in passed().items() if known == name]
    else:
        wanted, found = f"with index {index}", [*passed()][int(index or 0) :][:1]
    if not found:
        raise BadValue(f"systemd passed no socket {wanted}; it passed: {', '.join(passed().values()) or 'none'}")
    for descriptor in found:
        _check_passed(descriptor)
    return found


def _check_passed(descriptor: int) -> None:
    """Check that a descriptor is a socket to which clients can connect. Raise BadValue."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as candidate:
            listens = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise BadValue(f"descriptor {descriptor}, which systemd passed, is not a socket") from error
    if not listens:
        why = "takes no connections; its unit needs ListenStream= and Accept=no"
        raise BadValue(f"descriptor {descriptor}, which systemd passed, {why}")
