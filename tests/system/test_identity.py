"""Who is who on a chatd that asks for tokens: no subject speaks, comes back or is listed as another one."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.access.issuer import public_pem, signed, token
from tests.system.daemon import Daemon, hear
from tests.system.program import Program, program

KEY = "auth.pem"


OPTIONS = ("--auth-key", KEY)
FILES = {KEY: public_pem()}


def ask(daemon: Daemon, path: str, bearer: str, data: bytes | None = None) -> tuple[int, Any]:
    """Return status and JSON of a request with a token."""
    headers = {"Authorization": f"Bearer {bearer}", "Accept": "application/json"}
    try:
        with urlopen(Request(daemon.url(path, "http"), data, headers)) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def said(daemon: Daemon, room: str) -> list[tuple[str, str, str]]:
    """Return nick, subject and text of each message in a room's history."""
    _, messages = ask(daemon, f"{room}?last=100", token(sub="reader"))
    return [(message["nick"], message.get("subject", ""), message["text"]) for message in messages]


# Nicks and subjects


def test_no_subject_speaks_under_the_name_of_another(daemon: Daemon) -> None:
    first, second = daemon.worker_pids()
    boss, boss2, like = token(sub="boss"), token(sub="boss2"), token(sub="b-7", nick="Boss")
    with (
        program(daemon, f"a?token={token(sub='watcher')}", second) as watcher,
        program(daemon, f"a?token={boss}", first) as one,
        program(daemon, f"a?token={boss}", second) as other,
        daemon.connect_to(second, f"a?token={boss}") as pipe,
        program(daemon, f"a?token={boss2}", first) as real,
        daemon.connect_to(second, f"a?token={like}") as impostor,
    ):
        assert [each.welcome["nick"] for each in (one, other, real)] == ["boss", "boss", "boss2"]
        assert [each.welcome["subject"] for each in (one, other, real)] == ["boss", "boss", "boss2"]
        for client, text in ((one, "1"), (other, "2"), (real, "4")):
            assert client.ask("publish", room="a", text=text)["type"] == "ack"
        pipe.send("3")
        impostor.send("5")
        heard = [watcher.hear("message") for _ in range(5)]
        assert sorted((each["text"], each["nick"], each["subject"]) for each in heard) == [
            ("1", "boss", "boss"),
            ("2", "boss", "boss"),
            ("3", "boss", "boss"),
            ("4", "boss2", "boss2"),
            ("5", "Boss*2", "b-7"),
        ]
        members = watcher.ask("members", room="a")["members"]
        assert [(each["nick"], each["subject"]) for each in members] == [
            ("watcher", "watcher"),
            *[("boss", "boss")] * 3,
            ("boss2", "boss2"),
            ("Boss*2", "b-7"),
        ]
    rows = [line.split(" ", 4) for line in daemon.chat_lines()]
    assert sorted((row[4], row[2]) for row in rows if row[1] == "a") == [
        ("1", "boss:boss@127.0.0.1"),
        ("2", "boss:boss@127.0.0.1"),
        ("3", "boss:boss@127.0.0.1"),
        ("4", "boss2:boss2@127.0.0.1"),
        ("5", "Boss*2:b-7@127.0.0.1"),
    ]


def test_twelve_connections_of_one_subject_have_one_name(daemon: Daemon) -> None:
    student = token(sub="student1")
    with ExitStack() as stack:
        clients = [stack.enter_context(program(daemon, f"b?token={student}")) for _ in range(12)]
        assert {client.welcome["nick"] for client in clients} == {"student1"}
        with program(daemon, f"b?token={token(sub='student12')}") as twelfth:
            assert twelfth.welcome["nick"] == "student12"


def test_who_comes_and_goes_is_told_with_its_subject(daemon: Daemon) -> None:
    with program(daemon, f"c?token={token(sub='watcher')}") as watcher:
        with daemon.connect(f"c?nick=x&token={token(sub='auth0|17')}") as ann:
            joined = watcher.hear("presence")
            assert ann.recv(20) == "* you are auth0|17"
        left = watcher.hear("presence")
    assert [(each["event"], each["nick"], each["subject"]) for each in (joined, left)] == [
        ("join", "auth0|17", "auth0|17"),
        ("leave", "auth0|17", "auth0|17"),
    ]


def test_a_token_that_names_nobody_never_gets_the_name_of_a_subject(daemon: Daemon) -> None:
    nobody = token(rooms={"d": "rw"})
    with daemon.connect(f"d?nick=bob&token={nobody}") as one, daemon.connect(f"d?nick=bob&token={nobody}") as two:
        assert (one.recv(20), two.recv(20)) == ("* you are bob*1", "* bob is taken, you are bob*2")
        with daemon.connect(f"d?nick=x&token={token(sub='bob')}") as bob:
            assert bob.recv(20) == "* you are bob"
            two.send("/nick BOB")
            assert hear(two, "* BOB is taken, you are BOB*2")
            two.send("hello")
            assert hear(bob, "BOB*2: hello")
    with program(daemon, f"d?token={nobody}") as bot:
        assert bot.ask("nick", nick="bob")["nick"] == "bob*1"
        bot.ask("leave", room="d")
        assert bot.ask("nick", nick="bob")["nick"] == "bob*1"
        bot.ask("join", room="d")
        assert [each["nick"] for each in bot.ask("members", room="d")["members"]] == ["bob*1"]


def test_subjects_that_are_no_nicks_are_told_apart_over_http(daemon: Daemon) -> None:
    subjects = ["a:b", "a*b", "a b", "a_b", f"auth0|{'a' * 40}1", f"auth0|{'a' * 40}2", "Boss", "\uff22oss"]
    for subject in subjects:
        assert ask(daemon, "e", token(sub=subject), b"hi")[0] == 201
    heard = said(daemon, "e")
    assert [subject for _, subject, _ in heard] == subjects
    assert len({nick for nick, _, _ in heard}) == len(subjects)


def test_over_http_a_subject_has_its_nick_and_others_have_a_number(daemon: Daemon) -> None:
    boss = token(sub="boss")
    with program(daemon, f"i?token={boss}"):
        for bearer, nick in ((boss, ""), (token(sub="b-7", nick="Boss"), ""), (token(), "?nick=boss")):
            assert ask(daemon, f"i{nick}", bearer, b"hi")[0] == 201
    assert ask(daemon, "i?nick=boss", token(), b"hi")[0] == 201
    assert said(daemon, "i") == [
        ("boss", "boss", "hi"),
        ("Boss*2", "b-7", "hi"),
        ("boss*1", "", "hi"),
        ("boss*1", "", "hi"),
    ]


# Two name spaces


def session_of(client: Program) -> str:
    """Return the session that a program has."""
    return str(client.welcome["session"])


def test_a_nick_of_a_token_is_not_the_subject_of_that_name(daemon: Daemon) -> None:
    subject, nick = token(sub="carl"), token(nick="carl")
    where = "f?resume=0123456789"
    with program(daemon, f"{where}&token={subject}") as carl:
        with program(daemon, f"{where}&token={nick}") as other:
            assert session_of(other) != session_of(carl)
            assert (other.welcome["nick"], "subject" in other.welcome) == ("carl*2", False)
        assert carl.ask("ping")["type"] == "pong"  # it was not thrown out
        refused = carl.ask("auth", token=nick)
        assert (refused["code"], refused["message"]) == ("forbidden", "the token is somebody else's")


def test_a_renewal_under_another_nick_is_refused(daemon: Daemon) -> None:
    with program(daemon, f"g?token={token(sub='u-17', nick='ann')}") as ann:
        refused = ann.ask("auth", token=token(sub="u-17", nick="boss"))
        assert (refused["code"], refused["message"]) == (
            "forbidden",
            "the token has another nick than this connection; connect anew with it",
        )
        assert ann.ask("auth", token=token(sub="u-17", nick="ann"))["type"] == "auth"


# What a token must say


@pytest.mark.parametrize("claim", ["rooms", "exp", "nbf", "aud", "iss", "sub", "nick"])
def test_null_is_no_claim_that_was_left_out(daemon: Daemon, claim: str) -> None:
    status, body = ask(daemon, "h", signed({"sub": "ann", claim: None}))
    assert (status, body["error"]) == (401, "unauthorized")
    assert body["message"].startswith(f"{claim}, in the token: expected ")


def test_a_server_may_require_claims(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(public_pem())
    with Daemon(
        tmp_path, "--auth-key", KEY, "--tuning", "auth_require=rooms", "--tuning", "auth_require=sub", workers=1
    ) as daemon:
        assert ask(daemon, "ops", token(sub="ann", rooms={"ops": "r"}))[0] == 200
        assert ask(daemon, "ops", token(sub="ann")) == (
            401,
            {"error": "unauthorized", "message": "the token has no rooms, which this server requires"},
        )
        assert ask(daemon, "ops", token(rooms={"ops": "r"}))[0] == 401
