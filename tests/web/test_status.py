"""Health, readiness and metrics: the answers while a probe is under way, late, failed, or of no client."""

import json

import pytest
from twisted.internet.defer import Deferred

from chatd.broker.publish_queue import NotPublished
from chatd.rooms.sharding import Shard, Shards
from chatd.web.site import Site
from tests.fakes import Events, FakeBus
from tests.web.http_client import ChatServer, HttpClient


@pytest.fixture
def probes(server: ChatServer) -> list["Deferred[None]"]:
    """Return the probes of the bus that were begun, which the test answers."""
    probes: list[Deferred[None]] = []

    def probe() -> "Deferred[None]":
        probes.append(Deferred())
        return probes[-1]

    server.bus.probe = probe  # type: ignore[method-assign]
    return probes


def test_healthz_answers_at_once(client: HttpClient) -> None:
    answer = client.request("GET /-/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_simultaneous_requests_for_readiness_share_one_probe(
    server: ChatServer, probes: list["Deferred[None]"]
) -> None:
    clients = [HttpClient(server) for _ in range(20)]
    for client in clients:
        client.send("GET /-/readyz")
        assert client.received == b""
    assert len(probes) == 1
    probes[0].callback(None)
    assert [(client.answer.status, client.answer.body) for client in clients] == [(200, b"ready\n")] * 20


def test_readyz_is_503_and_names_what_is_broken(client: HttpClient) -> None:
    client.bus.away = "nothing came through the subscribing link within 2 s"
    answer = client.request("GET /-/readyz")
    assert answer.status == 503
    assert json.loads(answer.body) == {"error": "unavailable", "message": f"message bus: {client.bus.away}"}


def test_readyz_names_one_of_several_brokers_that_is_away(server: ChatServer) -> None:
    bus, meter = FakeBus(), server.meter
    bus.away = "it is away"
    shards = Shards([*server.shards, Shard("other", bus, server.hub)])  # type: ignore[arg-type]
    server.site = Site(server.clock, shards, server.connections, meter)  # type: ignore[arg-type]
    assert HttpClient(server).request("GET /-/readyz").body == b"ready, but for message bus: other: it is away\n"


@pytest.mark.parametrize("failed", [True, False])
def test_a_client_that_left_gets_no_answer(
    client: HttpClient, probes: list["Deferred[None]"], events: Events, *, failed: bool
) -> None:
    client.send("GET /-/readyz")
    client.transport.vanish()
    probes[0].errback(NotPublished("it is gone")) if failed else probes[0].callback(None)
    assert client.received == b""
    assert events.said == []


def test_metrics_are_in_the_format_of_prometheus(client: HttpClient) -> None:
    answer = client.request("GET /-/metrics")
    assert answer.body == b"chatd_rooms 1.0\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    client.server.meter.text = None
    answer = client.request("GET /-/metrics")
    assert answer.status == 503
    assert json.loads(answer.body)["message"] == "there are no metrics; the log says why"
