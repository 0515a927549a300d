"""A chat that loses nothing, in a terminal: python chat.py 'ws://localhost:3000/ops?nick=ann' [ROOM…]

It stands on websockets alone: pip install websockets. A line that is typed is said in the room of the URL. What is said
there, or in the other rooms, is printed once and in order, one's own lines too, however often the connection breaks.
"""

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from websockets import Subprotocol
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

CHATD = Subprotocol("chatd.v1")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
JOIN = 0  # what we call our requests to join; one to publish is called by its id


class Refused(Exception):
    """The server does not want it as it is."""


class Chat:
    """A member of one room or more, on one connection after the other."""

    def __init__(
        self, url: str, *rooms: str, heard: Callable[[dict[str, Any]], None], lost: Callable[[str, int | None], None]
    ) -> None:
        """Take the URL of a room, further rooms, what takes each message, and what hears where how many are lost."""
        # With one key all connections are one author, of whom an id is published once. With the echo our own messages
        # come in their order among the others, and what was heard last is a position.
        self._url = f"{url}{'&' if '?' in url else '?'}echo=1&resume={secrets.token_urlsafe(16)}"
        self.room = unquote(urlsplit(url).path[1:]) or "lobby"
        self._positions: dict[str, Any] = dict.fromkeys([self.room, *rooms])
        self._here: set[str] = set()
        self._said: dict[str, tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = {}
        self._ids = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count(1))
        self._heard = heard
        self._lost = lost

    async def stay(self) -> None:
        """Be in the rooms until cancelled. Raises Refused where coming back would not help."""
        pause = FIRST_PAUSE
        while True:
            self._wait: float | None = None
            try:
                # A frame may be larger than the library takes by itself: `joined` has all that was missed.
                async with connect(self._url, subprotocols=[CHATD], max_size=None) as self._connection:
                    async for frame in self._connection:
                        await self._take(json.loads(frame))
                        pause = FIRST_PAUSE
            except InvalidStatus as error:
                if error.response.status_code in (400, 401, 403, 404):
                    raise Refused(error.response.body.decode()) from None
            except (OSError, WebSocketException):
                pass
            finally:
                self._here.clear()
            await asyncio.sleep(random.uniform(0, pause) if self._wait is None else self._wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def publish(self, room: str, text: str) -> dict[str, Any]:
        """Say something; gives where it stands, once it is in the room. Raises Refused."""
        id = next(self._ids)
        request = {"type": "publish", "ref": id, "room": room, "text": text, "id": id}
        while True:
            self._said[id] = request, asyncio.get_running_loop().create_future()
            if room in self._here:
                await self._send(request)
            answer = await self._said[id][1]
            del self._said[id]
            if answer["type"] != "error":
                return answer
            if "retry_after" not in answer:
                raise Refused(answer["message"])
            await asyncio.sleep(answer["retry_after"])

    async def _send(self, request: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionClosed):  # then it is sent on the next one
            await self._connection.send(json.dumps(request))

    async def _take(self, event: dict[str, Any]) -> None:
        match event:
            case {"type": "joined", "room": room, "ref": _}:
                await self._joined(event)
            case {"type": "joined", "room": room}:  # by the URL, which does not know up to where we have heard
                if self._positions[room] is None:
                    await self._joined(event)
                for room, position in self._positions.items():
                    if room not in self._here:
                        since = {"since": position} if position else {}
                        await self._send({"type": "join", "ref": JOIN, "room": room, **since})
            case {"type": "message", "room": room} if room in self._here:  # else it comes in `joined`
                self._hear(event)
            case {"type": "ack", "ref": id}:
                self._answer(id, event)
            case {"type": "error", "ref": id} if id in self._said:
                self._answer(id, event)
            case {"type": "gap", "room": room, "from": first, "to": last}:
                self._lost(room, None if first is None else last - first + 1)
            case {"type": "error" | "bye", "message": why} | {"type": "bye", "reason": why}:
                self._wait = event.get("retry_after", event.get("reconnect_after"))
                if self._wait is None:
                    raise Refused(why)
                await self._connection.close()

    async def _joined(self, event: dict[str, Any]) -> None:
        room = event["room"]
        if not event["recovered"]:
            self._lost(room, event["lost"])
        self._positions[room] = {"epoch": event["epoch"], "offset": event["offset"]}
        for message in event["messages"]:
            self._hear(message)
        self._here.add(room)
        for request, answer in list(self._said.values()):
            if request["room"] == room and not answer.done():
                await self._send(request)

    def _hear(self, message: dict[str, Any]) -> None:
        self._positions[message["room"]] = {"epoch": message["epoch"], "offset": message["offset"]}
        self._answer(message["id"], message)  # where it is ours: the `ack` may have been lost
        self._heard(message)

    def _answer(self, id: str, event: dict[str, Any]) -> None:
        if id in self._said and not self._said[id][1].done():
            self._said[id][1].set_result(event)


def show(message: dict[str, Any]) -> None:
    """Print a message; what a terminal would obey is printed as an escape."""
    line = f"{message['room']} {message['nick'] or '-'}: {message['text']}"
    print(line if line.isprintable() else repr(line)[1:-1], flush=True)


async def main(url: str, *rooms: str) -> None:
    """Say what is typed, until that ends."""
    typed = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(typed), sys.stdin)
    chat = Chat(url, *rooms, heard=show, lost=lambda room, count: print(f"* {room}: {count} lost", flush=True))
    async with asyncio.TaskGroup() as tasks:
        staying = tasks.create_task(chat.stay())
        async for line in typed:
            if text := line.decode().rstrip("\r\n"):
                await chat.publish(chat.room, text)
        staying.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
