"""Probes: a worker publishes to itself through the bus, and sees whether it comes back.

The only honest sign of life there is: it takes both links, and the broker between them, to return one.
"""

from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

from chatd.config import Config
from chatd.metrics import BUS_ROUND_TRIP_SECONDS
from chatd.room.outbox import NotPublished


@dataclass(slots=True)
class _Probe:
    done: "Deferred[None]"
    late: Any
    sent: float
    answered: bool = False
    """Whether the publishing link has heard that it was published."""


class Probes:
    """The probes on their way."""

    def __init__(self, clock: Any, config: Config, publisher: str) -> None:
        """Take this worker's unique name, of which its own channel is made."""
        self._clock = clock
        self._config = config
        self._number = 0
        self._probes: dict[int, _Probe] = {}
        self.channel = f"{config.redis_prefix}:probe:{publisher}".encode()

    def send(self, commands: Any) -> "Deferred[None]":
        """Publish one; fires when it is back, fails with NotPublished, which names the broken link."""
        number = self._number = self._number + 1
        done: Deferred[None] = Deferred()
        late = self._clock.callLater(self._config.probe_seconds, self._late, number)
        self._probes[number] = probe = _Probe(done, late, self._clock.seconds())

        def answered(_: object) -> None:
            probe.answered = True

        commands.publish(self.channel, str(number)).addCallbacks(answered, lambda _: None)
        return done

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
