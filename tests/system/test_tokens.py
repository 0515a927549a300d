"""A chatd that asks for tokens: terminals, browsers' handshakes and curl bring them; keys change; none is logged."""

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.access.issuer import private_pem, public_pem, token
from tests.system.daemon import CHATD, Daemon, Websocat, hear
from tests.waiting import until

KEY = "auth.pem"


OPTIONS = ("--auth-key", KEY)
FILES = {KEY: public_pem()}


def soon(seconds: float = 600) -> int:
    return int(time.time() + seconds)


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    try:
        with urlopen(Request(url, data, headers)) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def end_of(client: ClientConnection) -> tuple[int, str]:
    """Return the close code and reason with which a client is closed."""
    try:
        while True:
            client.recv(20)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


def is_revoked(daemon: Daemon, worker: int, text: str) -> bool:
    """Whether a worker says that a token was revoked."""
    try:
        with daemon.connect_to(worker, f"revoked?token={text}"):
            return False
    except InvalidStatus as error:
        return error.response.headers["WWW-Authenticate"].endswith('error_description="the token was revoked"')


def follow(daemon: Daemon, room: str, text: str) -> Any:
    """Follow a room as events, with a token."""
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {text}"}
    return urlopen(Request(daemon.url(room, "http"), headers=headers), timeout=20)


def closed_with(url: str, *offered: str) -> int:
    """Give the code with which a client that waits is closed."""
    with connect(url, compression=None) as client:
        return end_of(client)[0]


def test_who_mints_a_token_talks_with_it_at_a_terminal(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(private_pem())
    mint = [CHATD, "token", "--key", str(tmp_path / "key"), "--rooms", "mint=rw", "--ttl", "10m", "--sub"]
    tokens = [
        subprocess.run([*mint, name], capture_output=True, text=True, check=True).stdout for name in ("ann", "bob")
    ]
    ann = Websocat(daemon.url(f"mint?nick=whoever&token={tokens[0].strip()}"))
    bob = Websocat(daemon.url("mint"), f"-H=Authorization: Bearer {tokens[1].strip()}")
    try:
        ann.wait_for(1)
        bob.type("hello")
        until(lambda: "bob: hello" in ann.lines(), "the line")
        assert [line for line in ann.lines() if line != "* bob joined"] == ["* you are ann", "bob: hello"]
        ann.type("hi")
        assert bob.wait_for(1) == ["ann: hi"]
    finally:
        ann.end()
        bob.end()


def test_a_browser_brings_it_as_a_subprotocol(daemon: Daemon) -> None:
    with daemon.connect("page", "chatd.v1", f"bearer.{token(sub='ann', exp=soon())}") as client:
        assert client.subprotocol == "chatd.v1"
        assert json.loads(client.recv(20))["nick"] == "ann"


def test_with_the_resume_key_of_another_nobody_becomes_the_other(daemon: Daemon) -> None:
    where = "key?resume=0123456789"
    with daemon.connect(f"{where}&token={token(sub='ann', exp=soon())}", "chatd.v1") as ann:
        session = json.loads(ann.recv(20))["session"]
        with daemon.connect(f"{where}&token={token(sub='ben', exp=soon())}", "chatd.v1") as ben:
            assert json.loads(ben.recv(20))["nick"] == "ben"
        ann.send(json.dumps({"type": "ping"}))
        while json.loads(ann.recv(20))["type"] != "pong":
            pass  # it was not thrown out
        headers = {"Authorization": f"Bearer {token(sub='ann', exp=soon(900))}"}
        with urlopen(Request(daemon.url(f"{where}&follow=1", "http"), headers=headers), timeout=20):
            while json.loads(ann.recv(20))["type"] != "bye":
                pass  # it has gone on over HTTP
    with daemon.connect(f"{where}&token={token(sub='ann', exp=soon(900))}", "chatd.v1") as ann:
        assert json.loads(ann.recv(20))["session"] == session


def test_without_a_good_one_nobody_comes_in(daemon: Daemon) -> None:
    for query in ("", "?token=a.b.c", f"?token={token('P-256', sub='ann')}", f"?token={token(sub='ann', exp=1)}"):
        with pytest.raises(InvalidStatus) as caught:
            daemon.connect(f"closed{query}")
        assert caught.value.response.status_code == 401
        assert caught.value.response.headers["WWW-Authenticate"].startswith("Bearer")
        assert status(daemon.url(f"closed{query}", "http")) == 401
    with pytest.raises(InvalidStatus) as caught:
        daemon.connect(f"closed?token={token(sub='ann', rooms={'other': 'rw', 'closed': 'w'})}")
    assert caught.value.response.status_code == 403


def test_reading_and_writing_are_two_things(daemon: Daemon) -> None:
    reader, writer = token(sub="ann", rooms={"two": "r"}), token(sub="bob", rooms={"two": "rw"})
    with (
        daemon.connect(f"two?token={reader}") as bare,
        daemon.connect(f"two?nick=x&token={reader}") as named,
        daemon.connect(f"two?token={writer}") as other,
    ):
        other.send("hello")
        assert bare.recv(20) == "bob: hello"
        assert hear(named, "bob: hello")
        named.send("hi")
        assert named.recv(20) == "* not sent: the token does not let you speak in this room"
        bare.send("hi")
        with pytest.raises(ConnectionClosed) as caught:
            bare.recv(20)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
    url = daemon.url("two", "http")
    assert status(url, b"hi", Authorization=f"Bearer {reader}") == 403
    assert status(url, b"hi", Authorization=f"Bearer {writer}") == 201
    assert [line for line in daemon.texts() if line.endswith(("hi", "hello"))][-2:] == ["hello", "hi"]


@pytest.mark.parametrize("query", ["", "&nick=ann"])
def test_when_it_runs_out_the_client_is_closed_with_4001(daemon: Daemon, query: str) -> None:
    assert closed_with(daemon.url(f"out?token={token(sub='ann', exp=soon(2))}{query}")) == 4001


def test_when_it_runs_out_who_follows_is_told_and_sent_away(daemon: Daemon) -> None:
    request = Request(daemon.url("out", "http"), headers={"Accept": "text/event-stream"})
    request.add_header("Authorization", f"Bearer {token(sub='ann', exp=soon(2))}")
    with urlopen(request, timeout=20) as answer:
        told = answer.read().decode()
    assert told.index("event: auth") < told.index("event: bye")
    assert '"code":4001' in told


def test_with_a_new_one_in_time_a_program_stays(daemon: Daemon) -> None:
    with daemon.connect(f"stay?token={token(sub='ann', exp=soon(2))}", "chatd.v1") as client:
        welcome, joined, warning = [json.loads(client.recv(20)) for _ in range(3)]
        assert [welcome["type"], joined["type"], warning["type"]] == ["welcome", "joined", "auth"]
        assert 0 < warning["expires_in"] <= 2
        client.send(json.dumps({"type": "auth", "token": token(sub="ann", exp=soon(4)), "ref": 1}))
        renewed = json.loads(client.recv(20))
        assert renewed["ref"] == 1
        assert renewed["expires_in"] > 2
        with pytest.raises(ConnectionClosed) as caught:
            while json.loads(client.recv(20))["type"] in ("auth", "bye"):
                pass
        assert time.time() >= soon() - 600 - 1
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4001


def test_keys_are_read_anew_when_their_file_changes_and_bad_ones_are_not(tmp_path: Path) -> None:
    old, new = token(sub="ann"), token("P-256", sub="ann")
    key = tmp_path / KEY
    key.write_bytes(public_pem())
    with Daemon(tmp_path, "--auth-key", KEY) as daemon:
        workers = daemon.worker_pids()

        def authenticate(text: str) -> bool:
            """Say whether every worker lets somebody in."""
            answers = []
            for worker in workers:
                try:
                    with daemon.connect_to(worker, f"keys?token={text}"):
                        answers.append(True)
                except InvalidStatus:
                    answers.append(False)
            return all(answers)

        assert authenticate(old)
        assert not authenticate(new)
        with daemon.connect(f"keys?token={old}") as client:
            key.write_bytes(b"no key\n")
            daemon.wait_for("file_rejected: .*auth.pem: a secret must have at least 32 bytes")
            assert authenticate(old)
            key.write_bytes(public_pem("P-256"))
            until(lambda: authenticate(new), "the new key")
            assert not authenticate(old)
            assert end_of(client) == (4001, "the token was revoked")


def test_when_a_key_is_taken_away_its_connections_are_closed_on_all_workers_and_others_stay(tmp_path: Path) -> None:
    keys = {"Ed25519": tmp_path / "old", "P-256": tmp_path / "new"}
    for kind, path in keys.items():
        path.write_bytes(public_pem(kind))
    old, new = (token(kind, sub="ann") for kind in keys)
    with Daemon(tmp_path, *(word for path in keys.values() for word in ("--auth-key", str(path)))) as daemon:
        workers = daemon.worker_pids()
        with ExitStack() as stack:
            gone = [stack.enter_context(daemon.connect_to(pid, f"gone?token={old}")) for pid in workers]
            gone.append(stack.enter_context(daemon.connect_to(workers[0], f"gone?nick=x&token={old}", "chatd.v1")))
            stay = [stack.enter_context(daemon.connect_to(pid, f"gone?token={new}")) for pid in workers]
            follower = stack.enter_context(follow(daemon, "gone", old))
            keys["Ed25519"].write_bytes(public_pem("RSA"))
            assert [end_of(client) for client in gone] == [(4001, "the token was revoked")] * 3
            assert '"code":4001,"reason":"the token was revoked"' in follower.read().decode()
            stay[0].send("still here")
            assert stay[1].recv(20) == "ann: still here"


def test_a_subject_or_token_on_the_list_is_closed_and_refused_until_it_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(public_pem())
    listed = tmp_path / "revoked"
    listed.write_text("# nobody yet\n")
    ann, ben, other = token(sub="ann"), token(sub="ben", jti="lost"), token(sub="ben", jti="kept")
    with (
        Daemon(tmp_path, "--auth-key", KEY, "--auth-revoked", "revoked") as daemon,
        daemon.connect(f"list?token={ann}") as first,
        daemon.connect(f"list?token={ben}", "chatd.v1") as second,
        daemon.connect(f"list?token={other}") as third,
        follow(daemon, "list", ann) as follower,
    ):
        listed.write_text("sub ann  # left\njti lost\n")
        assert [end_of(client) for client in (first, second)] == [(4001, "the token was revoked")] * 2
        assert '"code":4001,"reason":"the token was revoked"' in follower.read().decode()
        url = daemon.url("list", "http")
        for worker in daemon.worker_pids():
            for text in (ann, ben):
                until(lambda worker=worker, text=text: is_revoked(daemon, worker, text), "it")  # type: ignore[misc]
        listed.write_text("nonsense\n")
        daemon.wait_for("file_rejected: --auth-revoked .*revoked, line 1: must be: sub NAME, or jti ID")
        assert status(f"{url}?token={ann}") == 401
        assert status(url, b"still here", Authorization=f"Bearer {other}") == 201
        assert third.recv(20) == "ben: still here"
        listed.write_text("")
        until(lambda: status(f"{url}?token={ann}") == 200, "the list to be empty")


def test_a_worker_that_comes_when_a_file_is_no_good_lets_nobody_in_and_is_not_ready_before_it_is(
    tmp_path: Path,
) -> None:
    (tmp_path / KEY).write_bytes(public_pem())
    (tmp_path / "bans").write_text("192.0.2.0/24\n")
    (tmp_path / "revoked").write_text("sub ben\n")
    good = token(sub="ann")
    options = ("--auth-key", KEY, "--ban-list", "bans", "--auth-revoked", "revoked", "--trusted-proxy", "127.0.0.1")
    with Daemon(tmp_path, *options, workers=1) as daemon:
        (tmp_path / KEY).unlink()
        (tmp_path / "bans").write_text("192.0.2.0/24\nnonsense\n")
        (tmp_path / "revoked").unlink()
        told = len(daemon.log())
        os.kill(daemon.worker_pids()[0], signal.SIGKILL)
        daemon.wait_for("file_unusable: .*auth.pem: No such file or directory", after=told)
        daemon.wait_for("file_unusable: .*line 2: 'nonsense' is not an address", after=told)
        daemon.wait_for("file_unusable: .*revoked: No such file or directory", after=told)
        assert status(daemon.url(f"ops?token={good}", "http")) == 503
        banned = {"X-Forwarded-For": "192.0.2.7"}
        assert status(daemon.url(f"ops?token={good}", "http"), None, **banned) == 403
        assert "_ready: " not in daemon.log()[told:]
        (tmp_path / KEY).write_bytes(public_pem())
        (tmp_path / "bans").write_text("")
        daemon.wait_for("file_loaded: .*auth.pem", after=told)
        assert status(daemon.url(f"ops?token={good}", "http")) == 503
        assert "_ready: " not in daemon.log()[told:]
        (tmp_path / "revoked").write_text("sub ben\n")
        daemon.wait_for("worker_ready: worker 1 ", after=told)
        assert status(daemon.url(f"ops?token={good}", "http"), None, **banned) == 200


def test_no_token_reaches_a_log_or_the_metrics(daemon: Daemon) -> None:
    good = token(sub="ann", exp=soon())
    signature = good.rpartition(".")[2]
    with daemon.connect(f"log?token={good}", "chatd.v1") as client:
        client.send(json.dumps({"type": "auth", "token": good}))
        client.send(json.dumps({"type": "auth", "token": good + "x"}))
        client.send(json.dumps({"type": "publish", "room": "log", "text": "hi"}))
        hear_ack = [json.loads(client.recv(20))["type"] for _ in range(5)]
        assert hear_ack[-1] == "ack"
    assert status(daemon.url("log", "http"), b"hi", Authorization=f"Bearer {good}") == 201
    assert status(daemon.url(f"log?token={good}x", "http")) == 401
    with pytest.raises(InvalidStatus):
        daemon.connect(f"log?token={good}&last=x")
    with urlopen(daemon.url("-/metrics", "http")) as answer:
        assert signature not in answer.read().decode()
    assert "log" in (daemon.folder / "logs/chat.log").read_text()
    for path in daemon.folder.rglob("*"):
        if path.is_file() and not path.is_socket():
            assert signature.encode() not in path.read_bytes(), path


def test_on_loopback_a_page_whose_name_points_to_us_is_refused_and_its_visitor_told_what_to_do(daemon: Daemon) -> None:
    host = f"evil.example:{daemon.port}"
    request = Request(daemon.url("rebound", "http"), b"hi", {"Host": host, "Origin": f"http://{host}"})
    with pytest.raises(HTTPError) as caught:
        urlopen(request)
    with caught.value as answer:
        assert answer.code == 403
        assert "give --allowed-host evil.example, or --trusted-proxy ADDRESS" in json.load(answer)["message"]
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{host}/rebound", sock=daemon.socket_to(daemon.worker_pids()[0]), origin=Origin(f"http://{host}"))
    assert refused.value.response.status_code == 403
    assert status(daemon.url("-/healthz", "http"), Host=host) == 200


def test_a_server_that_has_a_name_is_not_reached_by_another(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--allowed-host", "chat.example.org", "--allowed-host", "127.0.0.1", workers=1) as daemon:
        with daemon.connect("ours"):
            pass
        rebound = f"ws://evil.localhost:{daemon.port}/ours"
        with pytest.raises(InvalidStatus) as caught:
            connect(rebound, sock=daemon.socket_to(daemon.worker_pids()[0]))
        assert caught.value.response.status_code == 403
        assert status(daemon.url("ours", "http"), Host="evil.example") == 403
        assert status(daemon.url("ours", "http"), Host="chat.example.org") == 200
        assert status(daemon.url("-/healthz", "http"), Host="10.1.2.3") == 200
