"""The load generator's process: the options of ``load.c``, its phases as they come, its figures at the end."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "build" / "load"

FAULTS = ("missing", "gaps", "duplicates", "disorder", "echoes", "foreign", "closed", "unsent")
"""The figures that are 0 where each receiver got each message once, whole, in order and was not hung up on."""


class Failed(Exception):
    """The generator could not measure; its text says why."""


@dataclass(frozen=True)
class Load:
    """What the clients do. ``window``: a closed loop; ``rate`` (messages/s): an open one; neither: connect and hold."""

    clients: int
    senders: int = 1
    rooms: int = 1
    size: int = 64
    """Bytes of a message."""
    window: int = 0
    rate: float = 0.0
    processes: int = 1
    stopped: int = 0
    """How many of them stop reading once they are connected."""
    last: int = 0
    """How many messages of its room's history each asks for when it joins."""
    json: int = 0
    """How many of them speak chatd.v1."""
    sse: int = 0
    """How many of them are no WebSockets, but follow by server-sent events."""
    page: bool = False
    """Whether they do nothing but ask for the chat page, in turn, again and again."""

    def options(self) -> list[str]:
        """Give them as the generator's command line takes them."""
        words = [
            f"--clients={self.clients}",
            f"--senders={self.senders}",
            f"--rooms={self.rooms}",
            f"--size={self.size}",
        ]
        words.append(f"--processes={self.processes}")
        words.append(f"--path=/{'room{}' * (self.rooms > 1)}{f'?last={self.last}' * (self.last > 0)}")
        if self.stopped:
            words.append(f"--stopped={self.stopped}")
        if self.json:
            words.append(f"--json={self.json}")
        if self.sse:
            words.append(f"--sse={self.sse}")
        if self.window:
            return [*words, f"--window={self.window}"]
        return [*words, f"--rate={self.rate}"] if self.rate else [*words, "--hold"]


def build() -> None:
    """Compile the generator if its source is newer. Raises CalledProcessError."""
    subprocess.run(["make", "--silent", str(PROGRAM.relative_to(ROOT))], cwd=ROOT, check=True)


def pinned(cores: str, command: Sequence[str]) -> list[str]:
    """Give a command that stays on cores (as taskset(1) names them); empty: wherever the kernel puts it."""
    return ["taskset", "--cpu-list", cores, *command] if cores else list(command)


def generate(
    port: int, load: Load, options: Sequence[str] = (), *, cores: str = "", phases: Mapping[str, Callable[[], None]]
) -> dict[str, Any]:
    """Run the generator against a port; give its figures.

    ``phases`` are called as they begin: ``connected`` (all handshakes done), ``measuring``, ``measured``.
    A load that only holds ends when ``connected`` returns. Raises Failed.
    """
    command = pinned(cores, [str(PROGRAM), f"--port={port}", "--phases", *load.options(), *options])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        said = []
        try:
            for line in process.stderr:
                phase = line.removeprefix("phase: ").strip()
                if not line.startswith("phase: "):
                    said.append(line.strip())
                    continue
                phases.get(phase, _nothing)()
                if phase == "connected":
                    process.stdin.close()
            printed = process.stdout.read()
        finally:
            process.kill()
    if process.returncode or not printed:
        raise Failed("; ".join(said) or f"the generator ended with {process.returncode}")
    figures: dict[str, Any] = json.loads(printed)
    return figures


def _nothing() -> None:
    pass
