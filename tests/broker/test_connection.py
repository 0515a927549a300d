"""One connection to the broker: dialled again for ever, on a wire whose far end is the test, and on the real Valkey."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chatd.broker.connection import BrokerConnection, LinkLost, PublishConnection, ReplyError, SubscribeConnection
from chatd.config.broker_url import BrokerAddress
from chatd.config.settings import Config
from tests.fakes import Events, FakeTransport
from tests.rows import rows

CONFIG = Config(redis_reconnect_min_delay=0.1, redis_reconnect_max_delay=1, redis_ping_interval=1, redis_missed_pings=4)


class Far:
    """The endpoint that a link dials, and the broker behind it: the test says what it answers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.dialled: list[Deferred[Any]] = []
        self.refuses = False
        self.wires: list[FakeTransport] = []

    def connect(self, factory: Any) -> "Deferred[Any]":
        if self.refuses:
            self.dialled.append(fail(Refused()))
        else:
            self.dialled.append(Deferred())
            self._factory = factory
        return self.dialled[-1]

    def pick_up(self) -> FakeTransport:
        """Take the connection that is dialled; give its wire."""
        protocol = self._factory.buildProtocol(None)
        wire = FakeTransport(self._clock, protocol)
        self.wires.append(wire)
        protocol.makeConnection(wire)
        self.dialled[-1].callback(protocol)
        return wire

    def say(self, answer: bytes) -> None:
        """Answer on the newest wire."""
        self.wires[-1].receive(answer)

    def hang_up(self) -> None:
        """Break the newest wire."""
        self.wires[-1].vanish()


class Nearby:
    """A link with its clock and what it told."""

    def __init__(self, kind: type[Any] = PublishConnection, address: BrokerAddress = BrokerAddress(path="/x")) -> None:  # noqa: B008
        self.clock = Clock()
        self.far = Far(self.clock)
        self.told: list[str] = []
        self.on_change: Callable[[], None] | None = None
        self.heard: list[tuple[bytes, bytes]] = []
        self.preparing: list[Deferred[None]] = []
        self.link = BrokerConnection(
            kind,
            self.clock,
            self.far,  # type: ignore[arg-type]
            address,
            CONFIG,
            prepare=self._prepare,
            changed=self._changed,
            received=lambda channel, data: self.heard.append((channel, data)),
        )
        self.link.start()

    def _changed(self) -> None:
        self.told.append("connected" if self.link.protocol else self.link.trouble)
        if self.on_change:
            self.on_change()

    async def _prepare(self, protocol: Any) -> None:
        if self.preparing:
            await self.preparing[-1]
        else:
            await protocol.execute_command("HELLO")

    def up(self) -> None:
        """Let the link come to be usable."""
        self.far.pick_up()
        self.far.say(b"+OK\r\n")


@pytest.fixture
def near() -> Nearby:
    return Nearby()


# Coming and going


def test_a_link_counts_once_it_is_prepared(near: Nearby) -> None:
    assert (near.link.protocol, near.link.trouble) == (None, "not connected yet")
    near.far.pick_up()
    assert near.far.wires[0].value() == b"*1\r\n$5\r\nHELLO\r\n"
    assert (near.link.protocol, near.told) == (None, [])
    near.far.say(b"+OK\r\n")
    assert near.link.protocol is near.far.wires[0].protocol
    assert near.told == ["connected"]


def test_a_lost_link_is_dialled_again(near: Nearby) -> None:
    near.up()
    near.far.hang_up()
    assert near.told == ["connected", "connection lost"]
    assert near.link.protocol is None
    near.clock.advance(0.2)
    near.up()
    assert near.told == ["connected", "connection lost", "connected"]


def test_waits_between_attempts_grow_by_half_up_to_the_longest(near: Nearby) -> None:
    near.up()
    near.far.refuses = True
    near.far.hang_up()
    near.clock.advance(0)
    waits = []
    for _ in range(9):
        (call,) = near.clock.getDelayedCalls()
        waits.append(call.getTime() - near.clock.seconds())
        near.clock.advance(waits[-1])
    expected = [0.1, 0.15, 0.225, 0.3375, 0.50625, 0.759375, 1, 1, 1]
    assert waits == [pytest.approx(each, rel=0.1) for each in expected]


def test_the_first_wait_is_back_once_the_link_was_usable(near: Nearby) -> None:
    near.up()
    near.far.refuses = True
    near.far.hang_up()
    for _ in range(5):
        near.clock.advance(1)
    near.far.refuses = False
    near.clock.advance(1)
    near.up()
    near.far.hang_up()
    near.clock.advance(0)
    (call,) = near.clock.getDelayedCalls()
    assert call.getTime() - near.clock.seconds() == pytest.approx(0.1, rel=0.1)


def test_each_failed_attempt_says_why(near: Nearby) -> None:
    near.far.dialled[-1].errback(Refused(111, "refused"))
    assert near.told == ["Connection was refused by other side: 111: refused."]


def test_a_broker_that_does_not_pick_up_is_given_up_in_time(near: Nearby) -> None:
    near.clock.advance(CONFIG.redis_connect_timeout)
    assert near.told == ["no answer within 5 s"]
    near.clock.advance(0.2)
    assert len(near.far.dialled) == 2


def test_a_broker_that_says_nothing_while_logging_in_is_given_up_in_time(near: Nearby) -> None:
    near.far.pick_up()
    near.clock.advance(CONFIG.redis_connect_timeout)
    assert near.told == ["no answer within 5 s"]
    assert near.far.wires[0].aborted


def test_a_link_lost_while_it_is_prepared_is_dialled_again(near: Nearby) -> None:
    near.far.pick_up()
    near.far.hang_up()
    assert near.told == ["connection lost while logging in"]
    near.clock.advance(0.2)
    near.up()
    assert near.told[1:] == ["connected"]


def test_a_refusal_while_it_is_prepared_is_told_and_the_wire_dropped(near: Nearby) -> None:
    near.far.pick_up()
    near.far.say(b"-NOAUTH Authentication required.\r\n")
    assert near.told == ["NOAUTH Authentication required."]
    assert near.far.wires[0].aborted


# Logging in


def test_user_and_password_and_database_come_before_all_else() -> None:
    near = Nearby(address=BrokerAddress(path="/x", user="u", password="p", database=3))
    wire = near.far.pick_up()
    near.far.say(b"+OK\r\n")
    near.far.say(b"+OK\r\n")
    near.far.say(b"+OK\r\n")
    words = [line for line in wire.value().split(b"\r\n") if line and line[:1] not in b"*$"]
    assert words == [b"AUTH", b"u", b"p", b"SELECT", b"3", b"HELLO"]
    assert near.told == ["connected"]


def test_a_wrong_password_is_told_and_tried_again() -> None:
    near = Nearby(address=BrokerAddress(path="/x", password="wrong"))
    near.far.pick_up()
    near.far.say(b"-WRONGPASS invalid\r\n")
    near.clock.advance(0)
    assert near.told == ["could not auth: WRONGPASS invalid"]
    near.clock.advance(0.2)
    near.up()
    near.far.say(b"+OK\r\n")
    assert near.told[1:] == ["connected"]


def test_a_database_that_is_none_is_told_and_tried_again() -> None:
    near = Nearby(address=BrokerAddress(path="/x", database=99))
    near.far.pick_up()
    near.far.say(b"-ERR DB index is out of range\r\n")
    near.clock.advance(0)
    assert near.told == ["could not set dbid=99: ERR DB index is out of range"]
    near.clock.advance(0.2)
    assert len(near.far.dialled) == 2


# Commands


@pytest.mark.parametrize("reply", [b"007", b"1_000", b"1.50", b"\xff\x00\r\n", "👋".encode()])
def test_a_reply_comes_as_it_is(near: Nearby, reply: bytes) -> None:
    near.up()
    answer = near.link.protocol.execute_command("GET", "x")
    near.far.say(b"$%d\r\n%s\r\n" % (len(reply), reply))
    assert answer.result == reply


def test_an_error_is_a_reply_error(near: Nearby) -> None:
    near.up()
    errors: list[Failure] = []
    near.link.protocol.execute_command("GET", "x").addErrback(errors.append)
    near.far.say(b"-OOM no\r\n")
    assert [(each.type, each.getErrorMessage()) for each in errors] == [(ReplyError, "OOM no")]


def test_what_has_no_answer_when_the_link_goes_is_lost(near: Nearby) -> None:
    near.up()
    errors: list[Failure] = []
    near.link.protocol.execute_command("GET", "x").addErrback(errors.append)
    near.far.hang_up()
    assert [each.type for each in errors] == [LinkLost]


# Channels


def message(channel: bytes, data: bytes) -> bytes:
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(channel), channel, len(data), data)


@rows("data", [b"007", b"1_000", b"1.50", bytes(range(256)), "👋".encode(), b"", b"QUEUED"])
def test_a_message_comes_as_it_is(data: bytes) -> None:
    near = Nearby(SubscribeConnection)
    near.up()
    near.far.say(message(b"123", data))
    assert near.heard == [(b"123", data)]


def test_a_message_that_cannot_be_handled_is_logged_and_takes_no_other_with_it(events: Events) -> None:
    near = Nearby(SubscribeConnection)
    near.up()
    heard: list[bytes] = []

    def hear(channel: bytes, data: bytes) -> None:
        if data == b"bad":
            raise ValueError("no batch")
        heard.append(data)

    near.link.received = hear
    near.far.say(b"".join(message(b"c", data) for data in (b"one", b"bad", b"two", b"three")))
    assert heard == [b"one", b"two", b"three"]
    assert events.said == [("critical", "handling a message from the broker failed")]
    assert near.link.protocol is not None


# Signs of life


def test_a_rest_begins_the_count_anew(near: Nearby) -> None:
    near.link.reset_silence()  # nothing to count yet
    near.up()
    for _ in range(3):
        for _ in range(4):
            near.link.tick()
        near.link.reset_silence()
    near.clock.advance(0)
    assert near.link.protocol is not None


def test_a_silent_link_is_dropped(near: Nearby) -> None:
    near.up()
    for _ in range(4):
        near.link.tick()
    assert near.link.protocol is not None
    near.link.tick()
    near.clock.advance(0)
    assert near.link.protocol is None
    assert near.far.wires[0].aborted


def test_any_byte_is_a_sign_of_life(near: Nearby) -> None:
    near.up()
    for _ in range(3):
        for _ in range(4):
            near.link.tick()
        near.far.say(b"+")
    near.clock.advance(0)
    assert near.link.protocol is not None


def test_a_silent_link_is_said_to_be_silent(near: Nearby) -> None:
    near.up()
    for _ in range(5):
        near.link.tick()
    near.clock.advance(0)
    assert near.told == ["connected", "silent for 4 s"]


# The end


def test_stop_hangs_up_and_dials_no_more(near: Nearby) -> None:
    near.up()
    near.link.stop()
    assert near.link.protocol is None
    assert near.far.wires[0].aborted
    near.clock.advance(0)
    assert near.clock.getDelayedCalls() == []
    assert len(near.far.dialled) == 1


def test_stop_while_dialling_leaves_nothing(near: Nearby) -> None:
    near.link.stop()
    near.clock.advance(0)
    assert near.clock.getDelayedCalls() == []


def test_stop_while_preparing_hangs_up(near: Nearby) -> None:
    near.far.pick_up()
    near.link.stop()
    assert near.far.wires[0].aborted
    near.clock.advance(0)
    assert near.clock.getDelayedCalls() == []


def test_stop_between_attempts_dials_no_more(near: Nearby) -> None:
    near.up()
    near.far.hang_up()
    near.link.stop()
    near.clock.advance(0)
    assert near.clock.getDelayedCalls() == []
    near.clock.advance(10)
    assert len(near.far.dialled) == 1


def test_stop_by_whom_it_tells_that_it_is_there_hangs_up(near: Nearby, events: Events) -> None:
    near.on_change = near.link.stop
    near.up()
    assert near.link.protocol is None
    assert near.far.wires[0].aborted
    near.clock.advance(0)
    assert near.clock.getDelayedCalls() == []
    gc.collect()  # an error in a Deferred is said when it is forgotten
    assert events.said == []


def test_stop_by_whom_it_tells_that_it_is_gone_dials_no_more(near: Nearby, events: Events) -> None:
    near.up()
    near.on_change = near.link.stop
    near.far.hang_up()
    near.clock.advance(0)
    assert near.clock.getDelayedCalls() == []
    assert len(near.far.dialled) == 1
    gc.collect()
    assert events.said == []


def test_a_fault_of_whom_it_tells_does_not_end_it(near: Nearby, events: Events) -> None:
    def fail() -> None:
        raise ValueError("no")

    near.on_change = fail
    near.up()
    assert near.link.protocol is not None
    near.far.hang_up()
    near.clock.advance(0.2)
    near.up()
    assert near.link.protocol is not None
    assert events.said == [("critical", "handling a change of a broker connection failed")] * 3


def test_stop_before_start_does_nothing() -> None:
    near = Nearby()
    link = BrokerConnection(
        PublishConnection,
        near.clock,
        near.far,  # type: ignore[arg-type]
        BrokerAddress(path="/x"),
        CONFIG,
        prepare=near._prepare,
        changed=lambda: None,
    )
    link.stop()
    assert link.protocol is None
