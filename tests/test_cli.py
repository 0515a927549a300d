"""The command ``chatd``, as it is installed: what it prints, and its exit status."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

import chatd
from chatd.cli import main
from chatd.supervisor import running
from chatd.supervisor.data_dir import DataDir
from tests.access.issuer import private_pem, public_pem
from tests.broker.server import Client, Server
from tests.chatlog.streams import batch, keep, lines, message, outcome
from tests.system.daemon import CHATD

ONE, TWO = message("w.1.1"), message("w.1.2", "two\nlines")


class Host:
    """A folder with logs, and a broker."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.url = f"unix://{server.path}"
        (folder / "logs").mkdir()
        (folder / "tmp").mkdir()

    def keep(self, prefix: str = "chatd") -> None:
        """Put the two messages into a history."""
        with Client(self.server.path) as client:
            keep(client, prefix, batch(1, ONE, TWO))

    def log(self, text: str, name: str = "logs/chat.log") -> None:
        (self.folder / name).write_text(text)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [CHATD, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def verify(self, *arguments: str) -> tuple[int, str, str]:
        """Give status, output and errors of ``chatd verify``."""
        done = self.run("verify", *arguments)
        return done.returncode, done.stdout, done.stderr

    def verify_alone(self) -> tuple[int, str]:
        """Give status and first line of output of ``chatd verify`` that sees no chatd but the test's."""
        done = subprocess.run(
            [sys.executable, "-c", ALONE], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout.partition("\n")[0]

    def private(self, name: str) -> Path:
        """Put the broker's socket where a private one of a chatd has it."""
        folder = self.folder / "tmp" / name
        folder.mkdir()
        return self._link(folder)

    def state(self, name: str = "state") -> str:
        """Put it where that of a chatd with a state folder is."""
        folder = self.folder / name / "broker"
        folder.mkdir(parents=True)
        (folder.parent / "lock").touch()
        self._link(folder)
        return str(folder.parent)

    def _link(self, folder: Path) -> Path:
        path = folder / "broker.sock"
        path.symlink_to(self.server.path)
        with (self.folder / "listening").open("a") as listening:
            listening.write(f"0000000000000000: 00000002 00000000 00010000 0001 01 4711 {path}\n")
        return path


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    server = Server()
    server.start()
    yield Host(tmp_path, server)
    server.close()


ALONE = """\
import sys
from chatd.cli import main
from chatd.supervisor import running
running.UNIX_SOCKETS = "listening"
sys.exit(main(["verify"]))
"""


@pytest.fixture
def alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``main`` see no chatd but the test's."""
    (host.folder / "listening").touch()
    monkeypatch.setattr(running, "UNIX_SOCKETS", str(host.folder / "listening"))
    monkeypatch.chdir(host.folder)


def test_all_is_well_is_said_with_status_0(host: Host) -> None:
    host.keep()
    host.log(lines([ONE, TWO]))
    assert host.verify("--redis", host.url) == (
        0,
        "logs: 1, lines: 2 (no log lines: 0), rooms: 1, messages in histories: 2: each is in the logs once\n",
        "",
    )


def test_what_is_wrong_is_said_with_status_1(host: Host) -> None:
    host.keep()
    host.log(lines([ONE, ONE]) + outcome(ONE.id, "refused"))
    assert host.verify("--redis", host.url) == (
        1,
        "double: room ops, epoch e1, offset 1, id w.1.1: 2 lines in the logs\n"
        "denied: room ops, epoch e1, offset 1, id w.1.1: the log says refused\n"
        "missing: room ops, epoch e1, offset 2, id w.1.2\n"
        "logs: 1, lines: 3 (no log lines: 0), rooms: 1, messages in histories: 2: 1 double, 1 denied, 1 missing\n",
        "",
    )


def test_logs_of_several_hosts_are_taken_together(host: Host) -> None:
    host.keep()
    (host.folder / "b").mkdir()
    host.log(lines([ONE]), "a.log")
    host.log(lines([TWO]), "b/chat.log.1")
    assert host.verify("--redis", host.url, "a.log", "b")[0] == 0


def test_only_the_histories_of_the_prefix_are_looked_at(host: Host) -> None:
    host.keep(prefix="other")
    host.log("")
    assert host.verify("--redis", host.url)[0] == 0
    assert host.verify("--redis", host.url, "--redis-prefix", "other")[0] == 1


def test_the_private_broker_is_found(host: Host) -> None:
    host.private("chatd-12-abc")
    host.keep()
    host.log(lines([ONE]))
    assert host.verify_alone() == (1, "missing: room ops, epoch e1, offset 2, id w.1.2")


def test_the_private_broker_in_a_state_folder_is_found_too(host: Host) -> None:
    host.state()
    host.keep()
    host.log(lines([ONE]))
    assert host.verify_alone() == (1, "missing: room ops, epoch e1, offset 2, id w.1.2")


@pytest.mark.usefixtures("alone")
def test_no_private_broker_is_status_2_and_what_to_pass_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    assert capsys.readouterr().err == (
        "chatd verify: no chatd with a private Valkey runs here; "
        "pass --redis URL as chatd was given it, or --data-dir DIR of one\n"
    )


@pytest.mark.usefixtures("alone")
def test_several_chatds_are_status_2_and_each_is_named_with_its_folder(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    path, state = host.private("chatd-12-a"), host.state("kept here")
    assert main(["verify"]) == 2
    place = r"\(started in \S+?(?:, ports? [0-9, ]+)?\)"
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"chatd verify: 2 chatds run here as this user; pass --data-dir '{state}' {place}; "
        rf"or --redis unix://{path} {place}\n",
        said,
    ), said


@pytest.mark.usefixtures("alone")
def test_the_chatd_of_another_user_is_not_denied(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = host.state()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert main(["verify"]) == 2
    assert capsys.readouterr().err == (
        "chatd verify: no chatd runs here as this user, but one as another does; "
        f"use runuser -u {host.folder.owner()} -- chatd verify --data-dir {state} …\n"
    )


def test_the_broker_of_a_state_folder_is_found(host: Host) -> None:
    folder = host.state()
    host.keep()
    host.log("")
    assert host.verify("--data-dir", folder)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--redis", "http://:secret@broker"], "chatd verify: --redis: not the URL of a Redis server; use redis://"),
        (["--redis", "unix:///nowhere/broker.sock"], "chatd verify: the broker unix:///nowhere/broker.sock can't be"),
        (["--data-dir", "nowhere"], "nowhere/broker/broker.sock can't be read: "),
        (["--redis", "redis://broker", "--redis-prefix", "a b"], "chatd verify: --redis-prefix: "),
        (["--data-dir", "x", "--redis", "redis://broker"], "not allowed with argument"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_what_cannot_be_used_is_status_2(host: Host, arguments: list[str], said: str) -> None:
    host.log("")
    status, output, error = host.verify(*arguments)
    assert (status, output) == (2, "")
    assert said in error
    assert "secret" not in error


def test_no_log_is_status_2(host: Host) -> None:
    assert host.verify("--redis", host.url) == (2, "", "chatd verify: there is no chat.log in logs\n")
    status, _, error = host.verify("--redis", host.url, "nowhere")
    assert (status, error) == (2, "chatd verify: there is no nowhere\n")


def test_alone_it_prints_help(host: Host) -> None:
    done = host.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify" in done.stdout
    assert "twistd chatd" in done.stdout


START = "start the server with: twistd -n --pidfile= chatd"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["run"], f"there is no command 'run'; {START}"),
        (["serve", "--listen", "tcp:3000"], f"there is no command 'serve'; {START}"),
        (["verfy"], f"there is no command 'verfy' (did you mean verify?); {START}"),
        (
            ["--listen", "tcp:3000"],
            f"--listen is an option of the server; {START} and the same options",
        ),
        (
            ["--redis=redis://:hunter2@broker"],
            f"--redis is an option of the server; {START} and the same options",
        ),
    ],
)
def test_who_wants_to_start_the_server_is_told_how(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"chatd: {what}\n")


def test_the_package_is_the_same_command(host: Host) -> None:
    shown = [
        subprocess.run([*command, "--help"], cwd=host.folder, capture_output=True, text=True, check=True).stdout
        for command in ([CHATD], [sys.executable, "-m", "chatd"])
    ]
    assert shown[0] == shown[1]


def test_the_version_is_printed(host: Host) -> None:
    assert host.run("--version").stdout == f"chatd {chatd.__version__}\n"


def test_help_says_what_the_status_means(host: Host) -> None:
    done = host.run("verify", "--help")
    assert done.returncode == 0
    assert "Exit status: 0 without faults, 1 with faults, 2 if a log or the broker cannot be read." in done.stdout


# chatd token


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_bytes(private_pem())
    return str(path)


def claims_of(text: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(text, public_pem(), ["EdDSA"], options={"verify_aud": False})
    return claims


def test_a_token_says_what_was_asked_for(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    rooms = ["--rooms", "ops=rw,news=r", "--rooms", "team-*=rw", "--rooms", '{"a,b=c": "w"}']
    more = ["--nick", "anna", "--issuer", "https://id.example.org", "--audience", "chat", "--ttl", "90m", "--id", "t1"]
    assert main(["token", "--key", key, "--sub", "ann", *rooms, *more]) == 0
    claims = claims_of(capsys.readouterr().out.strip())
    issued = claims.pop("iat")
    assert isinstance(issued, int)
    assert claims == {
        "sub": "ann",
        "nick": "anna",
        "exp": issued + 5400,
        "rooms": {"ops": "rw", "news": "r", "team-*": "rw", "a,b=c": "w"},
        "iss": "https://id.example.org",
        "aud": "chat",
        "jti": "t1",
    }


def test_a_token_without_rooms_is_good_for_all_and_for_a_day(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["token", "--key", key, "--sub", "ann"])
    claims = claims_of(capsys.readouterr().out.strip())
    assert set(claims) == {"sub", "iat", "exp"}
    assert int(str(claims["exp"])) - int(str(claims["iat"])) == 86400


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--ttl", "5y"], '--ttl: "5y" is not a duration; use a number with a unit such as 90s, 15m or 24h'),
        (["--ttl", "0s"], '--ttl: "0s" is not a duration; use a number with a unit such as 90s, 15m or 24h'),
        (["--ttl", "8"], '--ttl: "8" is not a duration; use a number with a unit such as 90s, 15m or 24h'),
        (["--rooms", "ops"], "--rooms must be like ops=rw,news=r,team-*=rw, or a JSON object, not 'ops'"),
        (["--rooms", "{"], "--rooms must be like ops=rw,news=r,team-*=rw, or a JSON object, not '{'"),
        (["--rooms", "ops=x"], "rooms, in the token: each must have r, w, rw or nothing"),
        (
            ["--rooms", "o ps=r"],
            "--rooms: 'o ps': the name of a room must not hold a slash, white space or control characters",
        ),
        (
            ["--rooms", "ops\u200b=r"],
            r"--rooms: 'ops\u200b': the name of a room must not hold U+200B (invisible or unassigned); "
            "earlier versions allowed it",
        ),
        (["--rooms=-*=r"], "--rooms: '-*': the name of a room must not start with -"),
        (["--rooms", '{"ops": 7}'], "rooms, in the token: expected str, got int"),
        (["--nick", "ann smith"], "nick, in the token: a nick must not hold white space"),
        (["--sub", ""], "--sub must not be empty: such a token is anybody's"),
        (["--sub", "\udcff"], "what a token says must be UTF-8"),
        (["--ttl", "999999999d"], "exp, in the token: expected float <= 253402300799.0"),
        (["--algorithm", "HS256"], "must be EdDSA with this key, not 'HS256'"),
        (
            ["--key", "~nobody-of-that-name/key"],
            '--key ~nobody-of-that-name/key: "~nobody-of-that-name" is no home folder on this host; '
            "write a file whose name begins with ~ as ./~…",
        ),
        (["--key", "/none"], "--key /none: No such file or directory"),
    ],
)
def test_what_can_not_be_minted_is_told_in_a_line(
    key: str, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "--key", key, "--sub", "ann", *words]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"chatd token: {why}\n")


def test_new_lineage_changes_the_token_of_a_state_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = DataDir(str(tmp_path), 0)
    state.acquire()
    state.release()
    assert main(["new-lineage", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: the next start begins a new lineage\n"
    assert not (tmp_path / "broker" / "lineage").exists()
    assert main(["new-lineage", "--data-dir", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"chatd new-lineage: {tmp_path}/none is not a state folder of chatd\n"
