"""The way out to the broker: batches on the wire, those whose answer got lost, and the window that bounds both.

Each room has one batch on the wire at a time; what comes meanwhile makes the next one. So load makes batches
bigger, and nothing that has to be sent again can be overtaken. A batch whose answer was lost with the link is
unknown: it is sent again with the same sequence, by which the script and every receiver know it. So is what a
broker that died had answered shortly before: it may have died before it had passed it on.
"""

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, ReplyError, for_now
from chatd.broker.history import history_key
from chatd.broker.script import PUBLISH
from chatd.config.settings import Config
from chatd.monitoring.metrics import BATCH_MESSAGES, BUSES_LIVE
from chatd.protocol.message import Message, StreamPosition, again, encode
from chatd.protocol.text import utf8_size

log = Logger()


class NotPublished(Exception):
    """A batch was refused for good, or its fate is unknown."""

    def __init__(self, why: str, *, unknown: bool = False) -> None:
        """Take the broker's words; unknown where it may have published the batch all the same."""
        super().__init__(why)
        self.unknown = unknown


class WritesRefused(NotPublished):
    """The broker takes no writes now; its text is the broker's."""


class NotSynced(NotPublished):
    """A batch was not published, for nobody knows whether the disk has it."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """Where messages stand that were handed over together."""

    first: StreamPosition
    """Where the first one stands that is new; the others follow."""
    duplicates: Mapping[int, StreamPosition] = field(default_factory=dict)
    """Those that their authors had published before, by their number among all, and where they stand."""


@dataclass(slots=True)
class _Part:
    """What one ``publish`` call handed over."""

    messages: Sequence[Message]
    ids: Mapping[int, str]
    weight: int
    done: "Deferred[PublishResult]"
    ticket: int = 0
    """Which sync of the chat log it waits for; 0: for none."""
    duplicates: dict[int, StreamPosition] = field(default_factory=dict)

    def new(self) -> list[tuple[int, Message]]:
        """Give those that are no duplicates, as far as is known, with their numbers."""
        return [each for each in enumerate(self.messages) if each[0] not in self.duplicates]


@dataclass(slots=True)
class _Batch:
    """What goes over the wire at once. Without parts it is sent once more: who handed it over knows its place."""

    sequence: int
    count: int
    payload: bytes
    parts: list[_Part]
    ids: Sequence[tuple[int, bytes]] = ()
    """The number of each message, from 1, that its author gave an id, and the key of that."""
    new: Sequence[tuple[_Part, int]] = ()
    """The part and the number there of each message; where none has an id they do not matter."""
    repeats: Sequence[tuple[_Part, int, int]] = ()
    """Part and number of each one that is left out, for it has the id of one before it; and the number of that."""
    on_wire: bool = False


@dataclass(slots=True)
class _PublishQueue:
    """What one room has to publish."""

    room: str
    waiting: list[_Part] = field(default_factory=list)
    batches: "deque[_Batch]" = field(default_factory=deque)
    """Those without an answer, oldest first; only the first is on the wire."""


class PublishQueues:
    """Everything this worker has to publish, by room."""

    def __init__(
        self,
        config: Config,
        publisher: str,
        channel: Callable[[str], bytes],
        *,
        now: Callable[[], float],
        answered: Callable[[], None],
        refused: Callable[[str], None],
        window_changed: Callable[[], None],
    ) -> None:
        """Take this worker's unique name, a room's channel, the time in seconds, and whom to tell what changed."""
        self._config = config
        self._publisher = publisher
        self._channel = channel
        self._now = now
        self._answered_something = answered
        self._refused = refused
        self._window_changed = window_changed
        self._protocol: Any = None
        self._run = b""
        self._sequence = 0
        self._publish_queues: dict[str, _PublishQueue] = {}
        self._in_flight = 0
        self._waiters: list[Deferred[None]] = []
        self._answered: deque[tuple[float, str, _Batch]] = deque()
        self._answered_bytes = 0
        self._abandoned = False
        self._synced = 0
        self.full = False
        """Whether the window is; once it was, it is until half of it is free."""
        self.live = False
        """Whether what comes is sent at once; else it waits for ``send_all``."""

    # The window

    @property
    def space(self) -> int:
        """How much more may be in flight, in bytes."""
        return self._config.window_bytes - self._in_flight

    def weight(self, messages: Sequence[Message]) -> int:
        """Give what messages take of the window, in bytes."""
        texts = sum([utf8_size(each.text) for each in messages])
        return texts + len(messages) * self._config.message_overhead_bytes

    def _weigh(self) -> None:
        window = self._config.window_bytes
        full = self._in_flight > window // 2 if self.full else self._in_flight >= window
        if full != self.full:
            self.full = full
            self._window_changed()

    # What goes in

    def publish(
        self, room: str, messages: Sequence[Message], ids: Mapping[int, str], ticket: int = 0
    ) -> "Deferred[PublishResult]":
        """Publish after all that was handed over before, and that sync of the chat log; fails with NotPublished."""
        if self._abandoned:
            return fail(NotPublished("the server stopped"))
        part = _Part(messages, ids, self.weight(messages), Deferred(), ticket)
        publish_queue = self._publish_queues.get(room)
        if publish_queue is None:
            publish_queue = self._publish_queues[room] = _PublishQueue(room)
        publish_queue.waiting.append(part)
        self._in_flight += part.weight
        if self.live:
            self._send(publish_queue)
        self._weigh()
        return part.done

    def said(self, room: str) -> "Deferred[None] | None":
        """Fire once all that was handed over for a room up to now is published, or never will be; None: it is."""
        publish_queue = self._publish_queues.get(room)
        parts = publish_queue and (
            publish_queue.waiting or [part for batch in publish_queue.batches for part in batch.parts]
        )
        if not parts:
            return None
        said: Deferred[None] = Deferred()

        def over(result: object) -> object:
            said.callback(None)
            return result

        parts[-1].done.addBoth(over)
        return said

    @property
    def unanswered(self) -> bool:
        """Whether a batch was sent that has no answer yet, or was refused for now."""
        return any(publish_queue.batches for publish_queue in self._publish_queues.values())

    def flushed(self) -> "Deferred[None]":
        """Fire once nothing is in flight."""
        done: Deferred[None] = Deferred()
        self._waiters.append(done)
        self._look_whether_flushed()
        return done

    def synced(self, ticket: int) -> None:
        """Publish what waited for a sync of the chat log up to that one."""
        self._synced = ticket
        if self.live:
            self.send_all()

    def not_synced(self, ticket: int, why: str) -> None:
        """Give up what waits for a sync up to that one."""
        for publish_queue in list(self._publish_queues.values()):
            lost: list[_Part] = []
            kept: list[_Part] = []
            for part in publish_queue.waiting:
                (lost if self._synced < part.ticket <= ticket else kept).append(part)
            if lost:
                publish_queue.waiting = kept
                self._refuse(publish_queue, lost, NotSynced(why))
        self._synced = ticket

    def abandon(self, why: str) -> None:
        """Give up: what waits fails, what was sent fails as unknown."""
        self._abandoned = True
        self._be_live(False)
        publish_queues, self._publish_queues = self._publish_queues, {}
        for publish_queue in publish_queues.values():
            for part in [part for batch in publish_queue.batches for part in batch.parts]:
                part.done.errback(NotPublished(why, unknown=True))
            for part in publish_queue.waiting:
                part.done.errback(NotPublished(why))
        self._look_whether_flushed()

    # The broker's side

    def connected(self, protocol: Any, run: bytes) -> None:
        """Publish through a new connection, which knows the script, to this run of the broker."""
        self._protocol = protocol
        if self._run not in (b"", run):
            self._publish_again()
        self._run = run

    def lost(self) -> None:
        """Hold back what comes: nothing can be published now."""
        self._be_live(False)
        self._forget_answered()

    def go_live(self) -> None:
        """Send what was held back, and from now on what comes."""
        self._be_live(True)
        self.send_all()

    def _be_live(self, live: bool) -> None:
        BUSES_LIVE.value += live - self.live
        self.live = live

    def _publish_again(self) -> None:
        """Put what another run of the broker answered last before what it did not answer."""
        while self._answered:
            _, room, batch = self._answered.pop()
            self._publish_queues.setdefault(room, _PublishQueue(room)).batches.appendleft(batch)
        self._answered_bytes = 0

    def _remember(self, room: str, batch: _Batch, first: StreamPosition) -> None:
        payload = again(batch.payload, first)
        self._answered.append((self._now(), room, _Batch(batch.sequence, batch.count, payload, [])))
        self._answered_bytes += len(payload)
        self._forget_answered()

    def _forget_answered(self) -> None:
        """Keep what was answered just now, and no more of it than the window holds."""
        oldest, most = self._now() - self._config.answered_seconds, self._config.window_bytes
        while self._answered and (self._answered[0][0] < oldest or self._answered_bytes > most):
            self._answered_bytes -= len(self._answered.popleft()[2].payload)

    def send_all(self) -> None:
        """Send what waits, and again what has no answer and is not on the wire."""
        for publish_queue in list(self._publish_queues.values()):
            with log.failuresHandled("messages for room {room} were not sent", room=publish_queue.room):
                self._send(publish_queue)

    def _send(self, publish_queue: _PublishQueue) -> None:
        if not publish_queue.batches:
            if not (parts := self._next_parts(publish_queue)):
                return
            self._sequence += 1
            batch = _Batch(self._sequence, 0, b"", parts)
            try:
                self._fill(batch, publish_queue.room)
            except Exception:  # noqa: BLE001 - the next batch of the room may do
                log.failure("messages for room {room} could not be encoded", room=publish_queue.room)
                self._refuse(publish_queue, parts, NotPublished("an error on our side"))
                return
            publish_queue.batches.append(batch)
        batch = publish_queue.batches[0]
        if batch.on_wire or not self._protocol.connected:
            return
        batch.on_wire = True
        config = self._config
        arguments: list[Any] = [
            *history_key(config.redis_prefix, publish_queue.room),
            self._publisher,
            batch.sequence,
            batch.count,
            batch.payload,
            self._run,
            secrets.token_hex(4),
            config.room_seconds,
            config.republish_memory_seconds,
            config.history if config.keeps_history else 0,
            config.history_seconds,
            config.recent_seconds,
            config.recent_bytes,
        ]
        for each in batch.ids:
            arguments += each
        sent = f"{config.redis_prefix}:sent:{self._publisher}:{publish_queue.room}".encode()
        maybeDeferred(PUBLISH.run, self._protocol, [self._channel(publish_queue.room), sent], arguments).addCallbacks(
            self._published, self._failed, callbackArgs=(publish_queue, batch), errbackArgs=(publish_queue, batch)
        ).addErrback(lambda failure: log.failure("an answer of the broker was not handled", failure))

    def _fill(self, batch: _Batch, room: str) -> None:
        """Put the messages of its parts into a batch."""
        if any(part.ids for part in batch.parts):
            messages = self._with_ids(batch, f"{self._config.redis_prefix}:id:{room} ")
        else:  # nearly always
            messages = [message for part in batch.parts for message in part.messages]
        batch.count, batch.payload = len(messages), encode(messages)

    def _with_ids(self, batch: _Batch, prefix: str) -> list[Message]:
        """Give the messages that are new, and remember their ids; no room or session holds a space."""
        messages: list[Message] = []
        ids: dict[bytes, int] = {}
        new, repeats = [], []
        for part in batch.parts:
            for number, message in part.new():
                if number in part.ids:
                    key = f"{prefix}{message.session} {part.ids[number]}".encode()
                    if key in ids:
                        repeats.append((part, number, ids[key]))
                        continue
                    ids[key] = len(messages) + 1
                messages.append(message)
                new.append((part, number))
        batch.new, batch.repeats, batch.ids = new, repeats, [(at, key) for key, at in ids.items()]
        return messages

    def _next_parts(self, publish_queue: _PublishQueue) -> list[_Part]:
        """Take what waits, up to the size of a batch; what was handed over at once stays together."""
        count, weight = 0, 0
        for part in publish_queue.waiting:
            weight += part.weight
            if part.ticket > self._synced or (count and weight > self._config.batch_bytes):
                break
            count += 1
        parts, publish_queue.waiting = publish_queue.waiting[:count], publish_queue.waiting[count:]
        return parts

    def _published(self, reply: list[Any], publish_queue: _PublishQueue, batch: _Batch) -> None:
        if self._abandoned:
            return
        if reply[0] is None:
            batch.on_wire = False
            self._leave_out(batch, publish_queue, reply[1:])
            return
        epoch, first = reply[0].decode(), int(reply[1])
        BATCH_MESSAGES.observe(batch.count)
        self._remember(publish_queue.room, batch, StreamPosition(epoch, first))
        self._done(publish_queue, batch, epoch, first)

    def _leave_out(self, batch: _Batch, publish_queue: _PublishQueue, duplicates: list[Any]) -> None:
        """Leave out what its authors have published before, and publish the rest."""
        for at, before in duplicates:
            part, number = batch.new[int(at) - 1]
            epoch, _, offset = before.decode().partition(" ")
            part.duplicates[number] = StreamPosition(epoch, int(offset))
        self._fill(batch, publish_queue.room)
        if batch.count:
            self._send(publish_queue)
        else:
            self._done(publish_queue, batch, "", 0)

    def _done(self, publish_queue: _PublishQueue, batch: _Batch, epoch: str, first: int) -> None:
        publish_queue.batches.remove(batch)
        self._struck_off(publish_queue, batch.parts)
        for part, number, at in batch.repeats:
            part.duplicates[number] = StreamPosition(epoch, first + at - 1)
        for part in batch.parts:
            part.done.callback(PublishResult(StreamPosition(epoch, first), part.duplicates))
            first += len(part.messages) - len(part.duplicates)
        self._answered_something()
        self._weigh()
        self._look_whether_flushed()

    def _failed(self, failure: Failure, publish_queue: _PublishQueue, batch: _Batch) -> None:
        batch.on_wire = False
        if self._abandoned or failure.check(LinkLost):
            return  # sent again when the link is back
        why = failure.getErrorMessage().strip()
        if why.startswith("NOSCRIPT"):
            PUBLISH.load(self._protocol).addCallbacks(lambda _: self._send(publish_queue), self._not_loaded)
        elif for_now(failure):
            self._refused(why)
        else:
            if not failure.check(ReplyError):
                log.failure("a publish failed", failure)
            log.error("the broker refused messages for room {room}: {why}", room=publish_queue.room, why=why)
            publish_queue.batches.remove(batch)
            self._refuse(publish_queue, batch.parts, NotPublished(why))
            self._answered_something()

    def _refuse(self, publish_queue: _PublishQueue, parts: Sequence[_Part], why: NotPublished) -> None:
        """Fail what is in the outbox no more."""
        self._struck_off(publish_queue, parts)
        for part in parts:
            part.done.errback(why)
        self._weigh()
        self._look_whether_flushed()

    def _not_loaded(self, failure: Failure) -> None:
        if not failure.check(LinkLost):
            self._refused(failure.getErrorMessage())

    def _struck_off(self, publish_queue: _PublishQueue, parts: Sequence[_Part]) -> None:
        """Count what is in the outbox no more, send the room's next."""
        self._in_flight -= sum(part.weight for part in parts)
        if not publish_queue.waiting and not publish_queue.batches:
            self._publish_queues.pop(publish_queue.room, None)
        elif self.live:
            self._send(publish_queue)

    def _look_whether_flushed(self) -> None:
        if not self._publish_queues:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)
