"""Many clients at once: senders that number their lines, members that gather what they hear, both coming back."""

import asyncio
import contextlib
import itertools
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.system.accounting import Account, Life, Stay, account
from tests.system.daemon import Daemon
from tests.waiting import PATIENCE, until

T = TypeVar("T")

RETRY = 0.05
"""Seconds before a client that was not let in tries again."""
RECEIVE_BUFFER = 65_536
"""Bytes the kernel keeps for a client: less than is read at once, so that what came is read though the server died."""


class Client:
    """A client that comes back whenever its connection ends, until it leaves."""

    query = ""

    def __init__(self, daemon: Daemon, life: Life, worker: int = 0) -> None:
        """Take where to connect, and the worker that is to have its first connection, where that matters."""
        self.life = life
        self._daemon = daemon
        self._worker = worker
        self._connection: ClientConnection | None = None
        self._leaving = False
        self.task = asyncio.ensure_future(self._live())

    @property
    def here(self) -> bool:
        """Whether it is connected."""
        return self._connection is not None

    async def _live(self) -> None:
        while not self._leaving:
            try:
                connection = await self._dial()
            except (OSError, WebSocketException, TimeoutError):
                await asyncio.sleep(RETRY)
                continue
            if self._worker and await asyncio.to_thread(self._daemon.worker_of, _socket(connection)) != self._worker:
                # What it hears meanwhile has to be read: the answer to its Close comes behind that.
                await asyncio.gather(connection.close(), _ignore(connection))
                continue
            self._worker = 0
            stay = Stay()
            self.life.stays.append(stay)
            self._connection = connection
            try:
                with contextlib.suppress(ConnectionClosed):
                    await self._stay(connection, stay)
                await connection.close()
            finally:
                connection.transport.abort()
            self._connection = None
            stay.code = connection.close_code

    async def _dial(self) -> ClientConnection:
        where = self._daemon.unix_socket
        one = socket.socket(socket.AF_UNIX if where else socket.AF_INET)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            one.setblocking(False)
            address = where or ("127.0.0.1", self._daemon.port)
            await asyncio.get_running_loop().sock_connect(one, address)
            return await connect(
                f"ws://127.0.0.1/{self.life.room}?{self.query}",
                sock=one,
                compression=None,
                ping_interval=None,
                max_size=None,
                proxy=None,
            )
        except BaseException:
            one.close()
            raise

    async def _stay(self, connection: ClientConnection, stay: Stay) -> None:
        raise NotImplementedError

    async def leave(self) -> None:
        """Close in order, having read all that came before the server's answer, and do not come back."""
        self._leaving = True
        await self.task

    def vanish(self) -> None:
        """Drop the connection without a word."""
        if self._connection is not None:
            self._connection.transport.abort()


class Sender(Client):
    """One that says lines of its own: its name and a number."""

    def __init__(self, daemon: Daemon, life: Life, worker: int = 0, *, pace: float = 0.005, padding: str = "") -> None:
        """Take the seconds between two lines, and what is to stand behind each number."""
        self._pace = pace
        self._padding = padding
        self._numbers = itertools.count()
        self.talking = True
        super().__init__(daemon, life, worker)

    async def _stay(self, connection: ClientConnection, stay: Stay) -> None:
        hearing = asyncio.ensure_future(_ignore(connection))
        try:
            while not self._leaving:
                if self.talking:
                    line = f"{self.life.name} {next(self._numbers)}{self._padding}"
                    stay.lines.append(line)
                    await connection.send(line)
                await asyncio.sleep(self._pace)
                if hearing.done():  # the connection has ended
                    return
            await connection.close()
        finally:
            hearing.cancel()


class Member(Client):
    """One that hears."""

    def __init__(self, daemon: Daemon, life: Life, worker: int = 0, *, last: int = 0) -> None:
        """Take how many of the lines that were said before it wants to hear."""
        self.query = urlencode({"last": last} | ({"resume": life.key} if life.key else {}))
        self.reading = asyncio.Event()
        self.reading.set()
        super().__init__(daemon, life, worker)

    async def _stay(self, connection: ClientConnection, stay: Stay) -> None:
        async for line in connection:
            stay.lines.append(sys.intern(str(line)))
            await self.reading.wait()

    async def come_back(self) -> None:
        """Close in order, having read what came before, and connect again."""
        if self._connection is not None:
            await self._connection.close()

    async def leave(self) -> None:
        """Close in order, and do not come back."""
        self.reading.set()
        self._leaving = True
        await self.come_back()
        await self.task


async def _ignore(connection: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            pass


def _socket(connection: ClientConnection) -> socket.socket:
    found: socket.socket = connection.transport.get_extra_info("socket")
    return found


class Crowd:
    """Clients in an event loop of their own, from ``with`` to the end of it."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self.senders: list[Sender] = []
        self.members: list[Member] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        tasks = [client.task for client in [*self.senders, *self.members]]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(PATIENCE * 2)

    def start(self, what: Coroutine[Any, Any, None]) -> None:
        """Begin to do something in the loop."""
        asyncio.run_coroutine_threadsafe(what, self._loop)

    def call(self, what: Callable[[], None]) -> None:
        """Do something at once in the loop."""
        self._loop.call_soon_threadsafe(what)

    def member(
        self,
        daemon: Daemon,
        name: str,
        *,
        room: str = "lobby",
        key: str = "",
        last: int = 0,
        late: bool = False,
        worker: int = 0,
    ) -> Member:
        """Let a member come; unless it is late it is to hear the room from its first line on."""

        async def make() -> Member:
            return Member(daemon, Life(name, room, key, late), worker, last=last)

        self.members.append(member := self.run(make()))
        return member

    def sender(
        self, daemon: Daemon, name: str, *, room: str = "lobby", worker: int = 0, pace: float = 0.005, padding: str = ""
    ) -> Sender:
        """Let a sender begin."""

        async def make() -> Sender:
            return Sender(daemon, Life(name, room), worker, pace=pace, padding=padding)

        self.senders.append(sender := self.run(make()))
        return sender

    def wait_for_all(self, seconds: float = PATIENCE) -> None:
        """Wait until all clients are connected."""
        clients = [*self.senders, *self.members]
        try:
            until(lambda: all(each.here for each in clients), "all clients to be connected", seconds)
        except AssertionError as error:
            absent = {each.life.name: str(each.task) for each in clients if not each.here}
            raise AssertionError(f"{error}; these are not: {absent}") from None

    def said(self) -> int:
        """Count the lines that were said."""
        return sum(len(stay.lines) for sender in self.senders for stay in sender.life.stays)

    def heard(self) -> int:
        """Count the lines that were heard."""
        return sum(map(_heard, self.members))

    def wait_for_said(self, count: int) -> None:
        """Wait until the senders have said so many lines more."""
        before = self.said()
        until(lambda: self.said() >= before + count, f"senders to say {count} lines more")

    def wait_for_more(self, count: int, members: Sequence[Member] = ()) -> None:
        """Wait until everybody who is a member, or of some, has heard so many lines more."""
        members = members or self.members
        before = [_heard(member) for member in members]
        until(
            lambda: all(_heard(each) >= count + old for each, old in zip(members, before, strict=True)),
            f"{len(members)} members to hear {count} lines more",
        )

    def finish(self, daemons: Sequence[Daemon], *, lost_workers: int = 0) -> Account:
        """Let the senders leave; give the account. Fails where anything is wrong."""
        found = self.settle(daemons, lost_workers=lost_workers)
        assert not found.wrong, str(found)
        return found

    def settle(self, daemons: Sequence[Daemon], *, lost_workers: int = 0, seconds: float = PATIENCE) -> Account:
        """Let the senders leave; give the account, once nothing is wrong, or does not become right.

        So many workers may have lines in doubt: those that were killed.
        """
        for sender in self.senders:
            self.run(sender.leave())
        found = Account()

        def settled() -> bool:
            nonlocal found
            found = account(
                [daemon.chat_lines() for daemon in daemons],
                [sender.life for sender in self.senders],
                [member.life for member in self.members],
            )
            if len(found.doubtful) > lost_workers:
                found.wrong.append(f"lines are in doubt that no killed worker had: {found.doubtful}")
            return not found.wrong

        with contextlib.suppress(AssertionError):
            until(settled, "all to be in order", seconds)
        return found


def _heard(member: Member) -> int:
    return sum(len(stay.lines) for stay in member.life.stays)
