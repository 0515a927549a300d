"""Probes: a worker publishes to itself through the bus, and sees whether it comes back.

The only honest sign of life there is: it takes both links, and a broker between them that takes writes, to return one.
"""

from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, for_now
from chatd.broker.publish_queue import NotPublished, WritesRefused
from chatd.broker.script import PROBE
from chatd.config.settings import Config
from chatd.monitoring.metrics import BUS_ROUND_TRIP_SECONDS


@dataclass(slots=True)
class _LivenessProbe:
    done: "Deferred[None]"
    late: Any
    sent: float
    answered: bool = False
    """Whether the publishing link has heard that it was published."""


class LivenessProbes:
    """The probes on their way."""

    def __init__(self, clock: Any, config: Config, publisher: str) -> None:
        """Take this worker's unique name, of which its own channel is made."""
        self._clock = clock
        self._config = config
        self._number = 0
        self._probes: dict[int, _LivenessProbe] = {}
        self._key = f"{config.redis_prefix}:probe".encode()
        self.channel = f"{config.redis_prefix}:probe:{publisher}".encode()

    def send(self, commands: Any) -> "Deferred[None]":
        """Publish one; fires when it is back.

        Fails with WritesRefused where the broker takes no writes now, else with NotPublished, which names the broken
        link.
        """
        number = self._number = self._number + 1
        done: Deferred[None] = Deferred()
        late = self._clock.callLater(self._config.probe_seconds, self._late, number)
        self._probes[number] = _LivenessProbe(done, late, self._clock.seconds())
        self._publish(commands, number)
        return done

    def _publish(self, commands: Any, number: int) -> None:
        PROBE.run(commands, [self._key], [self.channel, number, self._config.room_seconds]).addCallbacks(
            self._published, self._not_published, callbackArgs=(number,), errbackArgs=(commands, number)
        )

    def _published(self, _: object, number: int) -> None:
        if (probe := self._probes.get(number)) is not None:
            probe.answered = True

    def _not_published(self, failure: Failure, commands: Any, number: int) -> None:
        why = failure.getErrorMessage().strip()
        if failure.check(LinkLost):
            return  # it is late, unless the bus gives it up before
        if why.startswith("NOSCRIPT"):
            PROBE.load(commands).addCallback(lambda _: self._publish(commands, number)).addErrback(
                self._not_published, commands, number
            )
        elif (probe := self._probes.pop(number, None)) is not None:
            probe.late.cancel()
            probe.done.errback(WritesRefused(why) if for_now(failure) else NotPublished(why))

    def heard(self, data: bytes) -> None:
        """Take one that came back; those before it count as back too."""
        for number in [each for each in self._probes if each <= int(data)]:
            probe = self._probes.pop(number)
            probe.late.cancel()
            BUS_ROUND_TRIP_SECONDS.observe(self._clock.seconds() - probe.sent)
            probe.done.callback(None)

    def fail(self, why: str) -> None:
        """Give up all that are on their way."""
        probes, self._probes = self._probes, {}
        for probe in probes.values():
            probe.late.cancel()
            probe.done.errback(NotPublished(why))

    def _late(self, number: int) -> None:
        probe = self._probes.pop(number)
        link = "subscribing" if probe.answered else "publishing"
        why = f"nothing came through the {link} link within {self._config.probe_seconds:g} s"
        probe.done.errback(NotPublished(why))
