"""What comes from the network is fuzzed, a little with each run of the tests; ``make soak`` does more of it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
RUNS = {"wire": 10_000, "client": 1000}


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_keeps_every_promise(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for each in kept:
        target.run(each.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_new_breaks_a_promise(name: str) -> None:
    if find_spec("atheris") is None:  # it has no wheel for this machine: what was found elsewhere was tried above
        return
    command = [sys.executable, "-m", "tests.fuzz", name, "--runs", str(RUNS[name])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Done {RUNS[name]} in" in done.stderr


def test_a_promise_that_is_broken_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatd.protocol.text.read_line", lambda text: text + "more")
    with pytest.raises(AssertionError):
        TARGETS["wire"].run(b"\4hello")
    monkeypatch.setattr("chatd.clients.pipe_session.Session.received", lambda self, texts: 1 / 0)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        for seed in TARGETS["client"].seeds:
            TARGETS["client"].run(seed)
