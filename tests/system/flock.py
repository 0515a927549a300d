"""Hundreds of clients that only listen, and come back at once with their resume keys, for little of our own time.

What they hear is kept as bytes and taken apart in the end; a client library would be busier than the server.
"""

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.frames import CLOSE, close_frame, handshake, heard
from tests.waiting import PATIENCE, until

LAST_WORDS = b"come back"
"""With which a Close frame ends after which they are back at once."""


class Listener(asyncio.Protocol):
    """One client: all its connections, one after the other."""

    def __init__(self, port: int, room: str, key: str) -> None:
        self.stays: list[bytearray] = []
        """What came on each connection."""
        self.refused: list[str] = []
        """What kept it from connecting."""
        self.leaving = False
        self._port = port
        self._target = f"/{room}?resume={key}"
        self._transport: Any = None
        self._gone: asyncio.Future[None]

    @property
    def here(self) -> bool:
        """Whether its handshake was answered."""
        return bool(self.stays) and not self._gone.done() and bool(self.stays[-1])

    async def live(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.leaving:
            self._gone = loop.create_future()
            try:
                await loop.create_connection(lambda: self, "127.0.0.1", self._port)
            except OSError as error:
                self.refused.append(str(error))
                continue
            await self._gone

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.stays.append(bytearray())
        transport.write(handshake(self._target))

    def data_received(self, data: bytes) -> None:
        self.stays[-1] += data
        if data.endswith(LAST_WORDS):
            self._transport.write(close_frame(1012))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.stays[-1].startswith(b"HTTP/1.1 101 "):
            self.refused.append(f"{bytes(self.stays[-1][:100])!r} {error}")
        self._gone.set_result(None)

    def has_heard(self, texts: Sequence[bytes]) -> bool:
        """Whether it has heard these lately."""
        return all(any(text in stay for stay in self.stays[-2:]) for text in texts)

    def leave(self) -> None:
        """Close in order, and do not come back."""
        self.leaving = True
        self._transport.write(close_frame())

    def codes(self) -> list[int]:
        """Give the close codes of its connections."""
        return [heard(bytes(stay)).close_code for stay in self.stays]

    def lines(self) -> list[list[str]]:
        """Give what it heard on each connection."""
        return [
            [sys.intern(payload.decode()) for opcode, payload in heard(bytes(stay)).frames if opcode != CLOSE]
            for stay in self.stays
        ]


class Publisher:
    """A program that says numbered lines, and says again under the same id what it has no answer for."""

    def __init__(self, url: str, name: str, pace: float) -> None:
        self.said = 0
        self.unanswered: dict[str, str] = {}
        """Texts by id, oldest first."""
        self.byes: list[dict[str, Any]] = []
        self.talking = True
        self.name = name
        self._url = f"{url}?resume=publisher-{name}"
        self._pace = pace

    async def live(self) -> None:
        while self.talking or self.unanswered:
            async with connect(self._url, subprotocols=[Subprotocol("chatd.v1")], compression=None) as connection:
                for id in list(self.unanswered):
                    await self._publish(connection, id)
                hearing = asyncio.ensure_future(self._hear(connection))
                with contextlib.suppress(ConnectionClosed):
                    await self._talk(connection, hearing)
                hearing.cancel()

    async def _talk(self, connection: ClientConnection, hearing: "asyncio.Future[None]") -> None:
        while not hearing.done() and (self.talking or self.unanswered):
            if self.talking:
                self.said += 1
                id = f"{self.name}-{self.said}"
                self.unanswered[id] = f"{self.name} {self.said}"
                await self._publish(connection, id)
            await asyncio.sleep(self._pace)

    async def _publish(self, connection: ClientConnection, id: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            text = self.unanswered[id]
            await connection.send(json.dumps({"type": "publish", "ref": id, "room": "ops", "text": text, "id": id}))

    async def _hear(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for line in connection:
                event = json.loads(line)
                if event["type"] == "ack":
                    self.unanswered.pop(event["id"], None)
                elif event["type"] == "bye":
                    self.byes.append(event)


class Flock:
    """Listeners and publishers in an event loop of their own, from ``with`` to the end of it."""

    def __init__(self, port: int, *, listeners: int, publishers: int, pace: float) -> None:
        """Take the port, how many there are of each, and the seconds between two lines of a publisher."""
        self.listeners = [Listener(port, "ops", f"listener-{number}") for number in range(listeners)]
        url = f"ws://127.0.0.1:{port}/ops"
        self.publishers = [Publisher(url, f"p{number}", pace) for number in range(publishers)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._lives: list[Future[Any]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        for listener in self.listeners:
            self._begin(listener.live())
        until(lambda: all(each.here for each in self.listeners), "all listeners to be connected")
        for publisher in self.publishers:
            self._begin(publisher.live())
        return self

    def __exit__(self, *error: object) -> None:
        for life in self._lives:
            life.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, life: Coroutine[Any, Any, None]) -> None:
        self._lives.append(asyncio.run_coroutine_threadsafe(life, self._loop))

    def finish(self) -> list[str]:
        """Let the publishers say what they have yet to say, and the listeners leave; give all lines, in their order.

        Fails where a listener missed one, heard one twice, heard them in another order, or was refused.
        """
        for publisher in self.publishers:
            publisher.talking = False
        count = len(self.publishers)
        for life in self._lives[-count:]:
            life.result(PATIENCE)
        said = sum(each.said for each in self.publishers)
        last = [f"{each.name} {each.said}".encode() for each in self.publishers]
        until(lambda: all(each.has_heard(last) for each in self.listeners), "all listeners to hear the last lines")
        for listener in self.listeners:
            self._loop.call_soon_threadsafe(listener.leave)
        for life in self._lives:
            life.result(PATIENCE)
        assert [each.refused for each in self.listeners if each.refused] == []
        orders = [[line for stay in each.lines() for line in stay] for each in self.listeners]
        assert len(set(orders[0])) == len(orders[0]) == said
        assert [number for number, order in enumerate(orders) if order != orders[0]] == []
        return orders[0]
