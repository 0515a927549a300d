"""The server log: text or JSON, to the place that twistd's options name, with repeated events counted.

twistd uses the observer of its application (``ILogObserver``), unless ``--logger`` names another one. ``--logfile`` and
``--syslog`` therefore keep their meaning, and SIGUSR1 rotates a file. Lines of text in the journal of systemd have no
time, because each entry there has one.

In JSON a line is one object: ``time`` (RFC 3339, UTC), ``level``, ``event`` (its id; null if a library wrote it),
``namespace``, ``pid``, ``worker`` (null for the supervisor), ``text``, and ``fields``: numbers and reasons
(``chatd.monitoring.log_events``), never text of clients.
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
"""The umask that twistd gives a daemon without ``--umask``."""
PRINTED = "stderr"
"""The namespace of what Python prints, which twistd logs line by line."""


def as_json(event: LogEvent) -> str:
    """Return an event as one line of JSON in ASCII, newline included."""
    line = {
        "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
        "level": event.get("log_level", LogLevel.info).name,
        "event": event.get("event") or None,
        "namespace": event.get("source") or event.get("log_namespace", ""),
        "pid": event.get("worker_pid") or os.getpid(),
        "worker": event.get("worker"),
        "text": _text(event),
        "fields": _fields(event),
    }
    return json.dumps(line) + "\n"


def _text(event: LogEvent) -> str:
    if "source" in event and "times" not in event:  # an event of a worker, whose number has a member of its own
        return str(event["text"])
    return eventAsText(event, includeTimestamp=False, includeSystem=False)


def _fields(event: LogEvent) -> dict[str, Any]:
    """Return the fields of an event; those that the worker sent, if it is a worker's."""
    if (relayed := event.get("fields")) is not None:
        return {**relayed, **({"times": event["times"]} if "times" in event else {})}
    return {name: value for name, value in fields_of(event).items() if name != "worker"}


def is_journal(file: TextIO) -> bool:
    """Return whether a file is the journal of systemd, by ``$JOURNAL_STREAM`` (systemd.exec(5))."""
    try:
        status = os.fstat(file.fileno())
    except OSError:  # it has no descriptor, or is closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


@dataclass(slots=True)
class _Repetition:
    """An event that was logged, and those with the same key since then."""

    logged_at: float
    times: int = 0
    newest: LogEvent | None = None
    """The newest of those, or the end of the problem."""


class RepeatedEvents:
    """Logs an event at once, and events with the same key once per interval, with their number.

    Events below a warning always pass. Of a problem that begins and ends repeatedly, the newest state is logged.
    """

    def __init__(
        self, observer: Callable[[LogEvent], Any], seconds: float, most: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the observer of what is logged, the interval (0: log everything) and how many keys are remembered."""
        self.seconds = seconds
        self._observer = observer
        self._most = most
        self._now = now
        self._repetitions: dict[str, _Repetition] = {}  # by key, in the order in which they were logged

    def __call__(self, event: LogEvent) -> None:
        """Log an event, or count it."""
        resolved = event.get("resolved", False)
        key = event.get("problem", "") or event_key(event)
        repetition = self._repetitions.get(key)
        always = event.get("always") or event.get("log_level", LogLevel.info) < LogLevel.warn or not self.seconds
        if resolved and repetition is not None and repetition.times:
            repetition.newest = event
        elif resolved or always:
            self._observer(event)
        elif repetition is None:
            if len(self._repetitions) >= self._most:
                self._log(self._repetitions.pop(next(iter(self._repetitions))))
            self._repetitions[key] = _Repetition(self._now())
            self._observer(event)
        else:
            repetition.times += 1
            repetition.newest = event

    def flush_old(self) -> None:
        """Log the repetitions whose interval is over. Call it about once a second."""
        now = self._now()
        for key, repetition in list(self._repetitions.items()):
            if now - repetition.logged_at < self.seconds:
                break
            del self._repetitions[key]
            if repetition.times:
                self._repetitions[key] = _Repetition(now)  # now the last one
                self._log(repetition)

    def flush(self) -> None:
        """Log all repetitions now."""
        repetitions, self._repetitions = self._repetitions, {}
        for repetition in repetitions.values():
            self._log(repetition)

    def _log(self, repetition: _Repetition) -> None:
        if repetition.newest is None:
            return
        passed = round(self._now() - repetition.logged_at)
        line = f"{formatEvent(repetition.newest)} ({repetition.times} more in {passed} s)"
        event = {name: value for name, value in repetition.newest.items() if name != "log_failure"}
        self._observer({**event, "log_format": "{line}", "line": line, "times": repetition.times})


@implementer(ILogObserver)
class ServerLog:
    """The observer of all events of the supervisor, and of those that workers send it."""

    def __init__(self, reactor: Any, options: Mapping[str, Any], config: Config) -> None:
        """Use twistd's own options: ``logfile``, ``syslog``, ``prefix``, ``nodaemon``, ``umask``."""
        self._reactor = reactor
        self._options = options
        self._json = config.log_format == "json"
        self._level = LogLevel.levelWithName(config.log_level)
        self._with_time = True
        self._write: Callable[[LogEvent], Any] = self._stream(sys.stderr)  # until ``open``
        self._repeated = RepeatedEvents(
            self._log, config.log_repeat_interval, config.log_repeat_events, reactor.seconds
        )

    def configure(self, config: Config) -> None:
        """Apply a new configuration."""
        self._json = config.log_format == "json"
        self._level = LogLevel.levelWithName(config.log_level)
        self._repeated.seconds = config.log_repeat_interval

    def open(self) -> None:
        """Open the destination. Raise SystemExit, as twistd does, if that is not possible."""
        options, file = self._options, self._options.get("logfile") or ""
        if options.get("syslog"):
            emit: Any = SyslogObserver(options.get("prefix") or "").emit
            self._write = LegacyLogObserverWrapper(emit)
        elif file == "-" or (options.get("nodaemon") and not file):
            if not options.get("nodaemon"):
                sys.exit("twistd chatd: a daemon cannot log to stdout")
            if isinstance(sys.stdout, io.TextIOWrapper):  # the locale's encoding may lack characters of a path
                sys.stdout.reconfigure(errors="backslashreplace")
            self._write = self._stream(sys.stdout)
        else:
            self._with_time = True
            self._write = FileLogObserver(self._log_file(file or "twistd.log"), self._line)

    def __call__(self, event: LogEvent) -> None:
        """Log or count an event. Log every line that Python prints, because a traceback is needed as a whole."""
        if event.get("log_namespace") == PRINTED:
            self._log(event)
        else:
            self._repeated(event)

    def flush_old(self) -> None:
        """Log the repeated events whose interval is over. Call it about once a second."""
        self._repeated.flush_old()

    def close(self) -> None:
        """Log all repeated events."""
        self._repeated.flush()

    def _log(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) < self._level:
            return
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
        """Return an observer that writes to standard output or error."""
        self._with_time = not is_journal(file)
        return FileLogObserver(file, self._line)

    def _log_file(self, path: str) -> Any:
        """Open a file, and let SIGUSR1 rotate it unless that signal has a handler.

        Its mode is that of twistd's umask, which a daemon sets only later.
        """
        mask = self._options.get("umask")
        if mask is None:
            mask = 0 if self._options.get("nodaemon") else DAEMON_UMASK
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666 & ~mask))
            file = LogFile.fromFullPath(path)
        except OSError as error:
            why = error.strerror or error
            sys.exit(f"twistd chatd: cannot write the server log {path}: {why}; choose another with twistd --logfile")
        if not signal.getsignal(signal.SIGUSR1):  # SIG_DFL is 0
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(file.rotate))
        return file
