"""An echo behind chatd's real door and connections, for a conformance suite to be pointed at.

``python -m tests.conformance.testee PORT [--compress]`` listens on 127.0.0.1 (port 0: any that is free), says where on
its standard output, and sends every message back as it came: text or binary, empty ones too, up to 16 MiB. It ends at
SIGTERM, and at the end of its standard input where that is a pipe.
"""

import argparse
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from chatd.clients.factory import ConnectionFactory
from chatd.clients.pipe_session import Session
from chatd.clients.token_lifetime import UNLIMITED
from chatd.clients.websocket import Connection
from chatd.config.settings import Config
from chatd.protocol.close_codes import TOO_LARGE, too_slow
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.text import BARE
from chatd.protocol.websocket_frames import deflated_text_frame, text_frame
from chatd.web.site import Site
from chatd.worker.listener import ListenerFactory

LIMIT = 16 * 1024 * 1024
CONFIG = Config(
    max_message_size=LIMIT, max_send_buffer=16 * LIMIT, frame_rest_factor=0.01, frame_flood_timeout=3600
)  # its suite floods


def binary_frame(payload: bytes) -> bytes:
    """Frame one binary message, of which chatd itself sends none."""
    return _as_binary(text_frame(payload))


def deflated_binary_frame(payload: bytes) -> bytes:
    """Frame one binary message, compressed where that helps."""
    return _as_binary(deflated_text_frame(payload))


def _as_binary(frame: bytes) -> bytes:
    return bytes((frame[0] + 1,)) + frame[1:]  # from opcode 1 to 2


class Echo(Session):
    """A session that sends every message back, to its sender alone."""

    accepts_binary = True

    def __init__(self, connection: Connection, id: str, most: int) -> None:
        self.id = id
        self._connection = connection
        self._most = most
        self._receipts = None
        self.token_lifetime = UNLIMITED
        self.address = ""
        self.format = BARE

    def join(self) -> "Deferred[None]":
        return succeed(None)

    def received(self, texts: Sequence[str]) -> None:
        self._send(deflated_text_frame if self._compresses else text_frame, [text.encode() for text in texts])

    def received_binary(self, payload: bytes) -> None:
        self._send(deflated_binary_frame if self._compresses else binary_frame, [payload])

    def became_slow(self) -> None:
        """Hang up: an echo has no history."""
        self._connection.close(too_slow(1))

    def drained(self) -> None:
        """Go on: nothing waits."""

    def closed(self) -> None:
        """Leave nothing behind: there is no room."""

    @property
    def _compresses(self) -> bool:
        return self.format is BARE.deflated

    def _send(self, frame: Callable[[bytes], bytes], payloads: Sequence[bytes]) -> None:
        """Send messages back, up to the first that is too large."""
        fit = next((place for place, each in enumerate(payloads) if len(each) > self._most), len(payloads))
        if fit:
            self._connection.deliver(b"".join(map(frame, payloads[:fit])), fit)
        if fit < len(payloads):
            self._connection.close(TOO_LARGE)


class EchoFactory(ConnectionFactory):
    """Makes connections with an echo in place of the room."""

    def __init__(self, reactor: Any, config: Config) -> None:
        nowhere: Any = None
        super().__init__(reactor, nowhere, config, "testee")

    def new_session(self, connection: Connection, target: RoomTarget, protocol: str, **who: Any) -> Session:
        return Echo(connection, who["id"], self.config.max_message_size)


def listen(reactor: Any, port: int, config: Config = CONFIG) -> tuple[IListeningPort, EchoFactory]:
    """Listen on 127.0.0.1; give the port, which knows its number, and the factory, which knows the connections."""
    factory = EchoFactory(reactor, config)
    nothing: Any = Mock()  # an echo asks no broker for its health
    site: Any = Site(reactor, nothing, factory, nothing)
    incoming = ListenerFactory(reactor, factory, site, config, config.worker_connections)
    listening: IListeningPort = reactor.listenTCP(port, incoming, backlog=config.listen_backlog, interface="127.0.0.1")
    return listening, factory


class _End(Protocol):
    """Standard input, of which only its end matters."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 - Twisted's name
        if self._reactor.running:
            self._reactor.stop()


def main() -> None:
    """Listen until told to end."""
    parser = argparse.ArgumentParser(prog="testee", description="Echo every WebSocket message, for conformance suites.")
    parser.add_argument("port", type=int, help="where to listen on 127.0.0.1; 0: any port")
    parser.add_argument("--compress", action="store_true", help="agree to permessage-deflate")
    given = parser.parse_args()
    from twisted.internet import reactor as real_reactor

    reactor: Any = real_reactor
    listening, _ = listen(reactor, given.port, replace(CONFIG, compress=given.compress))
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        StandardIO(_End(reactor), reactor=reactor)
    address: Any = listening.getHost()
    print(f"listening on {address.host}:{address.port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
