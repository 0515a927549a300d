"""The HTTP side is what docs/openapi.json says, to schemathesis, which asks for what it may and for what it may not."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

from tests.system.daemon import Daemon

DOCS = Path(__file__).parents[2] / "docs"


def test_the_description_is_written_from_the_types() -> None:
    described = runpy.run_path(str(DOCS / "openapi.py"))["description"]()
    assert json.loads((DOCS / "openapi.json").read_text()) == described, "python docs/openapi.py writes it"


def test_the_server_does_as_described(daemon: Daemon, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(DOCS / "openapi.json")]
    command += ["--url", daemon.url(scheme="http").rstrip("/"), "--max-examples", "20", "--seed", "1"]
    command += ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--request-timeout", "10"]
    # What our own limits are stricter or laxer in than JSON Schema can say is in tests/protocol/test_http_api.py.
    command += ["--exclude-checks", "positive_data_acceptance,negative_data_rejection,missing_required_header"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in daemon.log()
    assert "error" not in daemon.log()
