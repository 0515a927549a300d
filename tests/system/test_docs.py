"""The documentation: what it shows as printed is what is printed, and what a reader copies from it works.

Commands run as they stand there, each in a terminal on a host of its own where port 3000 is free.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, expect
from websockets.sync.client import ClientConnection, unix_connect

from chatd.access.revoked_tokens import RevokedTokens
from chatd.config.loading import combine, read_file
from chatd.supervisor.private_broker import find_server
from tests.blocks import Block, block, blocks, named_in_tests, read
from tests.browser.chromium import chromium
from tests.system.daemon import Daemon, Terminal
from tests.system.network import Loopback
from tests.waiting import until

ROOT = Path(__file__).parents[2]
LISTEN = ("--listen", "tcp:3000:interface=127.0.0.1", "--listen", r"tcp:3000:interface=\:\:1")
"""The default, which a daemon with a unix socket beside it has to be given."""


def test_the_transcripts_are_what_is_printed_today() -> None:
    command = [sys.executable, str(ROOT / "docs" / "transcripts.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


_FENCED = re.compile(r"(?ms)^ *```.*?^ *```$")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#+ +(.+?) *$", _FENCED.sub("", page.read_text())):
        shown = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(next(each for each in chain([anchor], (f"{anchor}-{n}" for n in count(1))) if each not in found))
    return found


def test_every_link_within_the_documentation_leads_somewhere() -> None:
    faults = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\((?!\w+:)([^) ]+)", _FENCED.sub("", page.read_text())):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                faults.append(f"{page.relative_to(ROOT)}: {link}")
    assert faults == []


# Every block


def test_every_block_is_tested_or_says_why_not() -> None:
    assert [fault for each in blocks() if (fault := each.fault())] == []
    names = [each.name for each in blocks() if each.mark == "test"]
    assert sorted(names) == sorted(named_in_tests())


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("```sh\nls\n```\n", "say how"),
        ("<!-- test: list -->\n\n```sh\nls\n```\n", "say how"),
        ("```\nls\n```\n", "language"),
        ("text\n\n    ls\n", "language"),
        ("<!-- test: list -->\n```sh\nls\n```\n", ""),
        ("<!-- no test: takes root -->\n```sh\nls\n```\n", ""),
        ("```toml\nworkers = 2\n```\n", ""),
    ],
)
def test_a_block_without_a_test_or_a_reason_is_a_fault(page: str, fault: str) -> None:
    [found] = read("page.md", page)
    assert (fault in found.fault()) if fault else not found.fault()


@pytest.mark.parametrize("shown", [each for each in blocks() if each.language == "toml"], ids=lambda each: each.place)
def test_a_file_of_options_can_be_read(shown: Block, tmp_path: Path) -> None:
    file = tmp_path / "chatd.toml"
    file.write_text(shown.text)
    combine(read_file(str(file)))


# A terminal


class Shell(Terminal):
    """A terminal on a host, with a shell that runs the commands of a block."""

    def __init__(self, host: list[str], text: str, folder: Path, **environment: str) -> None:
        variables = [f"{name}={value}" for name, value in environment.items()]
        command = [*host, "env", f"--chdir={folder}", *variables, "setsid", "bash", "-euc", text]
        super().__init__(*command, errors=subprocess.STDOUT)

    def shows(self, text: str) -> None:
        """Wait until it has printed that."""
        until(lambda: any(text in line for line in self.lines()), f"{text!r} among {self.lines()[-9:]}")

    def interrupt(self) -> int:
        """Press Ctrl-C; give the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20)

    def end(self) -> None:
        """Close it, with all that runs in it."""
        with self.process, contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def host() -> Iterator[Loopback]:
    with Loopback() as made:
        yield made


@pytest.fixture(scope="module")
def server(host: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run a chatd there as the README starts one."""
    with Daemon(tmp_path_factory.mktemp("docs"), *LISTEN, host=host.host) as running:
        yield running


@pytest.fixture
def terminal(host: Loopback, server: Daemon, tmp_path: Path) -> Iterator[Callable[..., Shell]]:
    """Give what opens a terminal beside that chatd and types a block there."""
    with ExitStack() as ending:

        def type(shown: Block, folder: Path = tmp_path, **environment: str) -> Shell:
            shell = Shell(host.host, shown.text, folder, **environment)
            ending.callback(shell.end)
            return shell

        yield type


def guest(server: Daemon, room: str) -> ClientConnection:
    """Connect somebody else."""
    return unix_connect(server.unix_socket, f"ws://localhost/{room}", compression=None)


def say(server: Daemon, room: str, text: str) -> None:
    with guest(server, room) as other:
        other.send(text)
    until(lambda: text in server.texts(), f"{text!r} in the chat log")


_lines = iter(f"line {number}" for number in range(1_000_000))


def talk(server: Daemon, shell: Shell, room: str) -> None:
    """See that what is typed in a terminal is said in a room, and what is said there is shown."""
    typed, said = next(_lines), next(_lines)
    shell.type(typed)
    until(lambda: typed in server.texts(), f"{typed!r} in the chat log; the terminal shows {shell.lines()}")
    say(server, room, said)
    shell.shows(said)


def in_a_terminal(shown: Block) -> Block:
    """Give a block whose commands have a terminal, not pipes."""
    text = shlex.quote(f"stty cols 80\n{shown.text}")
    return Block(shown.place, "sh", "", "", f"exec script --quiet --command {text} /dev/null")


# README.md


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give a home folder with the checkout in it, as the README makes it."""
    folder = tmp_path / "home"
    (folder / "chatd").mkdir(parents=True)
    (folder / "chatd" / ".venv").symlink_to(sys.prefix)
    return folder


def test_two_terminals_talk(server: Daemon, terminal: Callable[..., Shell], home: Path) -> None:
    second = terminal(block("second-terminal"), HOME=str(home))
    talk(server, second, "")
    third = terminal(block("third-terminal"), HOME=str(home))
    talk(server, third, "")
    second.type("to the third")
    third.shows("to the third")


@contextmanager
def alone(shown: Block, folder: Path) -> Iterator[tuple[Loopback, Shell]]:
    """Run a chatd on a host of its own with the command of a block."""
    with Loopback() as host:
        shell = Shell(host.host, shown.text, folder)
        try:
            yield host, shell
        finally:
            shell.end()


def answers(host: Loopback, url: str = "http://localhost:3000/-/readyz") -> bool:
    command = [*host.host, "curl", "--silent", "--fail", "--output", "/dev/null", url]
    return subprocess.run(command, check=False).returncode == 0


def test_in_the_foreground_it_runs_until_ctrl_c(tmp_path: Path) -> None:
    with alone(block("foreground"), tmp_path) as (host, shell):
        shell.shows("connect with: websocat ws://localhost:3000")
        assert answers(host)
        shell.interrupt()
        assert "chatd has stopped" in "".join(shell.lines())
    assert (tmp_path / "logs" / "chat.log").exists()


def test_as_a_daemon_it_is_started_and_stopped(tmp_path: Path) -> None:
    start, stop = block("daemon").text.splitlines()
    with Loopback() as host:
        assert subprocess.run([*host.host, *start.split()], cwd=tmp_path, check=False).returncode == 0
        log = tmp_path / "twistd.log"
        until(lambda: log.exists() and "is ready: " in log.read_text(), "ready in twistd.log")
        try:
            assert answers(host)
        finally:
            assert subprocess.run(["bash", "-euc", stop], cwd=tmp_path, check=False).returncode == 0
        until(lambda: "Server Shut Down" in log.read_text(), "its end in twistd.log")
    assert {each.name for each in tmp_path.iterdir()} == {"twistd.log", "logs"}


def test_others_are_let_in(tmp_path: Path) -> None:
    with alone(block("others"), ROOT) as (host, shell):
        shell.shows("is ready: ")
        assert answers(host, "http://127.0.0.2:3000/-/readyz")
        shell.interrupt()


def test_what_is_in_force_is_shown(terminal: Callable[..., Shell], tmp_path: Path) -> None:
    [example] = [each for each in blocks() if each.language == "toml" and each.place.startswith("README.md")]
    (tmp_path / "chatd.toml").write_text(example.text)
    terminal(block("config")).shows("workers = 4")


# docs/clients/websocat.md, docs/protocol.md


def test_websocat_talks_under_a_nick(server: Daemon, terminal: Callable[..., Shell]) -> None:
    talk(server, terminal(block("websocat-nick")), "ops")


def test_rlwrap_keeps_what_is_typed(server: Daemon, terminal: Callable[..., Shell], tmp_path: Path) -> None:
    shell = terminal(in_a_terminal(block("rlwrap")), TERM="xterm", HOME=str(tmp_path))
    talk(server, shell, "ops")


def test_without_canonical_mode_a_terminal_takes_a_long_line(server: Daemon, terminal: Callable[..., Shell]) -> None:
    shell = terminal(in_a_terminal(block("stty")))
    talk(server, shell, "ops")  # so that stty has run
    line = "x" * 5000
    shell.type(line)
    until(lambda: line in server.texts(), "the whole line in the chat log")


def test_a_log_is_piped_into_a_room(server: Daemon, terminal: Callable[..., Shell], tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text("GET / before\n")
    terminal(block("websocat-pipe"))
    until(lambda: "GET / before" in server.texts(), "the first line")
    with log.open("a") as file:
        file.write("GET / after\n")
    until(lambda: "GET / after" in server.texts(), "a line that was appended")


@pytest.mark.parametrize("shown", [block("websocat-back"), block("protocol-back")], ids=lambda shown: shown.place)
def test_websocat_comes_back_and_gets_what_it_missed(
    server: Daemon, terminal: Callable[..., Shell], shown: Block
) -> None:
    shell = terminal(shown)
    talk(server, shell, "ops")
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    say(server, "ops", missed := next(_lines))
    shell.shows(missed)
    talk(server, shell, "ops")


def test_a_websocat_that_listens_notices_that_its_connection_is_dead(
    server: Daemon, host: Loopback, terminal: Callable[..., Shell]
) -> None:
    shown = block("websocat-listen")
    sooner = shown.text.replace("--ping-interval 10 --ping-timeout 25", "--ping-interval 1 --ping-timeout 3")
    assert sooner != shown.text
    shell = terminal(Block(shown.place, "sh", "", "", sooner))
    talk(server, shell, "ops")
    host.cut()
    try:
        shell.shows("ping timeout")
        say(server, "ops", missed := next(_lines))
    finally:
        host.mend()
    shell.shows(missed)


def test_websocat_speaks_as_programs_do(terminal: Callable[..., Shell]) -> None:
    shown = block("websocat-program")
    [command] = shown.commands()
    shell = terminal(Block(shown.place, "sh", "", "", command))
    shell.type(shown.text.splitlines()[1])
    shell.shows('"id":"c-81"')
    assert json.loads(shell.lines()[-1])["type"] == "ack"


# The clients


def test_the_program_in_python_talks(server: Daemon, terminal: Callable[..., Shell]) -> None:
    talk(server, terminal(block("python-chat"), ROOT / "docs" / "clients"), "ops")


@contextmanager
def browser(host: Loopback, folder: Path) -> Iterator[Browser]:
    """Run Chromium on a host."""
    program = folder / "chromium-there"
    program.write_text(f'#!/bin/sh\nexec {" ".join(host.host)} {shutil.which("chromium")} "$@"\n')
    program.chmod(0o755)
    with chromium(str(program)) as running:
        yield running


PAGE = "http://localhost:8000/chat.html"


def test_a_page_that_is_refused_says_so_and_the_log_says_why(
    server: Daemon, host: Loopback, terminal: Callable[..., Shell], tmp_path: Path
) -> None:
    terminal(block("javascript-page"), ROOT / "docs" / "clients")
    until(lambda: answers(host, PAGE), "the page to be served")
    with browser(host, tmp_path) as running:
        page = running.new_page()
        page.goto(PAGE)
        expect(page.locator("#state")).to_have_text("Cannot connect: trying again")
        server.wait_for("page_refused: .* --allowed-origin http://localhost:8000\n")


def test_a_page_of_an_allowed_origin_talks_and_another_follows_events(tmp_path: Path) -> None:
    with (
        alone(block("javascript-origin"), tmp_path) as (host, chatd),
        browser(host, tmp_path) as running,
    ):
        served = Shell(host.host, block("javascript-page").text, ROOT / "docs" / "clients")
        try:
            until(lambda: answers(host) and answers(host, PAGE), "chatd and the page")
            events = running.new_page()
            heard: list[str] = []
            events.on("console", lambda message: heard.append(message.text))
            events.goto("http://localhost:3000/ops")
            events.evaluate(block("eventsource").text)
            page = running.new_page()
            page.goto(PAGE)
            expect(page.locator("#state")).to_have_text("Connected")
            page.fill("#text", "from a page")
            page.press("#text", "Enter")
            expect(page.locator("#heard")).to_contain_text("-: from a page")
            events.wait_for_function("true")  # the console is read meanwhile
            until(lambda: "from a page" in heard or events.evaluate("null"), "an event")
            chatd.interrupt()
            expect(page.locator("#state")).to_have_text("Cannot connect: trying again")
        finally:
            served.end()


# Operators' pages


def installed(shown: Block, **places: str) -> str:
    """Give a command of the installed service, with other places."""
    text = shown.text
    for old, new in {"/opt/chatd/bin": str(Path(sys.executable).parent), **places}.items():
        text = text.replace(old, new)
    return text


def test_the_installed_options_are_shown(tmp_path: Path) -> None:
    command = installed(block("show-config"), **{"/etc/chatd": str(ROOT / "deploy")})
    done = subprocess.run(["bash", "-euc", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r'data_dir = "/var/lib/chatd" +# .*/chatd.toml\n', done.stdout)


def test_the_logs_of_the_service_are_verified(tmp_path: Path) -> None:
    places = {"/var/lib/chatd": "state", "/var/log/chatd": "log", "runuser -u chatd -- ": ""}
    command = installed(block("verify"), **places)
    with Daemon(tmp_path, "--data-dir", "state", "--chat-log", "log/chat.log") as daemon:
        daemon.say("ops", "to be found")
        done = subprocess.run(["bash", "-euc", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "messages in histories: 1: each is in the logs once" in done.stdout


@pytest.mark.parametrize("shown", [block("capability"), block("credential")], ids=lambda shown: shown.name)
def test_systemd_takes_what_is_added_to_the_unit(shown: Block, tmp_path: Path) -> None:
    unit = tmp_path / "chatd.service"
    shutil.copy(ROOT / "deploy" / "chatd.service", unit)
    command = installed(shown, **{"/etc/systemd/system": str(tmp_path), "systemctl daemon-reload": ""})
    subprocess.run(["bash", "-euc", command], check=True)
    [added] = tmp_path.glob("chatd.service.d/*.conf")
    assert added.read_text().startswith("[Service]\n")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_renewed_certificate_is_copied_with_its_chain_before_chatd_reads_it(tmp_path: Path) -> None:
    for name in ("live", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "live" / "privkey.pem").write_text("key")
    (tmp_path / "live" / "fullchain.pem").write_text("certificate and chain")
    places = {
        "/etc/chatd": str(tmp_path / "etc"),
        "--owner chatd ": "",
        "systemctl reload-or-restart chatd": "cat etc/*.pem",
    }
    script = tmp_path / "copy-certificate"
    script.write_text(installed(block("copy-certificate"), **places))
    script.chmod(0o755)
    command = {"cwd": tmp_path, "env": {**os.environ, "RENEWED_LINEAGE": str(tmp_path / "live")}}
    assert subprocess.check_output([script], **command, text=True) == "certificate and chainkey"  # type: ignore[call-overload]
    assert (tmp_path / "etc" / "key.pem").stat().st_mode & 0o777 == 0o600


def test_prometheus_takes_what_is_added_to_debians_file(tmp_path: Path) -> None:
    alerts = tmp_path / "chatd-alerts.yml"
    shutil.copy(ROOT / "deploy" / "alerts.yml", alerts)
    text = Path("/etc/prometheus/prometheus.yml").read_text()
    added = installed(block("prometheus"), **{"/etc/prometheus": str(tmp_path)})
    for key, lines in re.findall(r"(?m)^(\w+:)  #.*\n((?: +.*\n)+)", added):
        assert text.count(f"\n{key}\n") == 1, f"{key!r} is to be in Debian's file"
        text = text.replace(f"\n{key}\n", f"\n{key}\n{lines}")
    file = tmp_path / "prometheus.yml"
    file.write_text(text)
    done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout
    jobs = [job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]]
    assert {"chatd", "prometheus"} <= {*jobs}


def test_the_list_of_revoked_tokens_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "revoked"
    file.write_text(block("revoked").text)
    RevokedTokens(str(file)).read()


def test_valkey_takes_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "valkey.conf"
    socket = tmp_path / "valkey.sock"
    file.write_text(f"{block('valkey-settings').text}port 0\nunixsocket {socket}\ndir {tmp_path}\n")
    with subprocess.Popen([find_server(), file], stdout=subprocess.PIPE, text=True) as running:
        until(lambda: socket.exists() or running.poll() is not None, "it to start")
        running.terminate()
        assert running.stdout is not None
        assert "Server initialized" in running.stdout.read()
