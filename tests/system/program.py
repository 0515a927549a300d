"""A client that speaks ``chatd.v1``, for the system tests."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection

from tests.system.daemon import Daemon

Event = dict[str, Any]

PROTOCOL = "chatd.v1"


class Program:
    """One connection, which has read ``welcome`` and ``joined``."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.events: list[Event] = []
        """What came beside answers, and was not asked for with ``hear`` yet."""
        self._refs = itertools.count(1)
        self.welcome = self._read()
        self.joined = self._read()
        assert (self.welcome["type"], self.joined["type"]) == ("welcome", "joined")

    def ask(self, type: str, **fields: Any) -> Event:
        """Send a request; give the answer to it."""
        ref = next(self._refs)
        self.client.send(json.dumps({"type": type, "ref": ref, **fields}))
        while (event := self._read()).get("ref") != ref:
            self.events.append(event)
        return event

    def hear(self, type: str) -> Event:
        """Give the next event of a type; what came before it is passed over."""
        while True:
            event = self.events.pop(0) if self.events else self._read()
            if event["type"] == type:
                return event

    def hear_up_to(self, text: str) -> list[Event]:
        """Give all events up to the message with a text, that included."""
        heard: list[Event] = []
        while not heard or heard[-1].get("text") != text:
            heard.append(self.events.pop(0) if self.events else self._read())
        return heard

    def _read(self) -> Event:
        event: Event = json.loads(self.client.recv(20))
        return event


@contextmanager
def program(daemon: Daemon, room: str = "", worker: int = 0) -> Iterator[Program]:
    """Connect one, to a worker where that matters."""
    with daemon.connect(room, PROTOCOL, sock=daemon.socket_to(worker) if worker else None) as client:
        yield Program(client)
