"""One measurement: start a server, put load on it, take the figures, stop it."""

import os
import re
import time
from dataclasses import dataclass, replace

from benchmarks import processes
from benchmarks.candidates import CANDIDATES, Candidate, Server, running
from benchmarks.generator import FAULTS, Failed, Load, generate
from benchmarks.record import Sample
from benchmarks.visitor import Visitor

MEMORY_SETTLES_SECONDS = 1.0
"""From the last handshake until memory is looked at."""
DRAIN_SECONDS = 10.0
"""What a server has, after the last message, to deliver the rest."""
REPORT_SECONDS = 3.0
"""From when clients have fallen behind until chatd's log says so, at most."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a server as it is set up, and what its clients do."""

    candidate: str
    load: Load
    workers: int = 2
    broker: bool = True
    """Whether its workers talk through a broker; Autobahn, Nchan and uWebSockets have none."""
    pinned: bool = False
    """Whether the server stays on core 0 and the generator on core 1; else the kernel places both."""
    options: tuple[str, ...] = ()
    """What else is on chatd's command line."""
    lines: int = 0
    """How many messages are said in the room before anybody else comes."""
    label: str = ""
    """What the tables call it, where the candidate's own title says too little."""

    @property
    def kind(self) -> Candidate:
        """Give the candidate itself."""
        return CANDIDATES[self.candidate]

    @property
    def title(self) -> str:
        """Give the name for the tables."""
        return self.label or self.kind.title

    def cores(self) -> tuple[str, str]:
        """Give the cores of the server and of the generator, as taskset(1) names them; empty: any."""
        return ("0", "1") if self.pinned and (os.cpu_count() or 1) > 1 else ("", "")


def measure(subject: Subject, *, seconds: float, warmup: float) -> Sample:
    """Measure a subject. Raises NotReady, Failed."""
    cores, _ = subject.cores()
    kind, options = subject.kind, subject.options
    with running(kind, workers=subject.workers, broker=subject.broker, cores=cores, options=options) as server:
        if subject.lines:
            _say(server.port, subject.lines)
        if subject.load.page:
            sample = _visit(subject, server, seconds, warmup)
        elif subject.load.window or subject.load.rate:
            sample = _exchange(subject, server, seconds, warmup)
        else:
            sample = _hold(subject, server)
        return replace(sample, figures={**sample.figures, "start_s": server.start_seconds})


def _exchange(subject: Subject, server: Server, seconds: float, warmup: float) -> Sample:
    cpu, machine, clock, memory = [], [], [], []

    def weigh() -> None:
        memory.append(processes.memory_bytes(server.workers()))

    def end() -> None:
        look()
        weigh()  # now, for what waits for a client goes with it

    def look() -> None:
        cpu.append(processes.cpu_seconds(server.processes()))
        machine.append(processes.machine_seconds())
        clock.append(time.monotonic())

    options = [f"--seconds={seconds:g}", f"--warmup={warmup:g}"]
    options += [f"--drain={DRAIN_SECONDS:g}", f"--patience={DRAIN_SECONDS:g}"]
    if subject.kind.echo:
        options.append("--echo")
    phases = {"connected": weigh, "measuring": look, "measured": end}
    got = generate(server.port, subject.load, options, cores=subject.cores()[1], phases=phases)
    figures = {name: float(got[name]) for name in ("deliveries_per_s", "messages_per_s", "connects_per_s")}
    figures |= {f"{name}_ms": value for name, value in got["latency_ms"].items()}
    figures |= {"send_lag_ms": got["send_lag_ms"], "expected": float(got["expected"])}
    if subject.load.stopped:
        _see_that_they_fell_behind(server, subject.load.stopped)
        figures["grown_bytes"] = float(memory[1] - memory[0])
    used, wall = cpu[1] - cpu[0], clock[1] - clock[0]
    figures["cpu_us"] = _microseconds(used, got["delivered_in_time"])
    figures["others"] = max(0.0, (machine[1] - machine[0] - used) / wall - sum(got["busy"]))
    return Sample(figures, {name: got[name] for name in FAULTS if got[name]}, got["busy"])


def _microseconds(cpu: float, count: int) -> float:
    """Share seconds among so many. The kernel counts whole ticks: what is behind six places is a float's rounding."""
    return round(cpu * 1e6 / max(1, count), 6)


def _see_that_they_fell_behind(server: Server, stopped: int) -> None:
    end = time.monotonic() + REPORT_SECONDS
    while (said := sum(map(int, re.findall(r"slow consumers: (\d+)", server.said())))) < stopped:
        if time.monotonic() > end:
            raise Failed(f"only {said} of {stopped} clients fell behind: nothing was measured")
        time.sleep(0.05)


def _hold(subject: Subject, server: Server) -> Sample:
    memory: list[int] = []
    cpu: list[float] = []
    workers: list[float] = []

    def look() -> None:
        cpu.append(processes.cpu_seconds(server.processes()))
        workers.append(processes.cpu_seconds(server.workers()))
        memory.append(processes.memory_bytes(server.processes()))

    def wait_and_look() -> None:
        time.sleep(MEMORY_SETTLES_SECONDS)
        look()

    look()
    clients = subject.load.clients
    got = generate(server.port, subject.load, cores=subject.cores()[1], phases={"connected": wait_and_look})
    figures = {"connects_per_s": float(got["connects_per_s"]), "memory_bytes": (memory[1] - memory[0]) / clients}
    figures["join_us"] = _microseconds(cpu[1] - cpu[0], clients)
    if subject.lines:
        figures["worker_us"] = _microseconds(workers[1] - workers[0], clients)
    replayed, due = got["aside"], clients * subject.load.last
    faults = {"closed": got["closed"], "missing": max(0, due - replayed), "duplicates": max(0, replayed - due)}
    return Sample(figures, {name: count for name, count in faults.items() if count}, got["connect_busy"])


def _visit(subject: Subject, server: Server, seconds: float, warmup: float) -> Sample:
    with Visitor(server.port, subject.load.clients) as visitor:
        visitor.ask(warmup)
        cpu, visiting = processes.cpu_seconds(server.workers()), time.process_time()
        pages = visitor.ask(seconds)
        cpu, visiting = processes.cpu_seconds(server.workers()) - cpu, time.process_time() - visiting
    return Sample({"page_us": _microseconds(cpu, pages)}, busy=[visiting / seconds])


def _say(port: int, lines: int) -> None:
    got = generate(port, Load(2, rate=1000), [f"--seconds={lines / 1000:g}", "--warmup=0"], phases={})
    if got["sent"] < lines or got["missing"]:
        raise Failed(f"the room has not got its {lines} messages")
