"""One worker process: ``python -m chatd.worker``, started by the supervisor with listening sockets and a pipe.

Its standard input comes from the supervisor: an Assignment, then orders, then the end, at which the worker stops. Its
standard output has Ready, Heartbeat, PublishingStopped and LogRecord. It is never started by hand.
"""

import contextlib
import os
import secrets
import signal
import socket
import time
from functools import partial
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, eventAsText, globalLogBeginner
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from chatd.access.revoked_tokens import RevokedTokens
from chatd.access.tokens import TokenVerifier
from chatd.broker.bus import Bus
from chatd.chatlog.writer import ChatLog, Sync
from chatd.clients.factory import ConnectionFactory
from chatd.clients.send_buffer import measure_backlogs
from chatd.config.broker_url import broker_address
from chatd.config.listen import expects_proxy_header
from chatd.config.settings import Config
from chatd.monitoring.log_events import fields_of
from chatd.monitoring.metrics import CPU_SECONDS, EVENT_LOOP_LAG_SECONDS
from chatd.monitoring.prometheus import Meter
from chatd.protocol.close_codes import RESTARTING, STOPPING
from chatd.rooms.hub import Hub
from chatd.rooms.sharding import Shard, Shards
from chatd.runtime.file_watcher import WatchedFiles
from chatd.runtime.ipc import (
    DRAIN,
    HOLD,
    LISTEN,
    STOP,
    Assignment,
    Heartbeat,
    ListeningSocket,
    LogRecord,
    PublishingStopped,
    Ready,
    Report,
    encode,
    read_assignment,
    read_order,
)
from chatd.runtime.rlimits import max_worker_connections, raise_open_files_limit
from chatd.runtime.timers import Periodic
from chatd.runtime.tls import server_options
from chatd.runtime.transports import adopt, check_proxy_headers, family_of, is_local
from chatd.web.site import Site
from chatd.worker.listener import ListenerFactory

log = Logger()


@implementer(ILogObserver, IPushProducer)
class SupervisorPipe(LineOnlyReceiver):
    """The pipe to the supervisor. Data that it does not read is dropped beyond a bound, and counted."""

    delimiter = b"\n"
    transport: Any

    def __init__(self, worker: "Worker", most: int) -> None:
        """Store the worker, which executes orders, and the longest line in bytes."""
        self._worker = worker
        self._most = most
        self._choked = False
        self._dropped = 0

    def connectionMade(self) -> None:
        """Watch how much waits to be read."""
        self.transport.registerProducer(self, True)

    def lineReceived(self, line: bytes) -> None:
        """Execute an order."""
        # Twisted closes the pipe if this raises.
        with log.failuresHandled("executing an order of the supervisor failed", event="order_failed"):
            self._worker.order(read_order(line))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the worker: the supervisor is gone."""
        self._worker.stop()

    def say(self, report: Report) -> None:
        """Send a report to the supervisor, if it reads."""
        if self.transport is None or (self._choked and isinstance(report, LogRecord)):
            self._dropped += 1
            return
        self.transport.write(encode(report))

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on, for the server's own log."""
        level = event.get("log_level", LogLevel.info)
        ours = event.get("log_namespace", "").startswith("chatd.")
        if level >= (LogLevel.info if ours else LogLevel.warn):
            text = eventAsText(event, includeTimestamp=False, includeSystem=False)
            text = text[: self._most // 8].encode("utf-8", "backslashreplace").decode()
            problem, resolved = event.get("problem", ""), event.get("resolved", False)
            namespace, name, fields = event.get("log_namespace", ""), event.get("event", ""), fields_of(event)
            self.say(LogRecord(level.name, text, problem, resolved, namespace, name, fields))

    def pauseProducing(self) -> None:
        """Stop sending: the supervisor does not read."""
        self._choked = True

    def resumeProducing(self) -> None:
        """Resume sending."""
        self._choked = False
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            text = f"dropped {dropped} log events because the supervisor did not read them"
            self.say(LogRecord("warn", text, namespace=log.namespace, event="log_events_dropped"))

    def stopProducing(self) -> None:
        """Stop sending: the pipe is gone. connectionLost follows."""


class InheritedSockets:
    """A reactor that parses endpoint strings like a real one, but listens on the sockets that the supervisor opened."""

    def __init__(self, reactor: Any, listener: ListeningSocket) -> None:
        """Store the real reactor and the socket to use."""
        self._reactor = reactor
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        """Return the real reactor's attribute."""
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        """Listen in the clear."""
        return self._listen(factory)

    def listenUNIX(self, address: str, factory: Any, *args: Any, **options: Any) -> IListeningPort:
        """Listen on a unix socket."""
        return self._listen(factory)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Listen with TLS."""
        options = server_options(contextFactory, self._listener.endpoint)
        return self._listen(TLSMemoryBIOFactory(options, False, check_proxy_headers(factory)))

    def _listen(self, factory: Any) -> IListeningPort:
        descriptor = self._listener.descriptor
        os.set_blocking(descriptor, False)
        port = adopt(self._reactor, descriptor, check_proxy_headers(factory))
        os.close(descriptor)
        return port


class Worker:
    """All the parts, and their beginning and end."""

    def __init__(self, reactor: Any, assignment: Assignment) -> None:
        """Store the reactor to run on and what the parent wants."""
        config = assignment.config
        self._reactor = reactor
        self._assignment = assignment
        self._config = config
        name = secrets.token_hex(5)
        self._supervisor_pipe = SupervisorPipe(self, config.worker_log_line_bytes)
        self._chat_log = _chat_log(config)
        self._shards = self._make_shards(name)
        self._watched: list[WatchedFiles] = []
        most = max_worker_connections(config, raise_open_files_limit())
        self._connections = ConnectionFactory(
            reactor, self._shards.hub, config, name, token_verifier=self._token_verifier(), most=most
        )
        if config.ban_list:
            self._watched.append(WatchedFiles([config.ban_list], self._read_bans, config.file_unstable_checks))
        self._meter = Meter(reactor, assignment.metrics, config, self._gauge)
        site = Site(reactor, self._shards, self._connections, self._meter)
        if most < config.worker_connections:
            log.warn(
                "the connection limit is lowered to {most} because of the limit for open files (ulimit -n)",
                most=most,
                event="connection_limit_lowered",
            )
        self._listener = ListenerFactory(reactor, self._connections, site, config, most)
        self._log_check = Periodic(
            reactor, config.chat_log_check_interval, self._chat_log.check, "looking for the chat log"
        )
        self._heartbeat = Periodic(
            reactor, config.worker_heartbeat_interval, self._say_heartbeat, "sending a heartbeat"
        )
        self._watching = Periodic(reactor, config.file_check_interval, self._look_at_files, "looking for changed files")
        self._ports: list[IListeningPort] = []
        self._ready = False
        self._waiting: Any = None  # the timeout of an order to listen, until it is ready
        self._held: Deferred[None] | None = None
        self._close_code = STOPPING
        self._draining: Periodic | None = None
        self._saved: Deferred[None] | None = None  # since all clients have gone
        self._said_unsaved = False
        self._stopping = False
        self._began = reactor.seconds()
        self.exit_status = 0

    def _make_shards(self, name: str) -> Shards:
        """Return a bus and a hub for each broker; name is the unique name of this worker."""
        reactor, config, lineage = self._reactor, self._config, self._assignment.lineage
        synced = config.chat_log_sync == "batch"
        chat = Logger(namespace="chatd.chat", observer=self._chat_log)
        sync = Sync(self._chat_log.take_unsynced, partial(deferToThreadPool, reactor, reactor.getThreadPool()))
        numbers = count(1)

        def shard(url: str) -> Shard:
            address = broker_address(url)
            bus = Bus(reactor, address, config, name, run=lineage)
            sync.listen(bus.queues)
            hub = Hub(bus, chat, config, reactor, sync=sync if synced else None, numbers=numbers)
            return Shard(address.identity, bus, hub)

        return Shards([shard(url) for url in self._assignment.brokers])

    def _token_verifier(self) -> TokenVerifier | None:
        """Return the verifier of tokens, if there are keys, and watch its files."""
        config = self._config
        if not config.auth_key:
            return None
        token_verifier = TokenVerifier(
            config.auth_key, config.auth_issuer, config.auth_audience, config.auth_revoked, require=config.auth_require
        )
        self._watched.append(
            WatchedFiles(config.auth_key, partial(self._read_tokens, token_verifier), config.file_unstable_checks)
        )
        if config.auth_revoked:
            read = partial(self._read_tokens, token_verifier.revoked)
            self._watched.append(WatchedFiles([config.auth_revoked], read, config.file_unstable_checks))
        return token_verifier

    def start(self) -> None:
        """Connect to the supervisor and the brokers."""
        StandardIO(self._supervisor_pipe, reactor=self._reactor)
        globalLogBeginner.beginLoggingTo([self._supervisor_pipe], redirectStandardIO=False)
        self._meter.start()
        self._log_check.start()
        for files in self._watched:
            files.read()
        self._watching.start(now=False)
        self._heartbeat.start()
        self._shards.start()
        self._shards.share(self._connections.limits)
        if not self._config.redis:
            self._shards.evict()
        self._try_ready()

    def order(self, order: str) -> None:
        """Execute an order of the supervisor."""
        if order == LISTEN:
            if self._ready:
                self.listen()
            else:
                self._waiting = self._reactor.callLater(self._config.listen_delay, self.listen)
        elif order == DRAIN:
            self.drain()
        elif order == HOLD:
            self.hold().addCallback(lambda _: self._supervisor_pipe.say(PublishingStopped()))
        elif order == STOP:
            self.stop()

    def listen(self) -> None:
        """Accept connections.

        Until the worker is ready, or ``listen_delay`` are over, they wait in the queues of its sockets: without a
        broker it would refuse requests that it could answer a moment later.
        """
        self._stop_waiting()
        for listener in self._assignment.listeners:
            inherited = InheritedSockets(self._reactor, listener)
            endpoint = serverFromString(inherited, listener.endpoint)
            exposed, proxied = not is_local(listener.descriptor), expects_proxy_header(listener.endpoint)
            unix = family_of(listener.descriptor) == socket.AF_UNIX
            port = self._listener.port(exposed=exposed, proxied=proxied, unix=unix, metrics=listener.metrics)
            endpoint.listen(port).addCallbacks(self._ports.append, self._no_port)

    def drain(self) -> None:
        """Accept no more connections, close the open ones, spread over the drain time, then stop."""
        if self._draining is None and not self._stopping:
            self._close_code = RESTARTING
            self._stop_listening()
            self._listener.site.draining = True
            self._connections.close_gradually(RESTARTING, self._config.drain_timeout)
            late = self._reactor.seconds() + self._config.drain_timeout + self._config.close_timeout
            look = partial(self._look_whether_drained, late)
            self._draining = Periodic(self._reactor, self._config.drain_check_interval, look, "draining")
            self._draining.start()

    def _look_whether_drained(self, late: float) -> None:
        """Stop once all clients are gone, or the time is over; a new connection may still send its request.

        If the broker is away, stop once it is back and stores the positions of clients with a resume key. They
        reconnect to other workers, where they can join once it is back.
        """
        now, config = self._reactor.seconds(), self._config
        if (
            not self._listener.count
            or (now >= late and not self._listener.waiting)
            or now >= late + config.client_header_timeout
        ):
            if self._saved is None:
                self._saved = self._shards.saved()
            if self._saved.called or now >= late + config.client_header_timeout + config.drain_broker_timeout:
                self.stop()
            elif self._shards.away and not self._said_unsaved:
                self._said_unsaved = True
                log.warn(
                    "all clients are closed; the worker ends when the broker is available and has stored their "
                    "resume positions",
                    event="drain_delayed",
                )

    def _stop_waiting(self) -> None:
        if self._waiting is not None and self._waiting.active():
            self._waiting.cancel()

    def _stop_listening(self) -> None:
        self._stop_waiting()
        ports, self._ports = self._ports, []
        for port in ports:
            port.stopListening()

    def hold(self) -> "Deferred[None]":
        """Accept no more connections and messages; fires when all accepted ones are published, or the time is up."""
        if self._held is None:
            self._held = Deferred()
            self._stop_listening()
            self._connections.limits.slowed.publish_now()
            published = self._shards.hold().addTimeout(self._config.stop_publish_timeout * 0.8, self._reactor)
            published.addErrback(lambda _: None).chainDeferred(self._held)
        held: Deferred[None] = Deferred()
        self._held.addCallback(lambda _: held.callback(None))
        return held

    def stop(self) -> None:
        """Deliver what is published, close the clients that there still are, end."""
        if not self._stopping:
            self._stopping = True
            if self._draining is not None:
                self._draining.stop()
            Deferred.fromCoroutine(self._wind_down()).addErrback(self._failed).addBoth(lambda _: self._end())

    async def _wind_down(self) -> None:
        await self.hold()
        config, began = self._config, self._reactor.seconds()

        async def wait(work: "Deferred[Any]", part: float) -> None:
            late = began + part * config.stop_timeout
            await work.addTimeout(max(0.0, late - self._reactor.seconds()), self._reactor).addErrback(lambda _: None)

        # What other workers published before they reported PublishingStopped is delivered once the own probe is back.
        await wait(self._shards.probe(), config.stop_probe_share)
        self._shards.broadcast()
        await wait(self._connections.close_all(self._close_code), config.stop_close_share)
        await wait(self._shards.saved(), config.stop_save_share)
        self._chat_log.hurry(config.stop_timeout * config.stop_chat_log_share)
        self._shards.stop()
        await self._shards.logged()  # what became of the last messages: they were not published
        self._meter.stop()
        self._log_check.stop()
        self._heartbeat.stop()
        self._watching.stop()
        self._chat_log.close()
        for _ in range(2):  # one turn to write, one for the last messages
            await deferLater(self._reactor, 0)

    def _gauge(self, late: float) -> None:
        """Gauge the process, so many seconds later than it should be."""
        EVENT_LOOP_LAG_SECONDS.observe(late)
        CPU_SECONDS.value = time.process_time()
        measure_backlogs()

    def _end(self) -> None:
        with contextlib.suppress(ReactorNotRunning):  # without a supervisor it was stopped twice
            self._reactor.stop()

    def _failed(self, failure: Failure) -> None:
        log.failure("stopping a worker failed", failure, event="worker_stop_failed")

    def _no_port(self, failure: Failure) -> None:
        log.failure("listening on an inherited socket failed", failure, event="socket_inheritance_failed")
        self.exit_status = 1
        self.stop()

    def _read_bans(self) -> None:
        self._connections.bans.read()
        self._connections.close_banned()

    def _read_tokens(self, changed: TokenVerifier | RevokedTokens) -> None:
        changed.read()
        self._connections.close_revoked()

    def _look_at_files(self) -> None:
        for watched in self._watched:
            with log.failuresHandled("checking files for changes failed", event="file_check_failed"):
                watched.check()

    def _say_heartbeat(self) -> None:
        clients = len(self._connections.connections)
        self._supervisor_pipe.say(Heartbeat(clients, self._shards.room_count, self._shards.accepted, self._shards.away))

    def _try_ready(self) -> None:
        """Report Ready once a probe comes back through each bus; one that is away delays the others for a while only.

        All files must be read, too: a reload with a file that only the supervisor may read changes nothing.
        """
        if not all(watched.loaded for watched in self._watched):
            if not self._stopping:
                self._reactor.callLater(self._config.file_check_interval, self._try_ready)
            return

        def look(troubles: list[str]) -> None:
            late = self._reactor.seconds() >= self._began + self._config.shard_start_timeout
            if not troubles or (late and len(troubles) < len(list(self._shards))):
                self._say_ready()
            elif not self._stopping:
                self._reactor.callLater(self._config.redis_reconnect_min_delay / 4, self._try_ready)

        self._shards.probe().addCallback(look).addErrback(self._failed)

    def _say_ready(self) -> None:
        self._ready = True
        if self._waiting is not None and self._waiting.active():
            self.listen()
        self._say_heartbeat()  # the last one may say that the broker is away
        self._supervisor_pipe.say(Ready())


def _chat_log(config: Config) -> ChatLog:
    return ChatLog(
        config.chat_log,
        log,
        lock_seconds=config.chat_log_lock_timeout,
        spin_seconds=config.chat_log_lock_wait,
        calm_seconds=config.chat_log_settle_time,
        json=config.chat_log_format == "json",
        synced=config.chat_log_sync == "batch",
    )


def main() -> int:
    """Run until the supervisor stops the worker or is gone, or SIGTERM comes; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # what is sent to the parent's whole group is the parent's: it stops us in order
        os.setsid()
    with open(0, "rb", buffering=0, closefd=False) as parent:  # unbuffered: what follows is the reactor's to read
        line = parent.readline()
    if not line:
        return 0
    from twisted.internet import reactor as real_reactor  # noqa: PLC0415 - installed when everything else is settled

    reactor: Any = real_reactor
    reactor.seconds = time.monotonic  # timers must not follow the wall clock when it is set
    worker = Worker(reactor, read_assignment(line))
    signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(worker.stop))
    reactor.callWhenRunning(worker.start)
    reactor.run(installSignalHandlers=False)
    return worker.exit_status
