"""The soak does what its stage allows, the same for the same seed, and reads all of a rotated log in its order."""

import gzip
import random
from pathlib import Path
from typing import Any, cast

import pytest

from tests.soak import Soak, Subject
from tests.system.mischief import Mischief, Stage

KILLS = {"all killed, started again"}
RENEWS = {"worker killed", "broker killed", "reload with other workers"}


class Nobody:
    """Stands for a daemon without processes, and for a crowd that does nothing."""

    senders: tuple[Any, ...] = ()

    def worker_pids(self) -> list[int]:
        return []

    def broker_pids(self) -> list[int]:
        return []

    def kill(self) -> None: ...

    def start(self, what: Any = None) -> None:
        if what is not None:
            what.close()

    def call(self, what: Any) -> None: ...


class Client:
    """Stands for a member of a crowd."""

    def vanish(self) -> None: ...

    reading = type("Reading", (), {"set": None, "clear": None})

    async def come_back(self) -> None: ...


def mischief(seed: int) -> Mischief:
    made = Mischief(cast(Any, Nobody()), cast(Any, Nobody()), lambda: None, random.Random(seed))
    made.slow = made.restless = made.fleeting = cast(Any, [Client()])
    return made


def done(seed: int, stage: Stage) -> dict[str, int]:
    one = mischief(seed)
    for _ in range(500):
        one.act(stage)
    return dict(one.done)


def test_what_replaces_processes_is_not_done_while_they_are_to_stay() -> None:
    assert done(1, Stage.ALL).keys() >= KILLS | RENEWS
    assert done(1, Stage.RENEWED).keys() & (KILLS | RENEWS) == RENEWS
    assert done(1, Stage.STANDING).keys() & (KILLS | RENEWS) == set()


def test_the_same_seed_brings_the_same_faults() -> None:
    assert done(1, Stage.ALL) == done(1, Stage.ALL) != done(2, Stage.ALL)


def test_a_rotated_log_is_read_from_its_oldest_line_on(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    line = "2026-01-01T00:00:00.000Z {} bare {}.1 {}\n".format
    (logs / "chat.log").write_text(line("ops", "a", "third") + line("mixed", "a", "fourth"))
    (logs / "chat.log-20260102T000000000Z.gz").write_bytes(gzip.compress(line("ops", "a", "second").encode()))
    (logs / "chat.log-20260101T000000000Z").write_text(line("ops", "a", "first") + line("passer1-1", "a", "hello"))
    (logs / "chat.log-20260101T000000000Z.gz").write_bytes(b"half of it")
    subject = Subject(tmp_path)
    assert [each.split(" ", 4)[4] for each in subject.chat_lines()] == ["first", "second", "third"]
    assert subject.mixed_texts() == ["fourth"]


def test_what_grew_is_wrong_and_what_was_measured_too_seldom_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soak = Soak(tmp_path, 1, 3600)
    soak.series |= {
        "workers": [100.0 + each for each in range(30)],
        "parent": [32.0] * 30,
        "parent, replacing": [32.0 + each for each in range(10)],  # is told, and not judged: so is the PSS
        "lag": [1.0],
        "PSS of all": [100.0 + each for each in range(30)],
    }
    soak.judge()
    assert [each.partition(" ")[0] for each in soak.wrong] == ["workers"]
    assert "lag: 1 values say nothing" in capsys.readouterr().out
