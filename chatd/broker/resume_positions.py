"""The places of clients with a resume key: how far each has come in its room, kept in the broker.

A place belongs to one connection at a time. Who comes with the key takes it over: the worker that has the last
connection, if it still has, hangs up on it and says how far it has come; where it does not within
``takeover_seconds``, what it wrote last counts, which is a second old or so. Who does not hear that its place was taken
learns it when it writes the place down again. A place lasts as long as history.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import for_now
from chatd.broker.queries import Queries
from chatd.broker.script import CLAIM, FOUGHT, SAVE
from chatd.config.settings import Config
from chatd.protocol.message import StreamPosition

log = Logger()


@dataclass(frozen=True, slots=True)
class ResumePosition:
    """Who has come how far."""

    position: StreamPosition | None
    """None where it has only just begun."""
    author: str
    """Whose messages are its own: the connection that was the first with this key."""


class TakenOver(Exception):
    """Yet another connection has come with the key before this one had its place."""


class KeyContested(Exception):
    """Clients have taken the place from each other too often: it stays where it is."""

    def __init__(self, seconds: int) -> None:
        """Take after how many seconds to try again."""
        super().__init__(f"clients take the place from each other; it may be taken again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class _Save:
    """A place to be written."""

    room: str
    session: str
    """Which connection must have it for that."""
    place: ResumePosition
    outcome: str = ""
    """``left``: it has it no more. ``given``: it was told to give it up, for who has come."""


class ResumePositions:
    """The places that this worker asks for and writes."""

    def __init__(
        self,
        clock: Any,
        queries: Queries,
        config: Config,
        worker: str,
        give_up: Callable[[str, str], ResumePosition | None],
    ) -> None:
        """Take this worker's unique name, and what hangs up on a connection (room, session) to give its place."""
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._give_up = give_up
        self._asking: dict[str, Deferred[None]] = {}
        self._dirty: dict[tuple[bytes, str], _Save] = {}  # by place and session
        self._written: dict[bytes, tuple[_Save, float]] = {}
        self._writing: dict[tuple[bytes, str], _Save] = {}  # on its way to the broker
        self._coming: Any = None
        self._waiters: list[Deferred[None]] = []
        self._gone: OrderedDict[str, ResumePosition] = (
            OrderedDict()
        )  # of connections that are gone: who asks may be faster
        self._run = b""
        self.channel = self._channel(worker)

    def connected(self, run: bytes) -> None:
        """Write all places anew where this run of the broker may not have them."""
        if self._run != run:
            self._run = run
            self.write_anew()

    def write_anew(self) -> None:
        """Write all places, moved or not: one may have been taken unheard."""
        self._written.clear()

    async def claim(self, room: str, key: str, session: str) -> ResumePosition:
        """Take over a place for a connection, or begin one. Raises TakenOver and Contested."""
        given = self._asking[session] = Deferred()
        try:
            answer = await self._claim(room, key, session)
            if isinstance(answer, int):
                raise KeyContested(answer)
            if answer[3]:
                await given.addTimeout(self._config.takeover_seconds, self._clock, lambda *_: None)
                answer = await self._claim(room, key, session, waited=True)
        finally:
            del self._asking[session]
        if answer is None:
            raise TakenOver
        epoch, offset, author, _ = answer
        return ResumePosition(StreamPosition(epoch.decode(), int(offset)) if epoch else None, author.decode())

    def save(self, room: str, key: str, session: str, place: ResumePosition, *, left: bool = False) -> None:
        """Write a place down at the end of the turn, where that says anything new."""
        if left:
            self._remember(session, place)
        name, save = self._name(room, key), _Save(room, session, place, "left" if left else "")
        before, when = self._written.get(name, (None, 0.0))
        again = min(self._config.place_again_seconds, self._config.history_ttl / 4)
        if save != before or self._clock.seconds() - when > again:
            self._write(name, save)

    def fought(self, room: str, key: str) -> None:
        """Count that a place was taken from a client that was still there: another one has its key."""
        config = self._config
        self._queries.ask(
            FOUGHT, [self._name(room, key)], lambda _: [config.takeovers, config.takeover_rest_seconds]
        ).addErrback(lambda failure: log.error("a takeover was not counted: {why}", why=failure.getErrorMessage()))

    def saved(self) -> "Deferred[None]":
        """Fire once all is written."""
        done: Deferred[None] = Deferred()
        self._waiters.append(done)
        self._look_whether_saved()
        return done

    def heard(self, data: bytes) -> None:
        """Take what the scripts ``claim`` and ``save`` tell this worker: that a place was taken, or given up."""
        what, session, *rest = data.decode().split(" ")
        if what == "given":
            if (given := self._asking.get(session)) is not None and not given.called:
                given.callback(None)
            return
        key, room = rest
        name = self._name(room, key)
        waiting = self._dirty.get((name, session)) or self._writing.get((name, session))
        place = self._give_up(room, session) or self._gone.pop(session, None) or (waiting and waiting.place)
        self._write(name, _Save(room, session, place or ResumePosition(None, ""), "given"))

    # What is asked of the broker

    def _claim(self, room: str, key: str, session: str, *, waited: bool = False) -> "Deferred[Any]":
        config, told = self._config, f"{key} {room}"
        whose = [self._worker, session, config.history_seconds, self._channel(""), told, int(waited)]
        limits = [config.takeovers, config.takeover_rest_seconds]
        return self._queries.ask(CLAIM, [self._name(room, key)], lambda _: [*whose, *limits])

    def _remember(self, session: str, place: ResumePosition) -> None:
        self._gone[session] = place
        if len(self._gone) > self._config.places:
            self._gone.popitem(last=False)

    def _write(self, name: bytes, save: _Save) -> None:
        self._dirty[name, save.session] = save
        self._write_later(0)

    def _write_later(self, seconds: float) -> None:
        if self._dirty and self._coming is None and not self._writing:
            self._coming = self._clock.callLater(seconds, self._write_all)

    def _write_all(self) -> None:
        self._coming = None
        keys = list(self._dirty)[: self._config.places]
        self._writing = {key: self._dirty.pop(key) for key in keys}
        names, saves = [name for name, _ in keys], list(self._writing.values())
        now = self._clock.seconds()
        for name, save in zip(names, saves, strict=True):
            if save.outcome:
                self._written.pop(name, None)
            else:
                self._written[name] = (save, now)

        def arguments(_: bytes) -> list[Any]:
            flat: list[Any] = [self._config.history_seconds, self._channel("")]
            for each in saves:
                position = each.place.position or StreamPosition("", 0)
                flat += [each.session, self._worker, position.epoch, position.offset, each.place.author, each.outcome]
            return flat

        def look(others: list[int]) -> None:
            for each in others:
                self._written.pop(names[each - 1], None)
                with log.failuresHandled("a client whose resume key has come again was not closed"):
                    self._has_another(saves[each - 1])

        self._queries.ask(SAVE, names, arguments).addCallback(look).addErrback(self._not_written).addCallback(
            self._wrote
        )

    def _not_written(self, failure: Failure) -> float:
        """Write again what the broker can't take for now; return in how many seconds."""
        log.error("places cannot be written: {why}", why=failure.getErrorMessage())
        if not for_now(failure):
            return 0
        self._dirty = {**self._writing, **self._dirty}  # what was saved since is newer
        return self._config.place_seconds

    def _has_another(self, save: _Save) -> None:
        """Hang up on a connection that did not hear, or not yet, that its place was taken."""
        if (place := self._give_up(save.room, save.session)) is not None:
            self._remember(save.session, place)

    def _wrote(self, wait: float | None) -> None:
        self._writing = {}
        self._write_later(wait or 0)
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
