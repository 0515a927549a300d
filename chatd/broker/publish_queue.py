"""The queue of messages that this worker hands to the broker: one batch for each room, within a bounded window.

It promises:

* Messages are published once, in the order of the ``publish`` calls, or the Deferred fails with NotPublished.
* At most ``unconfirmed_publish_bytes`` are in flight: do not call ``publish`` while ``open`` is False.
* Each room has one batch on the wire at a time. Later messages form the next batch: load makes batches bigger, and
  no batch overtakes another.
* A batch whose answer was lost is sent again with its sequence number, by which the script and every receiver know it.
  So are the batches that a broker answered shortly before it died: subscribers may not have received them.
"""

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, ReplyError, for_now
from chatd.broker.history import history_key
from chatd.broker.queries import PUBLISH
from chatd.config.settings import Config
from chatd.monitoring.metrics import BATCH_MESSAGES, BUSES_LIVE
from chatd.protocol.message import Message, StreamPosition, again, encode
from chatd.protocol.text import utf8_size
from chatd.runtime.waiters import Waiters

log = Logger()

_NO_IDS: Mapping[int, str] = {}


class NotPublished(Exception):
    """A batch was not published, or nobody knows whether it was."""

    def __init__(self, why: str, *, unknown: bool = False) -> None:
        """Store the reason. ``unknown``: the broker may have published the batch."""
        super().__init__(why)
        self.unknown = unknown


class WritesRefused(NotPublished):
    """The broker refuses writes for now; the text is the broker's."""


class NotSynced(NotPublished):
    """A batch was not published, because the chat log could not be synced to the disk."""


class PublishResult(Struct, frozen=True):
    """The stream positions of messages that were published together."""

    first: StreamPosition
    """The position of the first new message; the others follow it."""
    duplicates: Mapping[int, StreamPosition] = {}
    """The positions of messages that their senders had published before, by their index."""


class _Part(Struct, eq=False):
    """The messages of one ``publish`` call."""

    messages: Sequence[Message]
    ids: Mapping[int, str]
    weight: int
    done: "Deferred[PublishResult]"
    ticket: int = 0
    """The sync of the chat log that it waits for; 0: none."""
    duplicates: dict[int, StreamPosition] = {}


class _Batch(Struct, eq=False):
    """The messages of one call of the script. A batch that is published again has no parts."""

    sequence: int
    count: int
    payload: bytes
    parts: Sequence[_Part]
    ids: Sequence[tuple[int, bytes]] = ()
    """The number of each message, from 1, that has an id of its sender, and the key of that id."""
    new: Sequence[tuple[_Part, int]] = ()
    """The part and the index there of each message; empty if no message has an id."""
    repeats: Sequence[tuple[_Part, int, int]] = ()
    """Part and index of each message that is left out because an earlier one has its id; and the number of that one."""
    on_wire: bool = False


class _PublishQueue(Struct, eq=False):
    """The messages of one room that are not published yet."""

    room: str
    waiting: list[_Part] = []
    batches: deque[_Batch] = field(default_factory=deque)
    """Batches without an answer, oldest first; only the first is on the wire."""


class PublishQueues:
    """The messages of this worker that are not published yet."""

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
        """Prepare for a worker with this unique name.

        ``channel`` returns the key of a room, ``now`` the time in seconds. The others are called when the broker has
        answered, when it refuses writes for now, and when ``full`` has changed.
        """
        self._config = config
        self._publisher = publisher
        self._channel = channel
        self._now = now
        self._answered_something = answered
        self._refused = refused
        self._window_changed = window_changed
        self._bounds = (
            config.room_seconds,
            config.batch_id_ttl,
            config.history_size if config.keeps_history else 0,
            config.history_seconds,
            config.recent_history_time,
            config.recent_history_bytes,
        )
        self._protocol: Any = None
        self._run = b""
        self._epoch = ""  # with a sequence number it is an epoch that no room has had
        self._sequence = 0
        self._publish_queues: dict[str, _PublishQueue] = {}
        self._in_flight = 0
        self._flushed = Waiters()
        self._answered: deque[tuple[float, str, _Batch, StreamPosition]] = deque()
        self._answered_bytes = 0
        self._abandoned = False
        self._synced = 0
        self.full = False
        """Whether the window is full; then it is until half of it is free."""
        self.live = False
        """Whether messages are sent at once; else they wait for ``send_all``."""

    # The window

    @property
    def open(self) -> bool:
        """Return whether ``publish`` may be called."""
        return self.live and not self.full

    @property
    def space(self) -> int:
        """Return how many more bytes may be in flight."""
        return self._config.unconfirmed_publish_bytes - self._in_flight

    def weight(self, messages: Sequence[Message]) -> int:
        """Return how many bytes of the window messages take."""
        texts = sum([utf8_size(message.text) for message in messages])
        return texts + len(messages) * self._config.message_overhead_bytes

    def _update_full(self) -> None:
        window = self._config.unconfirmed_publish_bytes
        full = self._in_flight > window // 2 if self.full else self._in_flight >= window
        if full != self.full:
            self.full = full
            self._window_changed()

    # Publishing

    def publish(
        self,
        room: str,
        messages: Sequence[Message],
        ids: Mapping[int, str] = _NO_IDS,
        ticket: int = 0,
        weight: int | None = None,
    ) -> "Deferred[PublishResult]":
        """Publish messages of a room. Return a Deferred that fires when they have offsets or fails with NotPublished.

        They may be delivered before that. ``ids`` are the ids that senders gave to messages, by index. A message whose
        sender has published the same id within ``batch_id_ttl`` is not published again. ``ticket`` is the
        sync of the chat log to wait for. ``weight`` is what the method of that name returned.
        """
        if self._abandoned:
            return fail(NotPublished("the server stopped"))
        part = _Part(messages, ids, self.weight(messages) if weight is None else weight, Deferred(), ticket)
        publish_queue = self._publish_queues.get(room)
        if publish_queue is None:
            publish_queue = self._publish_queues[room] = _PublishQueue(room)
        publish_queue.waiting.append(part)
        self._in_flight += part.weight
        if self.live:
            self._send(publish_queue)
        self._update_full()
        return part.done

    def published(self, room: str) -> "Deferred[None] | None":
        """Return a Deferred that fires when nothing of a room's messages so far is in flight, or None if nothing is."""
        publish_queue = self._publish_queues.get(room)
        parts = publish_queue and (
            publish_queue.waiting or [part for batch in publish_queue.batches for part in batch.parts]
        )
        if not parts:
            return None
        published: Deferred[None] = Deferred()

        def fire(result: object) -> object:
            published.callback(None)
            return result

        parts[-1].done.addBoth(fire)
        return published

    @property
    def unanswered(self) -> bool:
        """Return whether a batch has no answer yet, or was refused for now."""
        return any(publish_queue.batches for publish_queue in self._publish_queues.values())

    def flushed(self) -> "Deferred[None]":
        """Return a Deferred that fires when nothing is in flight."""
        flushed = self._flushed.wait()
        self._fire_if_flushed()
        return flushed

    def synced(self, ticket: int) -> None:
        """Publish what waited for the syncs up to this one."""
        self._synced = ticket
        if self.live:
            self.send_all()

    def sync_failed(self, ticket: int, why: str) -> None:
        """Fail what waits for the syncs up to this one with NotSynced."""
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
        """Fail everything: what was sent may have been published."""
        self._abandoned = True
        self._set_live(False)
        publish_queues, self._publish_queues = self._publish_queues, {}
        for publish_queue in publish_queues.values():
            for part in [part for batch in publish_queue.batches for part in batch.parts]:
                part.done.errback(NotPublished(why, unknown=True))
            for part in publish_queue.waiting:
                part.done.errback(NotPublished(why))
        self._fire_if_flushed()

    # Connection

    def connected(self, protocol: Any, run: bytes) -> None:
        """Use a new connection, on which the script is loaded, to this run of the broker."""
        self._protocol = protocol
        self._epoch = secrets.token_hex(4)
        if self._run not in (b"", run):
            self._publish_again()
        self._run = run

    def lost(self) -> None:
        """Hold messages back: nothing can be published now."""
        self._set_live(False)
        self._forget_answered()

    def go_live(self) -> None:
        """Send what was held back, and further messages at once."""
        self._set_live(True)
        self.send_all()

    def _set_live(self, live: bool) -> None:
        BUSES_LIVE.value += live - self.live
        self.live = live

    def _publish_again(self) -> None:
        """Queue the newest batches that another run of the broker answered, before those that it did not answer."""
        while self._answered:
            _, room, batch, first = self._answered.pop()
            batch.payload = again(batch.payload, first)
            self._publish_queues.setdefault(room, _PublishQueue(room)).batches.appendleft(batch)
        self._answered_bytes = 0

    def _forget_answered(self) -> None:
        """Keep the batches that were answered within ``republish_window``, within the size of the window."""
        oldest, most = self._now() - self._config.republish_window, self._config.unconfirmed_publish_bytes
        while self._answered and (self._answered[0][0] < oldest or self._answered_bytes > most):
            self._answered_bytes -= len(self._answered.popleft()[2].payload)

    def send_all(self) -> None:
        """Send what waits, and again what has no answer and is not on the wire."""
        for publish_queue in list(self._publish_queues.values()):
            with log.failuresHandled(
                "sending messages of room {room} to the broker failed",
                room=publish_queue.room,
                event="publish_send_failed",
            ):
                self._send(publish_queue)

    def _send(self, publish_queue: _PublishQueue) -> None:
        if not publish_queue.batches:
            if not (parts := self._take_parts(publish_queue)):
                return
            self._sequence += 1
            batch = _Batch(self._sequence, 0, b"", parts)
            try:
                self._encode(batch, publish_queue.room)
            except Exception:  # noqa: BLE001 - the next batch of the room may do
                log.failure(
                    "encoding messages of room {room} failed", room=publish_queue.room, event="batch_encoding_failed"
                )
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
            f"{self._epoch}{batch.sequence:x}",
            *self._bounds,
        ]
        for id in batch.ids:
            arguments += id
        sent = f"{config.redis_prefix}:sent:{self._publisher}:{publish_queue.room}".encode()
        maybeDeferred(PUBLISH.run, self._protocol, [self._channel(publish_queue.room), sent], arguments).addCallbacks(
            self._received_answer,
            self._failed,
            callbackArgs=(publish_queue, batch),
            errbackArgs=(publish_queue, batch),
        ).addErrback(
            lambda failure: log.failure(
                "handling the broker's answer to a publish failed", failure, event="publish_answer_failed"
            )
        )

    def _encode(self, batch: _Batch, room: str) -> None:
        """Set the payload of a batch from its parts."""
        messages: Sequence[Message] = batch.parts[0].messages
        if [part for part in batch.parts if part.ids]:
            messages = self._without_duplicates(batch, f"{self._config.redis_prefix}:id:{room} ")
        elif len(batch.parts) > 1:
            messages = [message for part in batch.parts for message in part.messages]
        batch.count, batch.payload = len(messages), encode(messages)

    def _without_duplicates(self, batch: _Batch, prefix: str) -> list[Message]:
        """Return the new messages of a batch, and set its ids. No room or session contains a space."""
        messages: list[Message] = []
        ids: dict[bytes, int] = {}
        new, repeats = [], []
        for part in batch.parts:
            for number, message in enumerate(part.messages):
                if number in part.duplicates:
                    continue
                if number in part.ids:
                    key = f"{prefix}{message.session} {part.ids[number]}".encode()
                    if key in ids:
                        repeats.append((part, number, ids[key]))
                        continue
                    ids[key] = len(messages) + 1
                messages.append(message)
                new.append((part, number))
        batch.new, batch.repeats, batch.ids = new, repeats, [(index, key) for key, index in ids.items()]
        return messages

    def _take_parts(self, publish_queue: _PublishQueue) -> list[_Part]:
        """Remove the next parts, up to the size of a batch, from the queue, and return them."""
        count, weight = 0, 0
        for part in publish_queue.waiting:
            weight += part.weight
            if part.ticket > self._synced or (count and weight > self._config.batch_bytes):
                break
            count += 1
        parts, publish_queue.waiting = publish_queue.waiting[:count], publish_queue.waiting[count:]
        return parts

    def _received_answer(self, reply: list[Any], publish_queue: _PublishQueue, batch: _Batch) -> None:
        if self._abandoned:
            return
        if reply[0] is None:
            batch.on_wire = False
            self._drop_duplicates(batch, publish_queue, reply[1:])
            return
        first = StreamPosition(reply[0].decode(), int(reply[1]))
        BATCH_MESSAGES.observe(batch.count)
        self._complete(publish_queue, batch, first)
        batch.parts, batch.ids, batch.new, batch.repeats, batch.on_wire = (), (), (), (), False
        self._answered.append((self._now(), publish_queue.room, batch, first))
        self._answered_bytes += len(batch.payload)
        self._forget_answered()

    def _drop_duplicates(self, batch: _Batch, publish_queue: _PublishQueue, duplicates: list[Any]) -> None:
        """Publish a batch without the messages that their senders have published before."""
        for number_in_batch, before in duplicates:
            part, number = batch.new[int(number_in_batch) - 1]
            epoch, _, offset = before.decode().partition(" ")
            part.duplicates[number] = StreamPosition(epoch, int(offset))
        self._encode(batch, publish_queue.room)
        if batch.count:
            self._send(publish_queue)
        else:
            self._complete(publish_queue, batch, StreamPosition("", 0))

    def _complete(self, publish_queue: _PublishQueue, batch: _Batch, first: StreamPosition) -> None:
        publish_queue.batches.remove(batch)
        self._remove(publish_queue, batch.parts)
        for part, number, original in batch.repeats:
            part.duplicates[number] = StreamPosition(first.epoch, first.offset + original - 1)
        for part in batch.parts:
            part.done.callback(PublishResult(first, part.duplicates))
            first = StreamPosition(first.epoch, first.offset + len(part.messages) - len(part.duplicates))
        self._answered_something()
        self._update_full()
        self._fire_if_flushed()

    def _failed(self, failure: Failure, publish_queue: _PublishQueue, batch: _Batch) -> None:
        batch.on_wire = False
        if self._abandoned or failure.check(LinkLost):
            return  # sent again on the next connection
        why = failure.getErrorMessage().strip()
        if why.startswith("NOSCRIPT"):
            PUBLISH.load(self._protocol).addCallbacks(lambda _: self._send(publish_queue), self._not_loaded)
        elif for_now(failure):
            self._refused(why)
        else:
            if not failure.check(ReplyError):
                log.failure("publishing to the broker failed", failure, event="publish_failed")
            log.error(
                "the broker refused messages of room {room}: {why}",
                room=publish_queue.room,
                why=why,
                event="publish_refused",
            )
            publish_queue.batches.remove(batch)
            self._refuse(publish_queue, batch.parts, NotPublished(why))
            self._answered_something()

    def _refuse(self, publish_queue: _PublishQueue, parts: Sequence[_Part], error: NotPublished) -> None:
        """Fail parts that are no longer queued."""
        self._remove(publish_queue, parts)
        for part in parts:
            part.done.errback(error)
        self._update_full()
        self._fire_if_flushed()

    def _not_loaded(self, failure: Failure) -> None:
        if not failure.check(LinkLost):
            self._refused(failure.getErrorMessage())

    def _remove(self, publish_queue: _PublishQueue, parts: Sequence[_Part]) -> None:
        """Remove parts from the window, and send the room's next batch."""
        self._in_flight -= sum([part.weight for part in parts])
        if not publish_queue.waiting and not publish_queue.batches:
            self._publish_queues.pop(publish_queue.room, None)
        elif self.live:
            self._send(publish_queue)

    def _fire_if_flushed(self) -> None:
        if not self._publish_queues:
            self._flushed.fire()
