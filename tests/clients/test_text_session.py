"""Somebody at a terminal: what a nick, commands and notices do; a session between a line and a real hub."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import fail, succeed
from twisted.logger import LogLevel, capturedLogs

from chatd.broker.publish_queue import NotPublished
from chatd.clients.text_session import TextSession
from chatd.config.settings import Config
from chatd.protocol.close_codes import LEAVING, LOG_AWAY, OUR_FAULT, STOPPING, TOO_LARGE
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.message import OffsetGap
from chatd.protocol.text import HELP
from tests.clients.server import CONFIG, ChatServer, lines
from tests.fakes import FakeLine

NOT_SENT = "* not sent: the message bus is away, try again in 5 s"


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


@pytest.fixture
def ann(server: ChatServer) -> tuple[TextSession, FakeLine]:
    return server.person("ann")


# What it says, and what others see of it


def test_others_see_who_said_it(server: ChatServer) -> None:
    (ann, own), (_, bob), (_, bare) = server.person("ann"), server.person("bob"), server.session()
    server.turn()
    lines(bob), lines(own)
    ann.received(["hello\n"])
    assert server.turn() == [("lobby", "hello")]
    assert (lines(bob), lines(bare), lines(own)) == (["ann: hello"], ["ann: hello"], [])


def test_what_it_does_is_told_of_it(server: ChatServer) -> None:
    (ann, _), (_, bob), (_, bare) = server.person("ann"), server.person("bob"), server.session()
    server.turn()
    lines(bob)
    ann.received(["/me bows  twice \n"])
    server.turn()
    assert lines(bob) == lines(bare) == ["* ann bows  twice"]


def test_two_slashes_send_a_line_that_starts_with_one(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["//help"])
    assert server.turn() == [("lobby", "/help")]


def test_with_echo_it_sees_its_own_lines_as_others_do(server: ChatServer) -> None:
    ann, line = server.person("ann", echo=True)
    ann.received(["hello", "/me waves"])
    server.turn()
    assert lines(line) == ["ann: hello", "* ann waves"]


def test_lines_and_what_it_does_keep_their_order(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["a", "b", "/me c", "/help", "d"])
    assert server.turn() == [("lobby", text) for text in "abcd"]


def test_lines_of_one_read_are_one_batch(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["a", "/me b", "c"])
    server.turn()
    assert len(server.bus.published) == len(server.chat_log.entries) - 2 == 1


def test_what_is_empty_is_ignored(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["", "\n", "\r\n"])
    assert (server.turn(), lines(ann[1])) == ([], [])


def test_a_line_that_is_too_large_closes_and_those_before_it_are_sent(server: ChatServer) -> None:
    ann, line = server.person("ann")
    ann.received(["a", "x" * 17, "b"])
    assert (server.turn(), line.events) == ([("lobby", "a")], [TOO_LARGE])


# What it sees is safe for its terminal


def test_what_a_terminal_would_obey_comes_out_escaped_and_for_a_bare_client_as_it_was(server: ChatServer) -> None:
    (_, ann), (_, bare), (speaker, _) = server.person("ann"), server.session("s1"), server.session("s2")
    speaker.received(["\x1b[2J\u202eevil"])
    server.turn()
    assert lines(ann) == [r"\x1b[2J\u202eevil"]
    assert lines(bare) == ["\x1b[2J\u202eevil"]


@given(
    st.text(st.sampled_from([*map(chr, range(0x20)), "\x7f", "\x9b", "\u202a", "\u2069", "a", "/", " "]), min_size=1)
)
def test_whatever_is_typed_no_client_is_shown_anything_unsafe(text: str) -> None:
    server = ChatServer(Config(flush_interval=0))
    (ann, own), (_, bob) = server.person("ann"), server.person("bob")
    ann.received([text, f"/{text}", f"/me {text}", f"/nick {text}", f"/last {text}"])
    server.turn()
    shown = lines(own) + lines(bob)
    assert shown
    assert all(each.replace("\t", "").isprintable() for each in shown)


# Who comes and goes


def test_others_are_told_who_comes_and_who_goes(server: ChatServer) -> None:
    _, bob = server.person("bob")
    server.turn()
    ann, own = server.person("ann")
    server.turn()
    ann.closed()
    server.turn()
    assert (lines(bob), lines(own)) == (["* ann joined", "* ann left"], [])


def test_of_bare_clients_nothing_is_told(server: ChatServer) -> None:
    _, bob = server.person("bob")
    bare, _ = server.session()
    server.turn()
    bare.closed()
    server.turn()
    assert lines(bob) == []


def test_one_whose_nick_is_taken_learns_which_it_has(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    line = FakeLine()
    target = RoomTarget("lobby", nick="ann")
    other = TextSession(server.hub, CONFIG, server.clock, line, id="other", target=target, address="192.0.2.1")
    other.join()
    assert line.blobs == []  # the handshake is not answered yet
    other.opened()
    assert lines(line) == ["* ann is taken, you are ann*2"]
    server.turn()
    other.received(["hi"])
    server.turn()
    assert lines(ann[1]) == ["* ann*2 joined", "ann*2: hi"]


def test_one_that_got_its_nick_is_told_nothing(ann: tuple[TextSession, FakeLine]) -> None:
    assert lines(ann[1]) == []


def test_one_that_lost_its_nick_is_told_which_it_has_now(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.hub.renamed("lobby", "ann.1", "ann*2")
    assert lines(ann[1]) == ["* you are ann*2"]
    ann[0].received(["hi"])
    server.turn()
    assert server.bus.published[-1][1][0].nick == "ann*2"


# Commands


def test_help_tells_the_asker_alone_every_command(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    _, bob = server.person("bob")
    ann[0].received(["/help\n"])
    assert server.turn() == []
    told = lines(ann[1])
    assert told[: len(HELP)] == list(HELP)
    assert {each.split()[1].rstrip(":") for each in HELP} == {
        "/help", "/who", "/nick", "/last", "/me", "/ping", "/quit", "//TEXT",
    }  # fmt: skip
    assert lines(bob) == []


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/foo", "* no such command: /foo (try /help)"),
        ("/foo bar", "* no such command: /foo (try /help)"),
        ("/", "* no such command: / (try /help)"),
        ("/WHO", "* no such command: /WHO (try /help)"),
        ("/\x1b[2J", r"* no such command: /\x1b[2J (try /help)"),
        *(("/who me", "* usage: /who"), ("/nick", "* usage: /nick NAME")),
        ("/nick a:b", '* a nick must not hold ":"'),
        ("/nick a b", "* a nick must not hold white space"),
        *(("/last x", "* usage: /last [N]"), ("/last 0", "* usage: /last [N]"), ("/me", "* usage: /me TEXT")),
        *(("/ping x", "* usage: /ping"), ("/quit x", "* usage: /quit")),
    ],
)
def test_what_is_no_command_is_answered_to_the_asker_alone(server: ChatServer, line: str, answer: str) -> None:
    (ann, own), (_, bob) = server.person("ann"), server.person("bob")
    ann.received([line])
    assert server.turn() == []
    assert [each for each in lines(own) if "bob" not in each] == [answer]
    assert lines(bob) == []
    assert own.events == []


def test_who_names_everybody_and_counts_those_without_a_name(server: ChatServer) -> None:
    _, line = server.person("bob")
    ann, own = server.person("ann")
    server.turn()
    lines(own), lines(line)
    ann.received(["/who"])
    assert lines(own) == ["* here: ann, bob"]
    server.session("s1"), server.session("s2")
    ann.received(["/who"])
    assert (lines(own), lines(line)) == (["* here: ann, bob and 2 without a nick"], [])


def test_who_counts_where_they_are_too_many(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.bus.presence_limit = 1
    server.session()
    ann[0].received(["/who"])
    assert lines(ann[1]) == ["* 2 members are here"]


def test_nick_takes_another_and_others_are_told(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    _, bob = server.person("bob")
    server.turn()
    lines(ann[1])
    ann[0].received(["/nick anna", "hi"])
    server.turn()
    assert lines(ann[1]) == ["* you are anna"]
    assert lines(bob) == ["anna: hi", "* ann is now anna"]


def test_a_nick_that_is_taken_gives_one_like_it(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.person("bob")
    server.turn()
    lines(ann[1])
    ann[0].received(["/nick bob"])
    assert lines(ann[1]) == ["* bob is taken, you are bob*2"]


def test_last_shows_what_was_said_as_it_was_shown_then(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["a", "/me b", "c\x07"])
    server.turn()
    ann[0].received(["/last 2"])
    assert lines(ann[1]) == ["* ann b", r"ann: c\x07"]


def test_last_shows_twenty_unless_told_how_many(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received([f"{number}" for number in range(30)])
    server.turn()
    ann[0].received(["/last"])
    assert lines(ann[1]) == [f"ann: {number}" for number in range(10, 30)]
    ann[0].received(["/last 999999999"])
    assert len(lines(ann[1])) == 30


def test_last_says_where_it_has_fewer_than_were_asked_for_because_more_do_not_fit() -> None:
    server = ChatServer(replace(CONFIG, max_send_buffer=300))
    person, line = server.person("ann")
    for number in range(5):
        person.received([f"{number}"])
        server.turn()
    person.received(["/last 5"])
    assert lines(line) == ["* the last 3 lines: more do not fit in one answer", "ann: 2", "ann: 3", "ann: 4"]
    person.received(["/last 3"])
    assert lines(line) == ["ann: 2", "ann: 3", "ann: 4"]


def test_last_where_nothing_was_said_shows_nothing(ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["/last"])
    assert lines(ann[1]) == []


def test_ping_tells_how_long_it_took_through_the_bus(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["/ping"])
    assert lines(ann[1]) == ["* pong after 0.0 ms"]


def test_a_ping_that_did_not_come_back_says_so(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.bus_goes()
    ann[0].received(["/ping"])
    assert lines(ann[1]) == ["* no answer: the message bus is away"]


def test_quit_closes_and_what_follows_is_not_said(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    ann[0].received(["bye", "/quit", "too late", "/help"])
    assert server.turn() == [("lobby", "bye")]
    assert (ann[1].events, lines(ann[1])) == ([LEAVING], [])


def test_an_error_of_ours_is_told_and_logged(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    hub: Any = server.hub
    hub.bus.presence.members = lambda _: fail(ZeroDivisionError())
    with capturedLogs() as events:
        ann[0].received(["/who"])
    assert lines(ann[1]) == ["* no answer: an error of ours"]
    assert [each["log_level"] for each in events] == [LogLevel.critical]


def test_an_answer_that_cannot_be_told_is_said_to_be_our_error(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    hub: Any = server.hub
    hub.bus.presence.members = lambda _: succeed(None)
    with capturedLogs() as events:
        ann[0].received(["/who"])
    assert lines(ann[1]) == ["* no answer: an error of ours"]
    assert [each["log_level"] for each in events] == [LogLevel.critical]


# How much may be asked


def test_questions_without_an_answer_are_bounded(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.bus.answer_at_once = False
    ann[0].received(["/who"] * 3)
    assert lines(ann[1]) == ["* not sent: too many at once"]
    server.bus.answer()
    assert lines(ann[1]) == ["* here: ann"] * 2
    ann[0].received(["/who"])
    server.bus.answer()
    assert lines(ann[1]) == ["* here: ann"]


def test_a_question_that_failed_counts_no_more(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.bus_goes()
    for _ in range(5):
        ann[0].received(["/ping"])
    assert lines(ann[1]) == ["* no answer: the message bus is away"] * 5


def test_an_answer_for_one_that_is_gone_is_told_to_nobody(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus.answer_at_once = False
    ann[0].received(["/who", "/last"])
    ann[0].closed()
    server.bus.answer()
    assert lines(ann[1]) == []


# What can't be sent for now


def test_while_the_bus_is_away_each_line_is_given_back_at_once(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus_goes()
    ann[0].received(["a", "/me b", "/help"])
    assert lines(ann[1]) == [NOT_SENT, NOT_SENT, *HELP]
    server.bus.refusing = "READONLY"
    ann[0].received(["a"])
    assert lines(ann[1]) == [NOT_SENT.replace("is away", "refuses writes")]
    assert ann[1].events == []
    server.bus_comes_back()
    assert server.turn() == []
    ann[0].received(["c"])
    assert server.turn() == [("lobby", "c")]


def test_while_the_bus_is_away_one_may_quit(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.bus_goes()
    ann[0].received(["/quit", "too late"])
    assert (ann[1].events, lines(ann[1])) == ([LEAVING], [])


def test_a_full_window_holds_lines_and_commands_in_their_order(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus_fills()
    ann[0].received(["a", "/help"])
    ann[0].received(["/me b"])
    assert (server.turn(), lines(ann[1]), ann[1].events) == ([], [], ["pause"])
    server.bus_comes_back()
    assert server.turn() == [("lobby", "a"), ("lobby", "b")]
    assert (lines(ann[1]), ann[1].events) == (list(HELP), ["pause", "resume"])


def test_what_was_held_is_given_back_where_the_bus_goes(server: ChatServer, ann: tuple[TextSession, FakeLine]) -> None:
    server.bus_fills()
    ann[0].received(["a", "b"])
    server.bus_goes()
    assert (lines(ann[1]), ann[1].events) == ([NOT_SENT, NOT_SENT], ["pause", "resume"])
    server.bus_comes_back()
    server.clock.advance(100)
    assert (server.turn(), ann[1].events) == ([], ["pause", "resume"])


def test_what_one_that_left_said_is_published_but_not_its_commands(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus_fills()
    ann[0].received(["a", "/last", "/nick anna", "b"])
    ann[0].closed()
    with capturedLogs() as events:
        server.bus_comes_back()
        assert server.turn() == [("lobby", "a"), ("lobby", "b")]
    assert (lines(ann[1]), ann[1].events, events) == ([], ["pause"], [])


def test_what_one_that_left_said_waits_for_a_bus_that_is_away(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus_fills()
    ann[0].received(["a"])
    ann[0].closed()
    server.bus_goes()
    server.clock.advance(9.9)
    server.bus_comes_back()
    assert server.turn() == [("lobby", "a")]


def test_what_one_that_left_could_not_say_is_counted_in_the_log(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus_fills()
    ann[0].received(["a", "b"])
    ann[0].closed()
    server.bus_goes()
    with capturedLogs() as events:
        server.clock.advance(10)
    assert [(each["log_level"], each["count"]) for each in events] == [(LogLevel.warn, 2)]


def test_where_the_chat_log_cannot_be_written_it_is_told_and_stays(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.chat_log.full = True
    ann[0].received(["a"])
    assert server.turn() == []
    assert lines(ann[1]) == [f"* {LOG_AWAY.reason}"]
    assert ann[1].events == []


def test_a_line_that_the_bus_refused_is_told_and_it_stays(
    server: ChatServer, ann: tuple[TextSession, FakeLine]
) -> None:
    server.bus.refuse = NotPublished("ERR no")
    ann[0].received(["a"])
    server.turn()
    assert lines(ann[1]) == [f"* not sent: {OUR_FAULT.reason}"]
    assert ann[1].events == []


# What it missed, and why it is hung up on


@pytest.mark.parametrize(
    ("count", "told"), [(1, "* 1 line lost"), (3, "* 3 lines lost"), (None, "* some lines may be lost")]
)
def test_what_is_lost_for_good_is_told(ann: tuple[TextSession, FakeLine], count: int | None, told: str) -> None:
    ann[0].report_gap(OffsetGap("e0", 7, count))
    assert lines(ann[1]) == [told]


@pytest.mark.parametrize(("count", "told"), [(12, "* 12 lines missed"), (None, "* some lines may be lost")])
def test_without_history_one_that_was_too_slow_is_told_and_stays(
    ann: tuple[TextSession, FakeLine], count: int | None, told: str
) -> None:
    ann[0].report_gap(OffsetGap("e0", 12, count), slow=True)
    assert (lines(ann[1]), ann[1].events) == ([told], [])


def test_before_it_closes_the_server_says_why(ann: tuple[TextSession, FakeLine]) -> None:
    ann[1].blobs.append(ann[0].farewell(STOPPING))
    assert lines(ann[1]) == ["* closing: the server stops"]
