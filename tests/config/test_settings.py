import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.config.settings import Config, options
from chatd.config.values import BadValue, milliseconds, seconds, size, whole_number
from tests.rows import rows

KNOBS = {knob.name: knob for knob in options()}


def check(knob: str, text: str) -> Any:
    return KNOBS[knob].metadata["check"](text)


def refusal(knob: str, text: str) -> str:
    with pytest.raises(BadValue) as caught:
        check(knob, text)
    return str(caught.value)


# Checks


@rows(("text", "value"), [("1", 1), ("16", 16), ("1_0", 10), ("07", 7)])
def test_a_whole_number_within_its_bounds_is_taken(text: str, value: int) -> None:
    assert whole_number(1, 16)(text) == value


@rows("text", ["0", "17", "-1", "", "x", "1.5", "1e1", "0x1", "nan", "9" * 5000])
def test_any_other_whole_number_is_refused_with_its_bounds(text: str) -> None:
    with pytest.raises(BadValue, match="must be a whole number from 1 to 16, not "):
        whole_number(1, 16)(text)


@rows(("text", "value"), [("0", 0.0), ("0.25", 0.25), ("10", 10.0), ("1e1", 10.0)])
def test_a_time_within_its_bounds_is_taken(text: str, value: float) -> None:
    assert seconds(0, 10)(text) == value


@rows("text", ["-0.1", "10.5", "", "x", "10 s", "nan", "inf", "-inf"])
def test_any_other_time_is_refused_with_its_bounds(text: str) -> None:
    with pytest.raises(BadValue, match="must be a number of seconds from 0 to 10, not "):
        seconds(0, 10)(text)


@rows(("text", "value"), [("0", 0.0), ("0.5", 0.5), ("2", 2.0), ("1e3", 1000.0)])
def test_an_interval_is_read_in_milliseconds(text: str, value: float) -> None:
    assert milliseconds(0, 1000)(text) == value


@rows("text", ["-1", "1001", "", "2 ms", "nan", "inf"])
def test_any_other_interval_is_refused_with_its_bounds(text: str) -> None:
    with pytest.raises(BadValue, match="must be a number of milliseconds from 0 to 1000, not "):
        milliseconds(0, 1000)(text)


@rows(
    ("knob", "least", "most"),
    [
        ("workers", 0, 256),
        ("max_message", 1, 1_048_576),
        ("max_backlog", 65_536, 1_073_741_824),
        ("max_backlog_total", 65_536, 1_099_511_627_776),
        ("max_connections", 0, 100_000_000),
        ("max_connections_worker", 1, 1_000_000),
        ("bus_patience", 0, 86400),
        ("history", 0, 1_000_000),
        ("history_ttl", 0, 31_536_000),
        ("flush_interval", 0, 1000),
        ("presence_limit", 0, 100_000),
        ("max_rooms", 1, 10_000),
    ],
)
def test_a_number_has_its_bounds(knob: str, least: int, most: int) -> None:
    assert (check(knob, str(least)), check(knob, str(most))) == (least, most)
    for beyond in (least - 1, most + 1):
        assert f"from {least} to {most}" in refusal(knob, str(beyond))


SIZES = [
    ("100000", 100_000),
    ("100_000", 100_000),
    ("100000B", 100_000),
    ("100kB", 100_000),
    ("100 kb", 100_000),
    ("100KB", 100_000),
    ("100KiB", 102_400),
    ("100kib", 102_400),
]


@rows(("text", "value"), SIZES)
def test_a_size_is_read_in_the_same_way_for_every_option(text: str, value: int) -> None:
    assert size(text) == value
    assert [check(knob, text) for knob in ("max_message", "max_backlog", "max_backlog_total")] == [value] * 3
    assert check("chat_log_rotate", text) == text
    for knob in ("limit_bytes", "limit_address_bytes"):
        assert float(check(knob, text)) == value


@rows("text", ["", "10", "9999", "9kB", "day ", "1 day", "-1MB", "1.5MB", "100k", "100M", "1TB", "x"])
def test_any_other_size_for_a_rotation_is_refused(text: str) -> None:
    assert refusal("chat_log_rotate", text) == f"must be day, or a size of at least 10kB such as 100MB, not {text!r}"


@rows("text", ["", "0", "10MB", "10k", "-5", "1.5kB", "x", "9" * 5000])
def test_any_other_size_of_a_message_is_refused_with_its_unit(text: str) -> None:
    assert refusal("max_message", text) == (
        f"must be from 1 to 1048576 bytes, as a number or with a unit (64kB, 64KiB, 1MB), not {text!r}"
    )


@rows("text", ["auto", "off", "0.5", "1e6", "65536"])
def test_a_limit_in_bytes_is_kept_as_it_was_given(text: str) -> None:
    assert check("limit_bytes", text) == text


def test_a_limit_that_cannot_be_used_is_refused_with_its_unit() -> None:
    assert "bytes per second" in refusal("limit_bytes", "64q")


PATHS = ["chat_log", "state", "auth_key", "revoked", "ban_list", "redis_ca", "redis_cert", "redis_key"]


@pytest.mark.parametrize("knob", [*PATHS, "redis_password_file", "sentinel_password_file"])
def test_a_home_folder_is_found_in_every_path(knob: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check(knob, "~/kept") == f"{tmp_path}/kept"
    assert "begins with ~nobody-of-it, which is no home folder here" in refusal(knob, "~nobody-of-it/kept")


@rows("prefix", ["chatd", "a", "A-b_c.d:9", "x" * 64])
def test_a_prefix_of_letters_digits_and_a_few_marks_is_taken(prefix: str) -> None:
    assert check("redis_prefix", prefix) == prefix


@rows("prefix", ["", "x" * 65, "a b", "a\n", "a*", "é", "a{b}", "a/b"])
def test_any_other_prefix_is_refused(prefix: str) -> None:
    assert "1 to 64 letters" in refusal("redis_prefix", prefix)


@rows("url", ["redis://broker", "unix:///run/valkey.sock"])
def test_a_broker_is_kept_as_it_was_given(url: str) -> None:
    assert check("redis", url) == url


def test_a_chat_log_may_be_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    path = str(tmp_path / "logs" / "chat.log")
    assert check("chat_log", path) == path


def test_a_chat_log_may_be_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "chat.log"
    path.touch()
    assert check("chat_log", str(path)) == str(path)


def test_a_chat_log_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal("chat_log", str(tmp_path))


@rows("path", ["", " ", "a\0b", "a\nb", "not-there-yet/"])
def test_a_chat_log_that_names_no_file_is_refused(path: str) -> None:
    assert refusal("chat_log", path) == "must name a file"


def test_a_state_folder_may_be_one_that_is_not_there_yet(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    assert check("state", path) == path


def test_a_state_folder_may_be_one_that_is_there(tmp_path: Path) -> None:
    assert check("state", str(tmp_path)) == str(tmp_path)


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()
    assert "is a file" in refusal("state", str(path))


@rows("path", ["", "a\0b", "a\nb"])
def test_a_state_folder_without_a_name_that_can_be_said_is_refused(path: str) -> None:
    assert refusal("state", path) == "must name a folder"


@given(st.sampled_from(sorted(KNOBS)), st.text())
def test_any_refusal_is_one_line(knob: str, text: str) -> None:
    try:
        check(knob, text)
    except BadValue as error:
        assert str(error).isprintable()


# The whole


def test_every_default_passes_its_own_check() -> None:
    given = [knob for knob in options() if knob.default not in ("", False, ())]
    assert [knob.name for knob in given if knob.metadata["check"](str(knob.default)) != knob.default] == []


def test_the_options_are_the_promised_ones() -> None:
    assert list(KNOBS) == [
        "listen",
        "origin",
        "host",
        "hsts",
        "trusted_proxy",
        "auth_key",
        "auth_issuer",
        "auth_audience",
        "auth_require",
        "revoked",
        "limit_messages",
        "limit_burst",
        "limit_bytes",
        "limit_connections",
        "limit_arrivals",
        "limit_rooms",
        "limit_handshakes",
        "limit_requests",
        "limit_address_messages",
        "limit_address_bytes",
        "ban_list",
        "workers",
        "redis",
        "redis_prefix",
        "redis_password_file",
        "redis_ca",
        "redis_cert",
        "redis_key",
        "sentinel_password_file",
        "log_format",
        "log_repeat",
        "chat_log",
        "chat_log_format",
        "chat_log_sync",
        "chat_log_rotate",
        "chat_log_keep",
        "state",
        "broker_memory",
        "max_message",
        "bus_patience",
        "drain",
        "compress",
        "history",
        "history_ttl",
        "presence_limit",
        "flush_interval",
        "max_backlog",
        "max_backlog_total",
        "max_rooms",
        "max_connections",
        "max_connections_worker",
    ]


def test_every_bound_is_a_number_over_zero() -> None:
    bounds = [each for each in dataclasses.fields(Config) if not each.metadata]
    assert [each.name for each in bounds if getattr(Config(), each.name) <= 0] == []


def test_a_broker_that_falls_silent_is_known_within_five_seconds() -> None:
    config = Config()
    assert config.bus_tick_seconds * (config.bus_silent_ticks + 1) <= 5.0


def test_what_a_broker_answered_before_it_fell_silent_is_still_known_then() -> None:
    config = Config()
    assert config.answered_seconds >= config.bus_tick_seconds * (config.bus_silent_ticks + 1) + 2.0


def test_a_stop_takes_ten_seconds_at_most() -> None:
    config = Config()
    assert config.hold_seconds + config.stop_seconds + config.broker_stop_seconds <= 10.0


def test_what_a_worker_waits_for_at_a_stop_ends_before_it_is_killed() -> None:
    config = Config()
    assert 0 < config.stop_probe_part < config.stop_close_part < config.stop_save_part
    assert config.stop_save_part + config.stop_lock_part <= 0.9
    assert (config.stop_close_part - config.stop_probe_part) * config.stop_seconds > config.close_seconds
    assert config.log_lock_seconds < config.hold_seconds / 2


def test_a_renamed_log_is_noticed_within_a_second() -> None:
    assert Config().log_check_seconds <= 1.0


def test_a_timer_of_a_client_comes_soon_enough_for_the_shortest_of_its_waits() -> None:
    config = Config()
    waits = (config.join_seconds, config.ping_seconds, config.pong_seconds, config.close_seconds)
    assert config.timer_seconds * 10 <= min(*waits, config.report_seconds)


@rows(
    ("config", "kept"),
    [(Config(), True), (Config(history=0), False), (Config(history_ttl=0), False), (Config(history=1), True)],
)
def test_no_messages_or_no_time_is_no_history(config: Config, kept: bool) -> None:
    assert config.keeps_history == kept


@rows(("ttl", "whole"), [(86_400.0, 86_400), (0.2, 1), (0.0, 1), (1.6, 2)])
def test_the_broker_keeps_history_for_whole_seconds_and_one_at_least(ttl: float, whole: int) -> None:
    assert Config(history_ttl=ttl).history_seconds == whole


def test_a_room_is_remembered_no_shorter_than_its_history() -> None:
    assert Config(history_ttl=60, room_memory_seconds=600).room_seconds == 600
    assert Config(history_ttl=6000, room_memory_seconds=600).room_seconds == 6000


def test_a_batch_whose_answer_got_lost_is_known_for_five_minutes() -> None:
    assert Config().republish_memory_seconds == 300


def test_a_lost_message_that_has_no_successor_is_noticed_within_ten_seconds() -> None:
    assert Config().compare_seconds <= 10.0


def test_places_are_written_once_a_second() -> None:
    assert Config().place_seconds == 1.0


def test_one_that_comes_back_waits_for_its_last_connection_shorter_than_a_handshake_may_take() -> None:
    assert Config().takeover_seconds < Config().join_seconds


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().workers = 3  # type: ignore[misc]


def test_the_default_log_lies_under_the_working_folder() -> None:
    assert not os.path.isabs(Config().chat_log)


@rows("text", ["auto", "32MiB", "512MiB", "1GiB", "100000000"])
def test_the_memory_of_the_broker_is_a_size_or_left_to_us(text: str) -> None:
    assert check("broker_memory", text) == text


@rows("text", ["", "31MiB", "0", "half", "off", "1 TB"])
def test_any_other_memory_of_the_broker_is_refused(text: str) -> None:
    assert refusal("broker_memory", text) == f"must be auto, or a size of at least 32MiB such as 512MiB, not {text!r}"
