"""The session of a client of the JSON format: requests and their answers, with a real hub."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.logger import LogLevel, capturedLogs

import chatd
from chatd.broker.publish_queue import NotPublished
from chatd.clients.json_session import JsonSession
from chatd.protocol import close_codes
from chatd.protocol.close_codes import BUS_AWAY, LOG_AWAY, OUR_FAULT, STOPPING, TAKEN_OVER, TOO_LARGE, CloseCode
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.json_v1 import JSON
from chatd.protocol.message import PresenceEvent
from tests.clients.server import CONFIG, ChatServer, events
from tests.fakes import FakeLine

TIME = "1970-01-01T00:00:00.000Z"


class Client:
    """A client of the JSON format, from its handshake on."""

    def __init__(self, server: ChatServer, name: str = "p1", room: str = "lobby", **target: Any) -> None:
        self.server = server
        self.session, self.line = server.program(name, room, **target)
        self.welcome = self.receive()

    def request(self, *requests: dict[str, Any] | str) -> list[dict[str, Any]]:
        """Send requests in one read; return what it receives until the end of the turn."""
        self.send(*requests)
        return self.receive()

    def send(self, *requests: dict[str, Any] | str) -> None:
        self.session.received([each if isinstance(each, str) else json.dumps(each) for each in requests])

    def receive(self) -> list[dict[str, Any]]:
        self.server.turn()
        return events(self.line)


def publish(text: str = "hi", room: str = "lobby", **more: Any) -> dict[str, Any]:
    return {"type": "publish", "room": room, "text": text} | more


def join(room: str, **more: Any) -> dict[str, Any]:
    return {"type": "join", "room": room} | more


def error(ref: Any, code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "code": code, "message": message, "ref": ref} | more


def not_joined(ref: Any) -> dict[str, Any]:
    return error(ref, "not_joined", "join the room first")


def away(ref: Any) -> dict[str, Any]:
    return error(ref, "unavailable", "the message bus is away", retry_after=5.0)


def brief(answers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the type, code, reference and text of events."""
    return [
        " ".join(str(answer[key]) for key in ("type", "code", "ref", "text") if key in answer) for answer in answers
    ]


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


@pytest.fixture
def client(server: ChatServer) -> Client:
    return Client(server)


# The welcome


def test_it_receives_the_welcome_and_then_that_it_has_joined(client: Client) -> None:
    assert client.welcome == [
        {
            "type": "welcome",
            "session": "p1",
            "nick": None,
            "server": f"chatd {chatd.__version__}",
            "limits": {"message_bytes": 16, "messages_per_s": None, "rooms": 3},
            "ping_s": 25.0,
        },
        {"type": "joined", "room": "lobby", "epoch": "e0", "offset": 0, "recovered": True, "lost": 0, "messages": []},
    ]


def test_nothing_is_sent_before_the_handshake_is_answered(server: ChatServer) -> None:
    session, line = server.make(JsonSession, "p1", RoomTarget("lobby"))
    session.join()
    server.turn()
    assert line.blobs == []
    session.opened()
    assert brief(events(line)) == ["welcome", "joined"]


def test_the_welcome_has_the_nick(server: ChatServer) -> None:
    server.person("ann")
    [welcome, _] = Client(server, nick="ann").welcome
    assert welcome["nick"] == "ann*2"


def test_with_a_key_the_welcome_has_the_first_sender_id(server: ChatServer) -> None:
    first = Client(server, "p1", resume="abcdefgh")
    first.session.closed()
    second = Client(server, "p2", resume="abcdefgh")
    assert second.welcome[0]["session"] == "p1"


def test_with_last_it_begins_with_earlier_messages(server: ChatServer, client: Client) -> None:
    client.request(publish("a"), publish("b"), publish("c"))
    [_, joined] = Client(server, "p2", last=2).welcome
    assert (joined["offset"], [message["text"] for message in joined["messages"]]) == (3, ["b", "c"])


def test_it_may_publish_before_it_has_earlier_messages(server: ChatServer, client: Client) -> None:
    client.request(publish("a"))
    session, line = server.make(JsonSession, "p2", RoomTarget("lobby", last=1))
    session.join()
    server.bus.answer_at_once = False
    session.opened()
    session.received([json.dumps(publish("b", ref=1))])
    server.turn()
    assert brief(events(line)) == ["welcome", "ack 1"]
    server.bus.answer()
    server.turn()
    assert brief(events(line))[0] == "joined"


# Publishing


def test_a_message_is_acknowledged_and_received_by_the_others(server: ChatServer, client: Client) -> None:
    other = Client(server, "p2")
    client.receive()
    assert client.request(publish("hi", ref=1, id="c-81")) == [
        {"type": "ack", "room": "lobby", "epoch": "e0", "offset": 1, "id": "c-81", "time": TIME, "ref": 1}
    ]
    assert other.receive() == [
        {
            "type": "message",
            "room": "lobby",
            "epoch": "e0",
            "offset": 1,
            "id": "c-81",
            "time": TIME,
            "session": "p1",
            "nick": None,
            "text": "hi",
        }
    ]


def test_text_clients_receive_its_messages_with_its_nick(server: ChatServer) -> None:
    (_, ann), program = server.person("ann"), Client(server, nick="bot")
    server.turn()
    ann.blobs.clear()
    program.request(publish("hi"))
    assert ann.blobs == [b"\x81\x07bot: hi"]


def test_the_acknowledgement_comes_once_the_bus_has_answered(server: ChatServer, client: Client) -> None:
    server.bus.publish_at_once = False
    assert client.request(publish(ref=1)) == []
    assert len(server.chat_log.entries) == 1
    server.bus.publishes()
    assert brief(client.receive()) == ["ack 1"]


def test_without_an_id_of_its_own_a_message_has_one_of_ours(server: ChatServer, client: Client) -> None:
    [ack] = client.request(publish())
    assert ack["id"] == "p1.1"
    assert "ref" not in ack


def test_the_same_id_is_published_once_and_acknowledged_where_it_stands(server: ChatServer, client: Client) -> None:
    client.request(publish("a", id="c-1"), publish("b", id="c-2"))
    [ack, other] = client.request(publish("a", id="c-1", ref=1), publish("c", id="c-3", ref=2))
    assert (ack["offset"], ack["id"], ack["duplicate"], ack["ref"]) == (1, "c-1", True, 1)
    assert (other["offset"], other["ref"], "duplicate" in other) == (3, 2, False)
    assert [each.text for _, messages in server.bus.published for each in messages] == ["a", "b", "c"]


def test_another_may_use_the_same_id(server: ChatServer, client: Client) -> None:
    client.request(publish(id="c-1"))
    [ack] = [each for each in Client(server, "p2").request(publish(id="c-1")) if each["type"] == "ack"]
    assert "duplicate" not in ack


def test_one_line_end_is_dropped(server: ChatServer, client: Client) -> None:
    client.send(publish("hi\r\n"), publish("a\nb\n"))
    assert server.turn() == [("lobby", "hi"), ("lobby", "a\nb")]


def test_with_echo_it_receives_its_own_messages(server: ChatServer) -> None:
    assert brief(Client(server, echo=True).request(publish(ref=1))) == ["ack 1", "message hi"]


def test_a_text_that_is_too_large_or_empty_is_an_error(server: ChatServer, client: Client) -> None:
    texts = ["x" * 17, "€" * 6, "\n", "x" * 16]
    assert client.request(*(publish(text, ref=ref) for ref, text in enumerate(texts)))[:3] == [
        *(error(ref, "too_large", "text: more than 16 bytes of UTF-8") for ref in (0, 1)),
        error(2, "bad_request", "text: nothing but a line end"),
    ]
    assert (len(server.bus.published), client.line.events) == (1, [])


def test_a_message_that_cannot_be_logged_or_published_is_an_error(server: ChatServer, client: Client) -> None:
    server.bus.refuse = NotPublished("ERR no")
    assert client.request(publish(ref=1)) == [error(1, "unavailable", OUR_FAULT.reason, retry_after=5.0)]
    server.chat_log.full = True
    reason = LOG_AWAY.reason.removeprefix("not sent: ")
    assert client.request(publish(ref=2)) == [error(2, "unavailable", reason, retry_after=5.0)]
    assert client.line.events == []


# Rooms


def test_it_joins_another_room(server: ChatServer, client: Client) -> None:
    sender, _ = server.session("s1", "ops")
    assert client.request(join("ops", ref=2)) == [
        {
            "type": "joined",
            "room": "ops",
            "epoch": "e0",
            "offset": 0,
            "recovered": True,
            "lost": 0,
            "messages": [],
            "ref": 2,
        }
    ]
    sender.received(["hello"])
    [message] = client.receive()
    assert (message["room"], message["text"]) == ("ops", "hello")


def test_it_publishes_in_each_of_its_rooms(server: ChatServer, client: Client) -> None:
    client.request(join("ops"))
    acks = client.request(publish("a", "ops"), publish("b", "lobby"))
    assert [(each["room"], each["offset"]) for each in acks] == [("ops", 1), ("lobby", 1)]


def test_the_name_of_a_room_is_normalised(client: Client) -> None:
    [joined] = client.request(join("A\u030a"))
    assert joined["room"] == "\u00c5"


@pytest.mark.parametrize("room", ["", "a/b", "-x", "a b", "x" * 65, "a\x00"])
def test_a_bad_room_is_an_error(client: Client, room: str) -> None:
    [answer] = client.request(join(room, ref=1))
    assert (answer["code"], answer["ref"]) == ("bad_room", 1)


def test_more_rooms_than_allowed_are_forbidden(client: Client) -> None:
    assert client.request(join("a"), join("b"), join("c", ref=1))[-1] == error(
        1, "forbidden", "no more than 3 rooms at once"
    )


def test_a_room_that_was_left_makes_room_for_another(client: Client) -> None:
    client.request(join("a"), join("b"), {"type": "leave", "room": "lobby"})
    assert brief(client.request(join("c", ref=1))) == ["joined 1"]


def test_it_leaves_a_room(server: ChatServer, client: Client) -> None:
    sender, _ = server.session()
    assert client.request({"type": "leave", "room": "lobby", "ref": 3}) == [{"type": "left", "room": "lobby", "ref": 3}]
    sender.received(["hello"])
    assert client.receive() == []
    assert server.bus.present["lobby"] == {"s1": ""}


@pytest.mark.parametrize(
    "request_",
    [publish(room="ops"), *({"type": each, "room": "ops"} for each in ("leave", "members", "history"))],
    ids=lambda each: each["type"],
)
def test_requests_for_a_room_that_it_has_not_joined_are_errors(client: Client, request_: dict[str, Any]) -> None:
    assert client.request(request_ | {"ref": "r"}) == [not_joined("r")]


def test_what_comes_before_the_room_is_joined_is_refused_in_order(server: ChatServer, client: Client) -> None:
    server.bus.confirm_at_once = False
    client.send(join("ops", ref=1), publish(room="ops", ref=2), join("ops", ref=3), {"type": "leave", "room": "ops"})
    assert brief(client.receive()) == ["error not_joined 2", "error bad_request 3", "error not_joined"]
    server.bus.confirm("ops")
    assert brief(client.receive()) == ["joined 1"]
    assert brief(client.request(publish(room="ops", ref=4))) == ["ack 4"]


def test_a_room_that_cannot_be_joined_in_time_is_an_error(server: ChatServer, client: Client) -> None:
    server.bus.confirm_at_once = False
    assert client.request(join("ops", ref=1)) == []
    server.clock.advance(CONFIG.subscribe_timeout)
    assert client.receive() == [error(1, "unavailable", BUS_AWAY.reason, retry_after=5.0)]
    assert list(server.bus.rooms) == ["lobby"]
    server.bus.confirm_at_once = True
    assert brief(client.request(join("ops", ref=2))) == ["joined 2"]


def test_a_room_that_cannot_be_joined_for_an_error_of_ours_is_logged(server: ChatServer, client: Client) -> None:
    hub: Any = server.hub
    hub.join = lambda *_: fail(ZeroDivisionError())
    with capturedLogs() as logged:
        answers = client.request(join("ops", ref=1))
    assert answers == [error(1, "unavailable", "an error on our side", retry_after=5.0)]
    assert [each["log_level"] for each in logged] == [LogLevel.critical]


def test_one_that_goes_while_joining_leaves_nothing_behind(server: ChatServer, client: Client) -> None:
    server.bus.confirm_at_once = False
    client.send(join("ops", ref=1))
    client.session.closed()
    server.clock.advance(CONFIG.subscribe_timeout)
    assert (server.bus.rooms, client.receive(), server.clock.getDelayedCalls()) == ({}, [], [])


# Since


def said(server: ChatServer, count: int, room: str = "ops") -> None:
    """Publish a, b, c … in a room."""
    sender, _ = server.session("sender", room)
    sender.received([chr(ord("a") + number) for number in range(count)])
    server.turn()
    sender.closed()


def joined(client: Client, since: dict[str, Any] | None = None) -> tuple[bool, int | None, str]:
    """Join ops; return whether all is recovered, how much is lost, and the texts."""
    [answer] = client.request(join("ops", **({} if since is None else {"since": since})))
    texts = "".join(message["text"] for message in answer["messages"])
    return answer["recovered"], answer["lost"], texts


@pytest.mark.parametrize(
    ("since", "outcome"),
    [
        (None, (True, 0, "")),
        ({"last": 2}, (True, 0, "de")),
        ({"last": 9}, (True, 0, "abcde")),
        ({"last": 0}, (True, 0, "")),
        ({"epoch": "e0", "offset": 2}, (True, 0, "cde")),
        ({"epoch": "e0", "offset": 0}, (True, 0, "abcde")),
        ({"epoch": "e0", "offset": 5}, (True, 0, "")),
        ({"epoch": "e9", "offset": 2}, (False, None, "abcde")),
        ({"epoch": "e0", "offset": 9}, (False, None, "")),
    ],
)
def test_what_was_said_since_then_comes_with_the_joining(
    server: ChatServer, client: Client, since: dict[str, Any] | None, outcome: tuple[bool, int | None, str]
) -> None:
    said(server, 5)
    assert joined(client, since) == outcome


def test_what_history_has_no_more_is_told_as_lost(server: ChatServer, client: Client) -> None:
    server.session("keeper", "ops")
    server.bus.kept_messages = 2
    for _ in range(5):
        said(server, 1)
    assert joined(client, {"epoch": "e0", "offset": 1}) == (False, 2, "aa")


def test_what_comes_with_the_joining_is_told_as_messages_are(server: ChatServer, client: Client) -> None:
    said(server, 1)
    [answer] = client.request(join("ops", since={"last": 1}))
    assert answer["offset"] == 1
    [message] = answer["messages"]
    assert (message["type"], message["offset"], message["session"]) == ("message", 1, "sender")


def test_it_may_go_back_in_a_room_that_it_is_in(server: ChatServer, client: Client) -> None:
    client.request(join("ops"))
    said(server, 3)
    client.receive()
    assert joined(client, {"epoch": "e0", "offset": 1}) == (True, 0, "bc")
    said(server, 1)
    assert "message a" in brief(client.receive())
    assert list(server.bus.present["ops"]) == ["p1"]


def test_going_back_twice_at_once_is_refused_the_second_time(server: ChatServer, client: Client) -> None:
    said(server, 3)
    client.request(join("ops"))
    back = join("ops", since={"last": 1})
    client.send(back | {"ref": 1}, back | {"ref": 2}, {"type": "leave", "room": "ops", "ref": 3})
    assert brief(client.receive()) == ["error bad_request 2", "error bad_request 3", "joined 1"]


def test_it_may_speak_while_it_goes_back(server: ChatServer, client: Client) -> None:
    said(server, 3)
    client.request(join("ops"))
    answers = client.request(join("ops", since={"last": 1}, ref=1), publish("hi", "ops", ref=2))
    assert sorted(brief(answers)) == ["ack 2", "joined 1"]


# Members and history


def test_it_requests_the_members(server: ChatServer, client: Client) -> None:
    server.session("s1"), server.person("ann")
    client.receive()
    assert client.request({"type": "members", "room": "lobby", "ref": 4}) == [
        {
            "type": "members",
            "room": "lobby",
            "members": [
                {"session": "p1", "nick": None, "since": TIME},
                {"session": "s1", "nick": None, "since": TIME},
                {"session": "ann.1", "nick": "ann", "since": TIME},
            ],
            "count": 3,
            "ref": 4,
        }
    ]


def test_where_they_are_too_many_it_is_told_how_many(server: ChatServer, client: Client) -> None:
    server.bus.presence_limit = 1
    server.session()
    client.receive()
    [answer] = client.request({"type": "members", "room": "lobby"})
    assert answer == {"type": "members", "room": "lobby", "members": None, "count": 2}


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        *(({}, "abcde"), ({"limit": 2}, "de"), ({"before": 4}, "abc"), ({"before": 4, "limit": 2}, "bc")),
        ({"before": 1}, ""),
    ],
)
def test_it_requests_history(server: ChatServer, client: Client, asked: dict[str, Any], texts: str) -> None:
    client.request(join("ops"))
    said(server, 5)
    client.receive()
    [answer] = client.request({"type": "history", "room": "ops", "ref": 5} | asked)
    assert (answer["type"], answer["room"], answer["epoch"], answer["ref"]) == ("history", "ops", "e0", 5)
    assert "".join(message["text"] for message in answer["messages"]) == texts


def test_who_goes_back_while_there_is_more_has_all_that_was_said(client: Client) -> None:
    for number in range(5):
        client.request(publish(str(number)))
    pages: list[str] = []
    asked: dict[str, Any] = {"type": "history", "room": "lobby", "limit": 2}
    more = True
    while more:
        [answer] = client.request(asked)
        pages.append("".join(message["text"] for message in answer["messages"]))
        asked["before"] = answer["messages"][0]["offset"]
        assert answer.get("more") in (True, None)
        more = "more" in answer
    assert pages == ["34", "12", "0"]


def test_a_question_about_a_room_that_was_left_meanwhile_is_answered(client: Client) -> None:
    client.server.bus.answer_at_once = False
    with capturedLogs() as logged:
        client.send({"type": "history", "room": "lobby", "ref": 1}, {"type": "leave", "room": "lobby", "ref": 2})
        client.server.bus.answer()
        assert sorted(brief(client.receive())) == ["history 1", "left 2"]
    assert logged == []


def test_questions_without_an_answer_are_bounded(server: ChatServer, client: Client) -> None:
    server.bus.answer_at_once = False
    members = {"type": "members", "room": "lobby"}
    answers = client.request(*({**members, "ref": ref} for ref in (1, 2, 3)))
    assert answers == [error(3, "rate_limited", "too many requests without an answer", retry_after=5.0)]
    server.bus.answer()
    assert brief(client.receive()) == ["members 1", "members 2"]
    client.send(members)
    server.bus.answer()
    assert brief(client.receive()) == ["members"]


def test_a_question_that_failed_is_an_error_logged_and_counts_no_more(server: ChatServer, client: Client) -> None:
    hub: Any = server.hub
    hub.bus.presence.members = lambda _: fail(ZeroDivisionError())
    with capturedLogs() as logged:
        answers = client.request(*[{"type": "members", "room": "lobby", "ref": 1}] * 3)
    assert answers == [error(1, "unavailable", "an error on our side", retry_after=5.0)] * 3
    assert [each["log_level"] for each in logged] == [LogLevel.critical] * 3


def test_a_ping_is_answered_with_its_reference(client: Client) -> None:
    assert client.request({"type": "ping", "ref": "r"}, {"type": "ping"}) == [
        {"type": "pong", "ref": "r"},
        {"type": "pong"},
    ]


def test_tokens_are_not_taken(client: Client) -> None:
    assert client.request({"type": "auth", "ref": 7, "token": "t"}) == [
        error(7, "bad_request", "this server takes no tokens")
    ]


# Nicks


def test_it_takes_a_nick_and_the_others_are_told(server: ChatServer, client: Client) -> None:
    other = Client(server, "p2")
    client.receive()
    assert client.request({"type": "nick", "ref": 6, "nick": "bot"}) == [
        {"type": "nick", "nick": "bot", "was": None, "ref": 6}
    ]
    assert other.receive() == [
        {"type": "presence", "room": "lobby", "event": "nick", "session": "p1", "nick": "bot", "was": None}
    ]
    assert client.request({"type": "nick", "nick": "bob"}) == [{"type": "nick", "nick": "bob", "was": "bot"}]
    client.request(publish())
    assert other.receive()[-1]["nick"] == "bob"


def test_a_nick_that_is_taken_gives_one_like_it(server: ChatServer, client: Client) -> None:
    server.person("ann")
    client.receive()
    [answer] = client.request({"type": "nick", "nick": "ann"})
    assert answer["nick"] == "ann*2"


def test_it_has_its_nick_in_all_its_rooms(server: ChatServer, client: Client) -> None:
    server.person("ann")
    client.request(join("ops"), {"type": "nick", "nick": "ann"})
    assert (server.bus.present["lobby"]["p1"], server.bus.present["ops"]["p1"]) == ("ann*2", "ann*2")


def test_it_brings_its_nick_to_a_room_that_it_joins_later(server: ChatServer, client: Client) -> None:
    client.request({"type": "nick", "nick": "bot"}, join("ops"))
    assert server.bus.present["ops"]["p1"] == "bot"


def test_without_any_room_it_may_take_a_nick(client: Client) -> None:
    answers = client.request({"type": "leave", "room": "lobby"}, {"type": "nick", "nick": "bot"})
    assert answers[1] == {"type": "nick", "nick": "bot", "was": None}


@pytest.mark.parametrize("nick", ["", "a b", "a:b", "x" * 33, "\u202e"])
def test_a_bad_nick_is_an_error(client: Client, nick: str) -> None:
    [answer] = client.request({"type": "nick", "ref": 6, "nick": nick})
    assert (answer["code"], answer["ref"], answer["message"][:12]) == ("bad_request", 6, "nick: a nick")


def test_one_that_lost_its_nick_is_told_which_it_has_now(server: ChatServer) -> None:
    client = Client(server, nick="bot")
    server.hub.renamed("lobby", "p1", "bot*2")
    assert client.receive() == [{"type": "nick", "nick": "bot*2", "was": "bot"}]
    client.request(join("ops"))
    assert server.bus.present["ops"]["p1"] == "bot*2"


# Presence events


def test_it_is_told_who_comes_and_who_goes(server: ChatServer, client: Client) -> None:
    bare, _ = server.session("s1")
    ann, _ = server.person("ann")
    server.turn()
    ann.closed()
    bare.closed()
    answers = client.receive()
    assert all(answer["type"] == "presence" and answer["room"] == "lobby" for answer in answers)
    assert [(answer["event"], answer["session"], answer["nick"]) for answer in answers] == [
        ("join", "s1", None),
        ("join", "ann.1", "ann"),
        ("leave", "ann.1", "ann"),
        ("leave", "s1", None),
    ]


def test_of_itself_it_is_not_told(server: ChatServer, client: Client) -> None:
    server.hub.presence_changed("lobby", server.bus.top("lobby"), [PresenceEvent("join", "p1", "", "")])
    assert client.receive() == []


# Bad requests


@pytest.mark.parametrize(
    ("text", "ref", "message"),
    [
        ("", None, "not JSON: "),
        ("hello", None, "not JSON: "),
        ("[]", None, "expected object, got array"),
        ('{"type":"fly","ref":1}', 1, "type: expected one of publish, "),
        ('{"type":"publish","room":"lobby","ref":"r"}', "r", "object missing required field text"),
        ('{"type":"ping","ref":[1]}', None, "ref: "),
    ],
)
def test_what_is_no_request_is_an_error_and_no_end(client: Client, text: str, ref: object, message: str) -> None:
    [answer] = client.request(text)
    assert (answer["type"], answer["code"], answer.get("ref")) == ("error", "bad_request", ref)
    assert answer["message"].startswith(message)
    assert client.line.events == []
    assert brief(client.request({"type": "ping"})) == ["pong"]


def test_requests_are_answered_in_their_order_good_or_bad(client: Client) -> None:
    answers = client.request({"type": "ping", "ref": 1}, '{"ref":2}', {"type": "ping", "ref": 3}, "?")
    assert brief(answers) == ["pong 1", "error bad_request 2", "pong 3", "error bad_request"]


# While messages cannot be published


def test_while_the_bus_is_away_a_message_is_refused_and_told_when_to_try_again(
    server: ChatServer, client: Client
) -> None:
    server.bus_goes()
    assert client.request(publish(ref=1), {"type": "ping", "ref": 2}) == [away(1), {"type": "pong", "ref": 2}]
    assert client.line.events == []
    server.bus_comes_back()
    assert brief(client.request(publish(ref=3))) == ["ack 3"]


def test_while_the_broker_refuses_writes_a_message_is_refused_with_this_reason(
    server: ChatServer, client: Client
) -> None:
    server.bus.refusing = "READONLY"
    server.bus_goes()
    reason = "the message bus refuses writes"
    assert client.request(publish(ref=1)) == [error(1, "unavailable", reason, retry_after=5.0)]


def test_a_full_window_holds_requests_in_their_order_and_stops_reading(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    assert client.request(publish("a", ref=1), {"type": "ping", "ref": 2}, "?", publish("b", ref=3)) == []
    assert client.request({"type": "ping", "ref": 4}) == []
    assert set(client.line.events) == {"pause"}
    server.bus_comes_back()
    assert client.line.events[-1] == "resume"
    assert server.turn() == [("lobby", "a"), ("lobby", "b")]
    answers = brief(client.receive())
    assert [answer for answer in answers if "ack" not in answer] == ["pong 2", "error bad_request", "pong 4"]
    assert [answer for answer in answers if "ack" in answer] == ["ack 1", "ack 3"]


def test_what_was_held_is_refused_where_the_bus_goes(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.send(publish(ref=1), publish(ref=2))
    server.bus_goes()
    assert client.receive() == [away(1), away(2)]
    assert client.line.events[-1] == "resume"
    server.bus_comes_back()
    assert server.turn() == []


def test_where_the_window_fills_again_the_rest_is_held_again(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.send(*[publish("12345678", ref=ref) for ref in range(4)])
    server.bus.space = 16
    server.bus_comes_back()
    assert len(server.hub.publisher._pending) == 2  # the others have to wait for room
    assert client.line.events[-1] == "pause"
    assert brief(client.receive()) == ["ack 0", "ack 1", "ack 2", "ack 3"]
    assert client.line.events[-1] == "resume"


def test_what_one_that_left_had_not_published_is_not_published(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.send(publish())
    client.session.closed()
    server.bus_comes_back()
    assert server.turn() == []


def test_of_one_that_does_not_read_nothing_is_done_until_it_has(server: ChatServer, client: Client) -> None:
    client.line.buffer_full = True
    assert client.request({"type": "ping", "ref": 1}, publish("a", ref=2)) == []
    assert client.line.events == ["pause"]
    assert client.request({"type": "ping", "ref": 3}) == []
    client.line.buffer_full = False
    client.session.drained()
    assert brief(client.receive()) == ["pong 1", "pong 3", "ack 2"]
    assert client.line.events[-1] == "resume"


def test_one_that_waits_for_the_bus_and_has_read_goes_on_waiting(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.send(publish("a", ref=1))
    client.session.drained()
    assert (client.receive(), client.line.events) == ([], ["pause"])


# The order of answers and messages


def test_answers_of_one_turn_are_one_write(client: Client) -> None:
    client.send({"type": "ping"}, {"type": "ping"}, {"type": "ping"})
    assert client.line.blobs == []
    client.server.turn()
    assert len(client.line.blobs) == 1


def test_what_was_answered_is_sent_before_what_is_heard_then(server: ChatServer, client: Client) -> None:
    sender, _ = server.session("s1")
    client.receive()
    sender.received(["first"])
    server.clock.advance(0)
    client.send({"type": "ping"})
    server.bus.pump()
    server.hub.broadcast()
    assert brief(events(client.line)) == ["pong", "message first"]


def test_answers_are_sent_before_replayed_messages(server: ChatServer, client: Client) -> None:
    client.send({"type": "ping"})
    client.session._rooms["lobby"].replay(b"\x81\x02{}", 1)
    assert [each.get("type") for each in events(client.line)] == ["pong", None]


# A slow consumer in several rooms


class SlowLine(FakeLine):
    """A connection whose send buffer can be full."""

    session: JsonSession

    def deliver(self, blob: bytes, count: int) -> bool:
        if self.buffer_full:
            self.session.became_slow()
            return False
        return super().deliver(blob, count)


@pytest.fixture
def slow(client: Client) -> SlowLine:
    """Return the connection of a client that can be slow."""
    slow = SlowLine()
    slow.session = client.session
    client.session.connection = client.line = slow
    return slow


def test_it_falls_behind_only_in_the_room_whose_message_it_could_not_take(
    server: ChatServer, client: Client, slow: SlowLine
) -> None:
    client.request(join("ops"))
    sender, _ = server.session("s1", "ops")
    neighbour, _ = server.session("s2", "lobby")
    client.receive()
    slow.buffer_full = True
    sender.received(["while behind"])
    assert client.receive() == []
    slow.buffer_full = False
    neighbour.received(["live"])
    assert brief(client.receive()) == ["message live"]
    client.session.drained()
    assert brief(client.receive()) == ["message while behind"]
    sender.received(["live again"])
    assert brief(client.receive()) == ["message live again"]


def test_one_that_fell_behind_before_anything_was_delivered_stays_where_it_is(client: Client) -> None:
    client.session.became_slow()
    assert client.receive() == []


def test_a_slow_consumer_that_missed_presence_events_gets_the_members(
    server: ChatServer, client: Client, slow: SlowLine
) -> None:
    sender, _ = server.session("s1")
    client.receive()
    slow.buffer_full = True
    sender.received(["a"])
    server.turn()
    server.person("ann")
    server.turn()
    slow.buffer_full = False
    client.session.drained()
    [message, members] = client.receive()
    assert (message["text"], members["type"], members["count"]) == ("a", "members", 3)


# The end


@pytest.mark.parametrize(
    ("why", "comes_back"),
    [
        *((STOPPING, True), (OUR_FAULT, True), (close_codes.BUS_AWAY, True), (close_codes.too_slow(None), True)),
        *((CloseCode(1012, "restart"), True), (TAKEN_OVER, False), (TOO_LARGE, False), (close_codes.NOT_TEXT, False)),
        (CloseCode(1002, "no such frame"), False),
        (CloseCode(1007, "not UTF-8"), False),
    ],
    ids=lambda each: str(getattr(each, "code", each)),
)
def test_bye_has_the_reason_and_if_it_helps_when_to_reconnect(client: Client, why: CloseCode, comes_back: bool) -> None:
    client.line.blobs.append(client.session.farewell(why))
    [bye] = events(client.line)
    after = bye.pop("reconnect_after", None)
    assert bye == {"type": "bye", "code": why.code, "reason": why.reason}
    assert (after is not None) == comes_back
    assert after is None or 0 < after <= CONFIG.retry_after


def test_reconnect_delays_differ(server: ChatServer) -> None:
    answers = set()
    for number in range(20):
        client = Client(server, f"p{number}")
        client.line.blobs.append(client.session.farewell(STOPPING))
        answers.add(events(client.line)[-1]["reconnect_after"])
    assert len(answers) > 5


def test_what_was_answered_is_sent_before_the_end(client: Client) -> None:
    client.send({"type": "ping"})
    client.line.blobs.append(client.session.farewell(STOPPING))
    assert brief(events(client.line)) == ["pong", "bye 1001"]


def test_nothing_is_said_to_one_that_is_gone(server: ChatServer, client: Client) -> None:
    server.bus.publish_at_once = server.bus.answer_at_once = False
    client.send(publish(ref=1), {"type": "members", "room": "lobby"}, {"type": "history", "room": "lobby"})
    client.send({"type": "ping"})
    server.clock.advance(0)
    client.line.blobs.clear()
    client.send({"type": "ping"})
    client.session.closed()
    server.bus.publishes()
    server.bus.answer()
    with capturedLogs() as logged:
        assert (client.receive(), client.line.blobs, logged) == ([], [], [])


def test_one_that_is_gone_takes_its_nick_in_no_further_room(server: ChatServer, client: Client) -> None:
    client.request(join("ops"))
    server.bus.answer_at_once = False
    client.send({"type": "nick", "nick": "bot"})
    client.session.closed()
    with capturedLogs() as logged:
        server.bus.answer()
        server.turn()
    assert (server.bus.present.get("ops"), logged) == ({}, [])


def test_one_that_is_gone_leaves_all_its_rooms_and_no_timer(server: ChatServer, client: Client) -> None:
    client.send(join("ops"), {"type": "ping"})
    client.session.closed()
    assert (server.bus.rooms, server.bus.present) == ({}, {"lobby": {}, "ops": {}})
    assert server.clock.getDelayedCalls() == []


def test_with_a_key_it_may_come_back_unnoticed(server: ChatServer) -> None:
    for key, delays_leave in (("", False), ("abcdefgh", True)):
        client = Client(server, f"p{key}", resume=key)
        client.session.closed()
        assert server.bus.lingered[client.session.sender_id] == delays_leave


def test_binary_is_ignored(client: Client) -> None:
    assert not client.session.accepts_binary
    client.session.received_binary(b"hello")
    assert (client.receive(), client.line.events) == ([], [])


def test_once_it_is_compressed_all_its_rooms_are(server: ChatServer) -> None:
    session, _ = server.make(JsonSession, "p1", RoomTarget("lobby"))
    session.join()
    session.compress()
    session.opened()
    session.received([json.dumps(join("ops"))])
    server.turn()
    assert [each.format for each in session._rooms.values()] == [JSON.deflated, JSON.deflated]
