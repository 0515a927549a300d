"""The mixed clients of the soak receive all that they send, and report it if they do not."""

import os
import signal
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.mixed_clients import ROOM, MixedClients
from tests.waiting import until


def of_room(daemon: Daemon) -> list[str]:
    return [fields[4] for fields in (line.split(" ", 4) for line in daemon.chat_lines()) if fields[1] == ROOM]


def test_all_is_heard_through_the_death_of_a_worker_and_the_broker(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, "--data-dir", "state") as daemon,
        MixedClients(daemon.port, pace=0.005, visitors=2, seed=1) as clients,
    ):
        until(lambda: all(len(each.received) > 20 for each in clients.listeners), "some lines to be heard")
        os.kill(daemon.broker_pid(), signal.SIGKILL)
        os.kill(daemon.worker_pids()[0], signal.SIGKILL)
        daemon.wait_for("broker_available: ")
        before = len(clients.listeners[0].received)
        until(lambda: all(len(each.received) > before + 20 for each in clients.listeners), "more lines to be heard")
        until(lambda: all(each.visits > 1 for each in clients.visitors), "visitors-by to pass")
        assert clients.settle(lambda: of_room(daemon), 20) == []
        listener = clients.listeners[0]
        del listener.received[next(iter(listener.received))]
        clients.senders[0].acknowledged.append("never heard of")
        wrong = "\n".join(clients.settle(lambda: of_room(daemon), 1))
        assert "1 lines were acknowledged and are in no log" in wrong
        assert f"{listener.name} did not hear 2 lines" in wrong
        assert "heard another order than" in wrong
