import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chatd.supervisor import pdeathsig
from tests.waiting import PATIENCE

TETHER = [sys.executable, "-I", "-S", pdeathsig.__file__]

PARENT = """
import os, signal, subprocess, sys
signal.signal(signal.SIGINT, lambda *_: None)
child = subprocess.Popen([*sys.argv[1:5], str(os.getpid()), "/bin/cat"])
print(child.pid, flush=True)
child.wait()
"""
"""Starts ``cat`` through the tether, on its own standard input and output."""


class Family:
    """A parent in a process group of its own, and the ``cat`` it started: both write to ``output``."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, *TETHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.parent.stdout is not None
        self.child = int(self.parent.stdout.readline())

    def echo(self, text: str) -> str:
        """Send a line to the child and return its answer; empty if it has ended."""
        assert self.parent.stdin is not None and self.parent.stdout is not None
        print(text, file=self.parent.stdin, flush=True)
        return self.parent.stdout.readline().rstrip()

    def close(self) -> None:
        for pid in (self.parent.pid, self.child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.parent.communicate()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.close()


def test_a_program_dies_when_its_parent_is_killed(family: Family) -> None:
    assert family.echo("up") == "up"
    family.parent.kill()
    assert family.parent.stdin is not None
    kept_open = os.dup(family.parent.stdin.fileno())  # not the end of its input is what ends it
    try:
        rest, _ = family.parent.communicate(timeout=PATIENCE)  # ends when nobody holds the output any more
    finally:
        os.close(kept_open)
    assert rest == ""


def test_a_program_does_not_hear_a_ctrl_c_that_its_parent_hears(family: Family) -> None:
    assert family.echo("up") == "up"
    os.killpg(family.parent.pid, signal.SIGINT)
    assert family.echo("still up") == "still up"


def test_a_program_is_in_a_session_of_its_own(family: Family) -> None:
    assert family.echo("up") == "up"
    assert os.getsid(family.child) == family.child != os.getsid(family.parent.pid)


def run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)


def test_a_program_whose_parent_is_already_gone_never_starts() -> None:
    somebody_else = str(os.getppid())
    ran = run([*TETHER, somebody_else, "/bin/echo", "here"])
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


def test_a_program_gets_its_arguments_and_its_exit_status_is_known() -> None:
    command = [*TETHER, str(os.getpid()), "/bin/sh", "-c", 'echo "$1|$2"; exit 7', "sh", "a b", ""]
    ran = run(command)
    assert (ran.returncode, ran.stdout) == (7, b"a b|\n")


def test_a_program_that_is_not_there_says_so() -> None:
    ran = run([*TETHER, str(os.getpid()), "/no/such"])
    assert ran.returncode != 0
    assert b"No such file or directory" in ran.stderr.splitlines()[-1]
