"""The parsers of values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.config.settings import bounds, options
from chatd.config.values import (
    BadValue,
    byte_rate,
    bytes_of,
    duration,
    file_path,
    folder_path,
    key_prefix,
    limit,
    log_path,
    one_of,
    quoted,
    rate,
    seconds_of,
    share,
    shown_duration,
    shown_size,
    size,
    size_or,
    switch,
    whole_number,
    whole_seconds,
)

Parser = Callable[[str], Any]

NO_DURATION = "is not a duration; use a number with a unit such as 500ms, 10s, 5m or 24h"
NO_SIZE = "is not a size; use a number with a unit such as 64KiB, 100MB or 1GiB"


def outcome(parse: Parser, text: str) -> Any:
    """Return the value of a text, or the error."""
    try:
        return parse(text)
    except BadValue as error:
        return str(error)


def failures(parse: Parser, rows: list[tuple[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Return the rows in which another value or error comes out than expected."""
    outcomes = [(text, outcome(parse, text), expected) for text, expected in rows]
    return [row for row in outcomes if row[1] != row[2] or type(row[1]) is not type(row[2])]


def refused(text: str, why: str) -> tuple[str, str]:
    """Return a row for a text that is refused; the error begins with the text in quotes."""
    return text, f"{json.dumps(text, ensure_ascii=False)} {why}"


def test_durations() -> None:
    rows: list[tuple[str, Any]] = [
        ("10", 10.0),
        ("0.25", 0.25),
        ("500ms", 0.5),
        ("10s", 10.0),
        ("1.5 m", 90.0),
        ("24h", 86_400.0),
        ("30d", 2_592_000.0),
        ("1_000", 1000.0),
        ("1e1", 10.0),
        ("0", 0.0),
        *(refused(text, NO_DURATION) for text in ("", "x", "10 sec", "1h30m", "10S", "nan", "inf", "٣", "1e999", "ms")),
    ]
    assert failures(seconds_of, rows) == []


def test_durations_have_a_range() -> None:
    rows = [
        ("1", 1.0),
        ("1h", 3600.0),
        ("999ms", "999ms is too small; the minimum is 1s"),
        ("-5s", "-5s is too small; the minimum is 1s"),
        ("3601", "3601 is too large; the maximum is 1h"),
    ]
    assert failures(duration(1, 3600), rows) == []
    assert (
        failures(whole_seconds(0, 60), [("1m", 60), ("1600ms", 2), ("61", "61 is too large; the maximum is 1m")]) == []
    )


def test_sizes() -> None:
    rows: list[tuple[str, Any]] = [
        ("100000", 100_000),
        ("100_000", 100_000),
        ("100000B", 100_000),
        ("100kB", 100_000),
        ("100 kb", 100_000),
        ("64KiB", 65_536),
        ("1MB", 10**6),
        ("1MiB", 2**20),
        ("1gb", 10**9),
        ("1GiB", 2**30),
        *(refused(text, NO_SIZE) for text in ("", "day", "1.5MB", "100k", "100M", "1TB", "x", "9" * 5000)),
    ]
    assert failures(bytes_of, rows) == []


def test_sizes_have_a_range() -> None:
    rows = [
        ("16KiB", 16_384),
        ("0", "0 is too small; the minimum is 1"),
        ("-5", "-5 is too small; the minimum is 1"),
        ("2MB", "2MB is too large; the maximum is 1MiB"),
    ]
    assert failures(size(1, 2**20), rows) == []


def test_a_size_or_a_word() -> None:
    why = "is not day or a size of at least 10kB; use for example 100MB"
    rows = [("day", "day"), ("100MB", "100MB"), ("10kB", "10kB"), ("1e", f'"1e" {why}'), refused("9999", why)]
    assert failures(size_or("day", "10kB", "100MB"), rows) == []


def test_whole_numbers() -> None:
    advice = "use a whole number from 1 to 16"
    rows: list[tuple[str, Any]] = [
        ("1", 1),
        ("16", 16),
        ("1_0", 10),
        ("07", 7),
        ("0", "0 is too small; the minimum is 1"),
        ("17", "17 is too large; the maximum is 16"),
        *(refused(text, f"is not a number; {advice}") for text in ("", "x", "0x1", "nan")),
        *(refused(text, f"is not a whole number; {advice}") for text in ("1.5", "1e1")),
    ]
    assert failures(whole_number(1, 16), rows) == []
    assert outcome(whole_number(0, 256, "use 0 for one per core"), "auto") == (
        '"auto" is not a number; use 0 for one per core'
    )
    assert failures(share(0.001, 1), [("0.5", 0.5), ("2", "2 is too large; the maximum is 1")]) == []


def test_rates() -> None:
    no_rate = "is not a number; use auto, off or a number over 0"
    rows: list[tuple[str, Any]] = [
        *((text, text) for text in ("auto", "off", "0.5", "1e6", "65536")),
        ("0", "0 is too small; the minimum is 0.001"),
        ("-1", "-1 is too small; the minimum is 0.001"),
        ("1e10", "1e10 is too large; the maximum is 1000000000"),
        *(refused(text, no_rate) for text in ("", "5x", "nan", "inf", "on", "5/s")),
    ]
    assert failures(rate, rows) == []
    no_size = "is not a size; use auto, off or bytes per second such as 64KiB"
    rows = [("auto", "auto"), ("off", "off"), ("1000", "1000"), ("64kB", "64000"), ("64KiB", "65536")]
    assert failures(byte_rate, [*rows, refused("64q", no_size)]) == []
    assert [limit(text, 7) for text in ("auto", "off", "2.5")] == [7, 0, 2.5]


def test_words_and_prefixes() -> None:
    assert failures(one_of("a", "b", "c"), [("a", "a"), ("d", '"d" is unknown; use a, b or c')]) == []
    assert failures(switch, [("true", True), ("false", False), ("1", '"1" is not a switch; use true or false')]) == []
    why = "is not a prefix; use 1 to 64 letters, digits or any of _ . : -"
    good = [(text, text) for text in ("chatd", "a", "A-b_c.d:9", "x" * 64)]
    bad = [refused(text, why) for text in ("", "x" * 65, "a b", "a\n", "a*", "é", "a{b}", "a/b")]
    assert failures(key_prefix, [*good, *bad]) == []


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    new, file, folder = f"{tmp_path}/logs/chat.log", f"{tmp_path}/file", str(tmp_path)
    stranger = "is no home folder on this host; write a file whose name begins with ~ as ./~…"
    for parse in (log_path, file_path, folder_path):
        rows = [(new, new), ("~/kept", f"{tmp_path}/kept"), ("~nobody-of-it/kept", f'"~nobody-of-it" {stranger}')]
        kind = "folder" if parse is folder_path else "file"
        rows += [refused(text, f"does not name a {kind}") for text in ("", " ", "a\0b", "a\nb")]
        assert failures(parse, rows) == [], parse
    logs = [
        refused(folder, "is a folder; use the path of a file"),
        refused("new/", "does not name a file"),
        (file, file),
    ]
    dash = ("-", '"-" is not a file; use a file on a disk, and follow it with: tail -F FILE')
    assert failures(log_path, [*logs, dash, (file, file)]) == []
    folders = [(folder, folder), refused(file, "is a file; use the path of a folder")]
    assert failures(folder_path, folders) == []


def test_durations_and_sizes_are_shown_with_their_unit() -> None:
    seconds = {0: "0", 0.002: "2ms", 0.5: "500ms", 1: "1s", 1.5: "1.5s", 90: "90s", 3600: "1h", 86_400: "24h"}
    assert {value: shown_duration(value) for value in seconds} == seconds
    sizes = {0: "0", 200: "200", 16_384: "16KiB", 2**20: "1MiB", 3 * 2**30: "3GiB", 100_000: "100000"}
    assert {value: shown_size(value) for value in sizes} == sizes


@given(st.floats(0.001, 1e7), st.integers(1, 2**40))
def test_what_is_shown_is_parsed_to_the_same(seconds: float, count: int) -> None:
    assert seconds_of(shown_duration(seconds)) == pytest.approx(seconds)
    assert bytes_of(shown_size(count)) == count


@given(st.sampled_from([*options(), *bounds()]), st.text())
def test_any_refusal_is_one_line(option: Any, text: str) -> None:
    try:
        option.parse(text)
    except BadValue as error:
        assert str(error).isprintable()
    assert quoted(text).isprintable()
