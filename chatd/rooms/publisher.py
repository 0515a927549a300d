"""Publishing on this worker: messages are logged and handed to the bus, a batch at a time.

It promises:

* A message is in the chat log before it is published, and on the disk with a ``Sync``. If it cannot be logged, its
  sender is told and nobody receives it.
* The messages between two flushes are logged in one write and published in one batch per room.
* While another process holds the lock of the chat log, messages are kept in order. They count in the window, so senders
  are held back. A timer tries again; nothing else waits.
* A sender that may not publish now is called when it may.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.access.token_bucket import SlowedClients
from chatd.broker.bus import Bus
from chatd.broker.publish_queue import NotPublished, NotSynced, PublishResult
from chatd.chatlog.line import LogEntry
from chatd.chatlog.writer import LogBusy, Sync, log_entries, log_outcome
from chatd.config.settings import Config
from chatd.monitoring.metrics import RECEIVED_BYTES, RECEIVED_MESSAGES, REFUSED_MESSAGES
from chatd.protocol.close_codes import LOG_AWAY, OUR_FAULT, CloseCode
from chatd.protocol.message import Message, StreamPosition

log = Logger()


class Author(Protocol):
    """What is asked of who says something."""

    id: str
    """Its connection: unique among all that ever were."""
    author: str
    """Who it is to those who hear it: its connection, or its first one with the same resume key."""
    nick: str
    """Its name; empty where it has none."""
    address: str

    @property
    def subject(self) -> str:
        """Who its token says it is; empty where it has none."""

    def carry_on(self) -> None:
        """Publish what was held back: messages are taken again."""

    def bus_away(self) -> None:
        """Learn, while holding messages back, that the bus is away."""

    def not_sent(self, close_code: CloseCode) -> None:
        """Learn that something it said was not published, and why; a client that can't be told is hung up on."""


class Receipt(Protocol):
    """Who wants to know what becomes of each message."""

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        """Learn where it stands; a duplicate was published before, by its author under the same id."""

    def refused(self, message: Message, close_code: CloseCode) -> None:
        """Learn that it was not published, and why."""


class Pacer:
    """Runs a function at the end of the reactor turn in which it was requested, but at most once per interval.

    So what one turn brings is handled together. Under load batches get larger, queues do not get longer.
    """

    def __init__(self, clock: Any, interval: float, work: Callable[[], None]) -> None:
        """``interval`` is the least number of seconds from the end of one run to the next."""
        self._clock = clock
        self._interval = interval
        self._work = work
        self._due = 0.0
        self._timer: Any = None

    def request(self) -> None:
        """Run the function at the end of this turn, or when the interval is over."""
        if self._timer is None:
            wait = self._due - self._clock.seconds()
            self._timer = self._clock.callLater(max(0.0, wait), self.run)

    @property
    def due(self) -> bool:
        """Return whether a run is requested and the interval is over."""
        return self._timer is not None and self._clock.seconds() >= self._due

    def run(self) -> None:
        """Run the function now, in place of a requested run."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._due = self._clock.seconds() + self._interval  # the function itself may request a run
        try:
            self._work()
        finally:
            self._due = self._clock.seconds() + self._interval


class _Taken(NamedTuple):
    """What one author said at once."""

    author: Author
    entry: LogEntry
    weight: int
    receipt: Receipt | None
    id: str
    """By which it is known should it be published again; empty: not at all."""


def _count(taken: Sequence[_Taken]) -> int:
    return sum(len(each.entry.messages) for each in taken)


def _ids(taken: Sequence[_Taken]) -> dict[int, str]:
    """Return the ids of messages that have one, by their number among all of them."""
    ids: dict[int, str] = {}
    number = 0
    for each in taken:
        if each.id:
            ids[number] = each.id
        number += len(each.entry.messages)
    return ids


def _parts(taken: Sequence[_Taken], most: int) -> Iterator[Sequence[_Taken]]:
    """Split it into what makes a batch each: the bus splits nothing. What one author said at once stays together."""
    start, weight = 0, 0
    for place, each in enumerate(taken):
        if start < place and weight + each.weight > most:
            yield taken[start:place]
            start, weight = place, 0
        weight += each.weight
    yield taken[start:]


class Publisher:
    """Everything that was said on this worker and is not with the bus yet."""

    def __init__(
        self,
        bus: Bus,
        chat: Logger,
        config: Config,
        clock: Any,
        now: Callable[[], float],
        *,
        sync: Sync | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Take the bus, the Logger of the chat log, the reactor, and the time of day in seconds since 1970.

        With a sync nothing is published before it is on the disk. Numbers make the ids of messages: several intakes
        share them, for a client may talk to more than one.
        """
        self._bus = bus
        self._queues = bus.queues
        self._chat = chat
        self._sync = sync
        self._clock = clock
        self._now = now
        self._most = config.batch_bytes
        self._overhead = config.message_overhead_bytes
        self._taken: list[_Taken] = []
        self._taken_weight = 0
        self._flushes = Pacer(clock, config.flush_interval / 1000, self._flush)
        self._retry_seconds = config.log_retry_seconds
        self._retry: Any = None  # the timer that tries again, while another process holds the chat log's lock
        self._outcomes: deque[tuple[Sequence[LogEntry], str, int]] = (
            deque()
        )  # kept meanwhile; of what was in the window
        self._logged: list[Deferred[None]] = []
        self._waiting: dict[str, Author] = {}
        self.left = SlowedClients(config.left_bytes)
        """Those of them who are gone, and what they left behind."""
        self._change: Any = None  # the call that lets them carry on
        self._holding = False
        self._numbers = numbers if numbers is not None else count(1)
        self.taken = 0
        """How many messages were taken, ever."""
        self._counted = 0

    @property
    def open(self) -> bool:
        """Whether ``publish`` may be called; an author that would and may not calls ``wait``."""
        return not self._holding and self._queues.open and self._taken_weight < self._queues.space

    @property
    def away(self) -> str:
        """Why nothing can be published for now, where it is for more than a full window or a start; else empty."""
        return "" if self._bus.starting else self._bus.away

    def publish(
        self,
        room: str,
        author: Author,
        texts: Sequence[str],
        *,
        action: bool = False,
        given: str = "",
        among: str = "",
        receipt: Receipt | None = None,
    ) -> None:
        """Take messages, log and publish them at the next flush; a failure reaches the receipt, or the author.

        Given is the id that the author gave to the one message that it says: once published it is not published again.
        Among says whose ids these are, where several have one author.
        """
        id, name, time = author.id, author.author, int(self._now() * 1000)
        nick, subject = author.nick, author.subject
        self.taken += len(texts)
        messages = [  # texts come first: no number is taken for nothing
            Message(f"{id}.{number}", time, name, text, nick, action, given, subject)
            for text, number in zip(texts, self._numbers, strict=False)
        ]
        weight = self._queues.weight(messages)
        known = f"{among} {given}" if among and given else given
        self._taken.append(_Taken(author, LogEntry(room, author.address, messages), weight, receipt, known))
        self._taken_weight += weight
        self._flushes.request()

    def wait(self, author: Author) -> None:
        """Call ``author.carry_on`` once messages are taken again."""
        self._waiting[author.id] = author

    @property
    def waiting(self) -> int:
        """How many authors wait."""
        return len(self._waiting)

    def stop_waiting(self, author: Author) -> None:
        """Do not call it any more."""
        self._waiting.pop(author.id, None)

    def hold(self) -> None:
        """Take no more messages, for good: the worker stops."""
        self._holding = True

    def flush(self) -> None:
        """Log and publish at once what was taken, or keep it while another process holds the chat log's lock."""
        self._flushes.run()

    def logged(self) -> "Deferred[None] | None":
        """Fire once all that is kept is logged and handed to the bus, or refused. Return None if nothing is kept."""
        if self._retry is None:
            return None
        self._logged.append(Deferred())
        return self._logged[-1]

    def flushed(self) -> "Deferred[None]":
        """Flush; fire once all that was taken is published, or refused."""
        self.flush()
        return (self.logged() or succeed(None)).addCallback(lambda _: self._queues.flushed())

    def flush_due(self) -> None:
        """Do so if it need not wait any more."""
        if self._flushes.due:
            self.flush()

    def bus_changed(self) -> None:
        """Let those who wait carry on, or tell them that the bus is away."""
        if self.open:
            for author in list(self._waiting.values()):
                if not self.open:  # those before it filled the window, or have to wait once more: behind it
                    break
                if self._waiting.pop(author.id, None) is not None:
                    with log.failuresHandled("{author} did not carry on", author=author.id):
                        author.carry_on()
        elif self.away:
            for author in list(self._waiting.values()):
                with log.failuresHandled("{author} was not told that the bus is away", author=author.id):
                    author.bus_away()

    def _flush(self) -> None:
        self._try(self._log_all)

    def _try(self, write: Callable[[], None]) -> None:
        """Write to the chat log; what can't be written while another process holds its lock is kept for later."""
        if self._retry is None:
            try:
                write()
            except LogBusy:
                self._retry = self._clock.callLater(self._retry_seconds, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()
        if self._retry is None:
            logged, self._logged = self._logged, []
            for waiter in logged:
                waiter.callback(None)

    def _log_all(self) -> None:
        self._log_outcomes()
        self._log_taken()

    def _log_taken(self) -> None:
        """Log what was taken, and publish it or refuse it. Raise LogBusy if all of it is kept."""
        taken = self._taken
        refused: CloseCode | None = None
        if taken:
            try:
                log_entries(self._chat, [each.entry for each in taken])
            except LogBusy:
                raise
            except OSError:  # said by the chat log itself, once
                refused = LOG_AWAY
            except Exception:  # noqa: BLE001 - their authors are told
                log.failure("messages could not be logged, they are refused")
                refused = OUR_FAULT
        weight, self._taken, self._taken_weight = self._taken_weight, [], 0
        if self._waiting and self._change is None:  # there was no room for more; now there may be
            self._change = self._clock.callLater(0, self._carry_on)
        if taken:
            self._count(weight)
            if refused is not None:
                REFUSED_MESSAGES["chat_log" if refused is LOG_AWAY else "refused"].value += _count(taken)
                self._tell_refused(taken, refused)
            else:
                self._publish(taken)

    def _carry_on(self) -> None:
        self._change = None
        self.bus_changed()

    def _publish(self, taken: Sequence[_Taken]) -> None:
        ticket = self._sync.request() if self._sync is not None else 0
        rooms: dict[str, list[_Taken]] = {}
        for each in taken:
            rooms.setdefault(each.entry.room, []).append(each)
        for name, share in rooms.items():
            for part in _parts(share, self._most):
                messages = [message for each in part for message in each.entry.messages]
                weight = sum([each.weight for each in part])
                maybeDeferred(self._queues.publish, name, messages, _ids(part), ticket, weight).addCallbacks(
                    self._published, self._not_published, callbackArgs=(part,), errbackArgs=(part,)
                ).addErrback(lambda failure: log.failure("what became of a batch was not told", failure))

    def _count(self, weight: int) -> None:
        """Count what was taken since the last time, which has that weight."""
        count, self._counted = self.taken - self._counted, self.taken
        RECEIVED_MESSAGES.value += count
        RECEIVED_BYTES.value += weight - count * self._overhead

    def _published(self, published: PublishResult, taken: Sequence[_Taken]) -> None:
        """Tell those who want to know."""
        if not any(each.receipt for each in taken):  # nearly always
            return
        number, offset = 0, published.first.offset
        for each in taken:
            for message in each.entry.messages:
                before = published.duplicates.get(number)
                position = before or StreamPosition(published.first.epoch, offset)
                number, offset = number + 1, offset + (before is None)
                if before is not None:
                    self._log_outcome([replace(each.entry, messages=[message])], "duplicate")
                if each.receipt is not None:
                    with log.failuresHandled("{author} was not told what it published", author=each.author.id):
                        each.receipt.published(message, position, duplicate=before is not None)

    def _not_published(self, failure: Failure, taken: Sequence[_Taken]) -> None:
        error = failure.value
        unknown = isinstance(error, NotPublished) and error.unknown
        if not isinstance(error, NotPublished):
            log.failure("a batch was not published", failure)
        outcome = "unknown" if unknown else "refused"
        REFUSED_MESSAGES["chat_log" if isinstance(error, NotSynced) else outcome].value += _count(taken)
        self._log_outcome([each.entry for each in taken], outcome)
        self._tell_refused(taken, LOG_AWAY if isinstance(error, NotSynced) else OUR_FAULT)

    def _log_outcome(self, entries: Sequence[LogEntry], outcome: str) -> None:
        self._outcomes.append((entries, outcome, int(self._now() * 1000)))
        self._try(self._log_outcomes)

    def _log_outcomes(self) -> None:
        """Log what became of entries that were logged before. Raise LogBusy if some of it is kept."""
        while self._outcomes:
            entries, outcome, now = self._outcomes[0]
            try:
                log_outcome(self._chat, entries, outcome, now)
            except LogBusy:
                raise
            except OSError:  # said by the chat log itself
                count = sum(len(entry.messages) for entry in entries)
                log.error("{count} messages in the chat log were not published", count=count)
            except Exception:  # noqa: BLE001 - what comes next is logged all the same
                log.failure("the chat log does not say that messages in it were not published")
            self._outcomes.popleft()

    def _tell_refused(self, taken: Sequence[_Taken], close_code: CloseCode) -> None:
        for each in taken:
            if each.receipt is not None:
                for message in each.entry.messages:
                    with log.failuresHandled("{author} was not told what was refused", author=each.author.id):
                        each.receipt.refused(message, close_code)
        for author in {each.author.id: each.author for each in taken if each.receipt is None}.values():
            with log.failuresHandled("{author} was not told what was refused", author=author.id):
                author.not_sent(close_code)
