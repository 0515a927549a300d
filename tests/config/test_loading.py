import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from chatd.config.loading import combine, name_of, read_file, show
from chatd.config.settings import LOOPBACK_LISTEN, Config, options
from chatd.config.values import BadValue
from tests.rows import rows

WORKERS = max(2, os.cpu_count() or 1)


def write(folder: Path, text: str) -> str:
    path = folder / "chatd.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def fault(folder: Path, text: str) -> str:
    """Give what is said of a file, without its name."""
    path = write(folder, text)
    with pytest.raises(BadValue) as caught:
        read_file(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


# A file


def test_every_option_may_stand_in_the_file_by_its_name(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    for knob in options():
        if isinstance(knob.default, bool):
            values[name_of(knob)] = True
        elif isinstance(knob.default, tuple):
            several = {"auth_key": ["/run/one", "/run/two"], "auth_require": ["exp", "sub"]}
            values[name_of(knob)] = several.get(knob.name, ["redis://one", "redis://two"])
        elif not isinstance(knob.default, str):
            values[name_of(knob)] = knob.default
    values |= {"redis-prefix": "other", "chat-log": "all.log", "state": "kept"}
    lines = [f"{name} = {str(value).lower() if value is True else repr(value)}\n" for name, value in values.items()]
    read = read_file(write(tmp_path, "".join(lines)))
    for knob in options():
        if (name := name_of(knob)) in values:
            value = values[name]
            assert read[knob.name] == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize(("text", "seconds"), [("1", 1.0), ("0.25", 0.25), ("86_400", 86400.0)])
def test_a_number_is_one_with_or_without_a_point(tmp_path: Path, text: str, seconds: float) -> None:
    assert read_file(write(tmp_path, f"bus-patience = {text}")) == {"bus_patience": seconds}


def test_what_is_a_number_or_a_word_may_be_a_number_or_text(tmp_path: Path) -> None:
    lines = ("limit-messages = 5", "limit-arrivals = 0.5", "limit-bytes = '64kB'", "limit-rooms = 'off'")
    sizes = ("max-message = '100kB'", "max-backlog = 100_000", "broker-memory = 536870912", "chat-log-rotate = 100000")
    assert read_file(write(tmp_path, "\n".join(lines + sizes))) == {
        "limit_messages": "5",
        "limit_arrivals": "0.5",
        "limit_bytes": "64000",
        "limit_rooms": "off",
        "max_message": 100_000,
        "max_backlog": 100_000,
        "broker_memory": "536870912",
        "chat_log_rotate": "100000",
    }


def test_a_list_of_one_may_be_the_one(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, "listen = 'tcp:3000'")) == {"listen": ("tcp:3000",)}


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, "# nothing yet\n")) == {}


def test_an_empty_text_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    assert combine({}, read_file(write(tmp_path, 'redis-ca = ""\nstate = ""'))) == Config(workers=WORKERS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wrokers = 4", "no such option: 'wrokers' (did you mean workers?)"),
        ("zzz = 4", "no such option: 'zzz'"),
        ("config = 'other.toml'", "no such option: 'config'"),
        ("[state]\nhost = 'a'", "[state] is a section, but options stand without one: remove that line"),
        ("[chatd]\nworkers = 4", "[chatd] is a section, but options stand without one: remove that line"),
        ("[[chatd]]\nworkers = 4", "[chatd] is a section, but options stand without one: remove that line"),
        ("chat_logs = 'a'", "no such option: 'chat_logs' (did you mean chat-log?)"),
        ("limit-messages = true", "limit-messages must be a number or text, not true"),
        ("chat-log-rotate = 10", "chat-log-rotate must be day, or a size of at least 10kB such as 100MB, not '10'"),
        ("workers = -1", "workers must be a whole number from 0 to 256, not '-1'"),
        ("workers = 2.5", "workers must be a whole number from 0 to 256, not '2.5'"),
        ("workers = '4'", "workers must be a number, not '4'"),
        ("workers = true", "workers must be a number, not true"),
        ("bus-patience = nan", "bus-patience must be a number of seconds from 0 to 86400, not 'nan'"),
        ("chat-log = 7", "chat-log must be text, not 7"),
        ("chat-log = ''", "chat-log must name a file"),
        ("compress = 1", "compress must be true or false"),
        ("listen = [3000]", 'listen must be text, or a list of it: ["…", "…"], not [3000]'),
        ("listen = 3000", 'listen must be text, or a list of it: ["…", "…"], not 3000'),
        ("workers = 2026-11-30", "workers must be a number, not 2026-11-30"),
        ("state = [true]", "state must be text, not [true]"),
    ],
)
def test_what_cannot_be_used_is_said_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    assert fault(tmp_path, text) == said


def test_a_file_that_is_no_toml_is_said_with_the_line(tmp_path: Path) -> None:
    said = fault(tmp_path, "workers = 2\nlisten = [\n")
    assert said.startswith("no TOML: ")
    assert fault(tmp_path, "workers = 2\nhello\n").endswith("(at line 2, column 6)")


@pytest.mark.parametrize("text", ["workers = " + "[" * 10_000, "workers = " + "9" * 5_000])
def test_a_file_that_toml_itself_trips_over_is_said_too(tmp_path: Path, text: str) -> None:
    assert fault(tmp_path, text).startswith("no TOML")


def test_a_file_that_is_not_utf8_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "chatd.toml"
    path.write_bytes(b"chat-log = '\xff'")
    with pytest.raises(BadValue, match="no TOML"):
        read_file(str(path))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="No such file or directory"):
        read_file(str(tmp_path / "none.toml"))


def test_a_password_in_a_bad_url_is_not_said(tmp_path: Path) -> None:
    assert "secret" not in fault(tmp_path, "redis = 'http://ann:secret@broker'")


# Which comes first


def test_the_command_line_comes_before_the_file_before_the_defaults() -> None:
    config = combine({"workers": 3}, {"workers": 4, "history": 7, "compress": True})
    assert config == Config(workers=3, history=7, compress=True)


def test_workers_are_counted_where_nobody_does() -> None:
    assert combine({}, {"workers": 0}).workers == combine({}, {}).workers == WORKERS


# What is in force


def test_what_is_shown_names_where_each_value_comes_from() -> None:
    lines = show({"workers": 3}, {"history": 7}, "/etc/chatd.toml").splitlines()
    shown = {line.split(" = ")[0]: line for line in lines}
    assert shown["workers"].split() == ["workers", "=", "3", "#", "command", "line"]
    assert shown["history"].split() == ["history", "=", "7", "#", "/etc/chatd.toml"]
    assert shown["max-rooms"].split() == ["max-rooms", "=", "100", "#", "default"]
    assert set(shown) == {name_of(knob) for knob in options()}


def test_what_is_shown_says_what_auto_stands_for() -> None:
    lines = show(
        {}, {"limit_bytes": "7"}, "/etc/chatd.toml", {"limit_messages": "5", "limit_bytes": "65536"}
    ).splitlines()
    shown = {line.split(" = ")[0]: line.rpartition("  # ")[2] for line in lines}
    assert shown["limit-messages"] == "default; auto: 5"
    assert shown["limit-bytes"] == "/etc/chatd.toml"


def test_what_is_shown_can_be_used_as_a_file(tmp_path: Path) -> None:
    given = {"listen": ("tcp:3000", "unix:/run/a.sock"), "chat_log": 'a "b" \\ å.log', "compress": True, "workers": 5}
    again = read_file(write(tmp_path, show(given, {}, "")))
    assert combine({}, again) == combine(given, {})


def test_what_looks_like_a_url_and_is_none_is_shown_as_it_is() -> None:
    assert tomllib.loads(show({"origin": ("https://[b",)}, {}, ""))["origin"] == ["https://[b"]


def test_where_it_listens_is_shown_where_nobody_said_so() -> None:
    shown = tomllib.loads(show({}, {}, ""))
    assert shown["listen"] == list(LOOPBACK_LISTEN)


@rows(
    ("url", "shown"),
    [
        ("redis://ann:secret@broker:7000/2", "redis://ann:***@broker:7000/2"),
        ("rediss://:secret@[::1]:7000", "rediss://:***@[::1]:7000"),
        ("redis://broker", "redis://broker"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert tomllib.loads(show({"redis": (url,)}, {}, ""))["redis"] == [shown]
