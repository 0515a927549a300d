"""The daemon: ports, broker and fleet, started, reloaded and stopped in order."""

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

LASTING = ("redis", "redis_prefix", "state", "broker_memory")
"""Options that a reload can't change: the private broker runs on, and old and new workers have to hear each other."""


class ChatService(Service):
    """What ``twistd chatd`` runs."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        server_program: str,
        reread: Callable[[], Config],
        *,
        own_log: ServerLog | None = None,
        ending: Shutdown | None = None,
    ) -> None:
        """Take the configuration, workers counted, and the private broker's program, empty where there is none.

        Reread gives the configuration as it is by then, or raises BadValue. Own log is the server's, where it is ours.
        Ending stops the reactor.
        """
        self._reactor = reactor
        self._config = config
        self._server_program = server_program
        self._reread = reread
        self._own_log = own_log
        self._ending = ending or Shutdown(reactor)
        self._log_looks: Periodic | None = None
        if own_log is not None:
            self._log_looks = Periodic(reactor, config.log_look_seconds, own_log.look, "logging repeated trouble")
        self._ports = ListeningSockets(config.listen, config.workers, config.accept_backlog)
        self._coming: ListeningSockets | None = None  # of a reload that is under way
        self._files = 0
        self._terminal = False
        self._open: list[int] = []  # ports of which everybody was warned
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
        """Belong to an application, and have it log as we are told to."""
        if self._own_log is not None and isinstance(parent, Componentized):
            self._own_log.open()
            parent.setComponent(ILogObserver, self._own_log)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Bind, while we may still be root."""
        super().privilegedStartService()
        self._folder = os.getcwd()  # options that name files mean those here, wherever twistd goes
        self._config = self._settled(self._config)
        with self._refusing():
            self._ports.bind()

    def startService(self) -> None:
        """Start broker and workers, as the user we are to run as."""
        super().startService()
        if os.geteuid() == 0:
            log.warn("chatd runs as root: run it as a user of its own, or give --uid and --gid to twistd")
        self._warn_of_unused()
        self._files = raise_open_files_limit()
        if self._log_looks is not None:
            self._log_looks.start(now=False)
        self._terminal = os.isatty(0)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hung_up))
        with self._refusing():  # what only shows once it is done, by the user that does it
            check_log(self._config.chat_log)
            if self._server_program:
                self._private_broker = PrivateBroker(
                    self._reactor, self._server_program, self._config, self._broker_ended
                )
                self._private_broker.start()
        self._make_metrics()
        self._worker_pools = WorkerPools(self._reactor, self._config, self._ports, self._brokers, self._metrics)
        self._worker_pools.all_ready.addCallbacks(lambda _: self._say_ready(), self._not_started)
        self._reporter.start(self._worker_pools)
        self._rotation.configure(self._config)
        self._rotation.start()
        self._worker_pools.start()
        if self._meter is not None:
            self._meter.start()

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """End a start that cannot be with one line, and leave no socket behind."""
        try:
            yield
        except (BadValue, OSError) as error:
            self._ports.close()
            _say_why_not(str(error))
            end_quietly()
            raise

    def _broker_ended(self, times: int, why: str) -> None:
        started = self._worker_pools is not None and self._worker_pools.all_ready.called
        if not started and times >= self._config.start_tries:
            self._give_up(f"the private broker ended {times} times before the workers were ready: {why}")

    def _not_started(self, failure: Failure) -> None:
        failure.trap(NotReady)
        self._give_up(failure.getErrorMessage())

    def _give_up(self, why: str) -> None:
        if self._ending.fail():
            _say_why_not(why)

    def stopService(self) -> "Deferred[None]":
        """Stop: no new connections, clients closed, log written, broker last."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        self._reporter.stopping()
        self._rotation.stop()
        if self._coming is not None:
            self._coming.close(self._ports)
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
        if self._own_log is not None and self._log_looks is not None:
            self._log_looks.stop()
            self._own_log.close()
        self._reporter.stopped()
        log.info("chatd has stopped")

    # Reload

    def _hung_up(self) -> None:
        """Reload; but stop where it was our terminal that went: twistd would end without stopping anything."""
        if self._terminal and not os.isatty(0):
            self._ending.stop()
        elif self._reloading:
            self._reload_again = True
        elif self._worker_pools is not None and not self._stopping:
            self._reloading = True
            Deferred.fromCoroutine(self._reload(self._worker_pools)).addErrback(self._reload_failed).addBoth(
                lambda _: self._reloaded()
            )

    def _reloaded(self) -> None:
        self._reloading, self._coming = False, None
        if self._reload_again:
            self._reload_again = False
            self._hung_up()

    async def _reload(self, worker_pools: WorkerPools) -> None:
        self._reporter.reloading()
        try:
            config = self._changed(self._reread())
            check_log(config.chat_log)
            ports = self._coming = ListeningSockets(config.listen, config.workers, config.accept_backlog)
            ports.bind(self._ports)
        except BadValue as error:
            self._not_reloaded(str(error))
            return
        try:
            start = "new worker starts" if config.workers == 1 else "new workers start"
            log.info(f"reloading: {{workers}} {start}", workers=config.workers)
            await worker_pools.replace(config, ports)
        except NotReady as error:
            ports.close(self._ports)
            self._not_reloaded(str(error))
            return
        before, self._ports, self._config = self._ports, ports, config
        before.close(ports)
        self._warn_of_unused()
        self._rotation.configure(config)
        if self._own_log is not None:
            self._own_log.configure(config)
        log.info("the old workers' clients are told to come back, over {drain:g} s", drain=config.drain)
        self._say_ready()

    def _not_reloaded(self, why: str) -> None:
        log.error("not reloaded, everything stays as it was: {why}", why=why, always=True)  # whoever asked waits for it
        self._reporter.not_reloaded(why)

    def _reload_failed(self, failure: Failure) -> None:
        """Tell of an error of ours; systemd would wait for the end of the reload."""
        log.failure("a reload ended in an error", failure)
        self._reporter.not_reloaded("an error, see the log")

    def _changed(self, config: Config) -> Config:
        """Give a new configuration, if a reload can bring it about. Raises BadValue."""
        settled = self._settled(config)
        for name in LASTING:
            if getattr(settled, name) != getattr(self._config, name):
                raise BadValue(f"--{name.replace('_', '-')} can only be changed by a restart")
        return settled

    def _settled(self, config: Config) -> Config:
        """Give a configuration whose paths mean the same wherever we are."""
        state = os.path.join(self._folder, config.state) if config.state else ""
        return replace(config, chat_log=os.path.abspath(os.path.join(self._folder, config.chat_log)), state=state)

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> "Deferred[Any]":
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def _make_metrics(self) -> None:
        """Make the folder for what all processes count, ours too. Without one there are no metrics."""
        try:
            self._metrics = MetricsDirectory()
        except OSError as error:
            log.warn("there are no metrics: {why}", why=str(error))
            return
        START_TIME.value = time.time()
        self._meter = Meter(self._reactor, self._metrics.take(), self._config, lambda _: None)

    # What is said

    def _brokers(self) -> tuple[tuple[str, ...], str]:
        return (
            ((self._private_broker.url,), self._private_broker.run)
            if self._private_broker is not None
            else (self._config.redis, "")
        )

    def _warn_of_everybody(self) -> None:
        """Warn of ports on which other hosts need no token, once for the same ports."""
        before, self._open = self._open, [] if self._config.auth_key else self._ports.exposed()
        if self._open and self._open != before:
            ports = " or ".join(map(str, self._open))
            log.warn("anyone who can reach port {ports} can read and write; see --auth-key", ports=ports)

    def _warn_of_unused(self) -> None:
        """Warn of sockets to which clients can connect, though nobody will ever take the connections."""
        if unused := self._ports.unused():
            log.warn("systemd passed sockets that no --listen names: {sockets}", sockets=", ".join(unused))

    def _say_ready(self) -> None:
        several = "worker" if self._config.workers == 1 else "workers"
        brokers = [str(broker_address(url)) for url in self._config.redis] or ["a private Valkey"]
        log.info(
            f"chatd {{version}} is ready: {{workers}} {several}, messages go through {{broker}}",
            version=chatd.__version__,
            workers=self._config.workers,
            broker=" and ".join(brokers),
        )
        for hint in self._ports.hints(self._config.host):
            log.info("{hint}", hint=hint)
        self._warn_of_everybody()
        log.info("the chat log: {path}", path=self._config.chat_log)
        each = max_worker_connections(self._config, self._files)
        log.info(
            "connections at most: {most}, {each} a worker, which may open {files} files",
            most=each * self._config.workers,
            each=each,
            files=self._files or "any number of",
        )
        self._reporter.ready()


def _say_why_not(why: str) -> None:
    log.critical("chatd cannot start: {why}", why=why, always=True)
