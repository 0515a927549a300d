"""A running chatd's vital signs can be read, and a leak shows in them."""

from contextlib import ExitStack
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.vitals import LAG, PSS, VITALS, Vitals
from tests.waiting import until


def test_all_is_read_and_clients_show(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--state", "state") as daemon, ExitStack() as clients:
        vitals = Vitals(daemon)
        before = vitals.read()
        assert before.keys() == {*(each.name for each in VITALS if each.name != LAG), PSS}
        assert all(before[name] > 1 for name in ("parent", "workers", "broker", PSS))
        for _ in range(20):
            clients.enter_context(daemon.connect())
        until(lambda: vitals.read()["descriptors"] == before["descriptors"] + 20, "20 descriptors more")
        daemon.say("ops", "hello")
        assert vitals.read()["keys"] > before["keys"]
        until(lambda: vitals.lag() > 0, "a timer to be looked at")
        assert len(vitals.pids()) == 4
