"""Checks of the broker: whether both connections to the broker work, and whether this worker has received everything.

A worker publishes a probe to itself. It comes back only if both connections work and the broker accepts writes.

The next message of a room shows that one before it was lost. For the last message of a room, and after an outage,
the stream positions of all rooms are compared every ``offset_check_interval``. They are read, then a probe is sent.
When the probe is back, everything up to those positions has arrived, or never will.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, for_now
from chatd.broker.history import HistoryReader
from chatd.broker.presence import PresenceStore
from chatd.broker.publish_queue import NotPublished, WritesRefused
from chatd.broker.queries import PROBE
from chatd.config.settings import Config
from chatd.monitoring.metrics import BUS_ROUND_TRIP_SECONDS
from chatd.protocol.message import StreamPosition
from chatd.runtime.timers import Periodic

log = Logger()


@dataclass(slots=True)
class _LivenessProbe:
    done: "Deferred[None]"
    late: Any
    sent: float
    answered: bool = False
    """Whether the broker has answered that it was published."""


class LivenessProbes:
    """The probes that have not come back."""

    def __init__(self, clock: Any, config: Config, publisher: str) -> None:
        """Prepare for a worker with this unique name, which its own channel contains."""
        self._clock = clock
        self._config = config
        self._number = 0
        self._probes: dict[int, _LivenessProbe] = {}
        self._key = f"{config.redis_prefix}:probe".encode()
        self.channel = f"{config.redis_prefix}:probe:{publisher}".encode()

    def send(self, protocol: Any) -> "Deferred[None]":
        """Publish a probe. Return a Deferred that fires when it is back.

        It fails with WritesRefused if the broker refuses writes for now, else with NotPublished, which names the broken
        connection.
        """
        number = self._number = self._number + 1
        done: Deferred[None] = Deferred()
        late = self._clock.callLater(self._config.readiness_probe_timeout, self._timed_out, number)
        self._probes[number] = _LivenessProbe(done, late, self._clock.seconds())
        self._publish(protocol, number)
        return done

    def _publish(self, protocol: Any, number: int) -> None:
        PROBE.run(protocol, [self._key], [self.channel, number, self._config.room_seconds]).addCallbacks(
            self._published, self._not_published, callbackArgs=(number,), errbackArgs=(protocol, number)
        )

    def _published(self, _: object, number: int) -> None:
        if (probe := self._probes.get(number)) is not None:
            probe.answered = True

    def _not_published(self, failure: Failure, protocol: Any, number: int) -> None:
        why = failure.getErrorMessage().strip()
        if failure.check(LinkLost):
            return  # it times out, unless the bus fails it before
        if why.startswith("NOSCRIPT"):
            PROBE.load(protocol).addCallback(lambda _: self._publish(protocol, number)).addErrback(
                self._not_published, protocol, number
            )
        elif (probe := self._probes.pop(number, None)) is not None:
            probe.late.cancel()
            probe.done.errback(WritesRefused(why) if for_now(failure) else NotPublished(why))

    def received(self, data: bytes) -> None:
        """Complete a probe that came back, and those before it."""
        for number in [number for number in self._probes if number <= int(data)]:
            probe = self._probes.pop(number)
            probe.late.cancel()
            BUS_ROUND_TRIP_SECONDS.observe(self._clock.seconds() - probe.sent)
            probe.done.callback(None)

    def fail(self, why: str) -> None:
        """Fail all probes."""
        probes, self._probes = self._probes, {}
        for probe in probes.values():
            probe.late.cancel()
            probe.done.errback(NotPublished(why))

    def _timed_out(self, number: int) -> None:
        probe = self._probes.pop(number)
        link = "subscribing" if probe.answered else "publishing"
        why = f"nothing came through the {link} link within {self._config.readiness_probe_timeout:g} s"
        probe.done.errback(NotPublished(why))


class Comparison:
    """Compares stream positions every ``offset_check_interval``, and on ``run``."""

    def __init__(
        self,
        clock: Any,
        config: Config,
        history: HistoryReader,
        presence: PresenceStore,
        *,
        rooms: Callable[[], Sequence[str]],
        probe: Callable[[], "Deferred[None]"],
        recover: Callable[[str, StreamPosition], None],
    ) -> None:
        """Prepare to compare the rooms that ``rooms`` returns.

        ``recover`` is called with each room and its stream position when the probe is back.
        """
        self._step = config.rooms_per_offset_check
        self._history = history
        self._presence = presence
        self._rooms = rooms
        self._probe = probe
        self._recover = recover
        self._running: Deferred[None] | None = None
        self._run_again = False
        self._ticker = Periodic(clock, config.offset_check_interval, self.run, "comparing what was heard")

    def start(self) -> None:
        """Start to compare."""
        self._ticker.start(now=False)

    def stop(self) -> None:
        """Stop comparing."""
        self._ticker.stop()
        self._run_again = False
        if self._running is not None:
            self._running.cancel()

    def run(self) -> None:
        """Compare now, or once more when the comparison that runs is over."""
        if self._running is not None:
            self._run_again = True
            return
        self._run_again = False
        self._running = Deferred.fromCoroutine(self._compare())
        self._running.addErrback(self._failed).addCallback(self._finished)

    async def _compare(self) -> None:
        rooms = self._rooms()
        for start in range(0, len(rooms), self._step):
            some = rooms[start : start + self._step]
            tops = await self._history.tops(some)
            compare_presence = await self._presence.check(some)
            await self._probe()
            for room, top in zip(some, tops, strict=True):
                with log.failuresHandled(
                    "comparing the received offset of room {room} with that of the broker failed",
                    room=room,
                    event="room_comparison_failed",
                ):
                    self._recover(room, top)
            compare_presence()

    def _failed(self, failure: Failure) -> None:
        # An outage is reported by the bus, and followed by another comparison.
        if not (failure.check(NotPublished, CancelledError) or for_now(failure)):
            log.failure(
                "comparing the received offsets with those of the broker failed",
                failure,
                event="offset_comparison_failed",
            )

    def _finished(self, _: object) -> None:
        self._running = None
        if self._run_again:
            self.run()
