"""Probes, on links whose far end is the test."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, ReplyError
from chatd.broker.liveness import LivenessProbes
from chatd.broker.publish_queue import NotPublished, WritesRefused
from chatd.broker.queries import PROBE
from chatd.config.settings import Config


class Commands:
    """A publishing link that notes what was published."""

    def __init__(self, *answers: "Deferred[Any]") -> None:
        self._answers = list(answers)
        self.published: list[tuple[bytes, int]] = []
        self.loaded: list[bytes] = []

    def execute_command(self, *command: Any) -> "Deferred[Any]":
        assert command[:4] == ("EVALSHA", PROBE.digest, 1, b"p:probe")
        channel, number, _ = command[4:]
        self.published.append((channel, number))
        return self._answers.pop(0)

    def script_load(self, source: bytes) -> "Deferred[Any]":
        self.loaded.append(source)
        return succeed(b"")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probes(clock: Clock) -> LivenessProbes:
    return LivenessProbes(clock, Config(redis_prefix="p", readiness_probe_timeout=2), "w1")


def why(probe: "Deferred[None]") -> str:
    """Give why a probe failed."""
    seen: list[BaseException | None] = []

    def failed(failure: Failure) -> None:
        seen.append(failure.value)

    probe.addErrback(failed)
    assert isinstance(seen[0], NotPublished)
    return str(seen[0])


def test_a_probe_is_published_to_our_own_channel(probes: LivenessProbes) -> None:
    commands = Commands(succeed(1))
    probes.send(commands)
    assert commands.published == [(probes.channel, 1)]
    assert probes.channel == b"p:probe:w1"


def test_a_probe_that_comes_back_is_fine_and_leaves_no_timer(probes: LivenessProbes, clock: Clock) -> None:
    probe = probes.send(Commands(succeed(1)))
    assert not probe.called
    probes.received(b"1")
    assert probe.called
    assert clock.getDelayedCalls() == []


def test_one_that_comes_back_vouches_for_those_before_it_but_not_after(probes: LivenessProbes) -> None:
    first, second, third = (probes.send(Commands(succeed(1))) for _ in range(3))
    probes.received(b"2")
    assert (first.called, second.called, third.called) == (True, True, False)


def test_one_that_comes_back_too_late_or_twice_is_ignored(probes: LivenessProbes, clock: Clock) -> None:
    probe = probes.send(Commands(succeed(1)))
    clock.advance(2)
    probes.received(b"1")
    probes.received(b"1")
    assert "within 2 s" in why(probe)


def test_a_publish_without_an_answer_blames_the_publishing_link(probes: LivenessProbes, clock: Clock) -> None:
    probe = probes.send(Commands(Deferred()))
    clock.advance(1.9)
    assert not probe.called
    clock.advance(0.2)
    assert why(probe) == "nothing came through the publishing link within 2 s"


def test_a_publish_that_failed_blames_the_publishing_link(probes: LivenessProbes, clock: Clock) -> None:
    probe = probes.send(Commands(fail(LinkLost("gone"))))
    clock.advance(2)
    assert why(probe) == "nothing came through the publishing link within 2 s"


def test_a_refusal_fails_it_at_once_in_the_words_of_the_broker(probes: LivenessProbes, clock: Clock) -> None:
    probe = probes.send(Commands(fail(ReplyError("READONLY You can't write against a read only replica."))))
    probe.addErrback(lambda failure: failure.check(WritesRefused) and failure)
    assert why(probe) == "READONLY You can't write against a read only replica."
    assert clock.getDelayedCalls() == []


def test_a_broker_that_has_forgotten_the_script_is_told_it_again(probes: LivenessProbes) -> None:
    commands = Commands(fail(ReplyError("NOSCRIPT No matching script.")), succeed(1))
    probe = probes.send(commands)
    probes.received(b"1")
    assert (probe.called, commands.loaded, len(commands.published)) == (True, [PROBE.source], 2)


def test_a_publish_that_does_not_come_back_blames_the_subscribing_link(probes: LivenessProbes, clock: Clock) -> None:
    probe = probes.send(Commands(succeed(0)))
    clock.advance(2)
    assert why(probe) == "nothing came through the subscribing link within 2 s"


def test_all_that_are_on_their_way_can_be_given_up(probes: LivenessProbes, clock: Clock) -> None:
    both = [probes.send(Commands(succeed(1))) for _ in range(2)]
    probes.fail("connection lost")
    assert [why(each) for each in both] == ["connection lost"] * 2
    assert clock.getDelayedCalls() == []
