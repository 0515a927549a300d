"""What is asked of the broker and may be asked twice: it waits for the link, and is asked again where that breaks.

So an answer comes late rather than not at all; what the broker refuses is given up after ``query_seconds``. At most
``bus_queries`` are on the wire; the others wait in turn, one or so for each room and client that needs an answer.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, for_now
from chatd.broker.script import Script
from chatd.config.settings import Config

log = Logger()


@dataclass(slots=True, eq=False)
class _Query:
    script: Script
    keys: list[bytes]
    arguments: Callable[[bytes], list[Any]]
    answer: "Deferred[Any]" = field(init=False)
    refused_at: float | None = None


class Queries:
    """The queries of a worker."""

    def __init__(self, clock: Any, config: Config) -> None:
        self._clock = clock
        self._config = config
        self._protocol: Any = None
        self._run = b""
        self._waiting: OrderedDict[_Query, None] = OrderedDict()  # in turn; any of them may be cancelled
        self._on_wire: set[_Query] = set()
        self._retrying: Any = None
        self._refused = False  # and said so

    def ask(self, script: Script, keys: list[bytes], arguments: Callable[[bytes], list[Any]]) -> "Deferred[Any]":
        """Run a script; arguments are made when it is sent, of the run of the broker. The Deferred may be cancelled."""
        query = _Query(script, keys, arguments)
        query.answer = Deferred(lambda _: self._waiting.pop(query, None))
        self._waiting[query] = None
        self._send()
        return query.answer

    def connected(self, protocol: Any, run: bytes) -> None:
        """Ask what waits through a new connection, to this run of the broker."""
        self._protocol, self._run = protocol, run
        self._send()

    def stop(self) -> None:
        """Ask nothing any more; what waits never gets an answer."""
        self._protocol = None
        self._waiting.clear()
        if self._retrying is not None and self._retrying.active():
            self._retrying.cancel()

    def _send(self) -> None:
        while self._waiting and len(self._on_wire) < self._config.bus_queries:
            protocol = self._protocol
            if protocol is None or not protocol.connected:
                return
            query, _ = self._waiting.popitem(last=False)
            self._on_wire.add(query)
            maybeDeferred(self._run_script, protocol, query).addCallbacks(
                self._answered, self._failed, callbackArgs=(query,), errbackArgs=(query, protocol)
            ).addErrback(lambda failure: log.failure("an answer of the broker was not handled", failure))

    def _run_script(self, protocol: Any, query: _Query) -> Any:
        return query.script.run(protocol, query.keys, query.arguments(self._run))

    def _ask_first(self, query: _Query) -> None:
        self._waiting[query] = None
        self._waiting.move_to_end(query, last=False)

    def _answered(self, answer: Any, query: _Query) -> None:
        self._on_wire.discard(query)
        self._refused = False
        self._send()
        if not query.answer.called:
            query.answer.callback(answer)

    def _failed(self, failure: Failure, query: _Query, protocol: Any) -> None:
        self._on_wire.discard(query)
        if query.answer.called:  # nobody waits for it
            self._send()
        elif failure.check(LinkLost):
            self._ask_first(query)
            self._send()
        elif failure.getErrorMessage().startswith("NOSCRIPT"):
            self._ask_first(query)
            query.script.load(protocol).addCallbacks(lambda _: self._send(), lambda _: self._send_later())
        elif for_now(failure) and self._may_wait(query, failure):
            self._waiting[query] = None
            self._send_later()
        else:
            self._send()
            query.answer.errback(failure)

    def _may_wait(self, query: _Query, failure: Failure) -> bool:
        """Whether something that is refused for now is asked again; the first refusal is said."""
        now = self._clock.seconds()
        if not self._refused:
            self._refused = True
            log.warn("the message bus refuses what it is asked: {why}", why=failure.getErrorMessage())
        query.refused_at = now if query.refused_at is None else query.refused_at
        return bool(now - query.refused_at < self._config.query_seconds)

    def _send_later(self) -> None:
        if self._protocol is not None and (self._retrying is None or not self._retrying.active()):
            self._retrying = self._clock.callLater(self._config.bus_retry_most_seconds, self._send)
