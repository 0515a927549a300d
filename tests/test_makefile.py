"""``make run`` says what to do where it cannot work."""

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
