"""Redis Sentinel: an endpoint that connects to the master of a service.

It asks the Sentinels one after the other at each connect. While a connection lasts, one of them is asked every second.
If it names another master, the connection is dropped, because a former master that lives would not break it. A
Sentinel with an older configuration than that of the connection is ignored: it does not know of the failover yet, and
messages to the former master would be lost.
"""

from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import deferLater
from zope.interface import implementer

from chatd.broker.connection import ConnectionUnusable, PublishConnection, host_endpoint
from chatd.broker.credentials import sentinel_password
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config

T = TypeVar("T")

Where = tuple[str, int]
"""Host and port."""


class Master(NamedTuple):
    """The answer of a Sentinel."""

    where: Where
    epoch: int
    """The epoch of its configuration; each failover increments it."""


@implementer(IStreamClientEndpoint)
class Sentinels:
    """The endpoint of the master of a service."""

    def __init__(self, reactor: Any, address: BrokerAddress, config: Config) -> None:
        """Prepare for an address with Sentinels."""
        self._reactor = reactor
        self._address = address
        self._config = config
        self._sentinels = list(address.sentinels)
        self._connections: dict[Any, Master] = {}
        self._watching: Deferred[None] | None = None

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[Any]":  # noqa: N803 - Twisted's name
        """Connect to the master. The Deferred fails with ConnectionUnusable if no Sentinel knows one."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def check(self, protocol: Any) -> None:
        """Check that a connection, which has logged in, leads to a master. Raise ConnectionUnusable."""
        role = await protocol.execute_command("ROLE")
        if role[0] != b"master":
            self._turn()  # its answer is old
            raise ConnectionUnusable(f"the Sentinels name a server that is a {role[0].decode()}")

    async def _connect(self, factory: IProtocolFactory) -> Any:
        master = await self._find()
        try:
            protocol: Any = await self._endpoint(master.where).connect(factory)
        except Exception:
            self._turn()
            raise
        self._connections[protocol] = master
        protocol.whenDisconnected().addCallback(self._disconnected)
        if self._watching is None:
            self._watching = Deferred.fromCoroutine(self._watch())
            self._watching.addErrback(lambda failure: failure.trap(CancelledError))
        return protocol

    def _endpoint(self, where: Where) -> IStreamClientEndpoint:
        return host_endpoint(self._reactor, *where, tls=self._address.tls, config=self._config)

    def _turn(self) -> None:
        """Ask another Sentinel first the next time."""
        self._sentinels.append(self._sentinels.pop(0))

    async def _find(self) -> Master:
        """Ask the Sentinels in turn, the last successful one first. Raise ConnectionUnusable."""
        troubles = []
        for sentinel in tuple(self._sentinels):
            try:
                master = await self._within(self._ask_once(sentinel))
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the others may know
                troubles.append(f"{sentinel[0]}:{sentinel[1]}: {error}")
            else:
                self._sentinels.sort(key=lambda other: other != sentinel)
                return master
        raise ConnectionUnusable(f"no Sentinel knows a master ({'; '.join(troubles)})")

    async def _within(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait at most ``sentinel_timeout``. Raise what the work raises, ConnectionUnusable or CancelledError."""
        doing = Deferred.fromCoroutine(work)
        late = self._reactor.callLater(self._config.sentinel_timeout, doing.cancel)
        try:
            return await doing
        except (CancelledError, ConnectingCancelledError):
            raise CancelledError if late.active() else ConnectionUnusable("no answer") from None
        finally:
            if late.active():
                late.cancel()

    async def _ask_once(self, where: Where) -> Master:
        sentinel = await self._dial(where)
        try:
            return await self._ask(sentinel)
        finally:
            sentinel.transport.abortConnection()

    async def _dial(self, where: Where) -> Any:
        """Connect to a Sentinel, and log in."""
        protocol = PublishConnection(charset=None, convertNumbers=False)
        sentinel = await connectProtocol(self._endpoint(where), protocol)
        try:
            if (password := sentinel_password(self._config)) is not None:
                await sentinel.execute_command("AUTH", password)
        except BaseException:
            sentinel.transport.abortConnection()
            raise
        return sentinel

    async def _ask(self, sentinel: Any) -> Master:
        """Ask a Sentinel for the master. Raise its error."""
        flat = await sentinel.execute_command("SENTINEL", "MASTER", self._address.service)
        said = dict(zip(flat[::2], flat[1::2], strict=True))
        return Master((said[b"ip"].decode(), int(said[b"port"])), int(said[b"config-epoch"]))

    # Watching

    def _disconnected(self, protocol: Any) -> None:
        del self._connections[protocol]
        if not self._connections and self._watching is not None:
            watching, self._watching = self._watching, None
            watching.cancel()

    async def _watch(self) -> None:
        """Keep a connection to one Sentinel after the other."""
        while True:
            try:
                await self._watch_with_one()
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001 - a link that has to dial says what is wrong
                self._turn()
            await self._wait()

    async def _watch_with_one(self) -> None:
        sentinel = await self._within(self._dial(self._sentinels[0]))
        try:
            while True:
                master = await self._within(self._ask(sentinel))
                for protocol, by in self._connections.items():
                    if by.where != master.where and by.epoch <= master.epoch:
                        protocol.transport.abortConnection()
                await self._wait()
        finally:
            sentinel.transport.abortConnection()

    async def _wait(self) -> None:
        await deferLater(self._reactor, self._config.sentinel_timeout)
