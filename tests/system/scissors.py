"""A proxy before a chatd that cuts its connections: after so many bytes, in the middle of a frame as it comes."""

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

DELAY = 0.02
"""Seconds that bytes are on their way, as in a network: so what one side says meets what the other says meanwhile."""
_RESET = struct.pack("ii", 1, 0)  # on closing; RFC 9293, section 3.10.7


class Scissors:
    """A port that leads to another one, from ``with`` to the end of it."""

    def __init__(self, port: int) -> None:
        """Take the port of the server."""
        self._server = port
        self._random = random.Random(port)
        self._cuts: Callable[[], float] = lambda: math.inf
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.connections = 0
        """How many there have been."""
        self.cut = 0
        """How many of them were cut."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening = self._do(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port: int = self._listening.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, room: str) -> str:
        """Give the URL of a room."""
        return f"ws://127.0.0.1:{self.port}/{room}"

    def cut_at_random(self) -> None:
        """Cut each connection from now on after some 100 bytes, or 50,000, or anything between."""
        self._cuts = lambda: 2 ** self._random.uniform(7, 16)
        self._do(self._cut_all())

    def close(self) -> None:
        """Let nobody through."""
        self._cuts = lambda: 0
        self._do(self._cut_all())

    def open(self) -> None:
        """Cut no more."""
        self._cuts = lambda: math.inf
        self._do(self._cut_all())

    def _do(self, work: "Coroutine[Any, Any, T]") -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _end(self) -> None:
        self._listening.close()
        await self._cut_all()

    async def _cut_all(self) -> None:
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection's bytes both ways until one side ends, or it is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        left = self._cuts()
        writers = [writer]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal left
            while left > 0 and (data := await source.read(65536)):
                await asyncio.sleep(DELAY)
                sink.write(data if len(data) <= left else data[: int(left)])
                left -= len(data)
                await sink.drain()

        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._server)
            writers.append(their_writer)
            pumps = [
                asyncio.ensure_future(pump(reader, their_writer)),
                asyncio.ensure_future(pump(their_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in pumps:
                    each.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.cut += left <= 0
            self._open.discard(task)
            for each_writer in writers:
                if self._random.random() < 0.5:  # else in order, as far as TCP can see
                    raw: socket.socket = each_writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    each_writer.transport.abort()
                each_writer.close()
                with contextlib.suppress(OSError):
                    await each_writer.wait_closed()
