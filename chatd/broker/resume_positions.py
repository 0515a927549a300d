"""Resume positions: the stream position of each client with a resume key, stored in the broker.

It promises:

* A resume position belongs to one connection at a time. A new connection with the key claims it. The worker that has
  the earlier connection closes it and stores its position. If it does not within ``takeover_timeout``, the position
  that was stored last counts, which is about a second old.
* A worker that does not hear that a position was claimed finds out when it stores the position again.
* A resume position is kept as long as history.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import for_now
from chatd.broker.queries import CLAIM, FOUGHT, SAVE, Queries
from chatd.config.settings import Config
from chatd.protocol.message import StreamPosition
from chatd.runtime.waiters import Waiters

log = Logger()


@dataclass(frozen=True, slots=True)
class ResumePosition:
    """A stored stream position, and the sender id that goes with it."""

    position: StreamPosition | None
    """None if the client has no position yet."""
    sender_id: str
    """The sender id: that of the first connection with this key."""


class TakenOver(Exception):
    """Another connection claimed the key before this one had its position."""


class KeyContested(Exception):
    """Clients have taken a resume key from each other too often: for a while no other connection gets it."""

    def __init__(self, seconds: int) -> None:
        """Store the number of seconds to wait before the next claim."""
        super().__init__(f"clients take the resume position from each other; it may be taken again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class _Save:
    """A position to be stored."""

    room: str
    session: str
    """The connection that must own the position."""
    place: ResumePosition
    outcome: str = ""
    """``left``: the connection gives up the position. ``given``: another connection waits for it."""


class ResumePositions:
    """The resume positions that this worker claims and stores."""

    def __init__(
        self,
        clock: Any,
        queries: Queries,
        config: Config,
        worker: str,
        disconnect: Callable[[str, str], ResumePosition | None],
    ) -> None:
        """Prepare for a worker with this unique name.

        ``disconnect`` closes a connection of a room and returns its resume position, if this worker has it.
        """
        self._clock = clock
        self._queries = queries
        self._config = config
        self._worker = worker
        self._disconnect = disconnect
        self._claims_held = False
        self._held_claims = Waiters()
        self._claiming: dict[str, Deferred[None]] = {}
        self._dirty: dict[tuple[bytes, str], _Save] = {}  # by place and session
        self._written: dict[bytes, tuple[_Save, float]] = {}
        self._writing: dict[tuple[bytes, str], _Save] = {}  # on its way to the broker
        self._timer: Any = None
        self._saved = Waiters()
        self._ended: OrderedDict[str, ResumePosition] = OrderedDict()  # by connection: a claim may come later
        self._run = b""
        self.channel = self._channel(worker)

    def connected(self, run: bytes) -> None:
        """Store all positions again if this run of the broker may not have them."""
        if self._run != run:
            self._run = run
            self.write_anew()

    def write_anew(self) -> None:
        """Store all positions again, moved or not: this worker may have missed a claim."""
        self._written.clear()

    def hold_claims(self) -> None:
        """Hold claims back: other workers may have positions that they have yet to store."""
        self._claims_held = True

    def release_claims(self) -> None:
        """Send the claims that wait."""
        self._claims_held = False
        self._held_claims.fire()

    def claim(self, room: str, key: str, session: str) -> "Deferred[ResumePosition]":
        """Claim the resume position of a key for a connection, or create it.

        The Deferred fails with TakenOver or KeyContested.
        """
        return Deferred.fromCoroutine(self._claim(room, key, session))

    async def _claim(self, room: str, key: str, session: str) -> ResumePosition:
        if self._claims_held:
            await self._held_claims.wait()
        given = self._claiming[session] = Deferred()
        try:
            answer = await self._ask_claim(room, key, session)
            if isinstance(answer, int):
                raise KeyContested(answer)
            if answer[3]:
                await given.addTimeout(self._config.takeover_timeout, self._clock, lambda *_: None)
                answer = await self._ask_claim(room, key, session, waited=True)
        finally:
            del self._claiming[session]
        if answer is None:
            raise TakenOver
        epoch, offset, sender_id, _ = answer
        return ResumePosition(StreamPosition(epoch.decode(), int(offset)) if epoch else None, sender_id.decode())

    def save(self, room: str, key: str, session: str, place: ResumePosition, *, left: bool = False) -> None:
        """Store a position at the end of the reactor turn, if it is new."""
        if left:
            self._remember(session, place)
        name, save = self._name(room, key), _Save(room, session, place, "left" if left else "")
        before, when = self._written.get(name, (None, 0.0))
        again = min(self._config.resume_position_refresh_interval, self._config.history_ttl / 4)
        if save != before or self._clock.seconds() - when > again:
            self._write(name, save)

    def count_takeover(self, room: str, key: str) -> None:
        """Count that a key was taken from a client that was still connected."""
        config = self._config
        self._queries.ask(
            FOUGHT, [self._name(room, key)], lambda _: [config.takeover_burst, config.takeover_interval]
        ).addErrback(
            lambda failure: log.error(
                "cannot count a takeover of a resume key: {why}",
                why=failure.getErrorMessage(),
                event="takeover_count_failed",
            )
        )

    def saved(self) -> "Deferred[None]":
        """Return a Deferred that fires when all positions are stored."""
        saved = self._saved.wait()
        self._fire_if_saved()
        return saved

    def received(self, data: bytes) -> None:
        """Handle what the scripts ``claim`` and ``save`` published: a position was claimed, or given up."""
        event, session, *rest = data.decode().split(" ")
        if event == "given":
            if (given := self._claiming.get(session)) is not None and not given.called:
                given.callback(None)
            return
        key, room = rest
        name = self._name(room, key)
        waiting = self._dirty.get((name, session)) or self._writing.get((name, session))
        place = self._disconnect(room, session) or self._ended.pop(session, None) or (waiting and waiting.place)
        self._write(name, _Save(room, session, place or ResumePosition(None, ""), "given"))

    # Scripts

    def _ask_claim(self, room: str, key: str, session: str, *, waited: bool = False) -> "Deferred[Any]":
        config, told = self._config, f"{key} {room}"
        whose = [self._worker, session, config.history_seconds, self._channel(""), told, int(waited)]
        limits = [config.takeover_burst, config.takeover_interval]
        return self._queries.ask(CLAIM, [self._name(room, key)], lambda _: [*whose, *limits])

    def _remember(self, session: str, place: ResumePosition) -> None:
        self._ended[session] = place
        if len(self._ended) > self._config.resume_positions_per_write:
            self._ended.popitem(last=False)

    def _write(self, name: bytes, save: _Save) -> None:
        self._dirty[name, save.session] = save
        self._write_later(0)

    def _write_later(self, seconds: float) -> None:
        if self._dirty and self._timer is None and not self._writing:
            self._timer = self._clock.callLater(seconds, self._write_all)

    def _write_all(self) -> None:
        self._timer = None
        keys = list(self._dirty)[: self._config.resume_positions_per_write]
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
            for save in saves:
                position = save.place.position or StreamPosition("", 0)
                flat += [save.session, self._worker, position.epoch, position.offset]
                flat += [save.place.sender_id, save.outcome]
            return flat

        def close_superseded(numbers: list[int]) -> None:
            for number in numbers:
                self._written.pop(names[number - 1], None)
                with log.failuresHandled(
                    "closing a client whose resume key was taken over failed", event="superseded_close_failed"
                ):
                    self._close_superseded(saves[number - 1])

        self._queries.ask(SAVE, names, arguments).addCallback(close_superseded).addErrback(
            self._not_written
        ).addCallback(self._wrote)

    def _not_written(self, failure: Failure) -> float:
        """Queue again what the broker refuses for now. Return the seconds to wait."""
        log.error(
            "cannot write resume positions: {why}", why=failure.getErrorMessage(), event="resume_positions_write_failed"
        )
        if not for_now(failure):
            return 0
        self._dirty = {**self._writing, **self._dirty}  # newer positions win
        return self._config.resume_position_write_interval

    def _close_superseded(self, save: _Save) -> None:
        """Close a connection whose key was claimed, which this worker did not know yet."""
        if (place := self._disconnect(save.room, save.session)) is not None:
            self._remember(save.session, place)

    def _wrote(self, wait: float | None) -> None:
        self._writing = {}
        self._write_later(wait or 0)
        self._fire_if_saved()

    def _fire_if_saved(self) -> None:
        if not self._dirty and not self._writing:
            self._saved.fire()

    def _name(self, room: str, key: str) -> bytes:
        return f"{self._config.redis_prefix}:place:{key}:{room}".encode()

    def _channel(self, worker: str) -> bytes:
        return f"{self._config.redis_prefix}:worker:{worker}".encode()
