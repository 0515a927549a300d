"""What of an event may stand in the server's own log, and which events say the same."""

from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.monitoring.log_events import LONGEST, event_key, fields_of
from chatd.runtime.ipc import LogRecord, encode, read_report
from tests.fakes import Events


def test_numbers_and_our_own_words_may_stand_there() -> None:
    event = {"log_format": "{count}", "count": 3, "wait": 0.5, "why": "it is full", "path": "/var/log"}
    assert fields_of(event) == {"count": 3, "wait": 0.5, "why": "it is full", "path": "/var/log"}


def test_what_clients_say_and_are_called_may_not() -> None:
    assert fields_of({"room": "ops", "text": "hello", "member": "w.1", "line": "hello", "session": "w.2"}) == {}


def test_no_number_is_what_json_has_no_word_for() -> None:
    assert fields_of({"a": float("nan"), "b": float("inf"), "why": ""}) == {}


def test_a_worker_may_send_all_that_may_stand_there() -> None:
    fields = fields_of({"resolved": True, "count": 3, "wait": 0.5, "why": "it is full"})
    report = LogRecord("warn", "text", fields=fields)
    assert read_report(encode(report)) == report


def test_words_are_bounded_and_can_be_encoded() -> None:
    assert fields_of({"why": "x" * 5000}) == {"why": "x" * LONGEST}
    assert fields_of({"why": OSError(28, "full \ud800")}) == {"why": "[Errno 28] full \\ud800"}


def test_the_same_is_what_has_the_same_format_whatever_stands_in_it() -> None:
    events = Events()
    log = Logger(namespace="chatd.room", observer=events)
    for count in (1, 2):
        log.warn("{count} are gone", count=count)
    log.warn("others are gone")
    first, second, other = map(event_key, events.events)
    assert first == second == "chatd.room: {count} are gone"
    assert other != first


def test_failures_of_different_kinds_are_not_the_same() -> None:
    events = Events()
    log = Logger(namespace="chatd.room", observer=events)
    for error in (KeyError("a"), KeyError("b"), OSError("c")):
        log.failure("it went wrong", Failure(error))
    first, second, other = map(event_key, events.events)
    assert first == second
    assert other != first
