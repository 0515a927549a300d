"""The rights of clients by their tokens, and the end of a token's lifetime."""

import json
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.access.tokens import BadToken, Permissions
from chatd.clients.json_session import JsonSession
from chatd.clients.pipe_session import Session
from chatd.clients.stream_session import StreamSession
from chatd.clients.text_session import TextSession
from chatd.clients.token_lifetime import LOOK_SECONDS, UNLIMITED, TokenLifetime
from chatd.config.settings import Config
from chatd.protocol.close_codes import READ_ONLY, TOKEN_OUT
from chatd.protocol.http_api import EVENTS, JSON, TEXT
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.http_stream import stream
from tests.clients.server import ChatServer, events, lines
from tests.fakes import FakeLine


class Tokens:
    """Knows some tokens by heart."""

    def __init__(self, **grants: Permissions) -> None:
        self.grants = grants

    def check(self, token: str, now: float) -> Permissions:
        if token not in self.grants:
            raise BadToken("no such token")
        return self.grants[token]


def token_lifetime_of(clock: Clock, permissions: Permissions, **others: Permissions) -> TokenLifetime:
    token_verifier: Any = Tokens(**others)
    return TokenLifetime(permissions, token_verifier, clock, Config(), clock.seconds)


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


# The time


class Watcher:
    """Notes what a lease calls, and when."""

    def __init__(self, clock: Clock, expires: float | None) -> None:
        self.clock = clock
        self.told: list[tuple[str, float]] = []
        self.token_lifetime = token_lifetime_of(
            clock, Permissions("ann", expires=expires), later=Permissions("ann", expires=1000), never=Permissions("ann")
        )
        self.token_lifetime.begin(
            lambda left: self.told.append(("warn", left)), lambda: self.told.append(("end", clock.seconds()))
        )


def test_it_warns_a_minute_before_the_end_and_then_ends() -> None:
    clock = Clock()
    watcher = Watcher(clock, 300)
    clock.advance(239.9)
    assert watcher.told == []
    clock.advance(0.1)
    assert watcher.told == [("warn", 60)]
    clock.advance(59.9)
    assert len(watcher.told) == 1
    clock.advance(0.1)
    assert watcher.told[1:] == [("end", 300)]
    assert not clock.getDelayedCalls()


def test_where_less_is_left_it_warns_at_once() -> None:
    watcher = Watcher(Clock(), 7)
    assert watcher.told == [("warn", 7)]


def test_without_an_end_it_never_ends() -> None:
    clock = Clock()
    watcher = Watcher(clock, None)
    assert not clock.getDelayedCalls()
    assert watcher.token_lifetime.left is None


def test_who_is_gone_is_not_called() -> None:
    clock = Clock()
    watcher = Watcher(clock, 100)
    watcher.token_lifetime.stop()
    watcher.token_lifetime.stop()
    assert not clock.getDelayedCalls()
    assert watcher.told == []


def test_another_token_begins_anew() -> None:
    clock = Clock()
    watcher = Watcher(clock, 100)
    clock.advance(50)
    assert len(watcher.told) == 1
    watcher.token_lifetime.renew("later")
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(889.9)
    assert len(watcher.told) == 1
    clock.advance(0.1)
    assert watcher.told[1:] == [("warn", 60)]
    watcher.token_lifetime.renew("never")
    assert not clock.getDelayedCalls()


def test_the_answer_to_another_token_that_is_good_for_a_moment_is_warning_enough() -> None:
    clock = Clock()
    watcher = Watcher(clock, 100)
    clock.advance(970)
    del watcher.told[:]
    watcher.token_lifetime.renew("later")
    assert watcher.told == []
    clock.advance(30)
    assert watcher.told == [("end", 1000)]


def test_a_clock_that_was_set_is_noticed_within_the_hour() -> None:
    clock, wall = Clock(), [0.0]
    token_verifier: Any = Tokens()
    told: list[str] = []
    token_lifetime = TokenLifetime(Permissions(expires=1_000_000), token_verifier, clock, Config(), lambda: wall[0])
    token_lifetime.begin(lambda left: told.append("warn"), lambda: told.append("end"))
    wall[0] = 1_000_001
    clock.advance(LOOK_SECONDS)
    assert told == ["end"]


def test_a_bad_token_and_somebody_elses_change_nothing() -> None:
    clock = Clock()
    token_lifetime = token_lifetime_of(clock, Permissions("ann", expires=100), bob=Permissions("bob", expires=1000))
    token_lifetime.begin(lambda left: None, lambda: None)
    for token, why in (("bad", "no such token"), ("bob", "the token is somebody else's")):
        with pytest.raises(BadToken, match=why):
            token_lifetime.renew(token)
    assert token_lifetime.permissions == Permissions("ann", expires=100)
    token_lifetime = token_lifetime_of(clock, Permissions(nick="ann"), bob=Permissions(nick="bob"))
    with pytest.raises(BadToken, match="the token is somebody else's"):
        token_lifetime.renew("bob")
    with pytest.raises(BadToken, match="the token is somebody else's"):
        token_lifetime_of(clock, Permissions("ann", "ann"), nick=Permissions(nick="ann")).renew("nick")
    with pytest.raises(BadToken, match="this server takes no tokens"):
        UNLIMITED.renew("any")


def test_a_token_with_another_nick_does_not_renew_and_changes_nothing() -> None:
    clock = Clock()
    token_lifetime = token_lifetime_of(
        clock, Permissions("u-17", "ann", 100), other=Permissions("u-17", "anna", 1000), same=Permissions("u-17", "ann")
    )
    token_lifetime.begin(lambda left: None, lambda: None)
    with pytest.raises(BadToken, match="the token has another nick than this connection; connect anew with it"):
        token_lifetime.renew("other")
    assert token_lifetime.permissions == Permissions("u-17", "ann", 100)
    token_lifetime.renew("same")
    assert token_lifetime.left is None


# A bare client


def bare(server: ChatServer, permissions: Permissions) -> tuple[Session, FakeLine]:
    return server.come(Session, "s1", RoomTarget("lobby"), token_lifetime_of(server.clock, permissions))


def test_a_bare_clients_lines_are_those_of_its_token(server: ChatServer) -> None:
    (ann, own), (_, other) = bare(server, Permissions("ann", "ann")), server.session("s2")
    server.turn()
    ann.received(["hello"])
    server.turn()
    assert (lines(other), lines(own)) == (["ann: hello"], [])


def test_a_bare_client_that_may_only_listen_is_closed_when_it_speaks(server: ChatServer) -> None:
    session, line = bare(server, Permissions(rooms={"lobby": "r"}))
    session.received(["\n"])
    assert line.events == []
    session.received(["hello"])
    assert line.events == [READ_ONLY]
    assert server.turn() == []


def test_a_bare_client_hears_nothing_before_its_token_runs_out_and_is_closed_then(server: ChatServer) -> None:
    _, line = bare(server, Permissions(expires=50))
    assert (lines(line), line.events) == ([], [])
    server.clock.advance(50)
    assert (lines(line), line.events) == ([], [TOKEN_OUT])


@pytest.mark.parametrize("kind", [Session, TextSession, JsonSession])
def test_who_is_gone_has_no_timer_left(server: ChatServer, kind: type[Any]) -> None:
    session, _ = server.come(
        kind, "s1", RoomTarget("lobby", nick="ann"), token_lifetime_of(server.clock, Permissions(expires=500))
    )
    server.turn()
    session.closed()
    server.turn()
    assert [call.getTime() for call in server.clock.getDelayedCalls() if call.getTime() > 400] == []


# Somebody at a terminal


def person(server: ChatServer, permissions: Permissions, nick: str = "ann") -> tuple[TextSession, FakeLine]:
    session, line = server.come(
        TextSession, "ann.1", RoomTarget("lobby", nick=nick), token_lifetime_of(server.clock, permissions)
    )
    server.turn()
    return session, line


def test_its_nick_is_that_of_its_token_and_it_is_told(server: ChatServer) -> None:
    ann, line = person(server, Permissions("ann", "ann"), nick="bob")
    assert (ann.nick, lines(line)) == ("ann", ["* you are ann"])
    _, line = person(server, Permissions("ann", "ann"))
    assert lines(line) == []


def test_it_keeps_it(server: ChatServer) -> None:
    ann, line = person(server, Permissions("ann", "ann"))
    ann.received(["/nick bob"])
    server.turn()
    assert (ann.nick, lines(line)) == ("ann", ["* your nick is that of your token"])


def test_it_may_only_listen_and_is_told_so(server: ChatServer) -> None:
    ann, line = person(server, Permissions("ann", "ann", rooms={"*": "r"}))
    ann.received(["hello", "/ping", "/me waves"])
    told = "* not sent: the token does not let you speak in this room"
    assert server.turn() == []
    assert [each for each in lines(line) if not each.startswith("* pong")] == [told, told]
    assert line.events == []
    ann.received(["/quit", "hello"])
    assert lines(line) == []


def test_it_is_told_that_its_token_runs_out(server: ChatServer) -> None:
    _, line = person(server, Permissions("ann", "ann", expires=100))
    server.clock.advance(40)
    assert lines(line) == ["* your token runs out in 60 seconds"]
    server.clock.advance(60)
    assert line.events == [TOKEN_OUT]


# A program


def program(server: ChatServer, permissions: Permissions, **others: Permissions) -> tuple[JsonSession, FakeLine]:
    session, line = server.come(
        JsonSession, "p1", RoomTarget("lobby"), token_lifetime_of(server.clock, permissions, **others)
    )
    server.turn()
    lines(line)
    return session, line


def asks(server: ChatServer, session: JsonSession, line: FakeLine, **request: Any) -> list[dict[str, Any]]:
    session.received([json.dumps(request)])
    server.turn()
    return events(line)


def refused(message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "code": "forbidden", "message": message} | more


def test_a_program_may_do_in_each_room_what_its_token_says(server: ChatServer) -> None:
    session, line = program(server, Permissions("ann", rooms={"lobby": "r", "ops": "rw", "drop": "w"}))
    assert asks(server, session, line, type="publish", room="lobby", text="hi", ref=1) == [
        refused("the token does not let you speak in this room", ref=1)
    ]
    for room in ("drop", "other"):
        assert asks(server, session, line, type="join", room=room, ref=2) == [
            refused("the token does not let you into this room", ref=2)
        ]
    assert [each["type"] for each in asks(server, session, line, type="join", room="ops")] == ["joined"]
    assert [each["type"] for each in asks(server, session, line, type="publish", room="ops", text="hi")] == ["ack"]


def test_a_programs_nick_is_that_of_its_token(server: ChatServer) -> None:
    session, line = server.come(
        JsonSession, "p1", RoomTarget("lobby", nick="bob"), token_lifetime_of(server.clock, Permissions("ann", "ann"))
    )
    server.turn()
    assert events(line)[0]["nick"] == "ann"
    assert asks(server, session, line, type="nick", nick="bob", ref=1) == [
        refused("nick: it is that of your token", ref=1)
    ]


def test_a_program_is_warned_renews_its_token_and_stays(server: ChatServer) -> None:
    session, line = program(server, Permissions("ann", expires=100), new=Permissions("ann", expires=200))
    server.clock.advance(40)
    server.turn()
    assert events(line) == [{"type": "auth", "expires_in": 60.0}]
    assert asks(server, session, line, type="auth", token="new", ref=1) == [
        {"type": "auth", "expires_in": 160.0, "ref": 1}
    ]
    server.clock.advance(60)
    assert line.events == []
    server.clock.advance(100)
    assert line.events == [TOKEN_OUT]


def test_a_program_that_renews_with_a_bad_one_is_told_and_stays_until_the_old_one_runs_out(server: ChatServer) -> None:
    session, line = program(server, Permissions("ann", expires=100))
    assert asks(server, session, line, type="auth", token="x", ref=1) == [refused("no such token", ref=1)]
    assert line.events == []
    server.clock.advance(100)
    assert line.events == [TOKEN_OUT]


def test_a_program_leaves_the_rooms_that_a_new_token_does_not_let_it_read(server: ChatServer) -> None:
    session, line = program(server, Permissions("ann"), new=Permissions("ann", rooms={"lobby": "rw"}))
    asks(server, session, line, type="join", room="ops")
    (_, other) = server.session("s2", "ops")
    told = asks(server, session, line, type="auth", token="new")
    assert told == [
        {"type": "auth", "expires_in": None},
        refused("ops: the token does not let you into this room"),
        {"type": "left", "room": "ops"},
    ]
    assert asks(server, session, line, type="publish", room="ops", text="hi")[0]["code"] == "not_joined"
    assert [each["type"] for each in asks(server, session, line, type="publish", room="lobby", text="hi")] == ["ack"]
    assert lines(other) == []


def test_where_no_tokens_are_taken_a_program_is_told(server: ChatServer) -> None:
    session, line = server.program()
    server.turn()
    lines(line)
    assert asks(server, session, line, type="auth", token="x", ref=1) == [
        {"type": "error", "code": "bad_request", "message": "this server takes no tokens", "ref": 1}
    ]


# Somebody who follows over HTTP


@pytest.mark.parametrize(
    ("form", "nick", "told"),
    [
        (TEXT, "", b""),
        (TEXT, "ann", b"* your token runs out in 50 seconds\n"),
        (JSON, "", b'{"type":"auth","expires_in":50.0}\n'),
        (EVENTS, "", b'event: auth\ndata: {"type":"auth","expires_in":50.0}\n\n'),
    ],
)
def test_who_follows_is_told_as_it_hears_the_room(server: ChatServer, form: str, nick: str, told: bytes) -> None:
    line = FakeLine()
    session = StreamSession(
        server.hub,
        server.config,
        server.clock,
        line,
        id="f1",
        target=RoomTarget("lobby", nick=nick),
        address="192.0.2.1",
        token_lifetime=token_lifetime_of(server.clock, Permissions(expires=50)),
        stream=stream(form, chunked=False, presence=bool(nick)),
        since=None,
    )
    session.join()
    session.opened()
    assert b"".join(line.blobs) == told
    server.clock.advance(50)
    assert line.events == [TOKEN_OUT]
