"""A hub with all that it stands on in memory, for its tests."""

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
    """A chat log in memory, that can be broken; it notes what was on the bus when it was written."""

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
    """A member that nothing can be delivered to."""

    def deliver(self, blob: bytes, count: int) -> bool:
        raise RuntimeError("no")


@dataclass
class House:
    """A hub with all that it stands on."""

    bus: FakeBus
    chat: Chat
    hub: Hub
    clock: Clock

    @property
    def published(self) -> list[list[str]]:
        """The texts of each batch that went to the bus."""
        return [[each.text for each in messages] for _, messages in self.bus.published]

    def end_turn(self) -> None:
        """Run what was put off to the end of the turn."""
        self.clock.advance(0)

    def go_round(self) -> None:
        """End the turn, let the bus deliver what that published, and the members hear it."""
        self.end_turn()
        self.bus.pump()
        self.end_turn()

    def member(self, name: str, room: str = "ops", *, echo: bool = False) -> FakeMember:
        """Give a member that has joined."""
        member = FakeMember(name, echo=echo)
        self.hub.join(room, member)
        return member

    def hear(self, *texts: str, number: int, room: str = "ops", publisher: str = "w") -> None:
        """Let a batch of another worker come from the bus, and the turn end."""
        self.bring(*texts, number=number, room=room, publisher=publisher)
        self.end_turn()

    def bring(
        self, *texts: str, number: int, room: str = "ops", publisher: str = "w", sender_id: str = "elsewhere"
    ) -> None:
        """Let a batch of another worker come from the bus."""
        self.say(*texts, number=number, room=room, publisher=publisher, sender_id=sender_id)
        self.bus.pump()

    def say(
        self, *texts: str, number: int, room: str = "ops", publisher: str = "w", sender_id: str = "elsewhere"
    ) -> None:
        """Let another worker publish a batch, its number-th, of one sender."""
        messages = [Message(f"{sender_id}.{text}", int(NOW * 1000), sender_id, text) for text in texts]
        self.bus.say(room, messages, number, publisher)


def make_house(config: Config, bus: FakeBus, sync: Sync | None = None) -> House:
    chat, clock = Chat(bus), Clock()
    hub = Hub(bus, Logger(observer=chat), config, clock, lambda: NOW, sync=sync)  # type: ignore[arg-type]
    return House(bus, chat, hub, clock)


def frames(*texts: str) -> bytes:
    """Frame texts as bare clients get them, joined."""
    return b"".join(text_frame(text.encode()) for text in texts)
