"""Health and readiness: what a probe on its way, back, late or of nobody means for the answer."""

import json
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET
from twisted.web.test.requesthelper import DummyRequest

from chatd.broker.publish_queue import NotPublished
from chatd.rooms.sharding import Shard, Shards
from chatd.runtime.single_flight import SingleFlight
from chatd.web.responses import answer_later
from chatd.web.status import healthz, metrics, readyz
from tests.fakes import FakeMeter


class Bus:
    """A bus whose probe is the test's to answer."""

    def __init__(self) -> None:
        self.probed: Deferred[None] = Deferred()

    def probe(self) -> "Deferred[None]":
        return self.probed


class StatusTests(TestCase):
    def setUp(self) -> None:
        self.bus: Any = Bus()
        bus: Any = self.bus
        hub: Any = None
        self.shards = Shards([Shard("broker", bus, hub)])
        self.request: Any = DummyRequest([b""])
        self.request.responseHeaders = Headers()

    def readyz(self, shards: Shards | None = None) -> Coroutine[Any, Any, bytes]:
        shards = shards or self.shards
        return readyz(self.request, shards, SingleFlight(Clock(), shards.probe, 0))

    def test_healthz_answers_at_once(self) -> None:
        assert healthz(self.request) == b"ok\n"

    def test_readyz_answers_once_the_probe_is_back(self) -> None:
        assert answer_later(self.request, self.readyz()) == NOT_DONE_YET
        assert self.request.written == []
        self.bus.probed.callback(None)
        assert self.request.written == [b"ready\n"]
        assert self.request.finished == 1

    def test_readyz_answers_503_and_why_where_it_is_not(self) -> None:
        answer_later(self.request, self.readyz())
        self.bus.probed.errback(NotPublished("nothing came through the subscribing link within 2 s"))
        assert self.request.responseCode == 503
        body = json.loads(b"".join(self.request.written))
        assert body["error"] == "unavailable"
        assert body["message"] == "message bus: nothing came through the subscribing link within 2 s"
        assert self.request.finished == 1

    def test_readyz_names_one_of_several_that_is_away(self) -> None:
        other: Any = Bus()
        other.probed.callback(None)
        shards = Shards([*self.shards, Shard("other", other, other)])
        answer_later(self.request, self.readyz(shards))
        self.bus.probed.errback(NotPublished("it is away"))
        assert self.request.written == [b"ready, but for message bus: broker: it is away\n"]

    def test_an_asker_that_left_gets_no_answer(self) -> None:
        answer_later(self.request, self.readyz())
        self.request.processingFailed(Failure(ConnectionLost()))
        self.bus.probed.callback(None)
        assert self.request.written == []
        assert self.request.finished == 0

    def test_an_asker_that_left_gets_no_error_either(self) -> None:
        answer_later(self.request, self.readyz())
        self.request.processingFailed(Failure(ConnectionLost()))
        self.bus.probed.errback(NotPublished("it is gone"))
        assert self.request.written == []
        assert self.request.finished == 0

    def test_metrics_are_answered_as_prometheus_reads_them(self) -> None:
        meter: Any = FakeMeter()
        answer_later(self.request, metrics(self.request, meter))
        assert self.request.written == [b"chatd_rooms 1.0\n"]
        kind = self.request.responseHeaders.getRawHeaders("content-type")
        assert kind == ["text/plain; version=0.0.4; charset=utf-8"]

    def test_a_worker_without_metrics_says_so(self) -> None:
        meter: Any = FakeMeter()
        meter.text = None
        answer_later(self.request, metrics(self.request, meter))
        assert self.request.responseCode == 503
        assert json.loads(b"".join(self.request.written))["message"] == "there are no metrics; the log says why"
