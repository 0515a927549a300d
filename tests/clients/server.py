"""A hub on a bus in memory, its clock, and sessions of every format."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from chatd.broker.publish_queue import PublishResult
from chatd.clients.json_session import JsonSession
from chatd.clients.pipe_session import Session
from chatd.clients.text_session import TextSession
from chatd.clients.token_lifetime import UNLIMITED, TokenLifetime
from chatd.config.settings import Config
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.message import Message, StreamPosition
from chatd.rooms.hub import Hub
from tests.fakes import FakeBus, FakeChatLog, FakeLine
from tests.frames import frames

LIMITS: dict[str, Any] = {"max_message_size": 16, "rooms_per_client": 3, "pending_queries_per_client": 2}
CONFIG = Config(publish_timeout=10, flush_interval=0, retry_after=5, subscribe_timeout=5, **LIMITS)

Kind = TypeVar("Kind", Session, TextSession, JsonSession)


class Bus(FakeBus):
    """A bus that knows the ids of published messages, and can delay its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.publish_at_once = True
        self._answers: list[tuple[Deferred[PublishResult], PublishResult]] = []
        self._known: dict[tuple[str, str, str], StreamPosition] = {}

    def publish(
        self, room: str, messages: Sequence[Message], ids: Mapping[int, str] | None = None, *_: Any, **__: Any
    ) -> Any:
        known = {number: self._known.get((room, messages[number].session, id)) for number, id in (ids or {}).items()}
        again = {number: position for number, position in known.items() if position is not None}
        new = [message for number, message in enumerate(messages) if number not in again]
        if self.refuse is None and not new:
            return self._answer_with(PublishResult(self.top(room), again))
        answer = super().publish(room, new)
        if self.refuse is not None:
            return answer
        first = answer.result.first
        for target, each in enumerate(new):
            self._known[room, each.session, each.dedup_id] = StreamPosition(first.epoch, first.offset + target)
        return self._answer_with(PublishResult(first, again))

    def publishes(self) -> None:
        """Answer what was published."""
        answers, self._answers = self._answers, []
        for done, published in answers:
            done.callback(published)

    def _answer_with(self, published: PublishResult) -> "Deferred[PublishResult]":
        if self.publish_at_once:
            return succeed(published)
        done: Deferred[PublishResult] = Deferred()
        self._answers.append((done, published))
        return done


class ChatServer:
    """A hub and its clients."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.config = config
        self.clock = Clock()
        self.bus = Bus()
        self.chat_log = FakeChatLog()
        bus: Any = self.bus
        self.hub = Hub(bus, self.chat_log.log, config, self.clock, self.clock.seconds)

    def session(self, name: str = "s1", room: str = "lobby", *, echo: bool = False) -> tuple[Session, FakeLine]:
        """Join as a client of the pipe format."""
        return self.come(Session, name, RoomTarget(room, echo))

    def person(self, nick: str = "ann", room: str = "lobby", **target: Any) -> tuple[TextSession, FakeLine]:
        """Join as a client of the text format; its id is the nick with a number."""
        return self.come(TextSession, f"{nick}.1", RoomTarget(room, nick=nick, **target))

    def program(self, name: str = "p1", room: str = "lobby", **target: Any) -> tuple[JsonSession, FakeLine]:
        """Join as a client of the JSON format."""
        return self.come(JsonSession, name, RoomTarget(room, **target))

    def come(
        self, kind: type[Kind], name: str, target: RoomTarget, token_lifetime: TokenLifetime = UNLIMITED, **options: Any
    ) -> tuple[Kind, FakeLine]:
        """Return a session that has joined, and its connection."""
        session, line = self.make(kind, name, target, token_lifetime, **options)
        session.join()
        session.opened()
        return session, line

    def make(
        self, kind: type[Kind], name: str, target: RoomTarget, token_lifetime: TokenLifetime = UNLIMITED, **options: Any
    ) -> tuple[Kind, FakeLine]:
        """Return a session that has not joined yet, and its connection."""
        line = FakeLine()
        hub: Any = (lambda room: self.hub) if kind is JsonSession else self.hub
        who = {"id": name, "target": target, "address": "192.0.2.1", "token_lifetime": token_lifetime, **options}
        return kind(hub, self.config, self.clock, line, **who), line

    def turn(self) -> list[tuple[str, str]]:
        """End this turn of the reactor; return the room and text of each published message."""
        before = len(self.bus.published)
        self.clock.advance(0)
        self.bus.pump()
        self.clock.advance(0)
        return [(room, message.text) for room, messages in self.bus.published[before:] for message in messages]

    def bus_goes(self, why: str = "it is gone") -> None:
        self.bus.away = why
        self.hub.bus_changed()

    def bus_fills(self) -> None:
        self.bus.full = True

    def bus_comes_back(self) -> None:
        self.bus.away, self.bus.full = "", False
        self.hub.bus_changed()


def lines(line: FakeLine) -> list[str]:
    """Return the lines that were written to a client since the last call."""
    data, line.blobs = b"".join(line.blobs), []
    return [payload.decode() for _, payload in frames(data)]


def events(line: FakeLine) -> list[dict[str, Any]]:
    """Return the events that were written to a JSON client since the last call."""
    return [json.loads(text) for text in lines(line)]
