"""Endpoint strings to bound sockets: what ``--listen`` names, held by the parent for as long as it lives.

For each TCP port there is a socket a worker, all on the same address (SO_REUSEPORT): the kernel spreads
connections over them, and what waits in a dead worker's queue waits for its replacement. Sockets that can't be
had several times (unix, or passed by systemd) are shared by all workers.

Any of Twisted's endpoint strings works, wrappers too: it is parsed with a reactor façade that only binds and
remembers. The worker parses the same string with one that uses the inherited socket.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from chatd.config import LOOPBACK_LISTEN, BadValue


@dataclass(slots=True)
class Bound:
    """What one endpoint string was bound to."""

    endpoint: str
    """An endpoint string that a worker, which inherits the socket, can parse."""
    family: int
    sockets: list[socket.socket]
    """One a worker, or a single one that all share."""
    secure: bool = False
    path: str = ""
    """A unix socket's, to be removed in the end."""

    def socket_for(self, worker: int) -> socket.socket:
        """Give the socket of a worker: 0, 1, 2 …"""
        return self.sockets[worker % len(self.sockets)]

    @property
    def hint(self) -> str:
        """Say how to connect, in a line for the log."""
        if self.family == socket.AF_UNIX:
            return f"connect with: websocat --ws-c-uri=ws://localhost/ - ws-c:unix:{self.sockets[0].getsockname()}"
        host, port = self.sockets[0].getsockname()[:2]
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)  # noqa: S104 - to show
        place = f"{f'[{host}]' if ':' in host else host}:{port}"
        if self.endpoint.startswith("haproxy:"):
            return f"for a proxy that speaks the PROXY protocol: {place}"
        return f"connect with: websocat {'wss' if self.secure else 'ws'}://{place}"


@dataclass
class _Binder:
    """Looks like a reactor to whoever parses an endpoint string; binds, does not listen to anything."""

    copies: int
    backlog: int
    bound: Bound | None = field(default=None, init=False)
    passed: int = field(default=-1, init=False)
    """The number of a descriptor that systemd passed."""

    def listenTCP(self, port: int, factory: object, backlog: int = 50, interface: str = "") -> "_Binder":
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        sockets = [_listening(family, (interface, port), self.backlog, exclusive=True)]
        address = sockets[0].getsockname()
        sockets[0].close()  # it was to see that nobody else has the port: sockets that share one do not ask
        sockets = [_listening(family, address[:2], self.backlog) for _ in range(self.copies)]
        self.bound = Bound("", family, sockets, secure=isinstance(factory, TLSMemoryBIOFactory))
        return self

    def listenSSL(
        self, port: int, factory: object, contextFactory: object, backlog: int = 50, interface: str = ""
    ) -> "_Binder":
        self.listenTCP(port, factory, backlog, interface)
        assert self.bound is not None  # noqa: S101 - listenTCP has set it
        self.bound.secure = True
        return self

    def listenUNIX(
        self, address: str, factory: object, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> "_Binder":
        remove_stale(address)
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            one.bind(address)
            os.chmod(address, mode)
            one.listen(self.backlog)
        except BaseException:
            one.close()
            raise
        self.bound = Bound("", socket.AF_UNIX, [one], path=os.path.abspath(address))
        return self

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: object) -> "_Binder":
        one = socket.socket(fileno=os.dup(fileDescriptor))
        self.bound = Bound("", addressFamily, [one])
        self.passed = fileDescriptor
        return self


def _listening(family: int, address: tuple[str, int], backlog: int, *, exclusive: bool = False) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not exclusive:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(backlog)
    except BaseException:
        one.close()
        raise
    return one


def remove_stale(path: str) -> None:
    """Remove a unix socket on which nobody listens any more."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def bind(endpoint: str, copies: int, backlog: int) -> Bound:
    """Bind what one endpoint string names, for that many workers. Raises BadValue."""
    binder = _Binder(copies, backlog)
    failures: list[Failure] = []
    try:
        serverFromString(binder, endpoint).listen(Factory()).addErrback(failures.append)
    except Exception as error:
        raise BadValue(f"{endpoint!r} is no server endpoint: {_one_line(error)}") from error
    if failures:
        raise BadValue(f"cannot listen on {_one_line(endpoint)}: {_one_line(failures[0].value)}") from failures[0].value
    if binder.bound is None:
        raise BadValue(f"{endpoint!r} names no listening socket")
    binder.bound.endpoint = endpoint
    if binder.passed >= 0:
        # The endpoint has closed the number that systemd gave; whoever binds again needs it.
        os.dup2(binder.bound.sockets[0].fileno(), binder.passed, inheritable=False)
        # A worker is told no more by systemd (Twisted takes the variables out of the environment), and needs no more.
        wrappers, systemd, _ = endpoint.partition("systemd:")
        binder.bound.endpoint = f"{wrappers}tcp:0" if systemd else endpoint
    return binder.bound


def _one_line(error: object) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if file := getattr(error, "filename", None):
        said = f"{said}: {file!r}"
    return " ".join(str(said).split())


class Ports:
    """All that chatd listens on."""

    def __init__(self, endpoints: Sequence[str], copies: int, backlog: int) -> None:
        """Take the endpoint strings (none: LOOPBACK_LISTEN) and the number of workers."""
        self._endpoints = endpoints or LOOPBACK_LISTEN
        self._optional = () if endpoints else LOOPBACK_LISTEN[1:]
        self._copies = copies
        self._backlog = backlog
        self.bound: list[Bound] = []

    def bind(self) -> None:
        """Bind everything, or nothing. Raises BadValue."""
        try:
            for endpoint in self._endpoints:
                try:
                    self.bound.append(bind(endpoint, self._copies, self._backlog))
                except BadValue:
                    if endpoint not in self._optional or _has_ipv6():
                        raise
        except BadValue:
            self.close()
            raise

    def close(self) -> None:
        """Close everything."""
        bound, self.bound = self.bound, []
        for each in bound:
            for one in each.sockets:
                one.close()
            if each.path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each.path)

    def hints(self) -> list[str]:
        """Say how to connect, a line for each way."""
        if self._optional:
            return [f"connect with: websocat ws://localhost:{self.bound[0].sockets[0].getsockname()[1]}"]
        return [each.hint for each in self.bound]


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def inheritance(bound: Sequence[Bound], worker: int, first: int) -> dict[int, int]:
    """Map the descriptors a worker finds, first and on in the order of bound, to ours, as ``childFDs`` takes them."""
    return {first + index: each.socket_for(worker).fileno() for index, each in enumerate(bound)}
