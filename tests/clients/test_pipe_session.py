"""What one bare client may do and hears: its session, between a line and a real hub."""

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs

from chatd.broker.publish_queue import NotPublished
from chatd.clients.pipe_session import Session
from chatd.monitoring.metrics import REFUSED_MESSAGES
from chatd.protocol.close_codes import (
    BUS_AWAY,
    LOG_AWAY,
    NOT_TEXT,
    OUR_FAULT,
    TAKEN_OVER,
    TOO_LARGE,
    too_slow,
    try_later,
)
from chatd.protocol.http_head import RoomTarget
from chatd.protocol.message import OffsetGap, StreamPosition
from chatd.protocol.websocket_frames import text_frame
from tests.clients.server import CONFIG, ChatServer
from tests.fakes import FakeLine


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


# What it says


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_line_end_is_dropped(server: ChatServer, end: str) -> None:
    session, _ = server.session()
    session.received(["a" + end])
    assert server.turn() == [("lobby", "a")]


@pytest.mark.parametrize(
    "text", ["a\n", "a\r", "\r", "\ta ", "\x00", "\x1b[31m", "a\nb", "a\u2028", "007", "1_000", "{}", "\ufeff"]
)
def test_anything_else_stays_as_it_is(server: ChatServer, text: str) -> None:
    session, _ = server.session()
    session.received([text + "\r\n"])
    assert server.turn() == [("lobby", text)]


@given(st.text(max_size=4))
def test_any_line_is_published_unchanged(text: str) -> None:
    server = ChatServer()
    session, _ = server.session()
    session.received([text + "\n"])
    line = text.removesuffix("\r")
    assert server.turn() == ([("lobby", line)] if line else [])


@pytest.mark.parametrize("text", ["", "\n", "\r\n"])
def test_an_empty_line_is_ignored(server: ChatServer, text: str) -> None:
    session, line = server.session()
    session.received([text])
    assert server.turn() == []
    assert line.events == []


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_message_of_the_longest_size_is_taken(server: ChatServer, end: str) -> None:
    session, _ = server.session()
    session.received(["x" * 16 + end])
    assert server.turn() == [("lobby", "x" * 16)]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_message_over_the_size_closes_and_reaches_nobody(server: ChatServer, end: str) -> None:
    session, line = server.session()
    session.received(["x" * 17 + end])
    assert line.events == [TOO_LARGE]
    assert server.turn() == []


def test_the_size_is_counted_in_bytes(server: ChatServer) -> None:
    session, line = server.session()
    session.received(["€€€€€€"])
    assert line.events == [TOO_LARGE]


def test_the_longest_size_of_characters_of_several_bytes_is_taken(server: ChatServer) -> None:
    session, line = server.session()
    session.received(["€€€€€x", "ÅÅÅÅÅÅÅÅ\r\n"])
    assert (server.turn(), line.events) == ([("lobby", "€€€€€x"), ("lobby", "ÅÅÅÅÅÅÅÅ")], [])


def test_the_messages_of_one_read_are_published_together_in_their_order(server: ChatServer) -> None:
    session, _ = server.session()
    session.received(["a", "\n", "b\r\n", "", "c"])
    assert server.turn() == [("lobby", "a"), ("lobby", "b"), ("lobby", "c")]
    assert len(server.bus.published) == len(server.chat_log.entries) == 1


def test_one_too_large_in_a_read_lets_those_before_it_through_and_none_behind_it(server: ChatServer) -> None:
    session, line = server.session()
    session.received(["a", "b\n", "x" * 17, "c"])
    assert server.turn() == [("lobby", "a"), ("lobby", "b")]
    assert line.events == [TOO_LARGE]


def test_a_read_of_nothing_changes_nothing(server: ChatServer) -> None:
    session, line = server.session()
    session.received([])
    assert (server.turn(), line.events) == ([], [])


def test_binary_is_not_taken(server: ChatServer) -> None:
    session, line = server.session()
    assert not session.accepts_binary
    session.received_binary(b"hello")
    assert (server.turn(), line.events) == ([], [NOT_TEXT])


# What it hears


def test_others_hear_it_and_it_does_not_hear_itself(server: ChatServer) -> None:
    session, line = server.session("s1")
    _, other = server.session("s2")
    session.received(["hello\n"])
    server.turn()
    assert other.blobs == [text_frame(b"hello")]
    assert line.blobs == []


def test_it_hears_itself_where_it_asked_to(server: ChatServer) -> None:
    session, line = server.session(echo=True)
    session.received(["hello\n"])
    server.turn()
    assert line.blobs == [text_frame(b"hello")]


def test_it_hears_nothing_of_another_room(server: ChatServer) -> None:
    session, _ = server.session("s1", "ops")
    _, other = server.session("s2", "lobby")
    session.received(["hello"])
    assert server.turn() == [("ops", "hello")]
    assert other.blobs == []


def test_it_has_joined_once_the_room_is_subscribed(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    session = Session(
        server.hub, CONFIG, server.clock, FakeLine(), id="s1", target=RoomTarget("ops"), address="192.0.2.1"
    )
    joined = session.join()
    assert not joined.called
    server.bus.confirm("ops")
    assert joined.called


def test_it_hears_nothing_once_it_is_gone(server: ChatServer) -> None:
    session, line = server.session("s1")
    other, _ = server.session("s2")
    session.closed()
    other.received(["hello"])
    server.turn()
    assert line.blobs == []


def test_the_last_one_gone_leaves_no_subscription(server: ChatServer) -> None:
    session, _ = server.session("s1", "ops")
    session.closed()
    assert server.bus.rooms == {}


def test_what_it_said_before_it_left_is_published(server: ChatServer) -> None:
    session, _ = server.session()
    session.received(["bye"])
    session.closed()
    assert [(room, [each.text for each in messages]) for room, messages in server.bus.published] == [("lobby", ["bye"])]


# What can't be taken


def test_it_is_closed_where_the_chat_log_cannot_be_written(server: ChatServer) -> None:
    server.chat_log.full = True
    session, line = server.session()
    session.received(["hello"])
    assert server.turn() == []
    assert line.events == [LOG_AWAY]


def test_it_is_closed_where_its_message_was_refused(server: ChatServer) -> None:
    server.bus.refuse = NotPublished("ERR no")
    session, line = server.session()
    session.received(["hello"])
    server.turn()
    assert line.events == [OUR_FAULT]


def test_a_full_window_only_pauses_reading(server: ChatServer) -> None:
    server.bus.full = True
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(100)
    assert line.events == ["pause"]
    server.bus_comes_back()
    assert server.turn() == [("lobby", "a")]
    assert line.events == ["pause", "resume"]


def test_what_was_read_before_reading_stopped_is_kept_in_order(server: ChatServer) -> None:
    server.bus.full = True
    session, line = server.session()
    session.received(["a"])
    server.bus.full = False  # not told yet: what follows must not overtake
    session.received(["b"])
    assert server.turn() == []
    server.bus_comes_back()
    assert server.turn() == [("lobby", "a"), ("lobby", "b")]
    assert line.events == ["pause", "resume"]


def test_a_read_that_cannot_be_published_is_kept_whole(server: ChatServer) -> None:
    server.bus.full = True
    session, line = server.session()
    session.received(["a", "b"])
    session.received(["c", "d"])
    assert line.events == ["pause"]
    server.bus_comes_back()
    assert server.turn() == [("lobby", text) for text in "abcd"]


def test_an_away_bus_closes_it_after_its_patience_and_not_before(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(9.9)
    assert line.events == ["pause"]
    server.clock.advance(0.1)
    assert line.events == ["pause", BUS_AWAY]


def test_a_broker_that_refuses_writes_for_too_long_is_why_it_closes(server: ChatServer) -> None:
    server.bus.refusing = "READONLY"
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(10)
    assert line.events == ["pause", try_later("the message bus refuses writes")]


def test_what_an_away_bus_did_not_take_is_not_published_later(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(10)
    server.bus_comes_back()
    assert server.turn() == []
    assert line.events == ["pause", BUS_AWAY]


def test_a_silent_client_stays_while_the_bus_is_away(server: ChatServer) -> None:
    _, line = server.session()
    server.bus_goes()
    server.clock.advance(1000)
    assert line.events == []


def test_patience_begins_when_a_full_window_turns_into_an_outage(server: ChatServer) -> None:
    server.bus.full = True
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(60)
    server.bus_goes()
    server.clock.advance(9.9)
    server.bus_goes("another reason")  # said again: patience goes on, it does not begin anew
    server.clock.advance(0.1)
    assert line.events == ["pause", BUS_AWAY]
    server.clock.advance(100)
    assert line.events == ["pause", BUS_AWAY]


def test_a_bus_that_is_back_in_time_takes_what_was_held(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(9.9)
    server.bus_comes_back()
    assert server.turn() == [("lobby", "a")]
    server.clock.advance(1000)
    assert line.events == ["pause", "resume"]


def test_a_second_outage_has_a_patience_of_its_own(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(9)
    server.bus_comes_back()
    server.turn()
    server.bus_goes()
    session.received(["b"])
    server.clock.advance(9.9)
    assert BUS_AWAY not in line.events
    server.clock.advance(0.1)
    assert line.events[-1] == BUS_AWAY


def test_what_a_client_that_left_said_is_published_when_the_bus_is_back(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["last words"])
    session.closed()
    server.bus_comes_back()
    assert server.turn() == [("lobby", "last words")]
    assert line.events == ["pause"]


def test_what_a_client_that_left_could_not_say_is_counted_in_the_log(server: ChatServer) -> None:
    server.bus_goes()
    session, _ = server.session()
    session.received(["a"])
    session.received(["b"])
    session.closed()
    with capturedLogs() as events:
        server.clock.advance(10)
    assert [(each["log_level"], each["count"]) for each in events] == [(LogLevel.warn, 2)]


def test_what_clients_that_left_have_left_behind_is_bounded_in_bytes() -> None:
    server = ChatServer(replace(CONFIG, disconnected_unpublished_bytes=3 * (16 + CONFIG.message_overhead_bytes)))
    server.bus_goes()
    with capturedLogs() as events:
        for number in range(5):
            session, _ = server.session(f"s{number}")
            session.received([f"{number}" * 16])
            session.closed()
    assert [each["count"] for each in events] == [1, 1]
    refused = REFUSED_MESSAGES["bus_away"].value
    staying, _ = server.session("s5")
    staying.received(["stays"])
    assert REFUSED_MESSAGES["bus_away"].value == refused
    server.bus_comes_back()
    assert [text for _, text in server.turn()] == ["0" * 16, "1" * 16, "2" * 16, "stays"]
    server.bus_goes()
    for number in range(3):  # there is room again
        session, _ = server.session(f"t{number}")
        session.received([f"{number}" * 16])
        session.closed()
    server.bus_comes_back()
    assert len(server.turn()) == 3


def test_what_ran_out_of_patience_leaves_room_for_others() -> None:
    server = ChatServer(replace(CONFIG, disconnected_unpublished_bytes=16 + CONFIG.message_overhead_bytes))
    server.bus_goes()
    for name in ("s1", "s2"):
        session, _ = server.session(name)
        session.received(["x" * 16])
        session.closed()
        server.clock.advance(CONFIG.publish_timeout)
    session, _ = server.session("s3")
    session.received(["last words"])
    session.closed()
    server.bus_comes_back()
    assert server.turn() == [("lobby", "last words")]


def test_a_session_leaves_no_timer_behind(server: ChatServer) -> None:
    server.bus_goes()
    session, _ = server.session()
    session.received(["a"])
    session.closed()
    server.clock.advance(10)
    assert server.clock.getDelayedCalls() == []


# What was said before, and while it was away


def keyed(server: ChatServer, name: str, *, last: int = 0, echo: bool = False) -> tuple[Session, FakeLine]:
    line = FakeLine()
    target = RoomTarget("lobby", echo, last=last, resume="abcdefgh")
    session = Session(server.hub, CONFIG, server.clock, line, id=name, target=target, address="192.0.2.1")
    session.join()
    return session, line


def test_it_hears_the_last_messages_it_asked_for(server: ChatServer) -> None:
    other, _ = server.session("s1")
    other.received(["a", "b", "c"])
    server.turn()
    line = FakeLine()
    target = RoomTarget("lobby", last=2)
    Session(server.hub, CONFIG, server.clock, line, id="s2", target=target, address="192.0.2.1").join()
    server.turn()
    assert b"".join(line.blobs) == text_frame(b"b") + text_frame(b"c")


def test_without_a_key_it_knows_of_no_place(server: ChatServer) -> None:
    session, line = server.session()
    line.bytes_written_and_arrived = (0, 0)
    assert (session.key, session.last, session.since) == ("", 0, None)
    assert session.record(StreamPosition("e0", 5)) is None
    session.record_positions()
    session.record_arrival()


def test_it_is_the_author_that_was_the_first_with_its_key(server: ChatServer) -> None:
    first, _ = keyed(server, "s1")
    first.closed()
    second, line = keyed(server, "s2")
    assert (second.id, second.sender_id) == ("s2", "s1")
    second.received(["mine"])
    server.turn()
    [(_, [message])] = server.bus.published
    assert (message.session, message.id) == ("s1", "s2.1")
    assert line.blobs == []


def test_what_arrived_is_its_place_when_it_is_gone(server: ChatServer) -> None:
    session, line = keyed(server, "s1")
    other, _ = server.session("s2")
    other.received(["a"])
    server.turn()
    line.bytes_written_and_arrived = (10, 10)
    session.record_positions()
    session.record_arrival()
    session.closed()
    assert server.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_what_had_not_arrived_is_behind_its_place(server: ChatServer) -> None:
    session, line = keyed(server, "s1")
    other, _ = server.session("s2")
    for text in "ab":
        other.received([text])
        server.turn()
        line.bytes_written_and_arrived = (line.bytes_written_and_arrived[0] + 10, 10)
        server.hub.record_position("lobby", session)
    session.closed()
    assert server.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_what_arrived_before_the_last_moment_is_its_place_though_more_was_on_its_way(server: ChatServer) -> None:
    session, line = keyed(server, "s1")
    other, _ = server.session("s2")
    for text in "ab":
        other.received([text])
        server.turn()
        line.bytes_written_and_arrived = (line.bytes_written_and_arrived[0] + 10, 10)
        server.clock.advance(CONFIG.resume_position_send_delay)
    session.record_positions()
    session.record_arrival()
    session.closed()
    assert server.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_what_is_said_once_no_more_is_written_is_behind_its_place(server: ChatServer) -> None:
    session, _ = keyed(server, "s1")
    other, _ = server.session("s2")
    session.record_positions()
    other.received(["too late"])
    server.turn()
    server.hub.record_position("lobby", session)
    session.closed()
    assert server.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 0)


def test_of_what_is_lost_it_is_told_nothing(server: ChatServer) -> None:
    session, line = server.session()
    session.lost(OffsetGap("e0", 5, 5))
    assert (line.events, line.blobs) == ([], [])


@pytest.mark.parametrize("count", [7, None])
def test_without_history_one_that_was_too_slow_is_closed(server: ChatServer, count: int | None) -> None:
    session, line = server.session()
    session.too_slow(OffsetGap("e0", 7, count))
    assert line.events == [too_slow(count)]


def test_one_whose_place_was_taken_over_is_closed(server: ChatServer) -> None:
    _, line = keyed(server, "s1")
    keyed(server, "s2")
    assert line.events == [TAKEN_OVER]


def test_when_its_socket_is_gone_what_had_arrived_before_counts(server: ChatServer) -> None:
    session, line = keyed(server, "s1")
    other, _ = server.session("s2")
    other.received(["a"])
    server.turn()
    line.bytes_written_and_arrived = (10, 9)
    session.record_positions()
    session.record_arrival()
    line.bytes_written_and_arrived = (0, sys.maxsize)  # nobody knows any more
    session.closed()
    assert server.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 0)
