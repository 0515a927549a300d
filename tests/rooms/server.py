"""A hub on a bus, a chat log and a clock in memory."""

from dataclasses import dataclass
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger
from zope.interface import implementer

from chatd.chatlog.writer import LogBusy, Sync
from chatd.config.settings import Config
from chatd.protocol.message import Message
from chatd.protocol.websocket_frames import text_frame
from chatd.rooms.hub import Hub
from tests.fakes import FakeBus, FakeMember

NOW = 1_795_379_625.123

TURNS = Config(flush_interval=0)
"""Each turn of the reactor is a batch."""

PACED = Config(flush_interval=0.25)
INTERVAL = 0.25
"""That of PACED, in seconds."""


@implementer(ILogObserver)
class Chat:
    """A chat log in memory that can fail; it records how many batches were published before each write."""

    def __init__(self, bus: FakeBus) -> None:
        self._bus = bus
        self.broken = False
        self.busy = False
        self.tries = 0
        self.takes_outcomes = True
        self.events: list[dict[str, Any]] = []
        self.published_before: list[int] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.tries += 1
        if self.busy:
            raise LogBusy
        if self.broken or ("outcome" in event and not self.takes_outcomes):
            raise OSError("the disk is full")
        self.events.append(event)
        self.published_before.append(len(self._bus.published))

    @property
    def batches(self) -> list[list[str]]:
        """The texts of each event."""
        return [[each.text for entry in event["entries"] for each in entry.messages] for event in self.events]


class Failing(FakeMember):
    """A subscriber that raises on every delivery."""

    def deliver(self, blob: bytes, count: int) -> bool:
        raise RuntimeError("no")


@dataclass
class ChatServer:
    """A hub with all its parts."""

    bus: FakeBus
    chat: Chat
    hub: Hub
    clock: Clock

    @property
    def published(self) -> list[list[str]]:
        """The texts of each published batch."""
        return [[each.text for each in messages] for _, messages in self.bus.published]

    def end_turn(self) -> None:
        """Run what is scheduled for the end of the turn."""
        self.clock.advance(0)

    def settle(self) -> None:
        """End the turn, and deliver what it published to all subscribers."""
        self.end_turn()
        self.bus.pump()
        self.end_turn()

    def subscriber(self, name: str, room: str = "ops", *, echo: bool = False) -> FakeMember:
        """Return a subscriber that has joined."""
        subscriber = FakeMember(name, echo=echo)
        self.hub.join(room, subscriber)
        return subscriber

    def publish(self, subscriber: FakeMember, *texts: str) -> None:
        """Publish messages of a subscriber of this worker in the room ops."""
        self.hub.publisher.publish("ops", subscriber, list(texts))

    def deliver(self, *texts: str, number: int, room: str = "ops", publisher: str = "w") -> None:
        """Receive a batch of another worker from the bus, and end the turn."""
        self.receive(*texts, number=number, room=room, publisher=publisher)
        self.end_turn()

    def receive(
        self, *texts: str, number: int, room: str = "ops", publisher: str = "w", sender_id: str = "elsewhere"
    ) -> None:
        """Receive a batch of another worker from the bus."""
        self.send(*texts, number=number, room=room, publisher=publisher, sender_id=sender_id)
        self.bus.pump()

    def send(
        self, *texts: str, number: int, room: str = "ops", publisher: str = "w", sender_id: str = "elsewhere"
    ) -> None:
        """Publish a batch of one sender from another worker, whose number-th it is."""
        messages = [Message(f"{sender_id}.{text}", int(NOW * 1000), sender_id, text) for text in texts]
        self.bus.say(room, messages, number, publisher)


def make_server(config: Config, bus: FakeBus, sync: Sync | None = None) -> ChatServer:
    chat, clock = Chat(bus), Clock()
    hub = Hub(bus, Logger(observer=chat), config, clock, lambda: NOW, sync=sync)  # type: ignore[arg-type]
    return ChatServer(bus, chat, hub, clock)


def frames(*texts: str) -> bytes:
    """Return the frames of texts in the pipe format, joined."""
    return b"".join(text_frame(text.encode()) for text in texts)
