"""Clients that are faster than they may be: bare ones are read no faster, others are told."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.logger import capturedLogs

from chatd.access.rate_limits import RateLimits, too_many
from chatd.clients.json_session import JsonSession
from chatd.clients.pipe_session import Session
from chatd.clients.text_session import TextSession
from chatd.clients.token_lifetime import UNLIMITED
from chatd.config.settings import Config
from chatd.protocol.close_codes import FLOODING
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.message import Message
from tests.clients.server import ChatServer, events, lines
from tests.fakes import FakeLine

CONFIG = Config(
    max_message_size=100,
    flush_interval=0,
    message_rate="5",
    message_burst=10,
    refused_messages_before_close=3,
    rooms_per_client=3,
    disconnected_slowed_bytes=50,
)


class Town(ChatServer):
    """A house whose clients may say ten messages at once, then five a second."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.limits = RateLimits(CONFIG, self.clock.seconds)

    def paced(
        self, kind: type[Any], name: str = "s1", target: RoomTarget | None = None, **options: Any
    ) -> tuple[Any, FakeLine]:
        pace = self.limits.client_rate("192.0.2.1", exposed=True)
        target = target or RoomTarget("lobby", nick="ann" * (kind is TextSession))
        session, line = self.come(kind, name, target, rate=pace, **options)
        self.turn()
        lines(line)
        return session, line

    def said(self) -> list[str]:
        return [text for _, text in self.turn()]

    def wait(self, seconds: float) -> list[str]:
        """Advance the clock in steps of 0.1 s; return what was published."""
        before = len(self.bus.published)
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.turn()
        return [each.text for _, messages in self.bus.published[before:] for each in messages]


@pytest.fixture
def town() -> Town:
    return Town()


TEXTS = [str(number) for number in range(30)]


# A bare client


def test_a_bare_client_is_read_no_faster_than_it_may_speak(town: Town) -> None:
    session, line = town.paced(Session)
    session.received(TEXTS)
    assert town.said() == TEXTS[:10]
    assert line.events == ["pause"]
    assert town.wait(1.1) == TEXTS[10:15]
    assert town.wait(3) == TEXTS[15:]
    assert set(line.events[:-1]) == {"pause"}
    assert line.events[-1] == "resume"
    assert not town.clock.getDelayedCalls()


def test_what_comes_though_it_is_not_read_stays_in_order(town: Town) -> None:
    session, _ = town.paced(Session)
    session.received(TEXTS[:12])
    session.received(TEXTS[12:14])
    town.turn()
    session.received(TEXTS[14:16])
    assert town.wait(2) == TEXTS[10:16]


def test_while_the_bus_is_away_what_came_too_fast_waits_for_it(town: Town) -> None:
    session, line = town.paced(Session)
    session.received(TEXTS[:15])
    assert town.said() == TEXTS[:10]
    town.bus_goes()
    assert town.wait(2) == []
    town.bus_comes_back()
    assert town.wait(0.1) == TEXTS[10:15]
    assert line.events[-1] == "resume"


def test_what_a_client_left_behind_is_said_at_its_pace(town: Town) -> None:
    session, line = town.paced(Session)
    session.received(TEXTS[:20])
    town.turn()
    session.closed()
    assert town.wait(1.1) == TEXTS[10:15]
    assert town.wait(1.5) == TEXTS[15:20]
    assert "resume" not in line.events
    assert not town.clock.getDelayedCalls()


def test_too_much_of_it_is_not_and_that_is_logged(town: Town) -> None:
    one, _ = town.paced(Session)
    other, _ = town.paced(Session, "s2")
    for session in (one, other):
        session.received(TEXTS[:10])
        session.received(["x" * 30])
    town.turn()
    with capturedLogs() as events:
        one.closed()
        other.closed()
    assert [each["count"] for each in events] == [1]
    assert town.wait(1) == ["x" * 30]
    assert not town.clock.getDelayedCalls()


def test_how_much_is_left_behind_is_counted_in_bytes(town: Town) -> None:
    session, _ = town.paced(Session)
    session.received([*TEXTS[:10], "\u00e9" * 30])
    town.turn()
    with capturedLogs() as events:
        session.closed()
    assert [each["count"] for each in events] == [1]


def test_what_is_still_to_be_said_when_all_ends_is_said_at_once(town: Town) -> None:
    one, _ = town.paced(Session)
    other, _ = town.paced(Session, "s2")
    for session in (one, other):
        session.received(TEXTS[:13])
    town.turn()
    other.closed()
    town.limits.slowed.publish_now()
    assert town.said() == TEXTS[10:13] * 2


# Somebody at a terminal


def test_who_types_too_fast_is_told_and_that_is_not_said(town: Town) -> None:
    ann, line = town.paced(TextSession)
    ann.received([*TEXTS[:11], "/help", "/me waves"])
    assert town.said() == TEXTS[:10]
    told = lines(line)
    assert [each for each in told if "not sent" in each] == ["* not sent: too fast, try again in 1 s"] * 2
    assert len(told) > 2
    assert "pause" not in line.events
    town.clock.advance(0.2)
    ann.received(["again"])
    assert town.said() == ["again"]


def test_who_goes_on_in_spite_of_warnings_is_closed(town: Town) -> None:
    ann, line = town.paced(TextSession)
    ann.received(TEXTS)
    assert town.said() == TEXTS[:10]
    assert len(lines(line)) == 3
    assert line.events == [FLOODING]


def test_a_new_nick_counts_like_a_message(town: Town) -> None:
    ann, line = town.paced(TextSession)
    ann.received([f"/nick n{number}" for number in range(11)])
    town.turn()
    assert [each for each in lines(line) if "not sent" in each] == ["* not sent: too fast, try again in 1 s"]


# A program


def publish(text: str, **more: Any) -> str:
    return json.dumps({"type": "publish", "room": "lobby", "text": text, **more})


def test_a_program_knows_how_fast_it_may_speak_and_is_told_when_to_try_again(town: Town) -> None:
    pace = town.limits.client_rate("192.0.2.1", exposed=True)
    session, line = town.come(JsonSession, "p1", RoomTarget("lobby"), rate=pace)
    town.turn()
    assert events(line)[0]["limits"] == {"message_bytes": 100, "messages_per_s": 5.0, "rooms": 3}
    session.received([publish(text, ref=text) for text in TEXTS[:12]])
    assert town.said() == TEXTS[:10]
    told = events(line)
    refused = [each for each in told if each["type"] == "error"]
    assert [(each["ref"], each["code"], each["retry_after"]) for each in refused] == [
        ("10", "rate_limited", 0.2),
        ("11", "rate_limited", 0.2),
    ]
    assert len([each for each in told if each["type"] == "ack"]) == 10
    town.clock.advance(0.2)
    session.received([publish("again")])
    assert town.said() == ["again"]


def test_a_program_that_goes_on_in_spite_of_warnings_is_closed(town: Town) -> None:
    session, line = town.paced(JsonSession)
    session.received([publish(text) for text in TEXTS])
    town.turn()
    assert line.events[0] == FLOODING


def test_a_program_joins_as_many_rooms_as_it_may_have_and_then_no_faster(town: Town) -> None:
    session, line = town.paced(JsonSession)
    for number in range(4):
        session.received([json.dumps({"type": "join", "room": f"r{number % 2}"})])
        town.turn()
        session.received([json.dumps({"type": "leave", "room": f"r{number % 2}"})])
        town.turn()
    told = events(line)
    assert [each["retry_after"] for each in told if each.get("code") == "rate_limited"] == [0.2]


def request(what: str, **more: Any) -> str:
    return json.dumps({"type": what, **more})


def test_a_new_nick_costs_as_many_messages_as_rooms_are_told(town: Town) -> None:
    session, line = town.paced(JsonSession)
    session.received([request("join", room=f"r{number}") for number in range(2)])
    town.turn()
    events(line)
    session.received([request("nick", nick=f"n{number}", ref=number) for number in range(5)])
    town.turn()
    told = events(line)
    assert [each["ref"] for each in told if each["type"] == "nick"] == [0, 1, 2, 3]
    assert [(each["ref"], each["retry_after"]) for each in told if each["type"] == "error"] == [(4, 0.6)]


def test_a_client_in_a_hundred_rooms_may_change_its_nick_each_20_seconds(town: Town) -> None:
    town.config = replace(CONFIG, rooms_per_client=100)
    town.limits = RateLimits(town.config, town.clock.seconds)
    session, line = town.paced(JsonSession)
    session.received([request("join", room=f"r{number}") for number in range(99)])
    town.turn()
    events(line)
    session.received([request("nick", nick="ann"), request("nick", nick="bob")])
    town.turn()
    told = [each for each in events(line) if each["type"] in ("nick", "error")]
    assert [(each["type"], each.get("retry_after")) for each in told] == [("nick", None), ("error", 18.2)]


def test_who_may_only_read_changes_its_nick_no_faster(town: Town) -> None:
    token_lifetime: Any = SimpleNamespace(
        permissions=SimpleNamespace(nick="", may_write=lambda room: False, may_read=lambda room: True),
        identify=UNLIMITED.identify,
        begin=lambda *_: None,
        stop=lambda: None,
    )
    ann, line = town.paced(TextSession, token_lifetime=token_lifetime)
    ann.received([f"/nick n{number}" for number in range(11)])
    town.turn()
    assert [each for each in lines(line) if "not sent" in each] == ["* not sent: too fast, try again in 1 s"]


# What is read


class Library(Town):
    """A town with history, in which an address may make five requests at once, then two a second."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = RateLimits(
            replace(
                CONFIG,
                request_rate="2",
                request_burst_time=2.5,
                read_bytes_per_request=1000,
                refused_messages_before_close=9,
            ),
            self.clock.seconds,
        )
        for number in range(20):
            self.bus.say("lobby", [Message(f"m{number}", 0, "other", "hello")], number, "elsewhere")
        self.turn()

    def owes(self) -> float:
        """Return how many requests the address has used."""
        usage = self.limits.usages.get("192.0.2.1")
        return usage.requests.unreported if usage is not None and usage.requests is not None else 0


@pytest.fixture
def library() -> Library:
    return Library()


def codes(line: FakeLine) -> dict[Any, str]:
    """Return the code or type of each answer by its ref."""
    return {each["ref"]: each.get("code", each["type"]) for each in events(line) if "ref" in each}


def test_who_reads_at_a_terminal_shares_the_requests_of_its_address(library: Library) -> None:
    ann, line = library.paced(TextSession)
    bob, _ = library.paced(TextSession, "s2")
    ann.received(["/who", "/last 1"])
    library.turn()
    bob.received(["/ping"])
    ann.received(["/who", "/last 1", "/help"])
    library.turn()
    told = lines(line)
    assert told.count("* not sent: too fast, try again in 1 s") == 1
    assert any("/quit" in each for each in told), "/help reads nothing"
    library.clock.advance(1)
    ann.received(["/last 1"])
    library.turn()
    assert lines(line) != []


def test_a_program_that_reads_too_much_is_told_when_to_try_again(library: Library) -> None:
    session, line = library.paced(JsonSession)
    asks = [request("members", room="lobby", ref=1), request("history", room="lobby", limit=1, ref=2)]
    asks += [request("join", room="lobby", since={"last": 1}, ref=3), request("join", room="other", ref=4)]
    session.received([*asks, request("members", room="lobby", ref=5), request("history", room="lobby", ref=6)])
    library.turn()
    told = events(line)
    assert {each["ref"]: each["type"] for each in told if "ref" in each} == {
        **{1: "members", 2: "history", 3: "joined", 4: "joined", 5: "members", 6: "error"},
    }
    assert [(each["code"], each["retry_after"]) for each in told if each["type"] == "error"] == [("rate_limited", 1.0)]


def test_what_is_read_is_charged_by_its_size(library: Library) -> None:
    session, line = library.paced(JsonSession)
    session.received([request("history", room="lobby", limit=15, ref=1)])
    library.turn()
    assert codes(line) == {1: "history"}
    assert library.owes() == 1 + 1.5
    ann, _ = library.paced(TextSession, "s2")
    ann.received(["/last 15"])
    library.turn()
    assert library.owes() == 2 + 3.0


def test_what_is_read_for_a_client_that_has_left_is_charged_too(library: Library) -> None:
    ann, _ = library.paced(TextSession)
    library.bus.answer_at_once = False
    ann.received(["/last 15"])
    library.turn()
    ann.closed()
    library.bus.answer()
    assert library.owes() == 1 + 1.5


@pytest.mark.parametrize("kind", [Session, TextSession, JsonSession])
def test_what_is_given_on_entering_is_charged_and_never_refused(library: Library, kind: type[Any]) -> None:
    library.limits.read("192.0.2.1", 10**9, exposed=True)
    before = library.owes()
    pace = library.limits.client_rate("192.0.2.1", exposed=True)
    target = RoomTarget("lobby", last=20, resume="a-key-of-mine", nick="ann" * (kind is TextSession))
    _, line = library.come(kind, "s1", target, rate=pace)
    library.turn()
    assert b"".join(line.blobs).count(b"hello") == 20
    assert library.owes() > before


@pytest.mark.parametrize("kind", [Session, TextSession, JsonSession])
def test_who_reads_slowly_is_not_charged_for_what_history_gives_it(library: Library, kind: type[Any]) -> None:
    session, line = library.paced(kind)
    library.bus.say("lobby", [Message("n0", 0, "other", "first")], 20, "elsewhere")
    library.turn()
    before = library.owes()
    session.became_slow()
    library.bus.say("lobby", [Message("n1", 0, "other", "second")], 21, "elsewhere")
    library.turn()
    session.drained()
    library.turn()
    assert b"".join(line.blobs).count(b"second") == 1
    assert library.owes() == before


def test_a_program_that_comes_back_recovers_what_it_missed_though_it_owes(library: Library) -> None:
    session, line = library.paced(JsonSession, target=RoomTarget("other"))
    library.limits.read("192.0.2.1", 20_000, exposed=True)
    top = library.bus.top("lobby")
    session.received(
        [
            request("join", room="new", since={"last": 1}, ref=1),
            request("join", room="lobby", since={"epoch": top.epoch, "offset": 5}, ref=2),
        ]
    )
    library.turn()
    assert codes(line) == {1: "rate_limited", 2: "joined"}
    library.limits.read("192.0.2.1", 40_000, exposed=True)
    session.received([request("join", room="lobby", since={"epoch": top.epoch, "offset": 5}, ref=3)])
    library.turn()
    assert codes(line) == {3: "rate_limited"}, "it owes more than half of what it may"


def test_who_reads_on_in_spite_of_warnings_is_closed(library: Library) -> None:
    session, line = library.paced(JsonSession)
    session.received([request("members", room="lobby")] * 15)
    library.turn()
    assert line.events[0] == FLOODING


def test_a_program_whose_address_makes_too_many_rooms_is_told(town: Town) -> None:
    def enter(address: str, room: str) -> None:
        assert address == "192.0.2.1"
        raise too_many("2 new rooms a minute", 30)

    session, line = town.paced(JsonSession, enter=enter)
    session.received([json.dumps({"type": "join", "room": "new", "ref": 1})])
    town.turn()
    [told] = events(line)
    assert (told["code"], told["message"], told["ref"]) == ("rate_limited", "2 new rooms a minute", 1)
