import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.config.settings import Config
from chatd.runtime.ipc import (
    HOLD,
    STOP,
    Assignment,
    ListeningSocket,
    LogRecord,
    PublishingStopped,
    Ready,
    Report,
    encode,
    read_assignment,
    read_order,
    read_report,
)
from tests.rows import rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]))

ASSIGNMENT = Assignment(
    Config(
        listen=("tcp:3000", r"tcp:3000:interface=\:\:1"),
        workers=3,
        chat_log="/var/log/chatd/chat\n.log",
        publish_timeout=0.5,
    ),
    ("unix:///tmp/broker.sock", "redis://broker"),
    (ListeningSocket("tcp:3000", 3), ListeningSocket(r"tcp:3000:interface=\:\:1", 4)),
    "0a1b2c3d",
)


def test_an_assignment_arrives_as_it_was_sent() -> None:
    assert read_assignment(encode(ASSIGNMENT)) == ASSIGNMENT


def test_every_knob_reaches_the_worker() -> None:
    def other(value: object) -> object:
        if isinstance(value, tuple):
            return ("unix:/run/chatd.sock",)
        if isinstance(value, bool):
            return not value
        return f"{value}x" if isinstance(value, str) else value + 1  # type: ignore[operator]

    changed = Config(**{each.name: other(each.default) for each in dataclasses.fields(Config)})  # type: ignore[arg-type]
    assert read_assignment(encode(Assignment(changed, (), ()))).config == changed


@rows("order", [HOLD, STOP])
def test_an_order_arrives_as_it_was_sent(order: str) -> None:
    assert read_order(encode(order)) == order


def test_the_orders_differ() -> None:
    assert len({HOLD, STOP}) == 2


@rows("report", [Ready(), PublishingStopped(), LogRecord("warn", "a worker\nsays 007")])
def test_a_report_arrives_as_what_it_was(report: Report) -> None:
    assert read_report(encode(report)) == report


@given(TEXT, TEXT)
def test_whatever_a_log_line_holds_it_arrives_on_one_line(level: str, text: str) -> None:
    line = encode(LogRecord(level, text))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_report(line) == LogRecord(level, text)


@rows("value", [ASSIGNMENT, HOLD, Ready(), LogRecord("info", "a\r\nb\n")])
def test_a_value_is_one_line(value: Assignment | Report | str) -> None:
    assert len(encode(value).splitlines()) == 1


@rows("line", [b"", b"\n", b"ready", b"{}", b'{"type":"gone"}', b'{"type":"log"}', b'"ready"', b"\xff"])
def test_what_is_no_report_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        read_report(line)


@rows(
    "line", [b"", b"{}", b'"stop"', b'{"type":"ready"}', encode(ASSIGNMENT).replace(b'"workers":3', b'"workers":"3"')]
)
def test_what_is_no_assignment_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        read_assignment(line)


@rows("line", [b"", b"stop", b"{}", b"7", b"null"])
def test_what_is_no_order_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        read_order(line)
