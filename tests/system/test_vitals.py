"""A running chatd's vital signs can be read, and a leak shows in them."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.vitals import LAG, PSS, VITALS, Vitals
from tests.waiting import until


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_all_is_read_and_clients_show(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--data-dir", "state") as daemon, ExitStack() as clients:
        vitals = Vitals(daemon)
        before = vitals.read()
        assert before.keys() == {*(each.name for each in VITALS if each.name != LAG), PSS}
        assert all(before[name] > 1 for name in ("parent", "workers", "broker", PSS))
        for _ in range(20):
            clients.enter_context(daemon.connect())
        until(lambda: vitals.read()["descriptors"] == before["descriptors"] + 20, "20 descriptors more")
        daemon.say("ops", "hello")
        assert vitals.read()["keys"] == before["keys"]  # all that a room leaves is forgotten some day
        vitals.lag()
        os.kill(worker := daemon.worker_pids()[0], signal.SIGSTOP)
        until(lambda: _state(worker) == "T", "it to freeze")
        end = time.monotonic() + 1.5
        until(lambda: time.monotonic() > end, "a timer to be late")
        os.kill(worker, signal.SIGCONT)
        until(lambda: vitals.lag() > 20, "that to be told")
        assert len(vitals.pids()) == 4
