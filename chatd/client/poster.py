"""Who says one thing over HTTP, and waits to hear what became of it."""

from hashlib import sha256
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, TimeoutError

from chatd.closing import BUS_AWAY, Closing
from chatd.config import Config
from chatd.message import Message, Position
from chatd.room.hub import Hub

IN_DOUBT = "the message bus does not answer; it may be said yet: try again with the same id"


class Posted(NamedTuple):
    """What became of it."""

    message: Message
    position: Position
    duplicate: bool
    """Whether it was said before, under the same id."""


class NotPosted(Exception):
    """It was not published, or nobody knows whether; its text says why."""


class Poster:
    """An author of one message. It is in no room: nobody is told that it comes and goes."""

    def __init__(self, hub: Hub, config: Config, timers: Any, *, id: str, nick: str, address: str) -> None:
        """Take who it is (id is unique for ever) and where it comes from.

        All that is said over HTTP under one nick has one author. So what is sent again over another connection is
        known by its id; it also means that no nick of theirs proves who they are.
        """
        self._hub = hub
        self._config = config
        self._timers = timers
        self._patience: Any = None
        self._waiting: Deferred[None] | None = None
        self.id = id
        self.author = f"http.{sha256(nick.encode()).hexdigest()[:12]}" if nick else "http"
        self.nick = nick
        self.address = address

    async def publish(self, room: str, text: str, given: str) -> Posted:
        """Say it once the bus takes it; gives where it stands. Raises NotPosted."""
        intake = self._hub.intake
        while not intake.open:
            if intake.away:
                raise NotPosted(BUS_AWAY.reason)
            await self._wait()
        posted: Deferred[Posted] = Deferred()
        intake.publish(room, self, [text], given=given, receipt=_Receipt(posted))
        try:
            return await posted.addTimeout(self._config.bus_patience, self._timers)
        except TimeoutError:
            raise NotPosted(IN_DOUBT) from None

    def _wait(self) -> "Deferred[None]":
        """Fire when messages may be taken again; where that is not for long, fail with NotPosted."""
        waiting: Deferred[None] = Deferred(self._left)
        self._waiting = waiting
        self._hub.intake.wait(self)
        self._patience = self._timers.callLater(self._config.bus_patience, self.bus_away)
        return waiting

    def _left(self, _: object) -> None:
        self._stop_waiting()

    def _stop_waiting(self) -> "Deferred[None] | None":
        self._hub.intake.stop_waiting(self)
        if self._patience is not None:
            self._patience.cancel()
        waiting, self._waiting, self._patience = self._waiting, None, None
        return waiting

    # The intake calls

    def carry_on(self) -> None:
        """Go on: messages are taken again."""
        if (waiting := self._stop_waiting()) is not None:
            waiting.callback(None)

    def bus_away(self) -> None:
        """Give up: it may be long."""
        if (waiting := self._stop_waiting()) is not None:
            waiting.errback(NotPosted(BUS_AWAY.reason))

    def not_sent(self, closing: Closing) -> None:
        """Nothing: its message has a receipt."""


class _Receipt:
    """Tells what became of the message."""

    def __init__(self, posted: "Deferred[Posted]") -> None:
        self._posted = posted

    def published(self, message: Message, position: Position, *, duplicate: bool) -> None:
        if not self._posted.called:
            self._posted.callback(Posted(message, position, duplicate))

    def refused(self, message: Message, closing: Closing) -> None:
        if not self._posted.called:
            self._posted.errback(NotPosted(closing.reason.removeprefix("not sent: ")))
