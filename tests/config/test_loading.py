"""The sources of options: files, the environment, the command line."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from chatd.config.loading import Source, combine, read_environment, read_file, show
from chatd.config.renamed import MOVED, RENAMED, current_words
from chatd.config.settings import LOOPBACK_LISTEN, SECTIONS, Config, Option, bounds, options
from chatd.config.values import BadValue

WORKERS = max(2, os.cpu_count() or 1)

EXAMPLES: dict[str, Any] = {
    "COUNT": 7,
    "DURATION": "1s",
    "SIZE": "100MB",
    "LIMIT": "off",
    "NUMBER": 1,
    "FILE": "/run/one",
    "DIR": "/run/kept",
    "URL": "redis://one",
    "TEXT": "other",
    "CLAIM": "exp",
    "FORMAT": "json",
    "WHEN": "day",
    "MODE": "batch",
    "LEVEL": "warn",
}


def write(folder: Path, text: str) -> str:
    path = folder / "chatd.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def fault(folder: Path, text: str) -> str:
    """Return the error of a file, without its name."""
    path = write(folder, text)
    with pytest.raises(BadValue) as caught:
        read_file(path)
    error = str(caught.value)
    assert error.startswith(path) and "\n" not in error
    return error.removeprefix(path).removeprefix(": ")


def example(option: Option) -> Any:
    """Return a value of an option as a file may have it."""
    sizes = {"max_message_size": "64KiB", "worker_send_buffers": "1MiB"}
    value = sizes.get(option.name) or (True if option.is_switch else EXAMPLES.get(option.value, "text"))
    return [value] if option.is_list else value


def toml(value: Any) -> str:
    return str(value).lower() if value is True else repr(value)


def parsed(option: Option, value: Any) -> Any:
    return tuple(map(option.parse, value)) if option.is_list else option.parse(toml(value).strip("'"))


# A file


def test_every_option_and_bound_may_stand_in_its_section(tmp_path: Path) -> None:
    lines = []
    for section in SECTIONS:
        known = [option for option in (*options(), *bounds()) if option.section == section]
        lines += [f"[{section}]"] * bool(section) + [f"{option.key} = {toml(example(option))}" for option in known]
    source = read_file(write(tmp_path, "\n".join(lines)))
    expected = {option.name: parsed(option, example(option)) for option in (*options(), *bounds())}
    assert (source.values, source.warnings) == (expected, [])


def test_every_option_of_the_last_release_still_works_in_a_file_with_a_warning(tmp_path: Path) -> None:
    renamed = {old: next(o for o in (*options(), *bounds()) if o.name == new) for old, new in RENAMED.items()}
    moved = {option.flag: option for option in options() if option.key != option.flag or option.section}
    for old, option in (moved | renamed).items():
        value = 2 if old == "flush-interval" else example(option)
        source = read_file(write(tmp_path, f"{old} = {toml(value)}"))
        expected = 0.002 if old == "flush-interval" else parsed(option, value)
        assert source.values == {option.name: expected}, old
        assert source.warnings == [f"{tmp_path}/chatd.toml: {old} is deprecated; use {option.place}"], old


def test_every_bound_that_was_an_option_still_works_in_its_old_section_with_a_warning(tmp_path: Path) -> None:
    moved = {old: next(bound for bound in bounds() if bound.name == name) for old, name in MOVED.items()}
    for old, bound in moved.items():
        section, key = old.split()
        source = read_file(write(tmp_path, f"{section}\n{key} = {toml(example(bound))}"))
        assert source.values == {bound.name: parsed(bound, example(bound))}, old
        assert source.warnings == [f"{tmp_path}/chatd.toml: {old} is deprecated; use [tuning] {bound.name}"], old


def test_numbers_and_texts(tmp_path: Path) -> None:
    text = """
    history_ttl = 0.25
    [limits]
    message_rate = 5
    max_message_size = 100_000
    [redis]
    maxmemory = 536870912
    [listen]
    address = ":1"
    trusted_proxy = []
    [tuning]
    connection_rate = 0.5
    byte_rate = "64kB"
    auth_require = ["exp", "sub"]
    """
    assert read_file(write(tmp_path, text)).values == {
        "history_ttl": 0.25,
        "message_rate": "5",
        "connection_rate": "0.5",
        "byte_rate": "64000",
        "max_message_size": 100_000,
        "redis_maxmemory": "536870912",
        "listen": (":1",),
        "trusted_proxy": (),
        "auth_require": ("exp", "sub"),
    }


def test_an_empty_text_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    source = read_file(write(tmp_path, 'data_dir = ""\n[redis]\ntls_ca = ""'))
    assert combine(source) == combine(read_file(write(tmp_path, "# nothing\n"))) == Config(workers=WORKERS)


SECTIONS_ARE = "; sections are listen, redis, limits, auth, chat_log, log, tuning"
NO_DURATION = "is not a duration; use a number with a unit such as 500ms, 10s, 5m or 24h"
NO_SIZE = "is not a size; use a number with a unit such as 64KiB, 100MB or 1GiB"
FAULTS = [
    ("wrokers = 4", "wrokers is not an option (did you mean workers?)"),
    ("zzz = 4", "zzz is not an option"),
    ("config = 'other.toml'", "config is not an option"),
    ("[state]\nhost = 'a'", f"[state] is not a section{SECTIONS_ARE}"),
    ("[limit]\na = 1", f"[limit] is not a section (did you mean limits?){SECTIONS_ARE}"),
    ("chat_logs = 'a'", "chat_logs is not an option (did you mean chat_log?)"),
    ("[limits]\nworkers = 4", "[limits] workers is not an option; use workers"),
    ("[redis]\nredis-prefix = 'a'", "[redis] redis-prefix is not an option; use [redis] prefix"),
    (
        "data-dir = 'a'\nclient_header_timeout = 1",
        "client_header_timeout is not an option; use [tuning] client_header_timeout",
    ),
    (
        "[tuning]\nclient_header_timeou = 1",
        "[tuning] client_header_timeou is not an option (did you mean client_header_timeout?)",
    ),
    ("[tuning]\nclient_header_timeout = 0", "[tuning] client_header_timeout: 0 is too small; the minimum is 1ms"),
    ("[tuning]\nclient_header_size = '8Q'", f'[tuning] client_header_size: "8Q" {NO_SIZE}'),
    ("[limits]\nmessage_rate = true", "[limits] message_rate: true is not text in quotes or a number"),
    ("[chat_log]\nrotate = 10", '[chat_log] rotate: "10" is not day or a size of at least 10kB; use for example 100MB'),
    ("workers = -1", "workers: -1 is too small; the minimum is 0"),
    ("workers = 2.5", 'workers: "2.5" is not a whole number; use 0 for one per core'),
    ("workers = 'auto'", 'workers: "auto" is not a number; use 0 for one per core'),
    ("workers = true", "workers: true is not text in quotes or a number"),
    ("workers = 2026-11-30", "workers: 2026-11-30 is not text in quotes or a number"),
    ("history_ttl = nan", f'history_ttl: "nan" {NO_DURATION}'),
    ("chat-log = 7", "chat-log: 7 is not text in quotes"),
    ("[chat_log]\nfile = ''", '[chat_log] file: "" does not name a file'),
    ("compress = 1", "compress: 1 is not a switch; use true or false"),
    ("[listen]\naddress = [3000]", "[listen] address: 3000 is not text in quotes or a list of it"),
    ("listen = 3000", "listen: 3000 is not text in quotes or a list of it"),
    ("data_dir = [true]", "data_dir: [true] is not text in quotes"),
]


def test_a_fault_is_named_in_one_line(tmp_path: Path) -> None:
    found = [(text, fault(tmp_path, text), error) for text, error in FAULTS]
    assert [row for row in found if row[1] != row[2]] == []


def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path: Path) -> None:
    assert fault(tmp_path, "workers = 2\nhello\n").endswith("(at line 2, column 6)")
    for text in ("workers = 2\nlisten = [\n", "workers = " + "[" * 10_000, "workers = " + "9" * 5_000):
        assert fault(tmp_path, text).startswith(" is not TOML: ")
    (tmp_path / "chatd.toml").write_bytes(b"chat-log = '\xff'")
    with pytest.raises(BadValue, match="is not TOML"):
        read_file(str(tmp_path / "chatd.toml"))
    with pytest.raises(BadValue, match="No such file or directory"):
        read_file(str(tmp_path / "none.toml"))


def test_a_password_in_a_bad_url_is_not_repeated(tmp_path: Path) -> None:
    assert "secret" not in fault(tmp_path, "[redis]\nurl = 'http://ann:secret@broker'")
    with pytest.raises(BadValue) as caught:
        read_environment({"CHATD_REDIS": "http://ann:secret@broker"})
    assert "secret" not in str(caught.value)


# The environment


def test_every_option_may_be_an_environment_variable() -> None:
    values = {option: example(option) for option in options()}
    texts = {o.variable: " ".join(v) if o.is_list else toml(v).strip("'") for o, v in values.items()}
    source = read_environment(
        texts | {"CHATD_TUNING": "client_header_timeout=2s auth_require=sub auth_require=exp", "CHATD_PORT": "tcp://x"}
    )
    expected = {option.name: parsed(option, value) for option, value in values.items()}
    assert source.values == expected | {"client_header_timeout": 2.0, "auth_require": ("sub", "exp")}
    assert source.warnings == []


def test_every_bound_that_was_an_option_still_has_its_variable_with_a_warning() -> None:
    moved = {bound: example(bound) for bound in bounds() if bound.name in MOVED.values()}
    texts = {o.variable: " ".join(v) if o.is_list else toml(v).strip("'") for o, v in moved.items()}
    source = read_environment(texts)
    assert source.values == {bound.name: parsed(bound, value) for bound, value in moved.items()}
    warnings = {f"{o.variable} is deprecated; use CHATD_TUNING={o.name}=…" for o in moved}
    assert (set(source.warnings), len(source.warnings)) == (warnings, len(MOVED))
    assert "CHATD_BYTE_RATE is deprecated; use CHATD_TUNING=byte_rate=…" in source.warnings


def test_several_values_in_one_variable_are_separated_by_spaces() -> None:
    values = read_environment({"CHATD_LISTEN": ":3000  unix:/run/a.sock"}).values
    assert values == {"listen": (":3000", "unix:/run/a.sock")}


def test_a_bad_variable_is_named() -> None:
    for variables, error in (
        ({"CHATD_WORKERS": "auto"}, 'CHATD_WORKERS: "auto" is not a number; use 0 for one per core'),
        ({"CHATD_TUNING": "nope=1"}, "CHATD_TUNING: nope: use NAME=VALUE with a name of the section [tuning]"),
        ({"CHATD_COMPRESS": "yes"}, 'CHATD_COMPRESS: "yes" is not a switch; use true or false'),
    ):
        with pytest.raises(BadValue) as caught:
            read_environment(variables)
        assert str(caught.value) == error


# All of them


def test_earlier_sources_override_later_ones() -> None:
    files = [Source("b", {"workers": 4, "history_size": 7}), Source("c", {"compress": True})]
    assert combine(Source("a", {"workers": 3}), *files) == Config(workers=3, history_size=7, compress=True)


def test_workers_are_counted_if_no_source_says_how_many() -> None:
    assert combine(Source("a", {"workers": 0})).workers == combine().workers == WORKERS


def test_plain_addresses_become_endpoint_strings() -> None:
    config = combine(Source("a", {"listen": ("127.0.0.1:80",), "tls_cert": "/c"}))
    assert config.listen == ("ssl:80:privateKey=/c:certKey=/c:interface=127.0.0.1",)


def test_old_words_of_a_command_line_become_the_current_ones() -> None:
    words, warnings = current_words(["verify", "--state", "--x", "--redis-ca=a", "host"])
    assert words == ["verify", "--data-dir", "--x", "--redis-tls-ca=a", "host"]
    assert warnings == ["--state is deprecated; use --data-dir", "--redis-ca is deprecated; use --redis-tls-ca"]


# What is in force


def shown(*sources: Source, **auto: str) -> dict[str, tuple[str, str]]:
    """Return value and source of each option, by section and key."""
    found, section = {}, ""
    for line in show(sources, auto).splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
        elif line:
            option, _, source = line.rpartition("  # ")
            key, _, value = option.rstrip().partition(" = ")
            found[f"{section}.{key}".lstrip(".")] = (value, source)
    return found


def test_every_option_is_shown_with_its_source() -> None:
    found = shown(
        Source("command line", {"workers": 3, "client_header_timeout": 2.0}),
        Source("/etc/chatd.toml", {"workers": 4, "history_size": 7, "byte_rate": "7"}),
        message_rate="5",
        byte_rate="65536",
        request_rate="20",
    )
    assert found["workers"] == ("3", "command line")
    assert found["history_size"] == ("7", "/etc/chatd.toml")
    assert found["limits.max_connections"] == ("0", "default")
    assert found["limits.message_rate"] == ('"auto"', "default; auto: 5")
    assert found["tuning.request_rate"] == ('"auto"', "default; auto: 20")
    assert found["tuning.byte_rate"] == ('"7"', "/etc/chatd.toml")
    assert found["tuning.client_header_timeout"] == ("2.0", "command line")
    assert len(found) == len(options()) + 3


def test_the_shown_options_can_be_used_as_a_file(tmp_path: Path) -> None:
    values = {"listen": (":1", "unix:/run/a.sock"), "chat_log": 'a "b" \\ å.log', "compress": True, "batch_bytes": 5}
    values |= {"auth_require": ("exp", "sub")}
    source = Source("command line", values)
    again = read_file(write(tmp_path, show([source])))
    assert (combine(again), again.warnings) == (combine(source), [])


def test_the_default_addresses_are_shown() -> None:
    assert tomllib.loads(show([]))["listen"]["address"] == list(LOOPBACK_LISTEN)


def test_a_password_is_not_shown() -> None:
    for url, clean in (
        ("redis://ann:secret@broker:7000/2", "redis://ann:***@broker:7000/2"),
        ("rediss://:secret@[::1]:7000", "rediss://:***@[::1]:7000"),
        ("redis://broker", "redis://broker"),
        ("https://[b", "https://[b"),
    ):
        assert tomllib.loads(show([Source("a", {"redis": (url,)})]))["redis"]["url"] == [clean]
