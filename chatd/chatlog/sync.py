"""When what was written to the chat log is on the disk: one sync at a time, each for all that was written before it.

What is written gets a ticket (1, 2, 3 …); once a sync is over, all up to its ticket may be published. A sync takes as
long as the disk does, in a thread; what comes meanwhile goes with the next one.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


class SyncListener(Protocol):
    """Who waits for what it wrote."""

    def synced(self, ticket: int) -> None:
        """Learn that all up to a ticket is on the disk."""

    def sync_failed(self, ticket: int, why: str) -> None:
        """Learn that what has this ticket or one before it, and was not synced, may never be on the disk."""


class Sync:
    """The syncs of a worker's chat log."""

    def __init__(
        self,
        take_unsynced: Callable[[], Sequence[int]],
        in_thread: Callable[..., "Deferred[Any]"],
        flush: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """Take what gives descriptors to sync, what calls a function in a thread, and the function."""
        self._take_unsynced = take_unsynced
        self._in_thread = in_thread
        self._flush = flush or flush_and_close
        self._listeners: list[SyncListener] = []
        self._written = 0
        self._running = False
        self._failed = False

    def listen(self, listener: SyncListener) -> None:
        """Tell a listener of each sync from now on."""
        self._listeners.append(listener)

    def ask(self) -> int:
        """Sync what was written just now, as soon as a sync that is running is over; give its ticket."""
        self._written += 1
        if not self._running:
            self._run()
        return self._written

    def _run(self) -> None:
        ticket, self._running = self._written, True
        try:
            syncing = self._in_thread(self._flush, self._take_unsynced())
        except OSError as error:  # no descriptor to be had; told later too: whoever asked has no ticket yet
            syncing = self._in_thread(_fail, error)
        syncing.addCallbacks(self._synced, self._not_synced, callbackArgs=(ticket,), errbackArgs=(ticket,)).addErrback(
            lambda failure: log.failure("what became of a sync was not told", failure)
        )

    def _synced(self, _: object, ticket: int) -> None:
        if self._failed:
            self._failed = False
            log.info("the chat log can be synced again", problem="chat log sync", resolved=True)
        self._go_on(ticket)
        for listener in self._listeners:
            with log.failuresHandled("messages that the disk has were not published"):
                listener.synced(ticket)

    def _not_synced(self, failure: Failure, ticket: int) -> None:
        why = failure.getErrorMessage()
        if not self._failed:
            self._failed = True
            log.error("the chat log cannot be synced, messages are refused: {why}", why=why, problem="chat log sync")
        self._go_on(ticket)
        for listener in self._listeners:
            with log.failuresHandled("messages that the disk may not have were not refused"):
                listener.sync_failed(ticket, why)

    def _go_on(self, ticket: int) -> None:
        self._running = False
        if self._written > ticket:
            self._run()


def flush_and_close(descriptors: Sequence[int]) -> None:
    """Wait until all that was written to these is on the disk (fdatasync(2)), and close them. Raises OSError.

    Where one fails the others are synced all the same: nobody has their descriptors to try again.
    """
    trouble: OSError | None = None
    for each in descriptors:
        try:
            os.fdatasync(each)
        except OSError as error:
            trouble = trouble or error
        finally:
            os.close(each)
    if trouble is not None:
        raise trouble


def _fail(error: OSError) -> None:
    raise error
