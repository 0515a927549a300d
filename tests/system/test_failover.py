"""A failover under load: another server becomes the master, and every line is accounted for (``accounting``)."""

import subprocess
from pathlib import Path

from tests.broker.trio import Trio
from tests.system.crowd import Crowd
from tests.system.daemon import CHATD, Daemon
from tests.waiting import until


def test_a_killed_master_costs_nobody_a_line(tmp_path: Path) -> None:
    with Trio() as trio, Daemon(tmp_path, "--redis", trio.url, "--history-size", "100000") as daemon, Crowd() as crowd:
        first, second = daemon.worker_pids()
        for worker in (first, second):
            crowd.member(daemon, f"bare-{worker}", worker=worker)
            crowd.member(daemon, f"keyed-{worker}", key=f"key-of-{worker}", worker=worker)
        crowd.wait_for_all()
        for number, worker in enumerate((first, second) * 2):
            crowd.sender(daemon, f"sender-{number}", worker=worker)
        crowd.wait_for_more(500)
        trio.servers[0].kill()
        until(lambda: trio.master() is trio.servers[1], "another master")
        daemon.wait_for(r"broker_available: the broker redis\+sentinel://.+/chat/0 ")
        crowd.wait_for_more(500)
        found = crowd.finish([daemon])
        assert (found.refused, found.again) == (0, 0)
        # In a process of its own: the command runs the reactor, which no other test could start again.
        subprocess.run([CHATD, "verify", "--redis", trio.url, str(tmp_path / "logs")], timeout=60, check=True)
