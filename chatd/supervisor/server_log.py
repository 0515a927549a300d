"""The server's own log: where twistd's options want it, as text or as JSON, and repeated trouble counted.

twistd takes the observer that stands on its application (``ILogObserver``), unless ``--logger`` names another one.
So ``--logfile`` and ``--syslog`` mean what they mean without us, and a file is rotated at SIGUSR1. Text in the journal
of systemd has no time of its own: each entry there has one.

In JSON a line is one object: ``time`` (RFC 3339, UTC), ``level``, ``namespace``, ``pid``, ``worker`` (null for the
parent), ``text``, and ``fields``: numbers and reasons (``chatd.monitoring.log_events``), never what clients say.
"""

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    LogLevel,
    eventAsText,
    formatEvent,
)
from twisted.python.logfile import LogFile
from twisted.python.syslog import SyslogObserver
from zope.interface import implementer

from chatd.config.settings import Config
from chatd.monitoring.log_events import event_key, fields_of

DAEMON_UMASK = 0o77
"""The umask that twistd gives a daemon, unless it is told another."""
PRINTED = "stderr"
"""The namespace of what Python prints, which twistd has logged line by line."""


def as_json(event: LogEvent) -> str:
    """Give an event as an object in one line, newline included; all of it is ASCII."""
    told = {
        "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
        "level": event.get("log_level", LogLevel.info).name,
        "namespace": event.get("source") or event.get("log_namespace", ""),
        "pid": event.get("worker_pid") or os.getpid(),
        "worker": event.get("worker"),
        "text": _text(event),
        "fields": _fields(event),
    }
    return json.dumps(told) + "\n"


def _text(event: LogEvent) -> str:
    if "source" in event and "said" not in event:  # without the words that say which worker
        return str(event["text"])
    return eventAsText(event, includeTimestamp=False, includeSystem=False)


def _fields(event: LogEvent) -> dict[str, Any]:
    """Give the fields of an event; a worker's own where the parent only passes it on."""
    if (relayed := event.get("fields")) is not None:
        return {**relayed, **({"times": event["times"]} if "times" in event else {})}
    return {name: value for name, value in fields_of(event).items() if name != "worker"}


def is_journal(file: TextIO) -> bool:
    """Whether a file leads to systemd's journal, which tells by ``$JOURNAL_STREAM`` (systemd.exec(5)) which one."""
    try:
        about = os.fstat(file.fileno())
    except OSError:  # it is no file of the system's, or closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


@dataclass(slots=True)
class _Kind:
    said_at: float
    times: int = 0
    """How often it came since then."""
    event: LogEvent | None = None
    """The newest of those, or the end of that trouble."""


@implementer(ILogObserver)
class LogRepetition:
    """Passes events on. ``look`` is to be called every second or so."""

    def __init__(
        self, observer: Callable[[LogEvent], Any], seconds: float, most: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take who gets the events, how often one kind is said at most (0: always), how many kinds are known."""
        self.seconds = seconds
        self._observer = observer
        self._most = most
        self._now = now
        self._kinds: dict[str, _Kind] = {}  # the one that was said the longest ago first

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on, or count it."""
        problem, over = event.get("problem", ""), event.get("resolved", False)
        name = problem or event_key(event)
        kind = self._kinds.get(name)
        if over and kind is not None and kind.times:
            kind.event = event
        elif over or event.get("log_level", LogLevel.info) < LogLevel.warn or not self.seconds or event.get("always"):
            self._observer(event)
        elif kind is None:
            if len(self._kinds) >= self._most:
                self._say(self._kinds.pop(next(iter(self._kinds))))
            self._kinds[name] = _Kind(self._now())
            self._observer(event)
        else:
            kind.times += 1
            kind.event = event

    def look(self) -> None:
        """Say what was counted for long enough, forget what came no more."""
        now = self._now()
        for name, kind in list(self._kinds.items()):
            if now - kind.said_at < self.seconds:
                break
            del self._kinds[name]
            if kind.times:
                self._kinds[name] = _Kind(now)  # behind those that were said before
                self._say(kind)

    def say_all(self) -> None:
        """Say at once what was counted."""
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._say(kind)

    def _say(self, kind: _Kind) -> None:
        if kind.event is None:
            return
        passed = round(self._now() - kind.said_at)
        text = f"{formatEvent(kind.event)} ({kind.times} more in {passed} s)"
        event = {name: value for name, value in kind.event.items() if name != "log_failure"}
        self._observer({**event, "log_format": "{said}", "said": text, "times": kind.times})


@implementer(ILogObserver)
class ServerLog:
    """The observer of all that the parent logs, and of what workers have it log."""

    def __init__(self, reactor: Any, options: Mapping[str, Any], config: Config) -> None:
        """Take twistd's own options: ``logfile``, ``syslog``, ``prefix``, ``nodaemon``."""
        self._reactor = reactor
        self._options = options
        self._json = config.log_format == "json"
        self._with_time = True
        self._write: Callable[[LogEvent], Any] = self._stream(sys.stderr)  # until it is open
        self._repetition = LogRepetition(self._out, config.log_repeat, config.log_kinds, reactor.seconds)

    def configure(self, config: Config) -> None:
        """Go on as another configuration wants it."""
        self._json = config.log_format == "json"
        self._repetition.seconds = config.log_repeat

    def open(self) -> None:
        """Open what is written to. Ends the process where that is not to be had, as twistd does."""
        options, file = self._options, self._options.get("logfile") or ""
        if options.get("syslog"):
            emit: Any = SyslogObserver(options.get("prefix") or "").emit
            self._write = LegacyLogObserverWrapper(emit)
        elif file == "-" or (options.get("nodaemon") and not file):
            if not options.get("nodaemon"):
                sys.exit("twistd chatd: a daemon cannot log to stdout")
            if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may have no letter of a room's name
                sys.stdout.reconfigure(errors="backslashreplace")
            self._write = self._stream(sys.stdout)
        else:
            self._with_time = True
            self._write = FileLogObserver(self._log_file(file or "twistd.log"), self._line)

    def __call__(self, event: LogEvent) -> None:
        """Log an event, or count it. Log every line that this process prints: a traceback is needed as a whole."""
        if event.get("log_namespace") == PRINTED:
            self._out(event)
        else:
            self._repetition(event)

    def look(self) -> None:
        """Say what was counted for long enough; to be called every second or so."""
        self._repetition.look()

    def close(self) -> None:
        """Say what was counted."""
        self._repetition.say_all()

    def _out(self, event: LogEvent) -> None:
        if self._json and self._options.get("syslog"):
            line = as_json(event).rstrip("\n")
            event = {name: value for name, value in event.items() if name != "log_failure"}
            event |= {"log_format": "{line}", "line": line}
        self._write(event)

    def _line(self, event: LogEvent) -> str | None:
        if self._json:
            return as_json(event)
        text = eventAsText(event, includeTimestamp=self._with_time)
        return text.replace("\n", "\n\t") + "\n" if text else None

    def _stream(self, file: TextIO) -> FileLogObserver:
        """Write to standard output or error."""
        self._with_time = not is_journal(file)
        return FileLogObserver(file, self._line)

    def _log_file(self, path: str) -> Any:
        """Open a file that SIGUSR1 rotates, unless something else is to happen then.

        It is made with the mode that twistd's umask gives, which a daemon has only later.
        """
        mask = self._options.get("umask")
        if mask is None:
            mask = 0 if self._options.get("nodaemon") else DAEMON_UMASK
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666 & ~mask))
            file = LogFile.fromFullPath(path)
        except OSError as error:
            why = error.strerror or error
            sys.exit(f"twistd chatd: the server's log {path} cannot be written: {why}; name another: twistd --logfile")
        if not signal.getsignal(signal.SIGUSR1):  # SIG_DFL is 0
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(file.rotate))
        return file
