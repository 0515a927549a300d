"""The mixed company of the soak hears all that it says, and would tell if it did not."""

import os
import signal
from pathlib import Path

from tests.system.company import ROOM, Company
from tests.system.daemon import Daemon
from tests.waiting import until


def of_room(daemon: Daemon) -> list[str]:
    return [fields[4] for fields in (line.split(" ", 4) for line in daemon.chat_lines()) if fields[1] == ROOM]


def test_all_is_heard_through_the_death_of_a_worker_and_the_broker(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, "--data-dir", "state") as daemon,
        Company(daemon.port, pace=0.005, passers=2, seed=1) as company,
    ):
        until(lambda: all(len(each.heard) > 20 for each in company.hearers), "some lines to be heard")
        os.kill(daemon.broker_pid(), signal.SIGKILL)
        os.kill(daemon.worker_pids()[0], signal.SIGKILL)
        daemon.wait_for("is back after")
        before = len(company.hearers[0].heard)
        until(lambda: all(len(each.heard) > before + 20 for each in company.hearers), "more lines to be heard")
        until(lambda: all(each.visits > 1 for each in company.passers), "passers-by to pass")
        assert company.settle(lambda: of_room(daemon), 20) == []
        hearer = company.hearers[0]
        del hearer.heard[next(iter(hearer.heard))]
        company.talkers[0].said.append("never heard of")
        wrong = "\n".join(company.settle(lambda: of_room(daemon), 1))
        assert "1 lines were acknowledged and are in no log" in wrong
        assert f"{hearer.name} did not hear 2 lines" in wrong
        assert "heard another order than" in wrong
