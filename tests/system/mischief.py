"""What befalls a chatd and its clients in the soak: at random, and the same again for the same seed if time allows."""

import contextlib
import enum
import heapq
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.system.crowd import Crowd, Member, Sender
from tests.system.daemon import Daemon

FLOOD_SECONDS = 1.5


class Stage(enum.IntEnum):
    """What may befall the processes; what befalls clients does so at all times."""

    ALL = 0
    """Anything."""
    RENEWED = 1
    """Workers and broker may be killed and replaced, and a reload may bring others; the parent stays."""
    STANDING = 2
    """All stay, though they may freeze for a while: each can be held against itself."""


class Mischief:
    """Does it, and mends what has to be mended."""

    def __init__(self, daemon: Daemon, crowd: Crowd, reload: Callable[[], None], chance: random.Random) -> None:
        """Take whom it befalls, and what has the daemon reload with other workers."""
        self.done: Counter[str] = Counter()
        self.killed = 0
        """Workers."""
        self.slow: list[Member] = []
        self.floods: list[Sender] = []
        self.restless: list[Member] = []
        self.fleeting: list[Member] = []
        self._daemon = daemon
        self._crowd = crowd
        self._reload = reload
        self._chance = chance
        self._mending: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = itertools.count()  # of two that are due at once
        self._choices: Sequence[tuple[Stage, int, str, Callable[[], object]]] = [
            (Stage.ALL, 2, "all killed, started again", self._kill_everything),
            (Stage.RENEWED, 4, "worker killed", self._kill_worker),
            (Stage.RENEWED, 3, "broker killed", self._kill_broker),
            (Stage.RENEWED, 3, "reload with other workers", self._reload),
            (Stage.STANDING, 3, "broker frozen", self._freeze_broker),
            (Stage.STANDING, 4, "worker frozen", self._freeze_worker),
            (Stage.STANDING, 8, "client vanished", self._let_someone_vanish),
            (Stage.STANDING, 8, "client left and came back", self._let_someone_come_back),
            (Stage.STANDING, 8, "client stopped reading", self._let_someone_read_slowly),
        ]

    def act(self, stage: Stage) -> None:
        """Do one thing that may be done at this stage."""
        choices = [each for each in self._choices if each[0] >= stage]
        [(_, _, name, act)] = self._chance.choices(choices, [each[1] for each in choices])
        self.done[name] += 1
        act()

    def flood(self) -> None:
        """Let a flood come, in one room after the other: as many each time, for the broker keeps them for a while."""
        self.done["flood that some did not read"] += 1
        flood = self.floods[self.done["flood that some did not read"] % len(self.floods)]
        for member in self.slow:
            if member.life.room == flood.life.room:
                self._stop_reading(member)
        flood.talking = True
        self._later(FLOOD_SECONDS, lambda: setattr(flood, "talking", False))

    def mend(self) -> None:
        """Mend what is due."""
        while self._mending and self._mending[0][0] <= time.monotonic():
            heapq.heappop(self._mending)[2]()

    def mend_all(self) -> None:
        """Mend all at once."""
        while self._mending:
            heapq.heappop(self._mending)[2]()

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        heapq.heappush(self._mending, (time.monotonic() + seconds, next(self._turn), mend))

    # Processes

    def _kill_everything(self) -> None:
        self.killed += len(self._daemon.worker_pids())
        self._daemon.kill()
        self._daemon.start()

    def _kill_worker(self) -> None:
        if workers := self._daemon.worker_pids():
            self.killed += 1
            _signal(self._chance.choice(workers), signal.SIGKILL)

    def _kill_broker(self) -> None:
        for broker in self._daemon.broker_pids():
            _signal(broker, signal.SIGKILL)

    def _freeze_broker(self) -> None:
        for broker in self._daemon.broker_pids():
            self._freeze(broker, self._chance.uniform(1, 20))

    def _freeze_worker(self) -> None:
        if workers := self._daemon.worker_pids():
            self._freeze(self._chance.choice(workers), self._chance.uniform(0.5, 5))

    def _freeze(self, pid: int, seconds: float) -> None:
        _signal(pid, signal.SIGSTOP)
        self._later(seconds, lambda: _signal(pid, signal.SIGCONT))

    # Clients

    def _let_someone_vanish(self) -> None:
        self._crowd.call(self._chance.choice([*self.fleeting, *self._crowd.senders]).vanish)

    def _let_someone_come_back(self) -> None:
        self._crowd.start(self._chance.choice(self.restless).come_back())

    def _let_someone_read_slowly(self) -> None:
        self._stop_reading(self._chance.choice(self.slow))

    def _stop_reading(self, member: Member) -> None:
        self._crowd.call(member.reading.clear)
        self._later(self._chance.uniform(2, 25), lambda: self._crowd.call(member.reading.set))


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
