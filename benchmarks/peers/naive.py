"""The broadcast one writes first: ``python naive.py PORT``. Prints ``ready`` when it listens.

Autobahn as it comes, on Twisted: each message goes to each other client with ``sendMessage``. One process, no log, no
broker.
"""

import sys

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor

BACKLOG = 1024
"""Connections in the listening socket's queue: with Twisted's own 50 a burst of handshakes waits for retries."""


class Chat(WebSocketServerProtocol):
    """One client."""

    def onOpen(self) -> None:
        """Join."""
        self.factory.members.add(self)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Leave."""
        self.factory.members.discard(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Send what was said to all others."""
        for member in self.factory.members:
            if member is not self:
                member.sendMessage(payload, isBinary)


factory = WebSocketServerFactory()
factory.protocol = Chat
factory.members = set()
reactor.listenTCP(int(sys.argv[1]), factory, backlog=BACKLOG, interface="127.0.0.1")
reactor.callWhenRunning(print, "ready", flush=True)
reactor.run()
