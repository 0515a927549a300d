"""Whether this worker has heard everything: it compares how far its rooms have come with how far it has.

A message that was lost shows by the next one of its room; the last one shows here, and so does what was said while the
link was down. First the tops are asked for, then a probe is sent: when that is back, all that was published up to
those tops has come, or never will.
"""

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import for_now
from chatd.broker.history import HistoryReader
from chatd.broker.presence import PresenceStore
from chatd.broker.publish_queue import NotPublished
from chatd.config.settings import Config
from chatd.protocol.message import StreamPosition
from chatd.runtime.timers import Periodic

log = Logger()


class Comparison:
    """Done every ``compare_seconds``, and whenever it is asked for."""

    def __init__(
        self,
        clock: Any,
        config: Config,
        history: HistoryReader,
        presence: PresenceStore,
        *,
        rooms: Callable[[], Sequence[str]],
        probe: Callable[[], "Deferred[None]"],
        compare: Callable[[str, StreamPosition], None],
    ) -> None:
        """Take the rooms that are heard now, what sends a probe, and whom to tell how far each room has come."""
        self._step = config.compare_rooms
        self._history = history
        self._presence = presence
        self._rooms = rooms
        self._probe = probe
        self._compare = compare
        self._running: Deferred[None] | None = None
        self._asked = False
        self._ticker = Periodic(clock, config.compare_seconds, self.run, "comparing what was heard")

    def start(self) -> None:
        """Begin."""
        self._ticker.start(now=False)

    def stop(self) -> None:
        """Compare no more."""
        self._ticker.stop()
        self._asked = False
        if self._running is not None:
            self._running.cancel()

    def run(self) -> None:
        """Compare now, or once more when what runs is over."""
        if self._running is not None:
            self._asked = True
            return
        self._asked = False
        self._running = Deferred.fromCoroutine(self._all())
        self._running.addErrback(self._failed).addCallback(self._over)

    async def _all(self) -> None:
        rooms = self._rooms()
        for at in range(0, len(rooms), self._step):
            some = rooms[at : at + self._step]
            tops = await self._history.tops(some)
            compare_presence = await self._presence.check(some)
            await self._probe()
            for room, top in zip(some, tops, strict=True):
                with log.failuresHandled("a worker does not know whether it has heard all of room {room}", room=room):
                    self._compare(room, top)
            compare_presence()

    def _failed(self, failure: Failure) -> None:
        # What the bus says itself is no failure: it is done when the link is back, or the next time.
        if not (failure.check(NotPublished, CancelledError) or for_now(failure)):
            log.failure("a worker does not know whether it has heard everything", failure)

    def _over(self, _: object) -> None:
        self._running = None
        if self._asked:
            self.run()
