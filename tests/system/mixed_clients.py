"""Clients of every kind in one room, which reconnect through all faults, and visitors of other rooms.

Senders (``chatd.v1``, HTTP posts) number their messages, and send each again under its id until it is acknowledged.
Listeners (a pipe with a nick, ``chatd.v1`` that joins with ``since``, server-sent events) reconnect whenever their
connection ends. In the end each listener has received every message in one order, and once unless it has a resume key.

Visitors connect to rooms that are empty, send a message, and leave, in order or not, until they are told to stop.
"""

import asyncio
import contextlib
import itertools
import json
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from tests.system.program import PROTOCOL
from tests.waiting import until

ROOM = "mixed"
RETRY = 0.1
"""Seconds before the next try."""
ANSWER_SECONDS = 15.0
"""Seconds after which a message is sent again."""
VISIT_SECONDS = 30.0
"""The longest visit, because a worker may be frozen."""
PASSED = 50
"""Rooms that a visitor-by visits in turn: their order stays in the broker for a day, however short their history."""
GONE = (OSError, WebSocketException, TimeoutError, EOFError)
"""How a connection ends, or does not come about."""


class Sender:
    """A client that sends numbered messages, each until it is acknowledged."""

    def __init__(self, port: int, name: str, pace: float) -> None:
        """Take the seconds between two lines."""
        self.acknowledged: list[str] = []
        """Texts that were acknowledged."""
        self.name = name
        self.talking = True
        self.port = port
        self._pace = pace

    async def live(self) -> None:
        """Send until told to stop."""
        try:
            for number in itertools.count():
                if not self.talking:
                    return
                await self._say(f"{self.name} {number}", f"{self.name}-{number}")
                self.acknowledged.append(f"{self.name} {number}")
                await asyncio.sleep(self._pace)
        finally:
            self._leave()

    def _leave(self) -> None:
        pass

    async def _say(self, text: str, id: str) -> None:
        raise NotImplementedError


class Poster(Sender):
    """A sender that posts over HTTP."""

    async def _say(self, text: str, id: str) -> None:
        body = json.dumps({"text": text, "nick": self.name, "id": id}).encode()
        while True:
            with contextlib.suppress(*GONE, ValueError):
                async with asyncio.timeout(ANSWER_SECONDS), http(self.port, "POST", ROOM, body) as (status, _):
                    if status == 201:
                        return
            await asyncio.sleep(RETRY)


class Publisher(Sender):
    """A sender that speaks ``chatd.v1``; its resume key keeps its sender id over connections."""

    _connection: ClientConnection | None = None

    async def _say(self, text: str, id: str) -> None:
        line = json.dumps({"type": "publish", "ref": id, "room": ROOM, "text": text, "id": id})
        while True:
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(ANSWER_SECONDS):
                    if await self._publish(line, id):
                        return
            await asyncio.sleep(RETRY)

    async def _publish(self, line: str, id: str) -> bool:
        if self._connection is None or self._connection.close_code is not None:
            self._connection = await websocket(self.port, f"{ROOM}?resume=publisher-{self.name}", PROTOCOL)
        await self._connection.send(line)
        while True:
            event = json.loads(await self._connection.recv())
            if event.get("ref") == id:
                return bool(event["type"] == "ack")

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.transport.abort()


class Listener:
    """A client that receives all messages from its first connection on."""

    exact = True
    """Whether no message is repeated."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.received: dict[str, None] = {}
        """In order."""
        self.repeated = 0
        self.connections = 0
        self.losses: list[str] = []
        """Announced losses."""
        self._port = port

    async def live(self) -> None:
        """Receive, and reconnect."""
        while True:
            with contextlib.suppress(*GONE):
                await self._stay()
            await asyncio.sleep(RETRY)

    async def _stay(self) -> None:
        raise NotImplementedError

    def _receive(self, text: str) -> None:
        self.repeated += text in self.received
        self.received.setdefault(text)


class Named(Listener):
    """A pipe with a nick and a resume key."""

    exact = False

    async def _stay(self) -> None:
        connection = await websocket(self._port, f"{ROOM}?nick={self.name}&resume=key-of-{self.name}")
        self.connections += 1
        try:
            async for line in connection:
                if not str(line).startswith("* "):
                    self._receive(str(line).partition(": ")[2] or str(line))
                elif " lost" in str(line) or " missed" in str(line):
                    self.losses.append(str(line))
        finally:
            connection.transport.abort()


class Program(Listener):
    """A program that joins with its last stream position."""

    _since: dict[str, Any] | None = None

    async def _stay(self) -> None:
        connection = await websocket(self._port, "elsewhere", PROTOCOL)
        try:
            since = {"since": self._since} if self._since else {}
            await connection.send(json.dumps({"type": "join", "ref": 1, "room": ROOM, **since}))
            async for line in connection:
                self._take(json.loads(line))
        finally:
            connection.transport.abort()

    def _take(self, event: dict[str, Any]) -> None:
        if event.get("room") != ROOM:
            return
        if event["type"] == "gap" or (self._since and event.get("recovered") is False):
            self.losses.append(json.dumps(event)[:200])
        if event["type"] == "joined":
            self.connections += 1
            for message in event["messages"]:
                self._receive(message["text"])
        if event["type"] == "message":
            self._receive(event["text"])
        if event["type"] in ("message", "joined"):
            self._since = {"epoch": event["epoch"], "offset": event["offset"]}


class Follower(Listener):
    """A listener that follows server-sent events, as a browser does."""

    _last = ""

    async def _stay(self) -> None:
        again = f"Last-Event-ID: {self._last}\r\n" if self._last else ""
        accept = f"Accept: text/event-stream\r\n{again}"
        async with http(self._port, "GET", ROOM, head=accept, version="1.0") as (status, reader):
            if status != 200:
                return
            self.connections += 1
            while block := await reader.readuntil(b"\n\n"):
                fields = dict(line.partition(": ")[::2] for line in block.decode().splitlines())
                if fields.get("event") == "gap":
                    self.losses.append(fields["data"])
                elif fields.get("event") == "message":
                    self._receive(json.loads(fields["data"])["text"])
                self._last = fields.get("id", self._last)


class Visitor:
    """A client that visits one room after the other, each time in another way."""

    def __init__(self, port: int, name: str, seed: int) -> None:
        self.visits = 0
        self.failures = 0
        self.passing = True
        self._port = port
        self._name = name
        self._chance = random.Random(seed)

    async def live(self) -> None:
        """Visit rooms until told to stop."""
        ways: Sequence[Callable[[str], Awaitable[None]]] = (self._pipe, self._program, self._follow, self._post)
        while self.passing:
            self.visits += 1
            try:
                async with asyncio.timeout(VISIT_SECONDS):
                    await self._chance.choice(ways)(f"{self._name}-{self.visits % PASSED}")
            except GONE:
                self.failures += 1
                await asyncio.sleep(RETRY)

    async def _pipe(self, room: str) -> None:
        nick = f"?nick={self._name}" if self._chance.random() < 0.5 else ""
        connection = await websocket(self._port, room + nick)
        try:
            await connection.send("hello")
            await self._linger()
            await self._go(connection)
        finally:
            connection.transport.abort()

    async def _program(self, room: str) -> None:
        connection = await websocket(self._port, room, PROTOCOL)
        try:
            for other in ("a", "b"):
                await connection.send(json.dumps({"type": "join", "ref": other, "room": f"{room}-{other}"}))
            await connection.send(json.dumps({"type": "publish", "ref": 1, "room": room, "text": "hello"}))
            await self._linger()
            await self._go(connection)
        finally:
            connection.transport.abort()

    async def _follow(self, room: str) -> None:
        async with http(self._port, "GET", f"{room}?follow=1"):
            await self._linger()

    async def _post(self, room: str) -> None:
        async with http(self._port, "POST", room, b"hello"):
            pass

    async def _linger(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 1))

    async def _go(self, connection: ClientConnection) -> None:
        if self._chance.random() < 0.7:  # else without a word
            await connection.close()


async def websocket(port: int, target: str, *protocols: str) -> ClientConnection:
    """Connect a WebSocket."""
    return await connect(
        f"ws://127.0.0.1:{port}/{target}",
        subprotocols=[Subprotocol(each) for each in protocols] or None,
        compression=None,
        ping_interval=None,
        max_size=None,
        proxy=None,
    )


@contextlib.asynccontextmanager
async def http(
    port: int, method: str, target: str, body: bytes = b"", *, head: str = "", version: str = "1.1"
) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Send a request; give the status, and what reads the rest of the answer."""
    kind = "application/json" if body.startswith(b"{") else "text/plain"
    lines = f"Host: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\nContent-Type: {kind}\r\n{head}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} /{target} HTTP/{version}\r\n{lines}\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        yield int(answer.split(b" ", 2)[1]), reader
    finally:
        writer.transport.abort()


class MixedClients:
    """All clients in an event loop of their own, from ``with`` to its end."""

    def __init__(self, port: int, *, pace: float, visitors: int, seed: int) -> None:
        """Use these seconds between two messages of a sender, and this seed of the visitors' choices."""
        self.listeners = [
            kind(port, f"{kind.__name__}{each}") for kind in (Named, Program, Follower) for each in (1, 2)
        ]
        self.senders = [kind(port, f"{kind.__name__}{each}", pace) for kind in (Publisher, Poster) for each in (1, 2)]
        self.visitors = [Visitor(port, f"visitor{number}", seed + number) for number in range(visitors)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._lives: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        for listener in self.listeners:
            self._begin(listener.live())
        until(lambda: all(each.connections for each in self.listeners), "all listeners to be connected")
        for each in [*self.senders, *self.visitors]:
            self._begin(each.live())
        return self

    def __exit__(self, *error: object) -> None:
        for life in self._lives:
            life.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, life: Coroutine[Any, Any, None]) -> None:
        self._lives.append(asyncio.run_coroutine_threadsafe(life, self._loop))

    def settle(self, logged: Callable[[], Sequence[str]], seconds: float) -> list[str]:
        """Let senders and visitors-by finish; take what reads the texts in the room's log, and give what is wrong."""
        for sender in self.senders:
            sender.talking = False
        for visitor in self.visitors:
            visitor.passing = False
        wrong = []
        try:
            for life in self._lives[len(self.listeners) :]:
                life.result(seconds)
            said = {text for sender in self.senders for text in sender.acknowledged}
            until(lambda: all(len(each.received) >= len(said) for each in self.listeners), "all to be heard", seconds)
        except (TimeoutError, AssertionError) as error:
            wrong.append(f"{error or 'senders or visitors-by do not come to an end'}")
        wrong += [f"a client broke: {life.exception()!r}" for life in self._lives if life.done() and life.exception()]
        return wrong + self._compare(logged())

    def _compare(self, logged: Sequence[str]) -> list[str]:
        said = {text for sender in self.senders for text in sender.acknowledged}
        wrong = [f"{len(said - set(logged))} lines were acknowledged and are in no log"] if said - set(logged) else []
        for listener in self.listeners:
            if missing := said - listener.received.keys():
                wrong.append(f"{listener.name} did not hear {len(missing)} lines, {min(missing)!r} one of them")
            if strange := listener.received.keys() - said:
                wrong.append(
                    f"{listener.name} heard {len(strange)} lines that nobody said, {min(strange)!r} one of them"
                )
            if list(listener.received) != list(self.listeners[0].received):
                wrong.append(f"{listener.name} heard another order than {self.listeners[0].name}")
            if listener.exact and listener.repeated:
                wrong.append(f"{listener.name} heard {listener.repeated} lines again")
            wrong += [f"{listener.name} was told: {each}" for each in listener.losses]
        return wrong
