"""A client that speaks chatd.v1: each request and its answers; a session between a line and a real hub."""

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
    """A program, from its handshake on."""

    def __init__(self, server: ChatServer, name: str = "p1", room: str = "lobby", **target: Any) -> None:
        self.server = server
        self.session, self.line = server.program(name, room, **target)
        self.welcome = self.hears()

    def asks(self, *requests: dict[str, Any] | str) -> list[dict[str, Any]]:
        """Send requests in one read; give what it hears up to the end of the turn."""
        self.sends(*requests)
        return self.hears()

    def sends(self, *requests: dict[str, Any] | str) -> None:
        self.session.received([each if isinstance(each, str) else json.dumps(each) for each in requests])

    def hears(self) -> list[dict[str, Any]]:
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


def brief(told: Sequence[dict[str, Any]]) -> list[str]:
    """Say which events these are, with reference and text."""
    return [" ".join(str(each[key]) for key in ("type", "code", "ref", "text") if key in each) for each in told]


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


@pytest.fixture
def client(server: ChatServer) -> Client:
    return Client(server)


# How it begins


def test_it_hears_first_who_it_is_and_then_that_it_is_in_the_room(client: Client) -> None:
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


def test_nothing_is_said_before_the_handshake_is_answered(server: ChatServer) -> None:
    session, line = server.make(JsonSession, "p1", RoomTarget("lobby"))
    session.join()
    server.turn()
    assert line.blobs == []
    session.opened()
    assert brief(events(line)) == ["welcome", "joined"]


def test_the_welcome_says_which_nick_it_has(server: ChatServer) -> None:
    server.person("ann")
    [welcome, _] = Client(server, nick="ann").welcome
    assert welcome["nick"] == "ann*2"


def test_with_a_key_the_welcome_says_who_it_is_to_others(server: ChatServer) -> None:
    first = Client(server, "p1", resume="abcdefgh")
    first.session.closed()
    second = Client(server, "p2", resume="abcdefgh")
    assert second.welcome[0]["session"] == "p1"


def test_with_last_it_begins_with_what_was_said_before(server: ChatServer, client: Client) -> None:
    client.asks(publish("a"), publish("b"), publish("c"))
    [_, joined] = Client(server, "p2", last=2).welcome
    assert (joined["offset"], [each["text"] for each in joined["messages"]]) == (3, ["b", "c"])


def test_it_may_speak_before_it_has_what_was_said_before(server: ChatServer, client: Client) -> None:
    client.asks(publish("a"))
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


def test_what_it_publishes_is_acknowledged_and_heard_by_the_others(server: ChatServer, client: Client) -> None:
    other = Client(server, "p2")
    client.hears()
    assert client.asks(publish("hi", ref=1, id="c-81")) == [
        {"type": "ack", "room": "lobby", "epoch": "e0", "offset": 1, "id": "c-81", "time": TIME, "ref": 1}
    ]
    assert other.hears() == [
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


def test_people_see_what_a_program_with_a_nick_says(server: ChatServer) -> None:
    (_, ann), program = server.person("ann"), Client(server, nick="bot")
    server.turn()
    ann.blobs.clear()
    program.asks(publish("hi"))
    assert ann.blobs == [b"\x81\x07bot: hi"]


def test_the_acknowledgement_comes_once_the_bus_has_answered(server: ChatServer, client: Client) -> None:
    server.bus.publish_at_once = False
    assert client.asks(publish(ref=1)) == []
    assert len(server.chat_log.entries) == 1
    server.bus.publishes()
    assert brief(client.hears()) == ["ack 1"]


def test_without_an_id_of_its_own_a_message_has_one_of_ours(server: ChatServer, client: Client) -> None:
    [ack] = client.asks(publish())
    assert ack["id"] == "p1.1"
    assert "ref" not in ack


def test_the_same_id_is_published_once_and_acknowledged_where_it_stands(server: ChatServer, client: Client) -> None:
    client.asks(publish("a", id="c-1"), publish("b", id="c-2"))
    [ack, other] = client.asks(publish("a", id="c-1", ref=1), publish("c", id="c-3", ref=2))
    assert (ack["offset"], ack["id"], ack["duplicate"], ack["ref"]) == (1, "c-1", True, 1)
    assert (other["offset"], other["ref"], "duplicate" in other) == (3, 2, False)
    assert [each.text for _, messages in server.bus.published for each in messages] == ["a", "b", "c"]


def test_another_may_use_the_same_id(server: ChatServer, client: Client) -> None:
    client.asks(publish(id="c-1"))
    [ack] = [each for each in Client(server, "p2").asks(publish(id="c-1")) if each["type"] == "ack"]
    assert "duplicate" not in ack


def test_one_line_end_is_dropped(server: ChatServer, client: Client) -> None:
    client.sends(publish("hi\r\n"), publish("a\nb\n"))
    assert server.turn() == [("lobby", "hi"), ("lobby", "a\nb")]


def test_with_echo_it_hears_itself(server: ChatServer) -> None:
    assert brief(Client(server, echo=True).asks(publish(ref=1))) == ["ack 1", "message hi"]


def test_a_text_that_is_too_large_is_an_error_and_no_end(server: ChatServer, client: Client) -> None:
    assert client.asks(publish("x" * 17, ref=1), publish("€" * 6, ref=2), publish("x" * 16, ref=3))[:2] == [
        error(1, "too_large", "text: more than 16 bytes of UTF-8"),
        error(2, "too_large", "text: more than 16 bytes of UTF-8"),
    ]
    assert (len(server.bus.published), client.line.events) == (1, [])


def test_a_text_of_nothing_but_a_line_end_is_an_error(client: Client) -> None:
    assert client.asks(publish("\n", ref=1)) == [error(1, "bad_request", "text: nothing but a line end")]


def test_a_message_that_cannot_be_logged_is_refused(server: ChatServer, client: Client) -> None:
    server.chat_log.full = True
    reason = LOG_AWAY.reason.removeprefix("not sent: ")
    assert client.asks(publish(ref=1)) == [error(1, "unavailable", reason, retry_after=5.0)]
    assert client.line.events == []


def test_a_message_that_the_bus_refused_is_refused(server: ChatServer, client: Client) -> None:
    server.bus.refuse = NotPublished("ERR no")
    assert client.asks(publish(ref=1)) == [error(1, "unavailable", OUR_FAULT.reason, retry_after=5.0)]
    assert client.line.events == []


# Rooms


def test_it_joins_another_room_and_hears_it(server: ChatServer, client: Client) -> None:
    speaker, _ = server.session("s1", "ops")
    assert client.asks(join("ops", ref=2)) == [
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
    speaker.received(["hello"])
    [message] = client.hears()
    assert (message["room"], message["text"]) == ("ops", "hello")


def test_it_speaks_in_each_of_its_rooms(server: ChatServer, client: Client) -> None:
    client.asks(join("ops"))
    acks = client.asks(publish("a", "ops"), publish("b", "lobby"))
    assert [(each["room"], each["offset"]) for each in acks] == [("ops", 1), ("lobby", 1)]


def test_the_name_of_a_room_is_normalised(client: Client) -> None:
    [joined] = client.asks(join("A\u030a"))
    assert joined["room"] == "\u00c5"


@pytest.mark.parametrize("room", ["", "a/b", "-x", "a b", "x" * 65, "a\x00"])
def test_a_bad_room_is_an_error(client: Client, room: str) -> None:
    [told] = client.asks(join(room, ref=1))
    assert (told["code"], told["ref"]) == ("bad_room", 1)


def test_more_rooms_than_allowed_are_forbidden(client: Client) -> None:
    assert client.asks(join("a"), join("b"), join("c", ref=1))[-1] == error(
        1, "forbidden", "no more than 3 rooms at once"
    )


def test_a_room_that_was_left_makes_room_for_another(client: Client) -> None:
    client.asks(join("a"), join("b"), {"type": "leave", "room": "lobby"})
    assert brief(client.asks(join("c", ref=1))) == ["joined 1"]


def test_it_leaves_a_room_and_hears_it_no_more(server: ChatServer, client: Client) -> None:
    speaker, _ = server.session()
    assert client.asks({"type": "leave", "room": "lobby", "ref": 3}) == [{"type": "left", "room": "lobby", "ref": 3}]
    speaker.received(["hello"])
    assert client.hears() == []
    assert server.bus.present["lobby"] == {"s1": ""}


@pytest.mark.parametrize(
    "request_",
    [publish(room="ops"), *({"type": each, "room": "ops"} for each in ("leave", "members", "history"))],
    ids=lambda each: each["type"],
)
def test_in_a_room_that_it_has_not_joined_nothing_can_be_done(client: Client, request_: dict[str, Any]) -> None:
    assert client.asks(request_ | {"ref": "r"}) == [not_joined("r")]


def test_what_comes_before_the_room_is_joined_is_refused_in_order(server: ChatServer, client: Client) -> None:
    server.bus.confirm_at_once = False
    client.sends(join("ops", ref=1), publish(room="ops", ref=2), join("ops", ref=3), {"type": "leave", "room": "ops"})
    assert brief(client.hears()) == ["error not_joined 2", "error bad_request 3", "error not_joined"]
    server.bus.confirm("ops")
    assert brief(client.hears()) == ["joined 1"]
    assert brief(client.asks(publish(room="ops", ref=4))) == ["ack 4"]


def test_a_room_that_cannot_be_joined_in_time_is_an_error(server: ChatServer, client: Client) -> None:
    server.bus.confirm_at_once = False
    assert client.asks(join("ops", ref=1)) == []
    server.clock.advance(CONFIG.subscribe_timeout)
    assert client.hears() == [error(1, "unavailable", BUS_AWAY.reason, retry_after=5.0)]
    assert list(server.bus.rooms) == ["lobby"]
    server.bus.confirm_at_once = True
    assert brief(client.asks(join("ops", ref=2))) == ["joined 2"]


def test_a_room_that_cannot_be_joined_for_an_error_of_ours_is_logged(server: ChatServer, client: Client) -> None:
    hub: Any = server.hub
    hub.join = lambda *_: fail(ZeroDivisionError())
    with capturedLogs() as logged:
        told = client.asks(join("ops", ref=1))
    assert told == [error(1, "unavailable", "an error on our side", retry_after=5.0)]
    assert [each["log_level"] for each in logged] == [LogLevel.critical]


def test_one_that_goes_while_joining_leaves_nothing_behind(server: ChatServer, client: Client) -> None:
    server.bus.confirm_at_once = False
    client.sends(join("ops", ref=1))
    client.session.closed()
    server.clock.advance(CONFIG.subscribe_timeout)
    assert (server.bus.rooms, client.hears(), server.clock.getDelayedCalls()) == ({}, [], [])


# Since


def said(server: ChatServer, count: int, room: str = "ops") -> None:
    """Let somebody say a, b, c … in a room."""
    speaker, _ = server.session("speaker", room)
    speaker.received([chr(ord("a") + number) for number in range(count)])
    server.turn()
    speaker.closed()


def joined(client: Client, since: dict[str, Any] | None = None) -> tuple[bool, int | None, str]:
    """Join ops; give whether all is recovered, how much is lost, and what came."""
    [told] = client.asks(join("ops", **({} if since is None else {"since": since})))
    texts = "".join(each["text"] for each in told["messages"])
    return told["recovered"], told["lost"], texts


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
    [told] = client.asks(join("ops", since={"last": 1}))
    assert told["offset"] == 1
    [message] = told["messages"]
    assert (message["type"], message["offset"], message["session"]) == ("message", 1, "speaker")


def test_it_may_go_back_in_a_room_that_it_is_in(server: ChatServer, client: Client) -> None:
    client.asks(join("ops"))
    said(server, 3)
    client.hears()
    assert joined(client, {"epoch": "e0", "offset": 1}) == (True, 0, "bc")
    said(server, 1)
    assert "message a" in brief(client.hears())
    assert list(server.bus.present["ops"]) == ["p1"]


def test_going_back_twice_at_once_is_refused_the_second_time(server: ChatServer, client: Client) -> None:
    said(server, 3)
    client.asks(join("ops"))
    back = join("ops", since={"last": 1})
    client.sends(back | {"ref": 1}, back | {"ref": 2}, {"type": "leave", "room": "ops", "ref": 3})
    assert brief(client.hears()) == ["error bad_request 2", "error bad_request 3", "joined 1"]


def test_it_may_speak_while_it_goes_back(server: ChatServer, client: Client) -> None:
    said(server, 3)
    client.asks(join("ops"))
    told = client.asks(join("ops", since={"last": 1}, ref=1), publish("hi", "ops", ref=2))
    assert sorted(brief(told)) == ["ack 2", "joined 1"]


# Questions


def test_it_asks_who_is_in_a_room(server: ChatServer, client: Client) -> None:
    server.session("s1"), server.person("ann")
    client.hears()
    assert client.asks({"type": "members", "room": "lobby", "ref": 4}) == [
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
    client.hears()
    [told] = client.asks({"type": "members", "room": "lobby"})
    assert told == {"type": "members", "room": "lobby", "members": None, "count": 2}


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        *(({}, "abcde"), ({"limit": 2}, "de"), ({"before": 4}, "abc"), ({"before": 4, "limit": 2}, "bc")),
        ({"before": 1}, ""),
    ],
)
def test_it_asks_what_was_said(server: ChatServer, client: Client, asked: dict[str, Any], texts: str) -> None:
    client.asks(join("ops"))
    said(server, 5)
    client.hears()
    [told] = client.asks({"type": "history", "room": "ops", "ref": 5} | asked)
    assert (told["type"], told["room"], told["epoch"], told["ref"]) == ("history", "ops", "e0", 5)
    assert "".join(each["text"] for each in told["messages"]) == texts


def test_who_goes_back_while_there_is_more_has_all_that_was_said(client: Client) -> None:
    for number in range(5):
        client.asks(publish(str(number)))
    pages: list[str] = []
    asked: dict[str, Any] = {"type": "history", "room": "lobby", "limit": 2}
    more = True
    while more:
        [told] = client.asks(asked)
        pages.append("".join(each["text"] for each in told["messages"]))
        asked["before"] = told["messages"][0]["offset"]
        assert told.get("more") in (True, None)
        more = "more" in told
    assert pages == ["34", "12", "0"]


def test_history_has_its_own_messages_too(client: Client) -> None:
    client.asks(publish("mine"))
    [told] = client.asks({"type": "history", "room": "lobby"})
    assert [each["text"] for each in told["messages"]] == ["mine"]


def test_a_question_about_a_room_that_was_left_meanwhile_is_answered(client: Client) -> None:
    client.server.bus.answer_at_once = False
    with capturedLogs() as logged:
        client.sends({"type": "history", "room": "lobby", "ref": 1}, {"type": "leave", "room": "lobby", "ref": 2})
        client.server.bus.answer()
        assert sorted(brief(client.hears())) == ["history 1", "left 2"]
    assert logged == []


def test_questions_without_an_answer_are_bounded(server: ChatServer, client: Client) -> None:
    server.bus.answer_at_once = False
    members = {"type": "members", "room": "lobby"}
    told = client.asks(*({**members, "ref": ref} for ref in (1, 2, 3)))
    assert told == [error(3, "rate_limited", "too many requests without an answer", retry_after=5.0)]
    server.bus.answer()
    assert brief(client.hears()) == ["members 1", "members 2"]
    client.sends(members)
    server.bus.answer()
    assert brief(client.hears()) == ["members"]


def test_a_question_that_failed_is_an_error_logged_and_counts_no_more(server: ChatServer, client: Client) -> None:
    hub: Any = server.hub
    hub.bus.presence.members = lambda _: fail(ZeroDivisionError())
    with capturedLogs() as logged:
        told = client.asks(*[{"type": "members", "room": "lobby", "ref": 1}] * 3)
    assert told == [error(1, "unavailable", "an error on our side", retry_after=5.0)] * 3
    assert [each["log_level"] for each in logged] == [LogLevel.critical] * 3


def test_a_ping_is_answered_with_its_reference(client: Client) -> None:
    assert client.asks({"type": "ping", "ref": "r"}, {"type": "ping"}) == [
        {"type": "pong", "ref": "r"},
        {"type": "pong"},
    ]


def test_tokens_are_not_taken(client: Client) -> None:
    assert client.asks({"type": "auth", "ref": 7, "token": "t"}) == [
        error(7, "bad_request", "this server takes no tokens")
    ]


# Nicks


def test_it_takes_a_nick_and_the_others_are_told(server: ChatServer, client: Client) -> None:
    other = Client(server, "p2")
    client.hears()
    assert client.asks({"type": "nick", "ref": 6, "nick": "bot"}) == [
        {"type": "nick", "nick": "bot", "was": None, "ref": 6}
    ]
    assert other.hears() == [
        {"type": "presence", "room": "lobby", "event": "nick", "session": "p1", "nick": "bot", "was": None}
    ]
    assert client.asks({"type": "nick", "nick": "bob"}) == [{"type": "nick", "nick": "bob", "was": "bot"}]
    client.asks(publish())
    assert other.hears()[-1]["nick"] == "bob"


def test_a_nick_that_is_taken_gives_one_like_it(server: ChatServer, client: Client) -> None:
    server.person("ann")
    client.hears()
    [told] = client.asks({"type": "nick", "nick": "ann"})
    assert told["nick"] == "ann*2"


def test_it_has_its_nick_in_all_its_rooms(server: ChatServer, client: Client) -> None:
    server.person("ann")
    client.asks(join("ops"), {"type": "nick", "nick": "ann"})
    assert (server.bus.present["lobby"]["p1"], server.bus.present["ops"]["p1"]) == ("ann*2", "ann*2")


def test_it_brings_its_nick_to_a_room_that_it_joins_later(server: ChatServer, client: Client) -> None:
    client.asks({"type": "nick", "nick": "bot"}, join("ops"))
    assert server.bus.present["ops"]["p1"] == "bot"


def test_without_any_room_it_may_take_a_nick(client: Client) -> None:
    told = client.asks({"type": "leave", "room": "lobby"}, {"type": "nick", "nick": "bot"})
    assert told[1] == {"type": "nick", "nick": "bot", "was": None}


@pytest.mark.parametrize("nick", ["", "a b", "a:b", "x" * 33, "\u202e"])
def test_a_bad_nick_is_an_error(client: Client, nick: str) -> None:
    [told] = client.asks({"type": "nick", "ref": 6, "nick": nick})
    assert (told["code"], told["ref"], told["message"][:12]) == ("bad_request", 6, "nick: a nick")


def test_one_that_lost_its_nick_is_told_which_it_has_now(server: ChatServer) -> None:
    client = Client(server, nick="bot")
    server.hub.renamed("lobby", "p1", "bot*2")
    assert client.hears() == [{"type": "nick", "nick": "bot*2", "was": "bot"}]
    client.asks(join("ops"))
    assert server.bus.present["ops"]["p1"] == "bot*2"


# Who comes and goes


def test_it_is_told_who_comes_and_who_goes(server: ChatServer, client: Client) -> None:
    bare, _ = server.session("s1")
    ann, _ = server.person("ann")
    server.turn()
    ann.closed()
    bare.closed()
    told = client.hears()
    assert all(each["type"] == "presence" and each["room"] == "lobby" for each in told)
    assert [(each["event"], each["session"], each["nick"]) for each in told] == [
        ("join", "s1", None),
        ("join", "ann.1", "ann"),
        ("leave", "ann.1", "ann"),
        ("leave", "s1", None),
    ]


def test_of_itself_it_is_not_told(server: ChatServer, client: Client) -> None:
    server.hub.presence_changed("lobby", server.bus.top("lobby"), [PresenceEvent("join", "p1", "", "")])
    assert client.hears() == []


# What is no request


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
    [told] = client.asks(text)
    assert (told["type"], told["code"], told.get("ref")) == ("error", "bad_request", ref)
    assert told["message"].startswith(message)
    assert client.line.events == []
    assert brief(client.asks({"type": "ping"})) == ["pong"]


def test_requests_are_answered_in_their_order_good_or_bad(client: Client) -> None:
    told = client.asks({"type": "ping", "ref": 1}, '{"ref":2}', {"type": "ping", "ref": 3}, "?")
    assert brief(told) == ["pong 1", "error bad_request 2", "pong 3", "error bad_request"]


# What can't be done for now


def test_while_the_bus_is_away_a_message_is_refused_and_told_when_to_try_again(
    server: ChatServer, client: Client
) -> None:
    server.bus_goes()
    assert client.asks(publish(ref=1), {"type": "ping", "ref": 2}) == [away(1), {"type": "pong", "ref": 2}]
    assert client.line.events == []
    server.bus_comes_back()
    assert brief(client.asks(publish(ref=3))) == ["ack 3"]


def test_while_the_broker_refuses_writes_a_message_is_refused_with_this_reason(
    server: ChatServer, client: Client
) -> None:
    server.bus.refusing = "READONLY"
    server.bus_goes()
    reason = "the message bus refuses writes"
    assert client.asks(publish(ref=1)) == [error(1, "unavailable", reason, retry_after=5.0)]


def test_a_full_window_holds_requests_in_their_order_and_stops_reading(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    assert client.asks(publish("a", ref=1), {"type": "ping", "ref": 2}, "?", publish("b", ref=3)) == []
    assert client.asks({"type": "ping", "ref": 4}) == []
    assert set(client.line.events) == {"pause"}
    server.bus_comes_back()
    assert client.line.events[-1] == "resume"
    assert server.turn() == [("lobby", "a"), ("lobby", "b")]
    assert [each for each in brief(client.hears()) if "ack" not in each] == ["pong 2", "error bad_request", "pong 4"]


def test_what_was_held_is_acknowledged_in_the_end(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.sends(publish("a", ref=1), publish("b", ref=2))
    server.bus_comes_back()
    assert brief(client.hears()) == ["ack 1", "ack 2"]


def test_what_was_held_is_refused_where_the_bus_goes(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.sends(publish(ref=1), publish(ref=2))
    server.bus_goes()
    assert client.hears() == [away(1), away(2)]
    assert client.line.events[-1] == "resume"
    server.bus_comes_back()
    assert server.turn() == []


def test_where_the_window_fills_again_the_rest_is_held_again(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.sends(*[publish("12345678", ref=ref) for ref in range(4)])
    server.bus.space = 16
    server.bus_comes_back()
    assert len(server.hub.publisher._pending) == 2  # the others have to wait for room
    assert client.line.events[-1] == "pause"
    assert brief(client.hears()) == ["ack 0", "ack 1", "ack 2", "ack 3"]
    assert client.line.events[-1] == "resume"


def test_what_one_that_left_had_not_published_is_not_published(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.sends(publish())
    client.session.closed()
    server.bus_comes_back()
    assert server.turn() == []


def test_of_one_that_does_not_read_nothing_is_done_until_it_has(server: ChatServer, client: Client) -> None:
    client.line.buffer_full = True
    assert client.asks({"type": "ping", "ref": 1}, publish("a", ref=2)) == []
    assert client.line.events == ["pause"]
    assert client.asks({"type": "ping", "ref": 3}) == []
    client.line.buffer_full = False
    client.session.drained()
    assert brief(client.hears()) == ["pong 1", "pong 3", "ack 2"]
    assert client.line.events[-1] == "resume"


def test_one_that_waits_for_the_bus_and_has_read_goes_on_waiting(server: ChatServer, client: Client) -> None:
    server.bus_fills()
    client.sends(publish("a", ref=1))
    client.session.drained()
    assert (client.hears(), client.line.events) == ([], ["pause"])


# The order of what it hears


def test_answers_of_one_turn_are_one_write(client: Client) -> None:
    client.sends({"type": "ping"}, {"type": "ping"}, {"type": "ping"})
    assert client.line.blobs == []
    client.server.turn()
    assert len(client.line.blobs) == 1


def test_what_was_answered_is_sent_before_what_is_heard_then(server: ChatServer, client: Client) -> None:
    speaker, _ = server.session("s1")
    client.hears()
    speaker.received(["first"])
    server.clock.advance(0)
    client.sends({"type": "ping"})
    server.bus.pump()
    server.hub.broadcast()
    assert brief(events(client.line)) == ["pong", "message first"]


def test_what_was_answered_is_sent_before_what_is_replayed(server: ChatServer, client: Client) -> None:
    client.sends({"type": "ping"})
    client.session._rooms["lobby"].replay(b"\x81\x02{}", 1)
    assert [each.get("type") for each in events(client.line)] == ["pong", None]


# Several rooms and a slow reader


class SlowLine(FakeLine):
    """A line that takes nothing for a while."""

    session: JsonSession

    def deliver(self, blob: bytes, count: int) -> bool:
        if self.buffer_full:
            self.session.became_slow()
            return False
        return super().deliver(blob, count)


def test_one_falls_behind_only_in_the_room_where_it_could_not_take_something(server: ChatServer) -> None:
    client = Client(server)
    client.asks(join("ops"))
    slow = SlowLine()
    slow.session = client.session
    client.session.connection = client.line = slow
    speaker, _ = server.session("s1", "ops")
    neighbour, _ = server.session("s2", "lobby")
    client.hears()
    slow.buffer_full = True
    speaker.received(["while behind"])
    assert client.hears() == []
    slow.buffer_full = False
    neighbour.received(["live"])
    assert brief(client.hears()) == ["message live"]
    client.session.drained()
    assert brief(client.hears()) == ["message while behind"]
    speaker.received(["live again"])
    assert brief(client.hears()) == ["message live again"]


def test_one_that_fell_behind_before_anything_was_delivered_stays_where_it_is(client: Client) -> None:
    client.session.became_slow()
    assert client.hears() == []


def test_one_that_missed_who_came_while_it_was_behind_is_told_who_is_there(server: ChatServer) -> None:
    client = Client(server)
    slow = SlowLine()
    slow.session = client.session
    client.session.connection = client.line = slow
    speaker, _ = server.session("s1")
    client.hears()
    slow.buffer_full = True
    speaker.received(["a"])
    server.turn()
    server.person("ann")
    server.turn()
    slow.buffer_full = False
    client.session.drained()
    [message, members] = client.hears()
    assert (message["text"], members["type"], members["count"]) == ("a", "members", 3)


# How it ends


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
def test_before_it_closes_the_server_says_why_and_where_it_helps_when_to_come_back(
    client: Client, why: CloseCode, comes_back: bool
) -> None:
    client.line.blobs.append(client.session.farewell(why))
    [bye] = events(client.line)
    after = bye.pop("reconnect_after", None)
    assert bye == {"type": "bye", "code": why.code, "reason": why.reason}
    assert (after is not None) == comes_back
    assert after is None or 0 < after <= CONFIG.retry_after


def test_not_all_are_told_to_come_back_at_once(server: ChatServer) -> None:
    told = set()
    for number in range(20):
        client = Client(server, f"p{number}")
        client.line.blobs.append(client.session.farewell(STOPPING))
        told.add(events(client.line)[-1]["reconnect_after"])
    assert len(told) > 5


def test_what_was_answered_is_sent_before_the_end(client: Client) -> None:
    client.sends({"type": "ping"})
    client.line.blobs.append(client.session.farewell(STOPPING))
    assert brief(events(client.line)) == ["pong", "bye 1001"]


def test_nothing_is_said_to_one_that_is_gone(server: ChatServer, client: Client) -> None:
    server.bus.publish_at_once = server.bus.answer_at_once = False
    client.sends(publish(ref=1), {"type": "members", "room": "lobby"}, {"type": "history", "room": "lobby"})
    client.sends({"type": "ping"})
    server.clock.advance(0)
    client.line.blobs.clear()
    client.sends({"type": "ping"})
    client.session.closed()
    server.bus.publishes()
    server.bus.answer()
    with capturedLogs() as logged:
        assert (client.hears(), client.line.blobs, logged) == ([], [], [])


def test_one_that_is_gone_takes_its_nick_in_no_further_room(server: ChatServer, client: Client) -> None:
    client.asks(join("ops"))
    server.bus.answer_at_once = False
    client.sends({"type": "nick", "nick": "bot"})
    client.session.closed()
    with capturedLogs() as logged:
        server.bus.answer()
        server.turn()
    assert (server.bus.present.get("ops"), logged) == ({}, [])


def test_one_that_is_gone_leaves_all_its_rooms_and_no_timer(server: ChatServer, client: Client) -> None:
    client.sends(join("ops"), {"type": "ping"})
    client.session.closed()
    assert (server.bus.rooms, server.bus.present) == ({}, {"lobby": {}, "ops": {}})
    assert server.clock.getDelayedCalls() == []


def test_with_a_key_it_may_come_back_unnoticed(server: ChatServer) -> None:
    for key, delays_leave in (("", False), ("abcdefgh", True)):
        client = Client(server, f"p{key}", resume=key)
        client.session.closed()
        assert server.bus.lingered[client.session.sender_id] == delays_leave


def test_binary_is_not_taken(client: Client) -> None:
    assert not client.session.accepts_binary
    client.session.received_binary(b"hello")
    assert (client.hears(), client.line.events) == ([], [])


def test_once_it_is_compressed_all_its_rooms_are(server: ChatServer) -> None:
    session, _ = server.make(JsonSession, "p1", RoomTarget("lobby"))
    session.join()
    session.compress()
    session.opened()
    session.received([json.dumps(join("ops"))])
    server.turn()
    assert [each.format for each in session._rooms.values()] == [JSON.deflated, JSON.deflated]
