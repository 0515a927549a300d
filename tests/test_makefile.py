"""``make run`` prints what to do if it cannot work, and ``make test-all`` what it will install."""

import shutil
import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_a_checkout_that_was_moved_is_told_what_to_do(tmp_path: Path) -> None:
    twistd = tmp_path / ".venv" / "bin" / "twistd"
    twistd.parent.mkdir(parents=True)
    twistd.write_text(f"#!{tmp_path}/before/.venv/bin/python\n")
    twistd.chmod(0o755)
    shutil.copy(MAKEFILE, tmp_path)
    command = ["make", "--old-file", ".venv/run.stamp", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the checkout was moved: run make clean, then make run\n" in done.stderr


def test_what_make_test_all_will_install_is_printed(tmp_path: Path) -> None:
    shutil.copy(MAKEFILE, tmp_path)
    done = subprocess.run(["make", "announce"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for what in ("Debian packages", "requirements/full.txt", "npm packages"):
        assert what in done.stdout
