"""A soak: chatd under load while faults come at random, then every line accounted for, and ``chatd verify``.

``make soak`` runs ten minutes of it, ``make soak SOAK=60`` one; ``python -m tests.soak --seed N`` the faults of a run
before. The exit status is 0 only where all is as it should be; else the folder with the logs is kept, and named.
"""

import argparse
import contextlib
import heapq
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.system.crowd import Crowd, Member, Sender
from tests.system.daemon import Daemon, free_port

ROOMS = ("ops", "dev")
PACE = 0.02
"""Seconds between two lines of a sender."""
SENDERS = 3
"""In each room."""
REPORT_SECONDS = 10.0
FLOOD_SECONDS = 1.5
FLOOD_PADDING = 8000
"""Characters a line: more than the kernel keeps for one that does not read comes in a flood."""
REPEATED_SECONDS = 3.0
"""Of what was said: the most that one who comes back may get again. The server knows its place from a second ago."""


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Take where to run, and what chance begins with."""
        self.folder = folder
        self.faults: Counter[str] = Counter()
        self._chance = random.Random(seed)
        options = ["--state", str(folder / "state"), "--history", "20000", "--max-backlog", "65536"]
        self._daemon = Daemon(folder, *options, "--listen", f"tcp:{free_port()}:interface=127.0.0.1")
        self._crowd = Crowd()
        self._mending: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = itertools.count()  # of two that are due at once
        self._slow: list[Member] = []
        self._floods: list[Sender] = []
        self._restless: list[Member] = []
        self._bare: list[Member] = []
        self._choices: list[tuple[int, Callable[[], None]]] = [
            (4, self._kill_worker),
            (3, self._kill_broker),
            (3, self._stop_broker),
            (4, self._stop_worker),
            (2, self._kill_everything),
            (8, self._let_someone_vanish),
            (8, self._let_someone_come_back),
            (8, self._let_someone_read_slowly),
            (3, self._let_a_flood_come),
        ]

    def run(self, seconds: float) -> bool:
        """Run it; give whether all is accounted for."""
        with self._daemon, self._crowd:
            self._gather()
            begin = time.monotonic()
            end, report, fault = begin + seconds, begin + REPORT_SECONDS, begin + 1
            while (now := time.monotonic()) < end:
                if now >= report:
                    report += REPORT_SECONDS
                    self._report(now - begin)
                while self._mending and self._mending[0][0] <= now:
                    heapq.heappop(self._mending)[2]()
                if now >= fault:
                    weights, choices = zip(*self._choices, strict=True)
                    self._chance.choices(choices, weights)[0]()
                    fault = time.monotonic() + self._chance.uniform(0, 4)
                time.sleep(0.05)
            while self._mending:
                heapq.heappop(self._mending)[2]()
            return self._account()

    # Who is there

    def _gather(self) -> None:
        for room in ROOMS:
            for number in range(2):
                self._bare.append(self._member(room, f"bare{number}"))
                self._restless.append(self._member(room, f"restless{number}", keyed=True))
                self._slow.append(self._member(room, f"slow{number}", keyed=True))
            self._member(room, "steady", keyed=True)
        self._crowd.wait_for_all()
        for room in ROOMS:
            for number in range(SENDERS):
                padding = " " + "x" * self._chance.randrange(400)
                self._crowd.sender(self._daemon, f"{room}-{number}", room=room, pace=PACE, padding=padding)
            flood = self._crowd.sender(
                self._daemon, f"{room}-flood", room=room, pace=0.001, padding=" " + "x" * FLOOD_PADDING
            )
            flood.talking = False
            self._floods.append(flood)

    def _member(self, room: str, name: str, *, keyed: bool = False) -> Member:
        return self._crowd.member(self._daemon, f"{room}-{name}", room=room, key=f"{room}-{name}-key" if keyed else "")

    # What happens to them

    def _kill_worker(self) -> None:
        if workers := self._daemon.worker_pids():
            self.faults["worker killed"] += 1
            os.kill(self._chance.choice(workers), signal.SIGKILL)

    def _kill_broker(self) -> None:
        if brokers := self._daemon.broker_pids():
            self.faults["broker killed"] += 1
            os.kill(brokers[0], signal.SIGKILL)

    def _stop_broker(self) -> None:
        if brokers := self._daemon.broker_pids():
            self.faults["broker frozen"] += 1
            self._freeze(brokers[0], self._chance.uniform(1, 20))

    def _stop_worker(self) -> None:
        if workers := self._daemon.worker_pids():
            self.faults["worker frozen"] += 1
            self._freeze(self._chance.choice(workers), self._chance.uniform(0.5, 5))

    def _freeze(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._later(seconds, lambda: thaw(pid))

    def _kill_everything(self) -> None:
        self.faults["all killed, started again"] += 1
        self._daemon.kill()
        self._daemon.start()

    def _let_someone_vanish(self) -> None:
        self.faults["client vanished"] += 1
        self._crowd.call(self._chance.choice([*self._bare, *self._crowd.senders]).vanish)

    def _let_someone_come_back(self) -> None:
        self.faults["client left and came back"] += 1
        self._crowd.start(self._chance.choice(self._restless).come_back())

    def _let_someone_read_slowly(self) -> None:
        self.faults["client stopped reading"] += 1
        self._stop_reading(self._chance.choice(self._slow))

    def _let_a_flood_come(self) -> None:
        self.faults["flood that some did not read"] += 1
        flood = self._chance.choice(self._floods)
        for member in self._slow:
            if member.life.room == flood.life.room:
                self._stop_reading(member)
        flood.talking = True
        self._later(FLOOD_SECONDS, lambda: setattr(flood, "talking", False))

    def _stop_reading(self, member: Member) -> None:
        self._crowd.call(member.reading.clear)
        self._later(self._chance.uniform(2, 25), lambda: self._crowd.call(member.reading.set))

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        heapq.heappush(self._mending, (time.monotonic() + seconds, next(self._turn), mend))

    # What became of it

    def _report(self, seconds: float) -> None:
        crowd = self._crowd
        away = sum(not client.here for client in [*crowd.senders, *crowd.members])
        print(
            f"{seconds:5.0f} s: {crowd.said()} lines said, heard {crowd.heard()} times; "
            f"{sum(self.faults.values())} faults; {away} clients not connected",
            flush=True,
        )

    def _account(self) -> bool:
        killed = self.faults["worker killed"] + 2 * self.faults["all killed, started again"]
        self._crowd.wait_for_all(60)
        found = self._crowd.settle([self._daemon], lost_workers=killed, seconds=60)
        stays = Counter("keyed" if each.life.key else "bare" for each in self._crowd.members for _ in each.life.stays)
        returns = stays["keyed"] - sum(bool(each.life.key) for each in self._crowd.members)
        repeated = round(returns * SENDERS / PACE * REPEATED_SECONDS)
        if found.again > repeated:
            found.wrong.append(f"{found.again} lines were heard again, which is more than {returns} returns explain")
        print()
        for name, count in sorted(self.faults.items()):
            print(f"{count:8} {name}")
        for count, name in (
            (sum(stays.values()), "connections of members"),
            (returns, "of them with a resume key that was known"),
            (found.said, "lines said"),
            (found.logged, "logged"),
            (found.refused, "refused"),
            (sum(found.doubtful.values()), "logged by a worker that was killed before it published them"),
            (found.heard, "heard"),
            (found.again, "of them again, by one that came back"),
            (self._fallen_behind(), "times that a client fell behind"),
            (len(found.wrong), "things wrong"),
        ):
            print(f"{count:8} {name}")
        print(*found.wrong, "", sep="\n", flush=True)
        verified = subprocess.run(
            [Path(sys.executable).parent / "chatd", "verify", "--state", str(self.folder / "state"), "logs"],
            cwd=self.folder,
            check=False,
        )
        return not found.wrong and verified.returncode == 0

    def _fallen_behind(self) -> int:
        return sum(map(int, re.findall(r"slow readers that fell behind: (\d+)", self._daemon.log())))


def thaw(pid: int) -> None:
    """Let a frozen process go on, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def main() -> int:
    """Run a soak; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Random faults under load.")
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="to have the same faults again")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # as Ctrl-C does: nothing is left running
    folder = Path(tempfile.mkdtemp(prefix="chatd-soak-"))
    print(f"{arguments.seconds:g} s of faults, seed {arguments.seed}, in {folder}", flush=True)
    good = False
    try:
        good = Soak(folder, arguments.seed).run(arguments.seconds)
    finally:
        if good:
            shutil.rmtree(folder)
            print("all is accounted for")
        else:
            print(f"NOT all is accounted for; the logs are in {folder}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
