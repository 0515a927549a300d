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
from functools import partial
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
from chatd.runtime.waiters import Waiters

log = Logger()


class Sender(Protocol):
    """A client that publishes messages."""

    id: str
    """Its connection id, which is never used again."""
    sender_id: str
    """Its sender id: its connection id, or that of its first connection with the same resume key."""
    nick: str
    """Its nick; empty: none."""
    address: str

    @property
    def subject(self) -> str:
        """Return the subject of its token; empty: none."""

    def resume_publishing(self) -> None:
        """Publish what was held back: messages are accepted again."""

    def bus_away(self) -> None:
        """Handle that the bus is away while messages are held back."""

    def publish_refused(self, close_code: CloseCode) -> None:
        """Handle that a message was not published. A client that cannot be told is closed."""


class Receipt(Protocol):
    """A receiver of the outcome of each message."""

    def published(self, message: Message, position: StreamPosition, *, duplicate: bool) -> None:
        """Handle that a message has a position. A duplicate was published before with the same id."""

    def refused(self, message: Message, close_code: CloseCode) -> None:
        """Handle that a message was not published."""


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


class _Submission(NamedTuple):
    """The messages of one ``publish`` call."""

    sender: Sender
    entry: LogEntry
    weight: int
    receipt: Receipt | None
    id: str
    """The id by which a repeated message is found; empty: none."""


def _count(submissions: Sequence[_Submission]) -> int:
    return sum(len(submission.entry.messages) for submission in submissions)


def _ids(submissions: Sequence[_Submission]) -> dict[int, str]:
    """Return the ids of messages by their index, for those that have one."""
    ids: dict[int, str] = {}
    number = 0
    for submission in submissions:
        if submission.id:
            ids[number] = submission.id
        number += len(submission.entry.messages)
    return ids


def _parts(submissions: Sequence[_Submission], most: int) -> Iterator[Sequence[_Submission]]:
    """Split submissions into batches. The messages of one submission stay together."""
    start, weight = 0, 0
    for index, submission in enumerate(submissions):
        if start < index and weight + submission.weight > most:
            yield submissions[start:index]
            start, weight = index, 0
        weight += submission.weight
    yield submissions[start:]


class Publisher:
    """The messages of this worker that the bus does not have yet."""

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
        """Publish to a bus. ``chat`` is the Logger of the chat log, ``now`` returns seconds since 1970.

        With ``sync`` nothing is published before it is on the disk. Publishers of one worker share the ``numbers`` of
        message ids.
        """
        self._config = config
        self._bus = bus
        self._queues = bus.queues
        self._chat = chat
        self._sync = sync
        self._clock = clock
        self._now = now
        self._pending: list[_Submission] = []
        self._pending_weight = 0
        self._flushes = Pacer(clock, config.flush_interval, partial(self._try, self._log_outcomes, self._log_pending))
        self._retry: Any = None  # the timer that tries again, while another process holds the chat log's lock
        self._outcomes: deque[tuple[Sequence[LogEntry], str, int]] = (
            deque()
        )  # kept meanwhile; of what was in the window
        self._logged = Waiters()
        self._waiting: dict[str, Sender] = {}
        self.departed = SlowedClients(config.disconnected_unpublished_bytes)
        """Waiting senders that have disconnected, and their messages."""
        self._change: Any = None  # the timer that resumes them
        self._holding = False
        self._numbers = numbers if numbers is not None else count(1)
        self.accepted = 0
        """The number of messages accepted so far."""
        self._counted = 0

    @property
    def open(self) -> bool:
        """Return whether ``publish`` may be called. If not, call ``wait``."""
        return not self._holding and self._queues.open and self._pending_weight < self._queues.space

    @property
    def away(self) -> str:
        """Return why nothing can be published, other than a full window or a start; else an empty string."""
        return "" if self._bus.starting else self._bus.away

    def publish(
        self,
        room: str,
        sender: Sender,
        texts: Sequence[str],
        *,
        action: bool = False,
        dedup_id: str = "",
        dedup_scope: str = "",
        receipt: Receipt | None = None,
    ) -> None:
        """Log and publish messages at the next flush. A failure is reported to the receipt, or the sender.

        ``dedup_id`` is the sender's own id of a single message, which is not published twice. ``dedup_scope`` separates
        the ids of several clients with one sender id.
        """
        id, name, time = sender.id, sender.sender_id, int(self._now() * 1000)
        nick, subject = sender.nick, sender.subject
        self.accepted += len(texts)
        messages = [  # texts first: zip must not skip a number
            Message(f"{id}.{number}", time, name, text, nick, action, dedup_id, subject)
            for text, number in zip(texts, self._numbers, strict=False)
        ]
        weight = self._queues.weight(messages)
        known = f"{dedup_scope} {dedup_id}" if dedup_scope and dedup_id else dedup_id
        self._pending.append(_Submission(sender, LogEntry(room, sender.address, messages), weight, receipt, known))
        self._pending_weight += weight
        self._flushes.request()

    def wait(self, sender: Sender) -> None:
        """Call ``sender.resume_publishing`` once messages are accepted again."""
        self._waiting[sender.id] = sender

    @property
    def waiting(self) -> int:
        """Return the number of senders that wait."""
        return len(self._waiting)

    def stop_waiting(self, sender: Sender) -> None:
        """Do not call the sender any more."""
        self._waiting.pop(sender.id, None)

    def hold(self) -> None:
        """Accept no more messages, because the worker stops."""
        self._holding = True

    def flush(self) -> None:
        """Log and publish what is pending now, or keep it while another process holds the lock of the chat log."""
        self._flushes.run()

    def logged(self) -> "Deferred[None] | None":
        """Return a Deferred that fires when kept messages are with the bus or refused, or None if none are kept."""
        return None if self._retry is None else self._logged.wait()

    def flushed(self) -> "Deferred[None]":
        """Flush. Return a Deferred that fires when everything is published or refused."""
        self.flush()
        return (self.logged() or succeed(None)).addCallback(lambda _: self._queues.flushed())

    def flush_due(self) -> None:
        """Flush if the interval is over."""
        if self._flushes.due:
            self.flush()

    def bus_changed(self) -> None:
        """Resume the senders that wait, or tell them that the bus is away."""
        if self.open:
            for sender in list(self._waiting.values()):
                if not self.open:  # earlier ones filled the window
                    break
                if self._waiting.pop(sender.id, None) is not None:
                    with log.failuresHandled(
                        "resuming client {client} failed", client=sender.id, event="sender_resume_failed"
                    ):
                        sender.resume_publishing()
        elif self.away:
            for sender in list(self._waiting.values()):
                with log.failuresHandled(
                    "notifying client {client} of an unavailable broker failed",
                    client=sender.id,
                    event="outage_notice_failed",
                ):
                    sender.bus_away()

    def _try(self, *writes: Callable[[], None]) -> None:
        """Write to the chat log, or later if another process holds its lock."""
        if self._retry is None:
            try:
                for write in writes:
                    write()
            except LogBusy:
                self._retry = self._clock.callLater(self._config.chat_log_lock_retry_delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()
        if self._retry is None:
            self._logged.fire()

    def _log_pending(self) -> None:
        """Log what is pending, and publish or refuse it. Raise LogBusy if it is kept."""
        submissions = self._pending
        refused: CloseCode | None = None
        if submissions:
            try:
                log_entries(self._chat, [submission.entry for submission in submissions])
            except LogBusy:
                raise
            except OSError:  # logged by the chat log
                refused = LOG_AWAY
            except Exception:  # noqa: BLE001 - their senders are told
                log.failure("logging messages failed; they are refused", event="chat_log_append_failed")
                refused = OUR_FAULT
        weight, self._pending, self._pending_weight = self._pending_weight, [], 0
        if self._waiting and self._change is None:  # there may be room now
            self._change = self._clock.callLater(0, self._carry_on)
        if submissions:
            count, self._counted = self.accepted - self._counted, self.accepted
            RECEIVED_MESSAGES.value += count
            RECEIVED_BYTES.value += weight - count * self._config.message_overhead_bytes
            if refused is not None:
                REFUSED_MESSAGES["chat_log" if refused is LOG_AWAY else "refused"].value += _count(submissions)
                self._report_refused(submissions, refused)
            else:
                self._publish(submissions)

    def _carry_on(self) -> None:
        self._change = None
        self.bus_changed()

    def _publish(self, submissions: Sequence[_Submission]) -> None:
        ticket = self._sync.request() if self._sync is not None else 0
        rooms: dict[str, list[_Submission]] = {}
        for submission in submissions:
            rooms.setdefault(submission.entry.room, []).append(submission)
        for name, share in rooms.items():
            for part in _parts(share, self._config.batch_bytes):
                messages = [message for submission in part for message in submission.entry.messages]
                weight = sum([submission.weight for submission in part])
                maybeDeferred(self._queues.publish, name, messages, _ids(part), ticket, weight).addCallbacks(
                    self._published, self._not_published, callbackArgs=(part,), errbackArgs=(part,)
                ).addErrback(
                    lambda failure: log.failure(
                        "handling the result of a batch failed", failure, event="batch_result_failed"
                    )
                )

    def _published(self, published: PublishResult, submissions: Sequence[_Submission]) -> None:
        """Report positions to the receipts."""
        if not [submission for submission in submissions if submission.receipt]:  # nearly always
            return
        number, offset = 0, published.first.offset
        for submission in submissions:
            for message in submission.entry.messages:
                before = published.duplicates.get(number)
                position = before or StreamPosition(published.first.epoch, offset)
                number, offset = number + 1, offset + (before is None)
                if before is not None:
                    self._log_outcome([replace(submission.entry, messages=[message])], "duplicate")
                if submission.receipt is not None:
                    with log.failuresHandled(
                        "confirming messages to client {client} failed",
                        client=submission.sender.id,
                        event="receipt_failed",
                    ):
                        submission.receipt.published(message, position, duplicate=before is not None)

    def _not_published(self, failure: Failure, submissions: Sequence[_Submission]) -> None:
        error = failure.value
        unknown = isinstance(error, NotPublished) and error.unknown
        if not isinstance(error, NotPublished):
            log.failure("publishing a batch failed", failure, event="batch_publish_failed")
        outcome = "unknown" if unknown else "refused"
        REFUSED_MESSAGES["chat_log" if isinstance(error, NotSynced) else outcome].value += _count(submissions)
        self._log_outcome([submission.entry for submission in submissions], outcome)
        self._report_refused(submissions, LOG_AWAY if isinstance(error, NotSynced) else OUR_FAULT)

    def _log_outcome(self, entries: Sequence[LogEntry], outcome: str) -> None:
        self._outcomes.append((entries, outcome, int(self._now() * 1000)))
        self._try(self._log_outcomes)

    def _log_outcomes(self) -> None:
        """Log the outcomes of entries that were logged before. Raise LogBusy if some are kept."""
        while self._outcomes:
            entries, outcome, now = self._outcomes[0]
            try:
                log_outcome(self._chat, entries, outcome, now)
            except LogBusy:
                raise
            except OSError:  # logged by the chat log
                count = sum(len(entry.messages) for entry in entries)
                log.error(
                    "{count} messages in the chat log were not published",
                    count=count,
                    event="logged_messages_unpublished",
                )
            except Exception:  # noqa: BLE001 - what comes next is logged all the same
                log.failure("logging that messages were not published failed", event="outcome_log_failed")
            self._outcomes.popleft()

    def _report_refused(self, submissions: Sequence[_Submission], close_code: CloseCode) -> None:
        senders: dict[str, Sender] = {}
        for submission in submissions:
            sender, receipt = submission.sender, submission.receipt
            if receipt is None:
                senders[sender.id] = sender
                continue
            for message in submission.entry.messages:
                with log.failuresHandled(
                    "notifying client {client} of refused messages failed",
                    client=sender.id,
                    event="refusal_notice_failed",
                ):
                    receipt.refused(message, close_code)
        for sender in senders.values():
            with log.failuresHandled(
                "notifying client {client} of refused messages failed", client=sender.id, event="refusal_notice_failed"
            ):
                sender.publish_refused(close_code)
