"""Who says one thing over HTTP, and waits to hear what became of it."""

from hashlib import sha256
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, TimeoutError

from chatd.clients.token_lifetime import TokenLifetime, origin
from chatd.config.settings import Config
from chatd.monitoring.metrics import REFUSED_MESSAGES
from chatd.protocol.close_codes import CloseCode, try_later
from chatd.protocol.message import Message, StreamPosition
from chatd.rooms.hub import Hub

IN_DOUBT = "the message bus does not answer; it may be said yet: try again with the same id"


class Posted(NamedTuple):
    """What became of it."""

    message: Message
    position: StreamPosition
    duplicate: bool
    """Whether it was said before, under the same id."""


class NotPosted(Exception):
    """It was not published, or nobody knows whether; its text says why."""


class NickInUse(Exception):
    """Somebody in the room has the nick, or one that looks like it; its text says so."""


class Poster:
    """An author of one message. It is in no room: nobody is told that it comes and goes."""

    def __init__(
        self, hub: Hub, config: Config, timers: Any, token_lifetime: TokenLifetime, *, id: str, nick: str, address: str
    ) -> None:
        """Take what its token says, which id it has (unique for ever), what it wants to be called, where it is from.

        All that is said over HTTP with the tokens of one subject, or without one under one nick, has one author. So
        what is sent again over another connection is known by its id. No nick without a token proves who they are:
        without one an id is known again from the same address only.
        """
        self._hub = hub
        self._config = config
        self._timers = timers
        self._waiting: Deferred[None]
        permissions = token_lifetime.permissions
        self._identity = token_lifetime.identify(nick, address)
        self._among = "" if permissions.who else origin(address)
        who = f"token {permissions.who}" if permissions.who else nick  # no nick has a space
        self.author = f"http.{sha256(who.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}" if who else "http"
        self.id = id
        self.nick = nick
        self.subject = permissions.subject
        self.address = address

    async def publish(self, room: str, text: str, given: str) -> Posted:
        """Say it once the bus takes it; gives where it stands. Raises NotPosted, or NickInUse."""
        await self._wait_until_open()
        if self.nick:
            self.nick = await self._find_nick(room)
            await self._wait_until_open()
        posted: Deferred[Posted] = Deferred()
        self._hub.publisher.publish(room, self, [text], given=given, among=self._among, receipt=_Receipt(posted))
        try:
            return await posted.addTimeout(self._config.bus_patience, self._timers)
        except TimeoutError:
            raise NotPosted(IN_DOUBT) from None

    async def _wait_until_open(self) -> None:
        publisher, patience = self._hub.publisher, self._config.bus_patience
        while not publisher.open:
            if publisher.away:
                REFUSED_MESSAGES["bus_away"].value += 1
                raise NotPosted(self._why_not())
            self._waiting = Deferred(lambda _: publisher.stop_waiting(self))
            publisher.wait(self)
            try:
                await self._waiting.addTimeout(patience, self._timers)
            except TimeoutError:
                REFUSED_MESSAGES["bus_away"].value += 1
                raise NotPosted(self._why_not()) from None

    async def _find_nick(self, room: str) -> str:
        """Return the nick that nobody else in the room has now. Raises NickInUse."""
        found = self._hub.find_nick(room, self._identity)
        try:
            nick = await found.addTimeout(self._config.bus_patience, self._timers)
        except TimeoutError:
            REFUSED_MESSAGES["bus_away"].value += 1
            raise NotPosted(self._why_not()) from None
        if not nick:
            raise NickInUse(f"nick: {self.nick} is in use in this room; give another one, or a token that proves it")
        return nick

    def _why_not(self) -> str:
        return try_later(self._hub.why_not_published()).reason

    # The intake calls

    def carry_on(self) -> None:
        """Look again: messages are taken, or the bus is away."""
        self._waiting.callback(None)

    def bus_away(self) -> None:
        """Look again, as above."""
        self._hub.publisher.stop_waiting(self)
        self.carry_on()

    def not_sent(self, close_code: CloseCode) -> None:
        """Nothing: its message has a receipt."""


class _Receipt:
    """Tells what became of the message."""

    def __init__(self, posted: "Deferred[Posted]") -> None:
        self._posted = posted

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        if not self._posted.called:
            self._posted.callback(Posted(message, position, duplicate))

    def refused(self, message: Message, close_code: CloseCode) -> None:
        if not self._posted.called:
            self._posted.errback(NotPosted(close_code.reason.removeprefix("not sent: ")))
