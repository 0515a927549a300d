"""The session of a client of the pipe format, between a connection in memory and a real hub."""

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
from tests.rows import rows


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


# What it publishes


TEXTS = ["a\n", "a\r", "\r", "\ta ", "\x00", "\x1b[31m", "a\nb", "a\u2028", "007", "1_000", "{}", "\ufeff"]


@rows("text, end", [*(("x" * 16, end) for end in ("", "\n", "\r\n")), *((text, "\r\n") for text in TEXTS)])
def test_one_line_end_is_dropped_and_anything_else_published(text: str, end: str) -> None:
    server = ChatServer()
    session, line = server.session()
    session.received([text + end])
    assert (server.turn(), line.events) == ([("lobby", text)], [])


@given(st.text(max_size=4))
def test_any_line_is_published_unchanged(text: str) -> None:
    server = ChatServer()
    session, _ = server.session()
    session.received([text + "\n"])
    line = text.removesuffix("\r")
    assert server.turn() == ([("lobby", line)] if line else [])


@rows("texts", [[], [""], ["\n"], ["\r\n"]])
def test_an_empty_line_is_ignored(texts: list[str]) -> None:
    server = ChatServer()
    session, line = server.session()
    session.received(texts)
    assert (server.turn(), line.events) == ([], [])


@rows(
    "texts, published",
    [
        (["x" * 17], []),
        (["x" * 17 + "\n"], []),
        (["€€€€€x", "ÅÅÅÅÅÅÅÅ\r\n", "€€€€€€"], ["€€€€€x", "ÅÅÅÅÅÅÅÅ"]),  # the size is counted in bytes
        (["a", "b\n", "x" * 17, "c"], ["a", "b"]),
    ],
)
def test_a_message_over_the_size_closes_after_those_before_it(texts: list[str], published: list[str]) -> None:
    server = ChatServer()
    session, line = server.session()
    session.received(texts)
    assert (server.turn(), line.events) == ([("lobby", text) for text in published], [TOO_LARGE])


def test_the_messages_of_one_read_are_published_together_in_their_order(server: ChatServer) -> None:
    session, _ = server.session()
    session.received(["a", "\n", "b\r\n", "", "c"])
    assert server.turn() == [("lobby", "a"), ("lobby", "b"), ("lobby", "c")]
    assert len(server.bus.published) == len(server.chat_log.entries) == 1


def test_binary_is_refused(server: ChatServer) -> None:
    session, line = server.session()
    assert not session.accepts_binary
    session.received_binary(b"hello")
    assert (server.turn(), line.events) == ([], [NOT_TEXT])


# What it receives


def test_others_in_the_room_receive_it_and_the_sender_with_echo(server: ChatServer) -> None:
    session, line = server.session("s1", "ops")
    echoing, echoed = server.session("s2", "ops", echo=True)
    _, elsewhere = server.session("s3", "lobby")
    session.received(["hello\n"])
    echoing.received(["hi\n"])
    assert server.turn() == [("ops", "hello"), ("ops", "hi")]
    assert b"".join(line.blobs) == text_frame(b"hi")
    assert b"".join(echoed.blobs) == text_frame(b"hello") + text_frame(b"hi")
    assert elsewhere.blobs == []


def test_it_has_joined_once_the_room_is_subscribed(server: ChatServer) -> None:
    server.bus.confirm_at_once = False
    session, _ = server.make(Session, "s1", RoomTarget("ops"))
    joined = session.join()
    assert not joined.called
    server.bus.confirm("ops")
    assert joined.called


def test_it_receives_nothing_once_it_is_closed(server: ChatServer) -> None:
    session, line = server.session("s1")
    other, _ = server.session("s2")
    session.closed()
    other.received(["hello"])
    server.turn()
    assert line.blobs == []


def test_its_last_messages_are_published_and_no_subscription_is_left(server: ChatServer) -> None:
    session, _ = server.session()
    session.received(["bye"])
    session.closed()
    assert [[message.text for message in messages] for _, messages in server.bus.published] == [["bye"]]
    assert server.bus.rooms == {}


# While messages cannot be published


def test_it_is_closed_if_the_chat_log_cannot_be_written(server: ChatServer) -> None:
    server.chat_log.full = True
    session, line = server.session()
    session.received(["hello"])
    assert server.turn() == []
    assert line.events == [LOG_AWAY]


def test_it_is_closed_if_its_message_was_refused(server: ChatServer) -> None:
    server.bus.refuse = NotPublished("ERR no")
    session, line = server.session()
    session.received(["hello"])
    server.turn()
    assert line.events == [OUR_FAULT]


def test_messages_read_before_the_pause_are_kept_in_order(server: ChatServer) -> None:
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
    server.clock.advance(100)
    assert line.events == ["pause"]
    server.bus_comes_back()
    assert server.turn() == [("lobby", text) for text in "abcd"]
    assert line.events == ["pause", "resume"]


def test_a_broker_that_refuses_writes_for_too_long_closes_it(server: ChatServer) -> None:
    server.bus.refusing = "READONLY"
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(10)
    assert line.events == ["pause", try_later("the message bus refuses writes")]


def test_an_away_bus_closes_it_after_the_publish_timeout_and_nothing_is_published_later(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(9.9)
    assert line.events == ["pause"]
    server.clock.advance(0.1)
    server.bus_comes_back()
    assert server.turn() == []
    assert line.events == ["pause", BUS_AWAY]


def test_a_client_that_sends_nothing_stays_while_the_bus_is_away(server: ChatServer) -> None:
    _, line = server.session()
    server.bus_goes()
    server.clock.advance(1000)
    assert line.events == []


def test_the_publish_timeout_begins_when_a_full_queue_becomes_an_outage(server: ChatServer) -> None:
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


def test_a_bus_that_is_back_in_time_gets_the_held_messages(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["a"])
    server.clock.advance(9.9)
    server.bus_comes_back()
    assert server.turn() == [("lobby", "a")]
    server.clock.advance(1000)
    assert line.events == ["pause", "resume"]


def test_a_second_outage_has_a_timeout_of_its_own(server: ChatServer) -> None:
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


def test_the_messages_of_a_closed_client_are_published_when_the_bus_is_back(server: ChatServer) -> None:
    server.bus_goes()
    session, line = server.session()
    session.received(["last words"])
    session.closed()
    server.bus_comes_back()
    assert server.turn() == [("lobby", "last words")]
    assert line.events == ["pause"]


def test_the_unpublished_messages_of_a_closed_client_are_counted_in_the_log(server: ChatServer) -> None:
    server.bus_goes()
    session, _ = server.session()
    session.received(["a"])
    session.received(["b"])
    session.closed()
    with capturedLogs() as events:
        server.clock.advance(10)
    assert server.clock.getDelayedCalls() == []
    assert [(event["log_level"], event["count"]) for event in events] == [(LogLevel.warn, 2)]


def test_the_held_messages_of_closed_clients_are_bounded_in_bytes() -> None:
    server = ChatServer(replace(CONFIG, disconnected_unpublished_bytes=3 * (16 + CONFIG.message_overhead_bytes)))
    server.bus_goes()
    with capturedLogs() as events:
        for number in range(5):
            session, _ = server.session(f"s{number}")
            session.received([f"{number}" * 16])
            session.closed()
    assert [event["count"] for event in events] == [1, 1]
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


def test_messages_that_timed_out_leave_room_for_others() -> None:
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


# History and resume positions


def keyed(server: ChatServer, name: str) -> tuple[Session, FakeLine]:
    """Join with a resume key."""
    return server.come(Session, name, RoomTarget("lobby", resume="abcdefgh"))


@pytest.fixture
def other(server: ChatServer) -> Session:
    """Return a session that publishes."""
    return server.session("other")[0]


def stored(server: ChatServer) -> StreamPosition | None:
    """Return the stored resume position."""
    return server.bus.places["lobby", "abcdefgh"].position


def test_it_receives_the_last_messages_that_it_asked_for(server: ChatServer, other: Session) -> None:
    other.received(["a", "b", "c"])
    server.turn()
    _, line = server.come(Session, "s2", RoomTarget("lobby", last=2))
    server.turn()
    assert b"".join(line.blobs) == text_frame(b"b") + text_frame(b"c")


def test_without_a_key_it_has_no_resume_position(server: ChatServer) -> None:
    session, line = server.session()
    line.bytes_written_and_arrived = (0, 0)
    assert (session.key, session.last, session.since) == ("", 0, None)
    assert session.record(StreamPosition("e0", 5)) is None
    session.record_positions()
    session.record_arrival()


def test_its_sender_id_is_that_of_the_first_connection_with_its_key(server: ChatServer) -> None:
    first, _ = keyed(server, "s1")
    first.closed()
    second, line = keyed(server, "s2")
    assert (second.id, second.sender_id) == ("s2", "s1")
    second.received(["mine"])
    server.turn()
    [(_, [message])] = server.bus.published
    assert (message.session, message.id) == ("s1", "s2.1")
    assert line.blobs == []


@rows("arrived, offset", [((10, 10), 1), ((10, 9), 0)])
def test_the_resume_position_is_what_arrived_before_the_connection_was_lost(
    arrived: tuple[int, int], offset: int
) -> None:
    server = ChatServer()
    session, line = keyed(server, "s1")
    server.session("s2")[0].received(["a"])
    server.turn()
    line.bytes_written_and_arrived = arrived
    session.record_positions()
    session.record_arrival()
    line.bytes_written_and_arrived = (0, sys.maxsize)  # the kernel knows no more
    session.closed()
    assert stored(server) == StreamPosition("e0", offset)


@pytest.mark.parametrize("delay", [0, CONFIG.resume_position_send_delay])
def test_messages_that_had_not_arrived_are_after_the_resume_position(
    server: ChatServer, other: Session, delay: float
) -> None:
    session, line = keyed(server, "s1")
    for text in "ab":
        other.received([text])
        server.turn()
        line.bytes_written_and_arrived = (line.bytes_written_and_arrived[0] + 10, 10)
        if not delay:
            server.hub.record_position("lobby", session)
        server.clock.advance(delay)
    if delay:
        session.record_positions()
        session.record_arrival()
    session.closed()
    assert stored(server) == StreamPosition("e0", 1)


def test_messages_after_the_last_write_are_after_the_resume_position(server: ChatServer, other: Session) -> None:
    session, _ = keyed(server, "s1")
    session.record_positions()
    other.received(["too late"])
    server.turn()
    server.hub.record_position("lobby", session)
    session.closed()
    assert stored(server) == StreamPosition("e0", 0)


def test_it_gets_no_notice_of_a_gap(server: ChatServer) -> None:
    session, line = server.session()
    session.report_gap(OffsetGap("e0", 5, 5))
    assert (line.events, line.blobs) == ([], [])


@pytest.mark.parametrize("count", [7, None])
def test_without_history_a_slow_consumer_is_closed(server: ChatServer, count: int | None) -> None:
    session, line = server.session()
    session.report_gap(OffsetGap("e0", 7, count), slow=True)
    assert line.events == [too_slow(count)]


def test_the_connection_that_was_taken_over_is_closed(server: ChatServer) -> None:
    _, line = keyed(server, "s1")
    keyed(server, "s2")
    assert line.events == [TAKEN_OVER]
