"""The connections of a worker as a whole: those whose token is withdrawn are closed, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatd.access.tokens import TokenVerifier
from chatd.clients.factory import ConnectionFactory
from chatd.config.settings import Config
from chatd.protocol.http_head import read_head
from chatd.rooms.hub import Hub
from tests.access.issuer import NOW, public_pem, token
from tests.fakes import Events, FakeBus, FakeChatLog, FakeTransport
from tests.frames import CLOSE, Heard, frame, handshake, heard

REVOKED = (4001).to_bytes(2) + b"the token was revoked"


class ChatServer:
    """A factory that asks for tokens, on a bus in memory and a clock."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.revoked = folder / "keys", folder / "revoked"
        self.other_keys = folder / "other keys"
        self.keys.write_bytes(public_pem())
        self.other_keys.write_bytes(public_pem("P-256"))
        self.revoked.write_text("")
        self.token_verifier = TokenVerifier([str(self.keys), str(self.other_keys)], revoked=str(self.revoked))
        self.token_verifier.read()
        self.token_verifier.revoked.read()
        self.clock = Clock()
        self.bus = FakeBus()
        bus: Any = self.bus
        config = Config(flush_interval=0)
        hub = Hub(bus, FakeChatLog().log, config, self.clock)
        self.factory = ConnectionFactory(
            self.clock, lambda room: hub, config, "w", token_verifier=self.token_verifier, now=lambda: NOW
        )

    def client(self, text: str, query: str = "", **headers: str) -> FakeTransport:
        """Connect a client with a token; return its transport."""
        head = read_head(handshake(f"/ops?token={text}{query}", **headers))
        connection = self.factory.accept(head, "192.0.2.7")
        transport = FakeTransport(self.clock, connection)
        connection.makeConnection(transport)
        self.clock.advance(0)
        return transport

    def revoke(self, text: str) -> None:
        """Read another list."""
        self.revoked.write_text(text)
        self.token_verifier.revoked.read()
        self.factory.close_revoked()


@pytest.fixture
def server(tmp_path: Path) -> ChatServer:
    return ChatServer(tmp_path)


def told(transport: FakeTransport) -> Heard:
    return heard(transport.value())


def test_when_a_key_is_gone_its_connections_are_closed_and_others_stay(server: ChatServer) -> None:
    program = {"Sec_WebSocket_Protocol": "chatd.v1"}
    gone = [
        server.client(token(sub="a")),
        server.client(token(sub="b"), "&nick=b"),
        server.client(token(sub="c"), **program),
    ]
    stay = server.client(token("P-256", sub="a"))
    server.factory.close_revoked()
    assert [told(each).close_code for each in (*gone, stay)] == [0, 0, 0, 0]
    server.keys.write_bytes(public_pem("RSA"))
    server.token_verifier.read()
    server.factory.close_revoked()
    assert [told(each).frames[-1] for each in gone] == [(CLOSE, REVOKED)] * 3
    assert json.loads(told(gone[2]).texts[-1]) == {"type": "bye", "code": 4001, "reason": "the token was revoked"}
    assert told(stay).close_code == 0


def test_a_subject_or_token_that_is_put_on_the_list_is_closed_and_others_stay(server: ChatServer) -> None:
    ann, ben, other = (
        server.client(token(sub=sub, jti=jti)) for sub, jti in (("ann", "1"), ("ben", "2"), ("ben", "3"))
    )
    server.revoke("sub ann\njti 2\n")
    assert [told(each).close_code for each in (ann, ben, other)] == [4001, 4001, 0]


def test_a_client_is_judged_by_the_token_that_it_has_by_now(server: ChatServer) -> None:
    client = server.client(token(sub="ann", jti="1"), Sec_WebSocket_Protocol="chatd.v1")
    renew = {"type": "auth", "token": token("P-256", sub="ann", jti="2")}
    client.receive(frame(json.dumps(renew).encode()))
    server.clock.advance(0)
    server.revoke("jti 1\n")
    assert told(client).close_code == 0
    client.receive(frame(json.dumps(renew | {"token": token(sub="ann", jti="1"), "ref": 7}).encode()))
    server.clock.advance(0)
    answer = json.loads(told(client).texts[-1])
    assert (answer["type"], answer["message"], answer["ref"]) == ("error", "the token was revoked", 7)
    server.revoke("jti 2\n")
    assert told(client).close_code == 4001


def test_a_client_that_is_still_joining_is_answered_401(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    client = server.client(token(sub="ann"))
    server.revoke("sub ann\n")
    answer = told(client)
    assert (answer.status, json.loads(answer.body)["message"]) == (401, "the token was revoked")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_one_that_cannot_be_closed_keeps_no_other_open(server: ChatServer, events: Events) -> None:
    first, second = server.client(token(sub="ann")), server.client(token(sub="ann"))

    def fails(close_code: object) -> None:
        raise RuntimeError(close_code)

    broken: Any = next(iter(server.factory.connections))
    broken.close = fails
    server.revoke("sub ann\n")
    assert [told(first).close_code, told(second).close_code] == [0, 4001]
    assert [text for _, text in events.said] == [f"closing client {broken.session.id} failed"]


def test_where_no_tokens_are_asked_for_nobody_is_closed(server: ChatServer) -> None:
    server.factory._token_verifier = None
    client = server.client("")
    server.factory.close_revoked()
    assert told(client).close_code == 0
