"""One measurement: start a server, put load on it, take the figures, stop it."""

import base64
import os
import re
import socket
import time
from dataclasses import dataclass, replace

from benchmarks import processes
from benchmarks.candidates import CANDIDATES, Candidate, Server, running
from benchmarks.generator import FAULTS, Failed, Load, generate
from benchmarks.record import Sample

MEMORY_SETTLES_SECONDS = 1.0
"""From the last handshake until memory is looked at."""
DRAIN_SECONDS = 10.0
"""What a server has, after the last message, to deliver the rest."""


FALL_BEHIND_SECONDS = 4.0
"""How long load goes on until clients that do not read have fallen behind; only then is it measured."""


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
    """How many lines are said in the room before anybody else comes."""
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
        say(server.port, subject.lines)
        idle = not (subject.load.window or subject.load.rate)
        sample = _hold(subject, server) if idle else _exchange(subject, server, seconds, warmup)
        return replace(sample, figures={**sample.figures, "start_s": server.start_seconds})


def _exchange(subject: Subject, server: Server, seconds: float, warmup: float) -> Sample:
    cpu, machine, clock, memory = [], [], [], []
    if subject.load.stopped:
        warmup = max(warmup, FALL_BEHIND_SECONDS)

    def weigh() -> None:
        memory.append(processes.memory_bytes(server.workers()))

    def look() -> None:
        cpu.append(processes.cpu_seconds(server.processes()))
        machine.append(processes.machine_seconds())
        clock.append(time.monotonic())

    options = [f"--seconds={seconds:g}", f"--warmup={warmup:g}"]
    options += [f"--drain={DRAIN_SECONDS:g}", f"--patience={DRAIN_SECONDS:g}"]
    if subject.kind.echo:
        options.append("--echo")
    phases = {"connected": weigh, "measuring": look, "measured": look}
    got = generate(server.port, subject.load, options, cores=subject.cores()[1], phases=phases)
    figures = {name: float(got[name]) for name in ("deliveries_per_s", "messages_per_s", "connects_per_s")}
    figures |= {f"{name}_ms": value for name, value in got["latency_ms"].items()}
    figures |= {"send_lag_ms": got["send_lag_ms"], "expected": float(got["expected"])}
    if subject.load.stopped:
        fell_behind = sum(int(count) for count in re.findall(r"slow readers that fell behind: (\d+)", server.said()))
        if fell_behind < subject.load.stopped:
            raise Failed(f"only {fell_behind} of {subject.load.stopped} clients fell behind: nothing was measured")
        weigh()
        figures["grown_bytes"] = float(memory[1] - memory[0])
    used, wall = cpu[1] - cpu[0], clock[1] - clock[0]
    figures["cpu_us"] = used * 1e6 / max(1, got["delivered_in_time"])
    figures["others"] = max(0.0, (machine[1] - machine[0] - used) / wall - sum(got["busy"]))
    return Sample(figures, {name: got[name] for name in FAULTS if got[name]}, got["busy"])


def _hold(subject: Subject, server: Server) -> Sample:
    memory: list[int] = []
    cpu: list[float] = []

    def look() -> None:
        cpu.append(processes.cpu_seconds(server.processes()))
        memory.append(processes.memory_bytes(server.processes()))

    def wait_and_look() -> None:
        time.sleep(MEMORY_SETTLES_SECONDS)
        look()

    look()
    got = generate(server.port, subject.load, cores=subject.cores()[1], phases={"connected": wait_and_look})
    grown = (memory[1] - memory[0]) / subject.load.clients
    joining = (cpu[1] - cpu[0]) * 1e6 / subject.load.clients
    figures = {"connects_per_s": float(got["connects_per_s"]), "memory_bytes": grown, "join_us": joining}
    return Sample(figures, {name: got[name] for name in ("closed",) if got[name]}, got["connect_busy"])


def say(port: int, lines: int) -> None:
    """Say so many lines of 64 bytes in the lobby, and see that the server has taken them: it answers a Close."""
    if not lines:
        return
    with socket.create_connection(("127.0.0.1", port), timeout=DRAIN_SECONDS) as client:
        key = base64.b64encode(os.urandom(16)).decode()
        head = ["GET / HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
        head += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", ""]
        client.sendall("\r\n".join(head).encode())
        client.recv(4096)
        frame, close = b"\x81\xc0" + bytes(4) + b"x" * 64, b"\x88\x80" + bytes(4)  # masked with zeros
        client.sendall(frame * lines + close)
        while client.recv(4096):
            pass
