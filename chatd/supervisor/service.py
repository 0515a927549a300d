"""The supervisor's service: it starts, reloads and stops the listening sockets, the private broker and the workers."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

import chatd
from chatd.chatlog.file import check_log
from chatd.chatlog.rotation import Rotation
from chatd.config.broker_url import broker_address
from chatd.config.settings import Config
from chatd.config.values import BadValue
from chatd.monitoring.metrics import START_TIME
from chatd.monitoring.prometheus import Meter, MetricsDirectory
from chatd.runtime.rlimits import max_worker_connections, raise_open_files_limit
from chatd.runtime.timers import Periodic
from chatd.supervisor.private_broker import PrivateBroker
from chatd.supervisor.reload import WorkerPools
from chatd.supervisor.server_log import ServerLog
from chatd.supervisor.shutdown import Shutdown, end_quietly
from chatd.supervisor.sockets import ListeningSockets
from chatd.supervisor.systemd import StatusReporter, SystemdNotifier
from chatd.supervisor.worker_pool import NotReady

log = Logger()

FIXED = ("redis", "redis_prefix", "data_dir", "redis_maxmemory")
"""Options that a reload cannot change: the private broker continues, and old and new workers share a broker."""


class ChatService(Service):
    """The service that ``twistd chatd`` runs."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        server_program: str,
        reread: Callable[[], Config],
        *,
        server_log: ServerLog | None = None,
        shutdown: Shutdown | None = None,
    ) -> None:
        """Set the configuration, with the number of workers, and the program of the private broker; empty: none.

        Reread returns the current configuration or raises BadValue. Server log is None if twistd logs elsewhere.
        """
        self._reactor = reactor
        self._config = config
        self._server_program = server_program
        self._reread = reread
        self._server_log = server_log
        self._shutdown = shutdown or Shutdown(reactor)
        self._log_flushing: Periodic | None = None
        if server_log is not None:
            flush = server_log.flush_old
            self._log_flushing = Periodic(reactor, config.log_repeat_check_interval, flush, "logging repeated events")
        self._ports = _listening_sockets(config)
        self._new_ports: ListeningSockets | None = None  # of a reload in progress
        self._open_files = 0
        self._has_terminal = False
        self._exposed: list[int] = []  # the ports of the last warning
        self._private_broker: PrivateBroker | None = None
        self._worker_pools: WorkerPools | None = None
        self._reloading = False
        self._reload_again = False
        self._stopping = False
        self._reporter = StatusReporter(reactor, SystemdNotifier.from_environment(reactor))
        self._rotation = Rotation(reactor, config, self._in_thread)
        self._metrics: MetricsDirectory | None = None
        self._meter: Meter | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join an application, and let it use the server log."""
        if self._server_log is not None and isinstance(parent, Componentized):
            self._server_log.open()
            parent.setComponent(ILogObserver, self._server_log)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Bind the sockets, before twistd drops privileges."""
        super().privilegedStartService()
        self._directory = os.getcwd()  # paths are relative to it, even if twistd changes it
        self._config = self._absolute(self._config)
        with self._refusing():
            self._ports.bind()

    def startService(self) -> None:
        """Start the broker and the workers, after twistd has dropped privileges."""
        super().startService()
        if os.geteuid() == 0:
            log.warn(
                "chatd runs as root; run it as a user of its own, or pass --uid and --gid to twistd",
                event="root_detected",
            )
        self._warn_of_unused()
        self._open_files = raise_open_files_limit()
        if self._log_flushing is not None:
            self._log_flushing.start(now=False)
        self._has_terminal = os.isatty(0)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._sighup))
        with self._refusing():  # errors that show only now, for the user that chatd runs as
            check_log(self._config.chat_log)
            if self._server_program:
                self._private_broker = PrivateBroker(
                    self._reactor, self._server_program, self._config, self._broker_ended
                )
                self._private_broker.start()
        self._create_metrics()
        self._worker_pools = WorkerPools(self._reactor, self._config, self._ports, self._brokers, self._metrics)
        self._worker_pools.all_ready.addCallbacks(lambda _: self._report_ready(), self._not_started)
        self._reporter.start(self._worker_pools)
        self._rotation.configure(self._config)
        self._rotation.start()
        self._worker_pools.start()
        if self._meter is not None:
            self._meter.start()

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """End a start that fails with one line in the log, and close the sockets."""
        try:
            yield
        except (BadValue, OSError) as error:
            self._ports.close()
            _log_failed_start(str(error))
            end_quietly()
            raise

    def _broker_ended(self, times: int, why: str) -> None:
        started = self._worker_pools is not None and self._worker_pools.all_ready.called
        if not started and times >= self._config.start_attempts:
            self._give_up(f"the private broker ended {times} times before the workers were ready: {why}")

    def _not_started(self, failure: Failure) -> None:
        failure.trap(NotReady)
        self._give_up(failure.getErrorMessage())

    def _give_up(self, why: str) -> None:
        if self._shutdown.fail():
            _log_failed_start(why)

    def stopService(self) -> "Deferred[None]":
        """Stop: close the ports, then the clients, then the private broker."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        self._reporter.stopping()
        self._rotation.stop()
        if self._new_ports is not None:
            self._new_ports.close(self._ports)
        self._ports.close()
        try:
            if self._worker_pools is not None:
                await self._worker_pools.stop()
        finally:
            if self._private_broker is not None:
                await self._private_broker.stop()
            if self._meter is not None and self._metrics is not None:
                self._meter.stop()
                self._metrics.remove()
        if self._server_log is not None and self._log_flushing is not None:
            self._log_flushing.stop()
            self._server_log.close()
        self._reporter.stopped()
        log.info("chatd has stopped", event="server_stopped")

    # Reload

    def _sighup(self) -> None:
        """Reload; but stop if the terminal was closed, because twistd would end without stopping anything."""
        if self._has_terminal and not os.isatty(0):
            self._shutdown.stop()
        elif self._reloading:
            self._reload_again = True
        elif self._worker_pools is not None and not self._stopping:
            self._reloading = True
            Deferred.fromCoroutine(self._reload(self._worker_pools)).addErrback(self._reload_failed).addBoth(
                lambda _: self._reloaded()
            )

    def _reloaded(self) -> None:
        self._reloading, self._new_ports = False, None
        if self._reload_again:
            self._reload_again = False
            self._sighup()

    async def _reload(self, worker_pools: WorkerPools) -> None:
        self._reporter.reloading()
        try:
            config = self._changed(self._reread())
            check_log(config.chat_log)
            ports = self._new_ports = _listening_sockets(config)
            ports.bind(self._ports)
        except BadValue as error:
            self._not_reloaded(str(error))
            return
        try:
            start = "new worker" if config.workers == 1 else "new workers"
            log.info(f"reloading: starting {{workers}} {start}", workers=config.workers, event="reload_started")
            await worker_pools.replace(config, ports)
        except NotReady as error:
            ports.close(self._ports)
            self._not_reloaded(str(error))
            return
        before, self._ports, self._config = self._ports, ports, config
        before.close(ports)
        self._warn_of_unused()
        self._rotation.configure(config)
        if self._server_log is not None:
            self._server_log.configure(config)
        log.info(
            "the old workers close their connections within {drain:g} s",
            drain=config.drain_timeout,
            event="drain_started",
        )
        self._report_ready()

    def _not_reloaded(self, why: str) -> None:
        log.error(
            "not reloaded, the previous configuration stays in force: {why}",
            why=why,
            always=True,
            event="reload_refused",
        )
        self._reporter.not_reloaded(why)

    def _reload_failed(self, failure: Failure) -> None:
        """Log an internal error, and report it, because systemd waits for the end of the reload."""
        log.failure("reloading failed", failure, event="reload_failed")
        self._reporter.not_reloaded("internal error, see the log")

    def _changed(self, config: Config) -> Config:
        """Return a new configuration with absolute paths. Raise BadValue if it needs a restart."""
        absolute = self._absolute(config)
        for name in FIXED:
            if getattr(absolute, name) != getattr(self._config, name):
                raise BadValue(f"--{name.replace('_', '-')} can only be changed by a restart")
        return absolute

    def _absolute(self, config: Config) -> Config:
        """Return a configuration with absolute paths."""
        state = os.path.join(self._directory, config.data_dir) if config.data_dir else ""
        return replace(config, chat_log=os.path.abspath(os.path.join(self._directory, config.chat_log)), data_dir=state)

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> "Deferred[Any]":
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def _create_metrics(self) -> None:
        """Create the directory for the metrics of all processes. Log it if that is not possible."""
        try:
            self._metrics = MetricsDirectory()
        except OSError as error:
            log.warn("metrics are unavailable: {why}", why=str(error), event="metrics_unavailable")
            return
        START_TIME.value = time.time()
        self._meter = Meter(self._reactor, self._metrics.allocate(), self._config, lambda _: None)

    def _brokers(self) -> tuple[tuple[str, ...], str]:
        """Return the URLs of the brokers, and the lineage of the private broker's data."""
        if self._private_broker is None:
            return self._config.redis, ""
        return (self._private_broker.url,), self._private_broker.lineage

    def _warn_of_exposed(self) -> None:
        """Log a warning if other hosts can connect without a token; once for the same ports."""
        before, self._exposed = self._exposed, [] if self._config.auth_key else self._ports.exposed()
        if self._exposed and self._exposed != before:
            ports = " or ".join(map(str, self._exposed))
            log.warn(
                "anyone who can reach port {ports} can read and write; see --auth-key",
                ports=ports,
                event="ports_exposed",
            )

    def _warn_of_unused(self) -> None:
        """Log a warning about sockets whose connections nobody will accept."""
        if unused := self._ports.unused():
            log.warn(
                "systemd passed sockets that no --listen option uses: {sockets}",
                sockets=", ".join(unused),
                event="sockets_unused",
            )

    def _report_ready(self) -> None:
        noun = "worker" if self._config.workers == 1 else "workers"
        brokers = [str(broker_address(url)) for url in self._config.redis] or ["a private Valkey"]
        log.info(
            f"chatd {{version}} is ready: {{workers}} {noun}, messages go through {{broker}}",
            event="server_ready",
            version=chatd.__version__,
            workers=self._config.workers,
            broker=" and ".join(brokers),
        )
        for hint in self._ports.hints(self._config.allowed_host):
            log.info("{hint}", hint=hint, event="address_listed")
        for hint in self._ports.metrics_hints():
            log.info("{hint}", hint=hint, event="address_listed")
        self._warn_of_exposed()
        log.info("chat log: {path}", path=self._config.chat_log, event="chat_log_named")
        most = max_worker_connections(self._config, self._open_files)
        log.info(
            "connection limit: {most} ({each} per worker, which may open {files} files)",
            most=most * self._config.workers,
            each=most,
            files=self._open_files or "any number of",
            event="connection_limit_set",
        )
        self._reporter.ready()


def _listening_sockets(config: Config) -> ListeningSockets:
    return ListeningSockets(config.listen, config.workers, config.listen_backlog, config.metrics_listen)


def _log_failed_start(why: str) -> None:
    log.critical("chatd cannot start: {why}", why=why, always=True, event="start_failed")
