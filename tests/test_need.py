"""``.ci/need``: what is missing is installed at once, or all of it is named."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NEED = Path(__file__).parents[1] / ".ci" / "need"
WANTED = ("sh", "dash", "never", "no-such-program", "a", "it cannot be done", "/no/such/file", "b", "nor can that")


def need(folder: Path, **programs: str) -> "subprocess.CompletedProcess[str]":
    """Run it where there are only these programs beside a shell."""
    for name in ("sh", "env"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, text in programs.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    environment = {**os.environ, "PATH": str(folder)}
    return subprocess.run([NEED, *WANTED], env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("programs", [{"id": "echo 1000"}, {"id": "echo 1000", "sudo": "exit 1", "apt_get": "exit 9"}])
def test_without_rights_all_that_is_missing_is_named_at_once(tmp_path: Path, programs: dict[str, str]) -> None:
    done = need(tmp_path, **programs)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [
            "a is missing: it cannot be done",
            "b is missing: nor can that",
            "Install what is missing with: sudo apt install a b",
        ],
    )


def test_with_rights_all_that_is_missing_is_installed_at_once(tmp_path: Path) -> None:
    done = need(tmp_path, id="echo 0", apt_get='echo "$@" >> asked')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == [
        "-qq update",
        "-qq install -y --no-install-recommends a b",
    ]


def test_what_is_there_needs_nothing() -> None:
    done = subprocess.run([NEED, "sh", "dash", "never"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
