"""Fuzz a target: ``python -m tests.fuzz client --runs 100000``. What breaks a promise is left in ``build/fuzz``.

Atheris 3 looks for inputs that reach new code, beginning with those in ``tests/fuzz/corpus``.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("build/fuzz")
KEPT = 100
"""Inputs that are kept of one run, the shortest ones."""


def main() -> int:
    """Do what the command line says; the status is not 0 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS), help="what reads bytes, or the whole path of a client")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs to try [default: %(default)s]")
    parser.add_argument("--seconds", type=int, default=0, help="or for how long [default: until all are tried]")
    parser.add_argument("--seed", type=int, default=1, help="the same seed tries the same [default: %(default)s]")
    parser.add_argument("--keep", action="store_true", help="add what reaches new code to the corpus")
    given = parser.parse_args()
    corpus = CORPUS / given.target
    with tempfile.TemporaryDirectory() as scratch:
        work, seeds = Path(scratch, "work"), Path(scratch, "seeds")
        for folder in (work, seeds, corpus, FOUND):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(TARGETS[given.target].seeds):
            (seeds / f"{number:02}").write_bytes(seed)
        bound = f"-max_total_time={given.seconds}" if given.seconds else f"-atheris_runs={given.runs}"
        options = [f"-seed={given.seed}", "-max_len=4096", "-timeout=20", f"-artifact_prefix={FOUND}/{given.target}-"]
        command = [sys.executable, "-m", "tests.fuzz.loop", given.target, str(work), str(seeds), str(corpus)]
        status = subprocess.run([*command, bound, *options], check=False).returncode
        if given.keep:
            for data in sorted((each.read_bytes() for each in work.iterdir()), key=len)[:KEPT]:
                (corpus / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    return status


if __name__ == "__main__":
    sys.exit(main())
