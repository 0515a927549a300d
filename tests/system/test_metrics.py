"""Metrics of a real chatd, and what is made of them: alerts, a dashboard, the page that says what to watch."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.system.daemon import TWISTD, Daemon, free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana.json"
NAME = re.compile(r"\bchatd_[a-z_]+[a-z]\b")


def scrape(daemon: Daemon) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    try:
        connection.request("GET", "/-/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("content-type", "").startswith("text/plain; version=")
        return answer.read().decode()
    finally:
        connection.close()


def value(daemon: Daemon, name: str, **labels: str) -> float:
    """Give what a sample says now."""
    for family in text_string_to_metric_families(scrape(daemon)):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise AssertionError(f"there is no {name} {labels}")


def grows(daemon: Daemon, name: str, by: float, before: float, **labels: str) -> None:
    until(lambda: value(daemon, name, **labels) >= before + by, f"{name} {labels} to grow by {by:g}")


def test_what_two_workers_do_is_added_up(daemon: Daemon) -> None:
    taken = value(daemon, "chatd_received_messages_total")
    given = value(daemon, "chatd_sent_messages_total", **{"from": "live"})
    first, second = daemon.worker_pids()
    with daemon.connect_to(first, "sum") as one, daemon.connect_to(second, "sum?nick=ann") as other:
        until(lambda: value(daemon, "chatd_clients", protocol="pipe") == 1, "one bare client")
        until(lambda: value(daemon, "chatd_clients", protocol="text") == 1, "one with a name")
        for number in range(100):
            one.send(str(number))
            other.send(str(number))
        assert [other.recv(20) for _ in range(100)] == [str(number) for number in range(100)]
        grows(daemon, "chatd_received_messages_total", 200, taken)
        grows(daemon, "chatd_sent_messages_total", 200, given, **{"from": "live"})
        until(lambda: value(daemon, "chatd_workers_ready") == 2, "the parent to write what it has counted")
        assert value(daemon, "chatd_buses_live") == value(daemon, "chatd_buses") == 2
    until(lambda: value(daemon, "chatd_clients", protocol="pipe") == 0, "nobody to be left")


def test_a_killed_worker_takes_its_clients_along_and_none_of_its_counts(daemon: Daemon) -> None:
    first, _ = daemon.worker_pids()
    with daemon.connect_to(first, "death") as one:
        before = value(daemon, "chatd_received_messages_total")
        restarts = value(daemon, "chatd_worker_restarts_total")
        for number in range(50):
            one.send(str(number))
        grows(daemon, "chatd_received_messages_total", 50, before)
        os.kill(first, signal.SIGKILL)
        grows(daemon, "chatd_worker_restarts_total", 1, restarts)
        until(lambda: value(daemon, "chatd_clients", protocol="pipe") == 0, "the dead one's client to be gone")
        assert value(daemon, "chatd_received_messages_total") >= before + 50
    until(lambda: value(daemon, "chatd_workers_ready") == 2, "its replacement")


def test_who_and_what_is_refused_is_counted_by_reason(daemon: Daemon) -> None:
    missed = value(daemon, "chatd_refused_total", reason="not_found")
    large = value(daemon, "chatd_refused_messages_total", reason="too_large")
    with pytest.raises(InvalidStatus):
        daemon.connect("-/nothing")
    with daemon.connect("refused") as one, daemon.connect("refused", "chatd.v1") as program:
        one.send("x" * 100_000)  # more than a frame may have
        with pytest.raises(ConnectionClosed):
            one.recv(20)
        program.send(json.dumps({"type": "join", "room": "refused"}))
        program.send(json.dumps({"type": "publish", "room": "refused", "text": "x" * 20_000}))
        grows(daemon, "chatd_refused_messages_total", 2, large, reason="too_large")
    grows(daemon, "chatd_refused_total", 1, missed, reason="not_found")


def folder_of(daemon: Daemon) -> Path:
    """Give the folder of shares, which the parent holds open."""
    links = [os.readlink(each) for each in Path(f"/proc/{daemon.process.pid}/fd").iterdir()]
    [found] = {each for each in links if re.fullmatch(r".*/chatd-metrics-[^/]*", each)}
    return Path(found)


def test_neither_deaths_nor_reloads_lose_a_count_or_leave_a_file(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--drain-timeout", "0") as daemon:
        folder = folder_of(daemon)
        daemon.say("ops", "one", "two")
        until(lambda: value(daemon, "chatd_received_messages_total") == 2, "both to be counted")
        for _ in range(2):
            before = set(daemon.worker_pids())
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda old=before: len(new := {*daemon.worker_pids()}) == 2 and not new & old, "the new ones alone")  # type: ignore[misc]
            until(lambda: value(daemon, "chatd_buses_live") == 2, "the new ones to be counted, and they alone")
            assert value(daemon, "chatd_received_messages_total") == 2
            assert value(daemon, "chatd_worker_restarts_total") == 0
        for death in (1, 2):
            os.kill(daemon.worker_pids()[0], signal.SIGKILL)
            until(lambda count=death: value(daemon, "chatd_worker_restarts_total") == count, "its death")  # type: ignore[misc]
            until(lambda: value(daemon, "chatd_buses_live") == 2, "its replacement")
            assert value(daemon, "chatd_received_messages_total") == 2
        os.kill(daemon.broker_pid(), signal.SIGKILL)
        until(lambda: value(daemon, "chatd_broker_restarts_total") == 1, "the broker's")
        shares = {name.rpartition("_")[2] for name in os.listdir(folder)}
        assert len(shares) <= 5, "two generations at once, and the parent"
    assert not folder.exists()


def test_a_scraper_finds_nothing_to_complain_of(daemon: Daemon) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(daemon), capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_nobody_and_nothing_that_was_said_is_named(daemon: Daemon) -> None:
    with daemon.connect("secret-room?nick=secret-nick") as one, daemon.connect("secret-room") as other:
        one.send("secret-text")
        assert other.recv(20) == "secret-nick: secret-text"
        assert "secret" not in scrape(daemon)
        assert "127.0.0.1" not in scrape(daemon)


# What is made of them


def exposed(daemon: Daemon) -> set[str]:
    return {
        name
        for family in text_string_to_metric_families(scrape(daemon))
        for name in (family.name, *(sample.name for sample in family.samples))
    }


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def expressions() -> list[str]:
    board = dashboard()
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [each["expr"] for each in board["annotations"]["list"]]
    return found + [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]


@pytest.mark.parametrize(
    "command", [["check", "rules", str(ALERTS)], ["test", "rules", str(ROOT / "tests/alerts.yml")]]
)
def test_the_alerts_are_rules_and_say_what_they_should(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_each_alert_says_what_to_do() -> None:
    alerts = re.split(r"\n +- alert: ", ALERTS.read_text())[1:]
    assert len(alerts) == 11
    for alert in alerts:
        [text] = re.findall(r'description: "(.+)"', alert)
        assert len(text) > 40
        assert re.search(r"severity: (page|ticket)", alert)


def test_each_panel_has_a_place_a_title_and_something_to_show() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, "panels do not lie on one another"
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\[\$__rate_interval\]", "[5m]", text).replace("$instance", ".*")}
        for number, text in enumerate(expressions())
        if not text.startswith("label_values(")
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["deploy/alerts.yml", "deploy/grafana.json", "docs/operations.md"])
def test_what_they_name_is_there(daemon: Daemon, page: str) -> None:
    named = set(NAME.findall((ROOT / page).read_text()))
    assert len(named) > 8
    assert named <= exposed(daemon)


def test_each_metric_is_explained_in_the_documentation(daemon: Daemon) -> None:
    families = {family.name for family in text_string_to_metric_families(scrape(daemon))}
    text = (ROOT / "docs" / "operations.md").read_text()
    assert {name for name in families if name not in text} == set()


# A listener of its own


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_listener_for_metrics_answers_over_reloads_and_deaths_and_the_chat_port_does_not(tmp_path: Path) -> None:
    port = free_port()
    with Daemon(tmp_path, "--metrics-listen", f":{port}", "--drain-timeout", "0") as daemon:
        daemon.wait_for(rf"metrics: http://0\.0\.0\.0:{port}/-/metrics")
        for path in ("/-/healthz", "/-/readyz"):
            assert get(port, path)[0] == get(daemon.port, path)[0] == 200
        assert get(daemon.port, "/-/metrics")[0] == get(port, "/ops")[0] == get(port, "/-/rooms")[0] == 404
        with daemon.connect("ops"), pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{port}/ops").close()
        until(lambda: "\nchatd_workers_ready 2" in get(port, "/-/metrics")[1], "the metrics of both workers")
        os.kill(daemon.worker_pids()[0], signal.SIGKILL)
        until(lambda: "\nchatd_worker_restarts_total 1" in get(port, "/-/metrics")[1], "the death to be counted")
        before = len(daemon.log())
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r"chatd \S+ is ready", after=before)
        assert get(port, "/-/metrics")[0] == 200


def test_an_address_for_metrics_that_is_in_use_is_one_line_at_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [TWISTD, "-n", "--pidfile=", "chatd", "--listen", "127.0.0.1:0", "--metrics-listen"]
        ended = subprocess.run(
            [*command, f"127.0.0.1:{port}"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    endpoint = f"tcp:{port}:interface=127.0.0.1"
    assert (ended.returncode, ended.stderr) == (
        1,
        f"twistd chatd: cannot listen on {endpoint}: Address already in use\n",
    )
