"""The places of clients with a resume key: how far each has come in its room, kept in the broker.

A place belongs to one connection at a time. Who comes with the key takes it over: the worker that has the last
connection, if it still has, hangs up on it and says how far it has come; where it does not within
``takeover_seconds``, what it wrote last counts, which is a second old or so. A place lasts as long as history.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatd.config import Config
from chatd.message import Position
from chatd.room.queries import Queries
from chatd.room.script import CLAIM, SAVE

log = Logger()


@dataclass(frozen=True, slots=True)
class Place:
    """Who has come how far."""

    position: Position | None
    """None where it has only just begun."""
    author: str
    """Whose messages are its own: the connection that was the first with this key."""


@dataclass(frozen=True, slots=True)
class _Save:
    """A place to be written."""

    session: str
    """Which connection must have it for that."""
    worker: str
    """Whose worker."""
    place: Place
    outcome: str = ""
    """``left``: it has it no more. ``taken``: it has it now, and its worker waits to hear that."""


class Places:
    """The places that this worker asks for and writes."""

    def __init__(
        self,
        clock: Any,
        queries: Queries,
        config: Config,
        worker: str,
        give_up: Callable[[str, str], Place | None],
    ) -> None:
        """Take this worker's unique name, and what hangs up on a connection (room, session) to give its place."""
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._give_up = give_up
        self._asking: dict[str, Deferred[None]] = {}
        self._dirty: dict[bytes, _Save] = {}
        self._written: dict[bytes, tuple[_Save, float]] = {}
        self._writing = False
        self._coming: Any = None
        self._waiters: list[Deferred[None]] = []
        self._left: OrderedDict[str, Place] = OrderedDict()  # of connections that are gone: who asks may be faster
        self.channel = self._channel(worker)

    async def claim(self, room: str, key: str, session: str) -> Place:
        """Take over a place for a connection, or begin one."""
        taken = self._asking[session] = Deferred()
        try:
            epoch, offset, author, asked = await self._claim(room, key, session)
            if asked:  # how many workers: none where the one that had it is dead
                await taken.addTimeout(self._config.takeover_seconds, self._clock, lambda *_: None)
                epoch, offset, author, _ = await self._claim(room, key, session)
        finally:
            del self._asking[session]
        return Place(Position(epoch.decode(), int(offset)) if epoch else None, author.decode())

    def save(self, room: str, key: str, session: str, place: Place, *, left: bool = False) -> None:
        """Write a place down at the end of the turn, where that says anything new."""
        if left:
            self._left[session] = place
            if len(self._left) > self._config.places:
                self._left.popitem(last=False)
        name, save = self._name(room, key), _Save(session, self._worker, place, "left" if left else "")
        before, when = self._written.get(name, (None, 0.0))
        if save != before or self._clock.seconds() - when > self._config.history_ttl / 4:
            self._write(name, save)

    def saved(self) -> "Deferred[None]":
        """Fire once all is written."""
        done: Deferred[None] = Deferred()
        self._waiters.append(done)
        self._look_whether_saved()
        return done

    def heard(self, data: bytes) -> None:
        """Take what another worker asks or answers, as the scripts ``claim`` and ``save`` have put it."""
        what, session, *rest = data.decode().split(" ")
        if what == "taken":
            if (taken := self._asking.get(session)) is not None and not taken.called:
                taken.callback(None)
            return
        worker, by, key, room = rest
        place = self._give_up(room, session) or self._left.pop(session, Place(None, ""))
        self._write(self._name(room, key), _Save(by, worker, place, "taken"))

    # What is asked of the broker

    def _claim(self, room: str, key: str, session: str) -> "Deferred[Any]":
        return self._queries.ask(
            CLAIM,
            [self._name(room, key)],
            lambda _: [self._worker, session, self._config.history_seconds, self._channel(""), f"{key} {room}"],
        )

    def _write(self, name: bytes, save: _Save) -> None:
        self._dirty[name] = save
        if self._coming is None and not self._writing:
            self._coming = self._clock.callLater(0, self._write_all)

    def _write_all(self) -> None:
        self._coming = None
        names = list(self._dirty)[: self._config.places]
        saves = [self._dirty.pop(name) for name in names]
        now = self._clock.seconds()
        for name, save in zip(names, saves, strict=True):
            if save.outcome:
                self._written.pop(name, None)
            else:
                self._written[name] = (save, now)

        def arguments(_: bytes) -> list[Any]:
            flat: list[Any] = [self._config.history_seconds, self._channel("")]
            for each in saves:
                position = each.place.position or Position("", 0)
                flat += [each.session, each.worker, position.epoch, position.offset, each.place.author, each.outcome]
            return flat

        self._writing = True
        self._queries.ask(SAVE, names, arguments).addErrback(
            lambda failure: log.error("places cannot be written: {why}", why=failure.getErrorMessage())
        ).addCallback(self._wrote)

    def _wrote(self, _: object) -> None:
        self._writing = False
        if self._dirty:
            self._coming = self._clock.callLater(0, self._write_all)
        self._look_whether_saved()

    def _look_whether_saved(self) -> None:
        if not self._dirty and not self._writing:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def _name(self, room: str, key: str) -> bytes:
        return f"{self._config.redis_prefix}:place:{key}:{room}".encode()

    def _channel(self, worker: str) -> bytes:
        return f"{self._config.redis_prefix}:worker:{worker}".encode()
