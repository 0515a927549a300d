"""Many small frames: a slice of them at once, the rest when its turn comes, in order, and none of them lost."""

from itertools import pairwise
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from chatd.clients.turns import Turns
from chatd.config.settings import Config
from chatd.protocol.http_head import RoomTarget, Upgrade
from tests.conformance.testee import EchoFactory
from tests.fakes import FakeTransport
from tests.frames import CLOSE, CONTINUATION, KEY, PING, PONG, close_frame, frame, heard

CONFIG = Config(
    max_message_size=300,
    messages_per_turn=4,
    frame_steps_per_turn=8,
    frame_rest_factor=4,
    frame_flood_timeout=5,
    frame_flood_reset_time=1,
)


class Waiter:
    """Has so many slices to handle, each of which takes a while."""

    def __init__(self, world: "World", name: str, slices: int, *, messages: bool) -> None:
        self.world, self.name, self.slices, self.messages = world, name, slices, messages
        world.turns.wait(self.handle_slice)

    def handle_slice(self) -> bool:
        self.world.handled.append((round(self.world.clock.seconds(), 3), self.name))
        self.world.clock.rightNow += 0.001
        self.slices -= 1
        if self.slices:
            self.world.turns.wait(self.handle_slice)
        if self.name == "bad":
            raise RuntimeError("bad")
        return self.messages


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock, 4)
        self.handled: list[tuple[float, str]] = []

    def wait(self, seconds: float) -> str:
        """Advance the clock; return the clients that were handled."""
        before = len(self.handled)
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(0.0005)
        return "".join(name for _, name in self.handled[before:])


def test_they_take_turns() -> None:
    world = World()
    for name in "abc":
        Waiter(world, name, 3, messages=True)
    assert world.wait(1) == "abcabcabc"
    assert not world.clock.getDelayedCalls()


def test_after_what_is_no_message_there_is_rest() -> None:
    world = World()
    Waiter(world, "a", 5, messages=False)
    assert len(world.wait(0.01)) <= 3
    assert len(world.wait(1)) >= 2
    times = [time for time, _ in world.handled]
    assert all(end - start >= 0.0045 for start, end in pairwise(times))


def test_one_that_fails_is_logged_and_the_others_have_their_turns() -> None:
    world = World()
    Waiter(world, "bad", 1, messages=True)
    Waiter(world, "a", 1, messages=True)
    with capturedLogs() as events:
        assert world.wait(1) == "bada"
    assert len(events) == 1


class Client:
    """A client of an echo."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.factory = EchoFactory(self.clock, CONFIG)
        self.connection: Any = self.factory.make(Upgrade(KEY), RoomTarget("lobby"), "192.0.2.7")
        self.transport = FakeTransport(self.clock, self.connection)
        self.connection.makeConnection(self.transport)

    def send(self, *frames: bytes) -> None:
        self.transport.receive(b"".join(frames))

    @property
    def texts(self) -> list[str]:
        return heard(self.transport.value()).texts

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        return heard(self.transport.value()).frames

    def turns(self, count: int = 100) -> None:
        for _ in range(count):
            self.clock.advance(0)


TEXTS = [str(number) for number in range(50)]
ALL = [frame(each.encode()) for each in TEXTS]


def test_messages_come_a_slice_a_turn_in_order_and_what_comes_meanwhile_after_them() -> None:
    client = Client()
    client.send(*ALL[:30])
    assert client.texts == TEXTS[:4]
    assert client.transport.producerState == "paused"
    client.connection.dataReceived(b"".join(ALL[30:]))  # it was on its way
    assert client.texts == TEXTS[:4]
    client.turns()
    assert client.texts == TEXTS
    assert client.transport.producerState == "producing"
    assert not [each for each in client.clock.getDelayedCalls() if each.getTime() == 0]


def test_what_is_no_message_comes_a_slice_a_turn_too() -> None:
    client = Client()
    client.send(*[frame(each.encode(), PING) for each in TEXTS], ALL[0])
    assert len(client.frames) == 4
    client.turns()
    assert [payload.decode() for _, payload in client.frames] == [*TEXTS, "0"]


def test_a_message_in_many_fragments_is_put_together() -> None:
    client = Client()
    client.send(frame(b"a", fin=False), frame(b"b", CONTINUATION, fin=False) * 100, frame(b"c", CONTINUATION))
    assert client.texts == []
    client.turns()
    assert client.texts == ["a" + "b" * 100 + "c"]


def test_a_session_that_reads_no_more_meanwhile_is_obeyed() -> None:
    client = Client()
    client.send(*ALL[:10])
    client.connection.pause()
    client.turns()
    assert client.texts == TEXTS[:10], "as when they come in one slice"
    assert client.transport.producerState == "paused"
    client.connection.resume()
    assert client.transport.producerState == "producing"


def test_a_session_that_reads_on_meanwhile_does_not_overtake() -> None:
    client = Client()
    client.connection.pause()
    client.connection.dataReceived(b"".join(ALL[:10]))
    client.connection.resume()
    assert client.transport.producerState == "paused"
    client.turns()
    assert client.texts == TEXTS[:10]


def test_what_was_read_of_a_client_that_is_gone_is_taken() -> None:
    client = Client()
    received: list[str] = []
    client.connection.session.received = received.extend
    client.send(*ALL[:30])
    client.transport.vanish()
    assert received == TEXTS[:30]
    client.turns()
    assert not client.factory.connections


def test_a_close_behind_it_is_answered_after_it() -> None:
    client = Client()
    client.send(*ALL[:10], close_frame())
    client.turns()
    assert client.texts == TEXTS[:10]
    assert client.frames[-1][0] == CLOSE


def test_nothing_is_taken_any_more_once_we_close() -> None:
    client = Client()
    client.send(frame(b"", PONG) * 20, frame(b"", 0x3), frame(b"x"))  # no such opcode
    client.turns()
    assert client.frames[-1][0] == CLOSE
    assert client.connection.data == b""


def test_who_sends_more_than_is_taken_for_long_is_closed() -> None:
    client = Client()
    for _ in range(12):
        client.connection.dataReceived(frame(b"", PONG) * 50)
        client.clock.advance(0.5)
        if client.transport.disconnecting:
            break
    assert heard(client.transport.value()).close_code == 4029
    assert client.clock.seconds() >= 5


def test_who_does_so_now_and_then_is_not() -> None:
    client = Client()
    for _ in range(20):
        client.connection.dataReceived(frame(b"", PONG) * 50)
        client.turns()
        client.clock.advance(1.1)
    assert not client.transport.disconnecting


def test_messages_are_no_flood() -> None:
    client = Client()
    for _ in range(20):
        client.connection.dataReceived(b"".join(ALL))
        client.clock.advance(0.5)
    client.turns(1000)
    assert len(client.texts) == 20 * 50
