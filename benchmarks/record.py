"""What a run wrote down, as ``results.json`` keeps it: every sample, the machine, the versions."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec


@dataclass(frozen=True)
class Sample:
    """What one measurement gave."""

    figures: dict[str, float]
    """By name: ``deliveries_per_s``, ``messages_per_s``, ``connects_per_s``; ``p50_ms``, ``p99_ms``, ``p99.9_ms``,
    ``max_ms`` and ``send_lag_ms`` (the longest that a message waited to be sent); ``cpu_us`` of all server processes
    for a delivery, ``join_us`` for a connection, ``worker_us`` that of chatd's workers alone, ``page_us`` theirs for
    a page; ``memory_bytes`` of all for a connection, ``grown_bytes`` of chatd's workers under load; ``start_s``;
    ``expected`` deliveries;
    ``others``: how many cores other programs, or other machines on the same processor, kept busy."""
    faults: dict[str, int] = field(default_factory=dict)
    """What went wrong with the messages, by name, where anything did."""
    busy: list[float] = field(default_factory=list)
    """The part of the time that each process of the generator was running."""


@dataclass(frozen=True)
class Entry:
    """One measurement: of which row or curve, of whom, and what came of it."""

    part: str
    """The name of the row or curve."""
    candidate: str
    title: str
    round: int
    x: float | None = None
    """On a curve: where."""
    sample: Sample | None = None
    failure: str = ""
    """Why there is no sample."""


@dataclass(frozen=True)
class Run:
    """A whole run."""

    date: str
    took_seconds: float
    rounds: int
    seconds: float
    """For how long each load was measured."""
    machine: dict[str, str]
    versions: dict[str, str]
    left_out: dict[str, str]
    """Candidates that could not run here, by title, and why."""
    entries: list[Entry]

    def samples(self, part: str, title: str, x: float | None = None) -> dict[int, Sample]:
        """Give the samples of one subject by round."""
        mine = [each for each in self.entries if (each.part, each.title, each.x) == (part, title, x)]
        return {each.round: each.sample for each in mine if each.sample}


def save(run: Run, path: Path) -> None:
    """Write a run as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def load(path: Path) -> Run:
    """Read a run back. Raises msgspec.ValidationError."""
    return msgspec.json.decode(path.read_bytes(), type=Run)
