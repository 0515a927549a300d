"""The scripts in the broker, ``scripts/*.lua``, and queries: scripts that may be sent twice.

A query waits for the connection and is sent again if the connection breaks. So an answer comes late rather than never.
A query that the broker refuses fails after ``redis_query_timeout``. At most ``redis_concurrent_queries`` are on the
wire; the others wait in turn.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.broker.connection import LinkLost, for_now
from chatd.config.settings import Config

log = Logger()


class Script:
    """A script, which the broker knows by its digest when it is loaded. Each runs atomically."""

    def __init__(self, name: str) -> None:
        """Read the script from its file."""
        self.name = name
        self.source = files("chatd.broker").joinpath(f"scripts/{name}.lua").read_bytes()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def load(self, protocol: Any) -> Any:
        """Load the script into the broker. Return a Deferred."""
        return protocol.script_load(self.source)

    def run(self, protocol: Any, keys: list[bytes], arguments: list[Any]) -> Any:
        """Run the script. Return a Deferred of the answer; ``NOSCRIPT``: the broker has forgotten it."""
        return protocol.execute_command("EVALSHA", self.digest, len(keys), *keys, *arguments)


PUBLISH = Script("publish")
READ = Script("read")
READ_BACK = Script("read_back")
TOPS = Script("tops")
CLAIM = Script("claim")
SAVE = Script("save")
FOUGHT = Script("fought")
PRESENCE = Script("presence")
MEMBERS = Script("members")
ALIVE = Script("alive")
ROOMS = Script("rooms")
RUN = Script("run")
SHARES = Script("shares")
MEMORY = Script("memory")
HISTORIES = Script("histories")
SHORTEN = Script("shorten")
PROBE = Script("probe")
ALL = (PUBLISH, READ, READ_BACK, TOPS, CLAIM, SAVE, FOUGHT, PRESENCE, MEMBERS, ALIVE, ROOMS, RUN, SHARES, PROBE)
"""The scripts for every broker. The three others are for the private one, and loaded when needed."""


@dataclass(slots=True, eq=False)
class _Query:
    script: Script
    keys: list[bytes]
    arguments: Callable[[bytes], list[Any]]
    answer: "Deferred[Any]" = field(init=False)
    refused_at: float | None = None


class Queries:
    """The queries of a worker that have no answer yet."""

    def __init__(self, clock: Any, config: Config) -> None:
        self._clock = clock
        self._config = config
        self._protocol: Any = None
        self._run = b""
        self._waiting: OrderedDict[_Query, None] = OrderedDict()  # any of them may be cancelled
        self._on_wire: set[_Query] = set()
        self._retrying: Any = None
        self._refused = False  # logged

    def ask(self, script: Script, keys: list[bytes], arguments: Callable[[bytes], list[Any]]) -> "Deferred[Any]":
        """Run a script. Return a Deferred of the answer, which may be cancelled.

        ``arguments`` gets the run of the broker when the script is sent.
        """
        query = _Query(script, keys, arguments)
        query.answer = Deferred(lambda _: self._waiting.pop(query, None))
        self._waiting[query] = None
        self._send()
        return query.answer

    def connected(self, protocol: Any, run: bytes) -> None:
        """Send what waits on a new connection, to this run of the broker."""
        self._protocol, self._run = protocol, run
        self._send()

    def stop(self) -> None:
        """Send no more queries. Those that wait get no answer."""
        self._protocol = None
        self._waiting.clear()
        if self._retrying is not None and self._retrying.active():
            self._retrying.cancel()

    def _send(self) -> None:
        while self._waiting and len(self._on_wire) < self._config.redis_concurrent_queries:
            protocol = self._protocol
            if protocol is None or not protocol.connected:
                return
            query, _ = self._waiting.popitem(last=False)
            self._on_wire.add(query)
            maybeDeferred(self._run_script, protocol, query).addCallbacks(
                self._answered, self._failed, callbackArgs=(query,), errbackArgs=(query, protocol)
            ).addErrback(
                lambda failure: log.failure(
                    "handling the broker's answer to a query failed", failure, event="query_answer_failed"
                )
            )

    def _run_script(self, protocol: Any, query: _Query) -> Any:
        return query.script.run(protocol, query.keys, query.arguments(self._run))

    def _send_first(self, query: _Query) -> None:
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
        if query.answer.called:  # cancelled
            self._send()
        elif failure.check(LinkLost):
            self._send_first(query)
            self._send()
        elif failure.getErrorMessage().startswith("NOSCRIPT"):
            self._send_first(query)
            query.script.load(protocol).addCallbacks(lambda _: self._send(), lambda _: self._send_later())
        elif for_now(failure) and self._may_wait(query, failure):
            self._waiting[query] = None
            self._send_later()
        else:
            self._send()
            query.answer.errback(failure)

    def _may_wait(self, query: _Query, failure: Failure) -> bool:
        """Return whether a refused query is sent again. Log the first refusal."""
        now = self._clock.seconds()
        if not self._refused:
            self._refused = True
            log.warn("the broker refuses queries: {why}", why=failure.getErrorMessage(), event="query_refused")
        query.refused_at = now if query.refused_at is None else query.refused_at
        return bool(now - query.refused_at < self._config.redis_query_timeout)

    def _send_later(self) -> None:
        if self._protocol is not None and (self._retrying is None or not self._retrying.active()):
            self._retrying = self._clock.callLater(self._config.redis_reconnect_max_delay, self._send)
