"""Makes the connections of a worker for the door, and knows them all: to close them, and to say what befell many.

Autobahn's factory is the base: it holds the options of the protocol, once for all connections.
"""

from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.protocol import TrafficStats
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatd.client.connection import LINE_END, Connection
from chatd.client.deflate import longest_deflated
from chatd.client.lean import Timers
from chatd.client.session import Session
from chatd.closing import Closing
from chatd.config import Config
from chatd.room.hub import Hub
from chatd.tally import Tally
from chatd.timers import TimerWheel
from chatd.wire.frames import LONGEST
from chatd.wire.handshake import Place, Upgrade

log = Logger()


class ConnectionFactory(WebSocketServerFactory):
    """Makes connections for the door, and knows them all."""

    noisy = False

    def __init__(self, reactor: Any, hub: Hub, config: Config, worker: str) -> None:
        """Take the hub that its clients talk to, and this worker's unique name, with which session ids begin."""
        super().__init__(server="", reactor=reactor)
        self.timers = TimerWheel(reactor, config.timer_seconds)
        self._batched_timer = Timers(self.timers)  # private to Autobahn; 26.10.2 has no other way in
        self.config = config
        self.longest = min(LONGEST, config.max_message + LINE_END)
        """The longest payload, in bytes, that may take the fast lane."""
        self.traffic = TrafficStats()
        self.connections: set[Connection] = set()
        self.closing: Closing | None = None
        """Why everybody is being closed, once they are."""
        self._hub = hub
        self._worker = worker
        self._sessions = 0
        self._emptied: Deferred[None] | None = None
        self.slow = Tally(self.timers, config.report_seconds, log, "slow readers that fell behind: {clients}")
        longest = config.max_message + LINE_END
        if config.compress:
            longest = longest_deflated(longest)
        self.setProtocolOptions(
            failByDrop=False,
            maxFramePayloadSize=longest,
            maxMessagePayloadSize=longest,
            openHandshakeTimeout=0,  # the door has waited for the headers, we wait for the room
            closeHandshakeTimeout=config.close_seconds,
            autoPingInterval=0,  # we look for life ourselves: Autobahn sets two timers anew for each message
        )
        options = {name: getattr(self, name) for name in Connection.CONFIG_ATTRS}
        options["perMessageCompressionAccept"] = staticmethod(options["perMessageCompressionAccept"])
        # Options on a class need no copying into each connection, and no pretty-printing on the way.
        options |= {"CONFIG_ATTRS": (), "__slots__": (), "max_backlog": config.max_backlog}
        self.protocol = type("Connection", (Connection,), options)

    def make(self, upgrade: Upgrade, place: Place, address: str) -> Connection:
        """Make the connection of a client that asks to upgrade, whose URL names place, and that is at address."""
        connection: Connection = self.protocol(upgrade)
        connection.factory = self
        self._sessions += 1
        connection.session = self.new_session(connection, f"{self._worker}.{self._sessions}", place, address)
        return connection

    def new_session(self, connection: Connection, id: str, place: Place, address: str) -> Session:
        """Make the session that a connection carries: whatever joins, takes messages and goes as a Session does."""
        return Session(self._hub, self.config, self.timers, connection, id=id, place=place, address=address)

    def close_all(self, closing: Closing) -> "Deferred[None]":
        """Close every connection; fires when the last one is gone."""
        self.closing = closing
        emptied = self._emptied = Deferred()
        for connection in list(self.connections):
            connection.close(closing)
        self.connection_gone()
        return emptied

    def connection_gone(self) -> None:
        """Look whether it was the last one."""
        if self._emptied is not None and not self.connections:
            emptied, self._emptied = self._emptied, None
            self.slow.say()  # the end of the worker would be sooner
            emptied.callback(None)
