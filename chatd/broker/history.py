"""The history of rooms in the broker: ranges of it, and the newest positions.

The script that publishes stores and bounds it. Messages older than ``history_ttl`` are left out here too. An entry that
cannot be decoded is left out, which makes a gap in the offsets.
"""

import sys
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatd.broker.queries import READ, READ_BACK, TOPS, Queries
from chatd.config.settings import Config
from chatd.protocol.message import Batch, HistoryRange, StreamPosition, decode

log = Logger()


def history_key(prefix: str, room: str) -> tuple[bytes, bytes]:
    """Return the key of a room's history: the parts before and after the epoch."""
    return f"{prefix}:history:".encode(), f":{room}".encode()


class HistoryReader:
    """The history of all rooms in the broker."""

    def __init__(
        self,
        queries: Queries,
        config: Config,
        channel: Callable[[str], bytes],
        now: Callable[[], float],
    ) -> None:
        """``channel`` returns the key of a room, ``now`` seconds since 1970."""
        self._queries = queries
        self._config = config
        self._channel = channel
        self._now = now
        self._unreadable: dict[int, None] = {}  # hashes of entries that were logged, the oldest first

    def read(self, room: str, after: StreamPosition | None, most: int) -> "Deferred[HistoryRange]":
        """Read about ``most`` bytes after a position; without one only the newest position."""
        config = self._config
        epoch, offset = (after.epoch, after.offset) if after is not None and config.keeps_history else ("", 0)

        def arguments(run: bytes) -> list[Any]:
            return [
                *history_key(config.redis_prefix, room),
                run,
                token_hex(4),
                config.room_seconds,
                epoch,
                offset,
                most,
            ]

        answer: Deferred[Any] = self._queries.ask(READ, [self._channel(room)], arguments)
        return answer.addCallback(self._span, room, most)

    def read_back(
        self, room: str, epoch: str, last: int, after: int, most: int
    ) -> "Deferred[tuple[list[Batch], bool]]":
        """Read the newest batches up to one offset and after another, newest first, up to about ``most`` bytes.

        Return them and whether there are more. The first may end, and the last begin, with messages beyond the offsets.
        """
        config = self._config
        if not config.keeps_history:
            return succeed(([], False))
        before, behind = history_key(config.redis_prefix, room)
        key = before + epoch.encode() + behind
        answer: Deferred[Any] = self._queries.ask(READ_BACK, [key], lambda run: [last, after, most])

        def read_on(end: int) -> "Deferred[tuple[list[Batch], bool]]":
            return self.read_back(room, epoch, end, after, most)

        return answer.addCallback(self._batches_back, room, epoch, last, read_on)

    def tops(self, rooms: Sequence[str]) -> "Deferred[list[StreamPosition]]":
        """Return the newest position of each room. A room that is unknown in this run has no epoch."""

        def arguments(run: bytes) -> list[Any]:
            return [run, self._config.room_seconds]

        answer: Deferred[Any] = self._queries.ask(TOPS, [self._channel(room) for room in rooms], arguments)
        return answer.addCallback(
            lambda flat: [StreamPosition(flat[at].decode(), int(flat[at + 1])) for at in range(0, len(flat), 2)]
        )

    def _span(self, answer: list[Any], room: str, most: int) -> "HistoryRange | Deferred[HistoryRange]":
        epoch, top, more, end, *entries = answer
        its_epoch, _, offset = end.decode().partition(" ")
        batches = self._batches(room, its_epoch, entries)
        span = self._without_old(HistoryRange(batches, StreamPosition(epoch.decode(), int(top)), bool(more)))
        if span.more and not span.batches:  # reading on after the last batch would read the same again
            return self.read(room, StreamPosition(its_epoch, int(offset)), most)
        return span

    def _batches(self, room: str, epoch: str, entries: Sequence[bytes], last: int = sys.maxsize) -> list[Batch]:
        """Decode entries of one epoch that begin at most at ``last``. Log each undecodable one once."""
        batches = []
        for data in entries:
            try:
                batch = decode(room, data)
                if batch.epoch != epoch:
                    raise ValueError(f"it is of epoch {batch.epoch}")
                if batch.first > last:  # reading back before it would never end
                    raise ValueError(f"it says that it begins at offset {batch.first}, and ends before that")
            except ValueError as error:
                self._log_unreadable(room, data, error)
            else:
                batches.append(batch)
        return batches

    def _log_unreadable(self, room: str, data: bytes, error: ValueError) -> None:
        entry = hash((room, data))
        if entry in self._unreadable:
            return
        if len(self._unreadable) >= self._config.logged_unreadable_entries:
            del self._unreadable[next(iter(self._unreadable))]
        self._unreadable[entry] = None
        log.error(
            "an entry in the history of room {room} is unreadable and lost: {why}",
            room=room,
            why=str(error),
            event="history_entry_unreadable",
        )

    def _batches_back(
        self,
        answer: list[Any],
        room: str,
        epoch: str,
        last: int,
        read_on: "Callable[[int], Deferred[tuple[list[Batch], bool]]]",
    ) -> "tuple[list[Batch], bool] | Deferred[tuple[list[Batch], bool]]":
        more, unread, *entries = answer
        batches: list[Batch] = []
        for batch in self._batches(room, epoch, entries, last):
            if (part := self._without_old_messages(batch)) is not None:
                batches.append(part)
            if part is not batch:
                return batches, False  # before what is too old there is nothing newer
        if more and not batches:  # the caller goes on before the oldest batch, and has none
            return read_on(min(int(unread), last - 1))  # never the same again
        return batches, bool(more)

    def _without_old(self, span: HistoryRange) -> HistoryRange:
        """Leave out old messages: the broker keeps them until the room has been silent for so long."""
        kept = [part for batch in span.batches if (part := self._without_old_messages(batch)) is not None]
        return HistoryRange(kept, span.top, span.more)

    def _without_old_messages(self, batch: Batch) -> Batch | None:
        """Return a batch without the messages that are too old; None if all of them are."""
        oldest = int((self._now() - self._config.history_ttl) * 1000)
        old = sum(message.time < oldest for message in batch.messages)
        if old == len(batch.messages):
            return None
        return batch.without_first(old) if old > 0 else batch
