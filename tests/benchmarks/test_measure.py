"""One measurement of the real chatd, and of a peer: what comes out, and that nothing stays behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import candidates, processes
from benchmarks.candidates import CANDIDATES, Candidate, NotReady, Place, Program, free_port, running
from benchmarks.generator import FAULTS, Failed, Load, generate
from benchmarks.machine import machine, versions
from benchmarks.measure import Subject, measure
from benchmarks.record import Sample
from tests.benchmarks.canned import FIGURES
from tests.waiting import until


def half_a_second(subject: Subject) -> Sample:
    return measure(subject, seconds=0.5, warmup=0.1)


def test_chatd_gives_every_message_once_and_in_order() -> None:
    sample = half_a_second(Subject("chatd", Load(30, senders=6, window=16, processes=2)))
    assert sample.faults == {}
    assert sample.figures["expected"] > 0
    assert sample.figures.keys() == FIGURES.keys() - {"memory_bytes", "join_us", "worker_us", "grown_bytes", "page_us"}
    assert len(sample.busy) == 2


def test_followers_of_chatd_hear_every_message_once_and_in_order() -> None:
    sample = half_a_second(Subject("chatd", Load(30, senders=6, window=16, sse=20)))
    assert sample.faults == {}
    assert sample.figures["expected"] > 0


def test_the_page_is_visited_and_what_it_costs_the_worker_is_weighed() -> None:
    sample = half_a_second(Subject("chatd", Load(3, page=True), workers=1))
    assert sample.figures.keys() == {"page_us", "start_s"}
    assert sample.figures["page_us"] > 0


def test_rooms_and_long_messages_go_through_chatd() -> None:
    with running(CANDIDATES["chatd"], workers=2, broker=True) as server:
        for load in (Load(30, senders=30, rooms=10, rate=1000), Load(4, senders=2, size=16384, rate=100)):
            figures = generate(server.port, load, ["--seconds=0.3", "--warmup=0"], phases={})
            assert [name for name in FAULTS if figures[name]] == []
            assert figures["delivered"] == figures["sent"] * (load.clients / load.rooms - 1)


def test_idle_connections_are_held_and_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.MEMORY_SETTLES_SECONDS", 0)
    # Enough to outweigh the shared pages of another chatd that begins or ends meanwhile.
    sample = half_a_second(Subject("chatd", Load(3000), workers=1))
    assert sample.faults == {}
    assert sample.figures.keys() == {"connects_per_s", "memory_bytes", "join_us", "start_s"}
    assert sample.figures["memory_bytes"] > 0


@pytest.mark.parametrize(("said", "wrong"), [(20, {}), (15, {"missing": 500})])
def test_each_join_is_seen_to_get_the_history_it_asked_for(said: int, wrong: dict[str, int]) -> None:
    sample = half_a_second(Subject("chatd", Load(100, last=20), workers=1, lines=said))
    assert sample.faults == wrong
    assert 0 < sample.figures["worker_us"] <= sample.figures["join_us"]


SLOW = Load(12, senders=2, size=4096, rate=400, stopped=2)


def test_workers_are_weighed_while_clients_that_stopped_are_behind() -> None:
    sample = half_a_second(Subject("chatd", SLOW, options=("--max-send-buffer", "65536")))
    assert sample.faults == {}
    assert sample.figures["expected"] > 0
    assert "grown_bytes" in sample.figures


def test_clients_that_did_not_fall_behind_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.REPORT_SECONDS", 0)
    with pytest.raises(Failed, match="only 0 of 2 clients fell behind"):
        half_a_second(Subject("chatd", SLOW, options=("--max-send-buffer", "100000000")))


def test_the_naive_peer_does_the_same_work() -> None:
    sample = half_a_second(Subject("naive", Load(10, senders=5, window=8), pinned=True))
    assert sample.faults == {}
    assert sample.figures["expected"] > 0


def program(text: str) -> Callable[[Place], list[Program]]:
    return lambda place: [Program([sys.executable, "-c", text], "ready")]


WAIT = "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print('ready', flush=True); "


def test_all_processes_of_a_server_are_found_and_ended(tmp_path: Path) -> None:
    stays = Candidate("stays", "stays", program(WAIT + "child.wait()"))
    with running(stays, workers=1, broker=False) as server:
        [parent, child] = server.processes()
        assert parent in server.roots
        assert processes.cpu_seconds([parent]) > 0
        assert processes.memory_bytes([parent, child]) > 1_000_000
        assert (Path("/proc") / str(child) / "comm").read_text() == "sleep\n"
    until(lambda: not processes.alive([parent, child]), "both processes to end")


def test_a_server_that_ends_before_it_is_ready_says_why() -> None:
    fails = Candidate("fails", "fails", program("raise SystemExit('the dog ate it')"))
    with pytest.raises(NotReady, match="the dog ate it"), running(fails, workers=1, broker=False):
        pass


def test_a_server_that_never_is_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "START_SECONDS", 0.3)
    mute = Candidate("mute", "mute", program("import time; time.sleep(60)"))
    with pytest.raises(NotReady), running(mute, workers=1, broker=False):
        pass


def test_processes_that_are_gone_took_no_time() -> None:
    assert processes.cpu_seconds([2**22 + 1]) == 0
    assert processes.family([2**22 + 1]) == []


def test_the_time_of_the_machine_goes_on() -> None:
    before = processes.machine_seconds()
    until(lambda: processes.machine_seconds() > before, "the machine to do something")


def test_free_ports_are_free() -> None:
    assert 0 < free_port() < 65536


def test_the_peers_can_be_written_down_as_commands(tmp_path: Path) -> None:
    for candidate in CANDIDATES.values():
        place = Place(tmp_path, 4242, 3, broker=True)
        said = [" ".join([*each.command, *each.environment.values()]) for each in candidate.programs(place)]
        said += [each.read_text() for each in tmp_path.iterdir()]
        assert "4242" in " ".join(said)


def test_the_machine_and_the_versions_are_known() -> None:
    assert set(machine()) == {"processor", "cores", "memory", "load average before", "kernel"}
    assert {"chatd", "Python", "Valkey", "ws", "Nchan"} <= versions().keys()
    assert all([*machine().values(), *versions().values()])
