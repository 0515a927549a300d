"""The daemon: ports, broker and fleet, started and stopped in order."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

import chatd
from chatd.config import BadValue, Config, broker_address
from chatd.parent.fleet import Fleet
from chatd.parent.ports import Ports
from chatd.parent.valkey import Valkey

log = Logger()


class Daemon(Service):
    """What ``twistd chatd`` runs."""

    def __init__(self, reactor: Any, config: Config, server_program: str, reread: Callable[[], Config]) -> None:
        """Take the configuration, workers counted, and the private broker's program, empty where there is none.

        Reread gives the configuration as it is by then, or raises BadValue.
        """
        self._reread = reread
        self._reactor = reactor
        self._config = config
        self._ports = Ports(config.listen, config.workers, config.accept_backlog)
        self._server_program = server_program
        self._valkey: Valkey | None = None
        self._fleet: Fleet | None = None

    def privilegedStartService(self) -> None:
        """Bind, while we may still be root."""
        super().privilegedStartService()
        config = self._config
        state = os.path.abspath(config.state) if config.state else ""
        self._config = replace(config, chat_log=os.path.abspath(config.chat_log), state=state)
        self._ports.bind()

    def startService(self) -> None:
        """Start broker and workers, as the user we are to run as."""
        super().startService()
        # A terminal that is closed; twistd would end without stopping anything.
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reactor.stop))
        if self._server_program:
            self._valkey = Valkey(self._reactor, self._server_program, self._config)
            try:
                self._valkey.start()
            except BadValue as error:  # what only shows once it is done
                sys.exit(f"twistd chatd: {error}")
        self._fleet = Fleet(self._reactor, self._config, self._ports, self._broker)
        self._fleet.all_ready.addCallback(lambda _: self._say_ready())
        self._fleet.start()

    def stopService(self) -> "Deferred[None]":
        """Stop: no new connections, clients closed, log written, broker last."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._ports.close()
        try:
            if self._fleet is not None:
                await self._fleet.stop()
        finally:
            if self._valkey is not None:
                await self._valkey.stop()
        log.info("chatd has stopped")

    def _broker(self) -> tuple[str, str]:
        return (self._valkey.url, self._valkey.run) if self._valkey is not None else (self._config.redis, "")

    def _say_ready(self) -> None:
        broker = broker_address(self._config.redis) if self._config.redis else "a private Valkey"
        log.info(
            "chatd {version} is ready: {workers} workers, messages go through {broker}",
            version=chatd.__version__,
            workers=self._config.workers,
            broker=broker,
        )
        for hint in self._ports.hints():
            log.info("{hint}", hint=hint)
        log.info("the chat log: {path}", path=self._config.chat_log)
