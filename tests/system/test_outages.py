"""Outages under load: whatever dies, freezes or is cut off, every line is accounted for (``accounting``)."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.broker.server import Server
from tests.depth import DEEP
from tests.system.crowd import Crowd
from tests.system.daemon import Daemon, stopped
from tests.system.network import Cable
from tests.waiting import until

PATIENT = ("--tuning", "publish_timeout=60")
"""Nobody who sends is sent away meanwhile: it waits."""
ENOUGH = ("--history-size", "100000")
FROZEN = 20 if DEEP else 8
"""Seconds for which a broker is frozen."""


def gather(crowd: Crowd, daemon: Daemon) -> None:
    """Let a bare member and one with a resume key in on each worker, then senders that number their lines."""
    workers = daemon.worker_pids()
    for worker in workers:
        crowd.member(daemon, f"bare-{worker}", worker=worker)
        crowd.member(daemon, f"keyed-{worker}", key=f"key-of-{worker}", worker=worker)
    crowd.wait_for_all()
    for worker in workers:
        for number in range(2):
            crowd.sender(daemon, f"sender-{worker}-{number}", worker=worker)
    crowd.wait_for_more(500)


@pytest.mark.parametrize("options", [(), ("--data-dir", "state")], ids=["that kept nothing", "with its state"])
def test_a_killed_broker_costs_nobody_a_line(tmp_path: Path, options: Sequence[str]) -> None:
    with Daemon(tmp_path, *options) as daemon, Crowd() as crowd:
        gather(crowd, daemon)
        os.kill(daemon.broker_pid(), signal.SIGKILL)
        daemon.wait_for("broker_available: ")
        crowd.wait_for_more(500)
        found = crowd.finish([daemon])
        assert (found.refused, found.again) == (0, 0)
        assert (
            daemon.log().count("broker_unavailable: ") == daemon.log().count("broker_available: ") == 1
        )  # not once a worker


def test_a_frozen_broker_costs_nobody_a_line(tmp_path: Path) -> None:
    with Daemon(tmp_path, *PATIENT) as daemon, Crowd() as crowd:
        gather(crowd, daemon)
        with stopped(daemon.broker_pid()):
            end = time.monotonic() + FROZEN
            daemon.wait_for("broker_unavailable: .*: silent for 4 s")
            until(lambda: not any(map(daemon.ready, daemon.worker_pids())), "both workers to know")
            until(lambda: time.monotonic() > end, "the time to pass", seconds=FROZEN + 10)
        crowd.wait_for_more(500)
        found = crowd.finish([daemon])
        assert (found.refused, found.again) == (0, 0)


def test_a_broker_that_comes_late_costs_nobody_a_line(tmp_path: Path) -> None:
    with (
        Server() as server,
        Daemon(tmp_path, "--redis", server.url, *ENOUGH, wait=False) as daemon,
        Crowd() as crowd,
    ):
        for number in range(4):
            crowd.sender(daemon, f"sender-{number}")
            crowd.member(daemon, f"member-{number}", last=1000)
        daemon.wait_for("broker_unavailable: ")
        server.start()
        crowd.wait_for_all()
        crowd.wait_for_more(500)
        found = crowd.finish([daemon])
        assert (found.refused, found.again) == (0, 0)


def test_a_cable_that_is_cut_and_mended_costs_no_member_a_line(tmp_path: Path) -> None:
    with (
        Cable() as cable,
        Server(cable.there) as server,
        Crowd() as crowd,
    ):
        server.start("--port", "6379", "--bind", cable.address, "--protected-mode", "no")
        url = f"redis://{cable.address}"
        with (
            Daemon(
                tmp_path / "here", "--redis", url, *ENOUGH, "--tuning", "publish_timeout=2", host=cable.here
            ) as here,
            Daemon(tmp_path / "there", "--redis", url, *ENOUGH, host=cable.there) as there,
        ):
            for daemon in (here, there):
                for number in range(3):
                    crowd.member(daemon, f"bare-{daemon.folder.name}-{number}")
                    crowd.member(
                        daemon, f"keyed-{daemon.folder.name}-{number}", key=f"key-{daemon.folder.name}-{number}"
                    )
            crowd.wait_for_all()
            for daemon in (here, there):
                for number in range(3):
                    crowd.sender(daemon, f"{daemon.folder.name}-{number}")
            crowd.wait_for_more(500)
            cable.cut()
            crowd.wait_for_said(500)  # a short one: nobody has noticed, and the kernel says it all again
            cable.mend()
            crowd.wait_for_more(500)
            assert "broker_unavailable: " not in here.log()
            cable.cut()
            here.wait_for("broker_unavailable: .*: silent for 4 s")
            refused = [sender for sender in crowd.senders if sender.life.name.startswith("here")]
            until(lambda: all(sender.life.stays[0].code == 1013 for sender in refused), "senders here to be sent away")
            crowd.wait_for_said(500)
            cable.mend()
            here.wait_for("broker_available: ")
            crowd.wait_for_more(500)
            found = crowd.finish([here, there])
            assert found.again == 0
            assert found.refused > 0
            assert "broker_unavailable: " not in there.log()


def test_a_killed_worker_costs_only_its_own_clients_what_it_had_not_published(tmp_path: Path) -> None:
    with Daemon(tmp_path, *ENOUGH) as daemon, Crowd() as crowd:
        gather(crowd, daemon)
        first, second = daemon.worker_pids()
        os.kill(first, signal.SIGKILL)
        crowd.wait_for_all()
        crowd.wait_for_more(500)
        found = crowd.finish([daemon], lost_workers=1)
        stays = {life.name: [stay.code for stay in life.stays] for life in (each.life for each in crowd.members)}
        assert stays[f"bare-{second}"] == stays[f"keyed-{second}"] == [None]
        assert stays[f"bare-{first}"] == stays[f"keyed-{first}"] == [1006, None]
        assert found.refused + sum(found.doubtful.values()) < 100
