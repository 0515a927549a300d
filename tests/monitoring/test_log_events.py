"""The fields of log events, and which events are the same."""

from twisted.logger import Logger
from twisted.python.failure import Failure

from chatd.monitoring.log_events import LONGEST, event_key, fields_of
from chatd.runtime.ipc import LogRecord, encode, read_report
from tests.fakes import Events


def test_fields_are_numbers_of_json_and_known_texts_but_nothing_that_clients_send() -> None:
    fields = {"count": 3, "wait": 0.5, "why": "it is full", "path": "/var/log"}
    sent = {"room": "ops", "text": "hello", "member": "w.1", "line": "hello", "session": "w.2"}
    assert fields_of({"log_format": "{count}", "a": float("nan"), "b": float("inf"), **fields, **sent}) == fields
    assert fields_of({"why": ""}) == {}


def test_a_worker_can_report_all_fields() -> None:
    fields = fields_of({"resolved": True, "count": 3, "wait": 0.5, "why": "it is full"})
    report = LogRecord("warn", "text", fields=fields)
    assert read_report(encode(report)) == report


def test_texts_are_bounded_and_can_be_encoded() -> None:
    assert fields_of({"why": "x" * 5000}) == {"why": "x" * LONGEST}
    assert fields_of({"why": OSError(28, "full \ud800")}) == {"why": "[Errno 28] full \\ud800"}


def test_events_with_one_id_are_the_same_whatever_their_text() -> None:
    events = Events()
    log = Logger(namespace="chatd.room", observer=events)
    for count in (1, 2):
        log.warn(f"{count} are gone", event="clients_gone")
    log.warn("1 are gone", event="others_gone")
    first, second, other = map(event_key, events.events)
    assert first == second
    assert other != first


def test_events_of_libraries_are_the_same_if_their_text_is() -> None:
    events = Events()
    log = Logger(namespace="twisted", observer=events)
    for count in (1, 2):
        log.warn("{count} are gone", count=count)
    log.warn("others are gone")
    first, second, other = map(event_key, events.events)
    assert first == second
    assert other != first


def test_a_failure_counts_as_the_same_in_the_worker_and_in_the_supervisor() -> None:
    events = Events()
    Logger(namespace="chatd.room", observer=events).failure("failed", Failure(KeyError("a")), event="timer_failed")
    [event] = events.events
    relayed = {"event": "timer_failed", "text": "failed\nTraceback …", "fields": fields_of(event)}
    assert event_key(relayed) == event_key(event) == "timer_failed KeyError"


def test_failures_of_different_kinds_are_not_the_same() -> None:
    events = Events()
    log = Logger(namespace="chatd.room", observer=events)
    for error in (KeyError("a"), KeyError("b"), OSError("c")):
        log.failure("it went wrong", Failure(error), event="timer_failed")
    first, second, other = map(event_key, events.events)
    assert first == second
    assert other != first
