"""A soak: chatd under mixed load while faults come at random; every line accounted for, and nothing that grows.

``make soak`` runs an hour of it, ``make soak SOAK=600`` ten minutes; ``python -m tests.soak --seed N`` the faults of a
run before. The exit status is 0 only where all is as it should be; else the folder with the logs is kept, and named.

The run is a row of rounds. Two thirds of each are a storm of faults, begun by a flood. Then it is calm: the load goes
on, what was frozen is thawed, and in the last sixth memory, descriptors and the lag of the event loops are measured; a
round counts as its medians. The beginning of the run may bring anything. From then on the parent stays, and what it
takes while it replaces workers and reloads is told. Then one last reload brings two new workers, and from there to the
end nothing is replaced: a process that begins anew begins small, and would hide what leaks. The second half of the run
(of a run of less than an hour, what comes six minutes after that reload: a broker takes as long to become as large as
it needs to be) is held against ``growth``: no more than 2 %.
"""

import argparse
import gzip
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

from tests.growth import growth
from tests.system.crowd import Crowd, Member
from tests.system.daemon import CHATD, Daemon, free_port
from tests.system.mischief import FLOOD_SECONDS, Mischief, Stage
from tests.system.mixed_clients import ROOM, MixedClients
from tests.system.vitals import LAG, PSS, VITALS, Vitals
from tests.waiting import until

ROOMS = ("ops", "dev")
PACE = 0.04
"""Seconds between two lines of a sender."""
SENDERS = 3
"""In each room."""
FLOOD_PADDING = 8000
"""Characters a line: more than the kernel keeps for one that does not read comes in a flood."""
REPEATED_SECONDS = 3.0
"""Of what was said: the most that one who comes back may get again. The server knows its place from a second ago."""
MIXED_PACE = 0.1
VISITORS = 6
ROUNDS = 60
SHORTEST, LONGEST = 20.0, 60.0
"""Seconds of a round."""
STORM, SETTLED = 2 / 3, 5 / 6
"""Of a round: when the storm ends, and when what is measured is calm."""
PARENT_STAYS, PARENT_MEASURED, ALL_STAY, MEASURED = 0.15, 0.2, 0.4, 0.5
"""Of the run: from when on."""
WARM_UP_SECONDS = 360.0
"""From the last process that was replaced to what is measured, at least."""
CONFIG = {
    "data_dir": "state",
    "history_size": 8_000,
    "history-ttl": 120.0,
    "max-backlog": 65536,
    "chat-log-rotate": "1MB",
    "drain_timeout": 2.0,
}


class Subject(Daemon):
    """The daemon that is soaked: with a configuration file, and its chat log in many files."""

    def __init__(self, folder: Path) -> None:
        """Take its folder."""
        self._file = folder / "chatd.toml"
        self._listen = f"tcp:{free_port()}:interface=127.0.0.1"
        super().__init__(folder, "--config", "chatd.toml", any_port=False)
        self.write(workers=2)

    def write(self, *, workers: int) -> None:
        """Write the file."""
        options = CONFIG | {"listen": [self._listen], "workers": workers}
        self._file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items()))

    def reload(self, *, workers: int) -> None:
        """Have it reload, with so many new workers."""
        self.write(workers=workers)
        self.process.send_signal(signal.SIGHUP)

    def chat_lines(self, path: str = "logs/chat.log") -> list[str]:
        """Give what was logged of the crowd's rooms."""
        return [line for line in self._all_lines(path) if line.split(" ", 2)[1] in ROOMS]

    def mixed_texts(self) -> list[str]:
        """Give the texts that were logged of the mixed room."""
        fields = [line.split(" ", 4) for line in self._all_lines("logs/chat.log")]
        return [each[4] for each in fields if each[1] == ROOM]

    def _all_lines(self, path: str) -> list[str]:
        """Read all files of the log, the oldest first."""
        log = self.folder / path
        lines = []
        for file in [*sorted(log.parent.glob(f"{log.name}-*Z*")), log]:
            if (file.suffix == ".gz" and file.with_suffix("").exists()) or file.suffix == ".part":
                continue  # it is being packed
            data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            lines += data.decode().split("\n")[:-1]
        return lines


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int, seconds: float) -> None:
        """Take where to run, what chance begins with, and for how long."""
        self._seconds = seconds
        self._seed = seed
        self._round = min(LONGEST, max(SHORTEST, seconds / ROUNDS))
        self._chance = random.Random(seed)
        self._daemon = Subject(folder)
        self._crowd = Crowd()
        self._mischief = Mischief(self._daemon, self._crowd, self._reload, self._chance)
        self._vitals = Vitals(self._daemon)
        self._begin = 0.0
        self._measured = max(MEASURED, ALL_STAY + WARM_UP_SECONDS / seconds)
        self._standing: tuple[int, ...] = ()
        """The processes that are to stay from some moment on."""
        self.wrong: list[str] = []
        self.series: dict[str, list[float]] = defaultdict(list)
        """By what was measured: its medians of the rounds that count."""

    def run(self) -> bool:
        """Run it; give whether all is as it should be."""
        with self._daemon, self._crowd:
            self._gather()
            with MixedClients(self._daemon.port, pace=MIXED_PACE, visitors=VISITORS, seed=self._seed) as mixed:
                self._begin = time.monotonic()
                while self._at < 1:
                    self._one_round(mixed)
                self._mischief.mend_all()
                self._crowd.wait_for_all(60)
                if self._vitals.pids() != self._standing:
                    self.wrong.append(f"processes were replaced that were to stay: {self._standing}")
                self.wrong += mixed.settle(self._daemon.mixed_texts, 120)
            return self._account(mixed)

    @property
    def _at(self) -> float:
        """Where in the run we are: 0 is its beginning, 1 its end."""
        return (time.monotonic() - self._begin) / self._seconds

    @property
    def _stage(self) -> Stage:
        return Stage.ALL if self._at < PARENT_STAYS else Stage.RENEWED if self._at < ALL_STAY else Stage.STANDING

    # Who is there

    def _gather(self) -> None:
        for room in ROOMS:
            for number in range(2):
                self._mischief.fleeting.append(self._member(room, f"bare{number}"))
                self._mischief.restless.append(self._member(room, f"restless{number}", keyed=True))
                self._mischief.slow.append(self._member(room, f"slow{number}", keyed=True))
            self._member(room, "steady", keyed=True)
        self._crowd.wait_for_all()
        for room in ROOMS:
            for number in range(SENDERS):
                padding = " " + "x" * self._chance.randrange(400)
                self._crowd.sender(self._daemon, f"{room}-{number}", room=room, pace=PACE, padding=padding)
            padding = " " + "x" * FLOOD_PADDING
            flood = self._crowd.sender(self._daemon, f"{room}-flood", room=room, pace=0.001, padding=padding)
            flood.talking = False
            self._mischief.floods.append(flood)

    def _member(self, room: str, name: str, *, keyed: bool = False) -> Member:
        return self._crowd.member(self._daemon, f"{room}-{name}", room=room, key=f"{room}-{name}-key" if keyed else "")

    # What happens to them

    def _reload(self) -> None:
        self._daemon.reload(workers=self._chance.choice((2, 3)))

    def _one_round(self, mixed: MixedClients) -> None:
        begin, stage, at = time.monotonic(), self._stage, self._at
        if stage is Stage.STANDING and not self._standing:
            self._stand()
        self._mischief.flood()
        fault = begin + FLOOD_SECONDS
        while (now := time.monotonic()) < begin + STORM * self._round:
            self._mischief.mend()
            if now >= fault:
                self._mischief.act(stage)
                fault = time.monotonic() + self._chance.uniform(0, 4)
            time.sleep(0.05)
        self._mischief.mend_all()
        until(lambda: time.monotonic() > begin + SETTLED * self._round, "it to settle", LONGEST)
        try:
            found = self._measure(begin + self._round)
        except OSError as error:  # who was killed is not back yet
            print(f"{self._at * self._seconds:5.0f} s: nothing measured: {error}", flush=True)
            return
        if at >= self._measured:
            for name, value in found.items():
                self.series[name].append(value)
        elif stage is Stage.RENEWED and at >= PARENT_MEASURED:
            self.series["parent, replacing"].append(found["parent"])
        self._report(stage, found, mixed)

    def _stand(self) -> None:
        """Let two new workers come that are to stay."""
        self._crowd.wait_for_all(60)
        before = set(self._daemon.worker_pids())
        self._daemon.reload(workers=2)

        def renewed() -> bool:
            workers = set(self._daemon.worker_pids())
            return len(workers) == 2 and not workers & before and len(self._daemon.broker_pids()) == 1

        until(renewed, "two new workers", 60)
        self._standing = self._vitals.pids()

    def _measure(self, end: float) -> dict[str, float]:
        readings = []
        self._vitals.lag()
        while time.monotonic() < end:
            readings.append(self._vitals.read())
            time.sleep(0.2)
        medians = {name: median(each[name] for each in readings) for name in readings[0]}
        return medians | {LAG: self._vitals.lag()}

    def _report(self, stage: Stage, found: dict[str, float], mixed: MixedClients) -> None:
        clients = [*self._crowd.senders, *self._crowd.members]
        vitals = ", ".join(f"{each.name} {found[each.name]:.1f}{each.unit and ' '}{each.unit}" for each in VITALS)
        print(
            f"{self._at * self._seconds:5.0f} s {stage.name.lower():8} {sum(self._mischief.done.values())} faults; "
            f"{self._crowd.said()} lines said, heard {self._crowd.heard()} times; "
            f"mixed: {sum(len(each.acknowledged) for each in mixed.senders)}; "
            f"{sum(each.visits for each in mixed.visitors)} visits; "
            f"{sum(not each.here for each in clients)} not connected; {vitals}; {PSS} {found[PSS]:.0f} MiB",
            flush=True,
        )

    # What became of it

    def _account(self, mixed: MixedClients) -> bool:
        found = self._crowd.settle([self._daemon], lost_workers=self._mischief.killed, seconds=120)
        stays = Counter("keyed" if each.life.key else "bare" for each in self._crowd.members for _ in each.life.stays)
        returns = stays["keyed"] - sum(bool(each.life.key) for each in self._crowd.members)
        repeated = round(returns * SENDERS / PACE * REPEATED_SECONDS)
        if found.again > repeated:
            found.wrong.append(f"{found.again} lines were heard again, which is more than {returns} returns explain")
        print()
        for name, count in sorted(self._mischief.done.items()):
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
            (sum(len(each.acknowledged) for each in mixed.senders), "messages acknowledged of mixed clients"),
            (sum(each.connections for each in mixed.listeners), "connections of those who hear them"),
            (sum(each.visits for each in mixed.visitors), "visits, each in other rooms"),
            (sum(each.failures for each in mixed.visitors), "of them cut off by a fault"),
        ):
            print(f"{count:8} {name}")
        print(flush=True)
        self.wrong += found.wrong
        self.judge()
        verify = [CHATD, "verify", "--data-dir", "state", "logs"]
        if subprocess.run(verify, cwd=self._daemon.folder, check=False).returncode:
            self.wrong.append("chatd verify found something")
        print(*(f"WRONG: {each}" for each in self.wrong), sep="\n", flush=True)
        return not self.wrong

    def judge(self) -> None:
        """Say how much each series grew; too much is wrong."""
        grains = {each.name: each for each in VITALS}
        for name, values in sorted(self.series.items()):
            vital = grains.get(name)
            try:
                found = growth(values)
            except ValueError as error:
                print(f"{name:>18}: {error}")
                continue
            unit = vital.unit if vital else "MiB"
            line = (
                f"{found.share:+.1%} of {found.level:.1f} {unit} in {len(values)} rounds, {found.at_least:+.2f} surely"
            )
            print(f"{name:>18}: {line}")
            if vital and found.too_much(vital.grain):
                self.wrong.append(f"{name} grew: {line}")

    def _fallen_behind(self) -> int:
        return sum(map(int, re.findall(r"slow consumers: (\d+)", self._daemon.log())))


def main() -> int:
    """Run a soak; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Random faults under load.")
    parser.add_argument("--seconds", type=float, default=3600, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="to have the same faults again")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # as Ctrl-C does: nothing is left running
    folder = Path(tempfile.mkdtemp(prefix="chatd-soak-"))
    print(f"{arguments.seconds:g} s of faults, seed {arguments.seed}, in {folder}", flush=True)
    good = False
    try:
        good = Soak(folder, arguments.seed, arguments.seconds).run()
    finally:
        if good:
            shutil.rmtree(folder)
            print("all is accounted for, and nothing grows")
        else:
            print(f"NOT all is as it should be; the logs are in {folder}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
