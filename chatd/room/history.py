"""What a room's history is asked for: a stretch of it, and where the order of rooms stands.

It is kept by the script that publishes, and bounded by it; what is older than ``history_ttl`` is left out here too.
An entry that can't be read is left out: those who read there see a hole in the offsets, and are told.
"""

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatd.config import Config
from chatd.message import Batch, Position, Span, decode
from chatd.room.queries import Queries
from chatd.room.script import READ, TOPS

log = Logger()


def history_key(prefix: str, room: str) -> tuple[bytes, bytes]:
    """Give the key of a room's history, but for the epoch that comes between."""
    return f"{prefix}:history:".encode(), f":{room}".encode()


class History:
    """The history of all rooms, as it stands in the broker."""

    def __init__(
        self,
        queries: Queries,
        config: Config,
        channel: Callable[[str], bytes],
        new_epoch: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        """Take a room's key, what makes a random epoch, and the time of day in seconds since 1970."""
        self._queries = queries
        self._config = config
        self._channel = channel
        self._new_epoch = new_epoch
        self._now = now
        self._unreadable: dict[int, None] = {}  # hashes of entries that were logged, the oldest first

    def read(self, room: str, after: Position | None, most: int) -> "Deferred[Span]":
        """Read what follows a position, up to about so many bytes; without one only where the order stands."""
        config = self._config
        epoch, offset = (after.epoch, after.offset) if after is not None and config.keeps_history else ("", 0)

        def arguments(run: bytes) -> list[Any]:
            return [
                *history_key(config.redis_prefix, room),
                run,
                self._new_epoch(),
                config.room_seconds,
                epoch,
                offset,
                most,
            ]

        answer: Deferred[Any] = self._queries.ask(READ, [self._channel(room)], arguments)
        return answer.addCallback(self._span, room, most)

    def tops(self, rooms: Sequence[str]) -> "Deferred[list[Position]]":
        """Say where the order of each room stands; a room that is not known in this run has no epoch."""

        def arguments(run: bytes) -> list[Any]:
            return [run, self._config.room_seconds]

        answer: Deferred[Any] = self._queries.ask(TOPS, [self._channel(room) for room in rooms], arguments)
        return answer.addCallback(
            lambda flat: [Position(flat[at].decode(), int(flat[at + 1])) for at in range(0, len(flat), 2)]
        )

    def _span(self, answer: list[Any], room: str, most: int) -> "Span | Deferred[Span]":
        epoch, top, more, end, *entries = answer
        its_epoch, _, offset = end.decode().partition(" ")
        batches = self._batches(room, its_epoch, entries)
        span = self._without_old(Span(batches, Position(epoch.decode(), int(top)), bool(more)))
        if span.more and not span.batches:  # who reads on behind the last batch would read the same again
            return self.read(room, Position(its_epoch, int(offset)), most)
        return span

    def _batches(self, room: str, epoch: str, entries: Sequence[bytes]) -> list[Batch]:
        """Decode entries of one epoch, without those that can't be read; each of these is logged once."""
        batches = []
        for data in entries:
            try:
                batch = decode(room, data)
                if batch.epoch != epoch:
                    raise ValueError(f"it is of epoch {batch.epoch}")
            except ValueError as error:
                self._log_unreadable(room, data, error)
            else:
                batches.append(batch)
        return batches

    def _log_unreadable(self, room: str, data: bytes, error: ValueError) -> None:
        entry = hash((room, data))
        if entry in self._unreadable:
            return
        if len(self._unreadable) >= self._config.unreadable_known:
            del self._unreadable[next(iter(self._unreadable))]
        self._unreadable[entry] = None
        log.error("an entry in the history of room {room} cannot be read, it is lost: {why}", room=room, why=str(error))

    def _without_old(self, span: Span) -> Span:
        """Leave out what is too old: the broker keeps it until the room has been silent for so long."""
        oldest = int((self._now() - self._config.history_ttl) * 1000)
        kept = []
        for batch in span.batches:
            old = sum(each.time < oldest for each in batch.messages)
            if old < len(batch.messages):
                kept.append(batch.without_first(old) if old > 0 else batch)
        return Span(kept, span.top, span.more)
