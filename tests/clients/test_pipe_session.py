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
from tests.clients.house import CONFIG, House
from tests.fakes import FakeLine


@pytest.fixture
def house() -> House:
    return House()


# What it says


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_line_end_is_dropped(house: House, end: str) -> None:
    session, _ = house.session()
    session.received(["a" + end])
    assert house.turn() == [("lobby", "a")]


@pytest.mark.parametrize(
    "text", ["a\n", "a\r", "\r", "\ta ", "\x00", "\x1b[31m", "a\nb", "a\u2028", "007", "1_000", "{}", "\ufeff"]
)
def test_anything_else_stays_as_it_is(house: House, text: str) -> None:
    session, _ = house.session()
    session.received([text + "\r\n"])
    assert house.turn() == [("lobby", text)]


@given(st.text(max_size=4))
def test_any_line_is_published_unchanged(text: str) -> None:
    house = House()
    session, _ = house.session()
    session.received([text + "\n"])
    line = text.removesuffix("\r")
    assert house.turn() == ([("lobby", line)] if line else [])


@pytest.mark.parametrize("text", ["", "\n", "\r\n"])
def test_an_empty_line_is_ignored(house: House, text: str) -> None:
    session, line = house.session()
    session.received([text])
    assert house.turn() == []
    assert line.events == []


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_message_of_the_longest_size_is_taken(house: House, end: str) -> None:
    session, _ = house.session()
    session.received(["x" * 16 + end])
    assert house.turn() == [("lobby", "x" * 16)]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_message_over_the_size_closes_and_reaches_nobody(house: House, end: str) -> None:
    session, line = house.session()
    session.received(["x" * 17 + end])
    assert line.events == [TOO_LARGE]
    assert house.turn() == []


def test_the_size_is_counted_in_bytes(house: House) -> None:
    session, line = house.session()
    session.received(["€€€€€€"])
    assert line.events == [TOO_LARGE]


def test_the_longest_size_of_characters_of_several_bytes_is_taken(house: House) -> None:
    session, line = house.session()
    session.received(["€€€€€x", "ÅÅÅÅÅÅÅÅ\r\n"])
    assert (house.turn(), line.events) == ([("lobby", "€€€€€x"), ("lobby", "ÅÅÅÅÅÅÅÅ")], [])


def test_the_messages_of_one_read_are_published_together_in_their_order(house: House) -> None:
    session, _ = house.session()
    session.received(["a", "\n", "b\r\n", "", "c"])
    assert house.turn() == [("lobby", "a"), ("lobby", "b"), ("lobby", "c")]
    assert len(house.bus.published) == len(house.chat_log.entries) == 1


def test_one_too_large_in_a_read_lets_those_before_it_through_and_none_behind_it(house: House) -> None:
    session, line = house.session()
    session.received(["a", "b\n", "x" * 17, "c"])
    assert house.turn() == [("lobby", "a"), ("lobby", "b")]
    assert line.events == [TOO_LARGE]


def test_a_read_of_nothing_changes_nothing(house: House) -> None:
    session, line = house.session()
    session.received([])
    assert (house.turn(), line.events) == ([], [])


def test_binary_is_not_taken(house: House) -> None:
    session, line = house.session()
    assert not session.takes_binary
    session.received_binary(b"hello")
    assert (house.turn(), line.events) == ([], [NOT_TEXT])


# What it hears


def test_others_hear_it_and_it_does_not_hear_itself(house: House) -> None:
    session, line = house.session("s1")
    _, other = house.session("s2")
    session.received(["hello\n"])
    house.turn()
    assert other.blobs == [text_frame(b"hello")]
    assert line.blobs == []


def test_it_hears_itself_where_it_asked_to(house: House) -> None:
    session, line = house.session(echo=True)
    session.received(["hello\n"])
    house.turn()
    assert line.blobs == [text_frame(b"hello")]


def test_it_hears_nothing_of_another_room(house: House) -> None:
    session, _ = house.session("s1", "ops")
    _, other = house.session("s2", "lobby")
    session.received(["hello"])
    assert house.turn() == [("ops", "hello")]
    assert other.blobs == []


def test_it_has_joined_once_the_room_is_subscribed(house: House) -> None:
    house.bus.confirm_at_once = False
    session = Session(house.hub, CONFIG, house.clock, FakeLine(), id="s1", place=RoomTarget("ops"), address="192.0.2.1")
    joined = session.join()
    assert not joined.called
    house.bus.confirm("ops")
    assert joined.called


def test_it_hears_nothing_once_it_is_gone(house: House) -> None:
    session, line = house.session("s1")
    other, _ = house.session("s2")
    session.gone()
    other.received(["hello"])
    house.turn()
    assert line.blobs == []


def test_the_last_one_gone_leaves_no_subscription(house: House) -> None:
    session, _ = house.session("s1", "ops")
    session.gone()
    assert house.bus.rooms == {}


def test_what_it_said_before_it_left_is_published(house: House) -> None:
    session, _ = house.session()
    session.received(["bye"])
    session.gone()
    assert [(room, [each.text for each in messages]) for room, messages in house.bus.published] == [("lobby", ["bye"])]


# What can't be taken


def test_it_is_closed_where_the_chat_log_cannot_be_written(house: House) -> None:
    house.chat_log.full = True
    session, line = house.session()
    session.received(["hello"])
    assert house.turn() == []
    assert line.events == [LOG_AWAY]


def test_it_is_closed_where_its_message_was_refused(house: House) -> None:
    house.bus.refuse = NotPublished("ERR no")
    session, line = house.session()
    session.received(["hello"])
    house.turn()
    assert line.events == [OUR_FAULT]


def test_a_full_window_only_pauses_reading(house: House) -> None:
    house.bus.full = True
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(100)
    assert line.events == ["pause"]
    house.bus_comes_back()
    assert house.turn() == [("lobby", "a")]
    assert line.events == ["pause", "resume"]


def test_what_was_read_before_reading_stopped_is_kept_in_order(house: House) -> None:
    house.bus.full = True
    session, line = house.session()
    session.received(["a"])
    house.bus.full = False  # not told yet: what follows must not overtake
    session.received(["b"])
    assert house.turn() == []
    house.bus_comes_back()
    assert house.turn() == [("lobby", "a"), ("lobby", "b")]
    assert line.events == ["pause", "resume"]


def test_a_read_that_cannot_be_published_is_kept_whole(house: House) -> None:
    house.bus.full = True
    session, line = house.session()
    session.received(["a", "b"])
    session.received(["c", "d"])
    assert line.events == ["pause"]
    house.bus_comes_back()
    assert house.turn() == [("lobby", text) for text in "abcd"]


def test_an_away_bus_closes_it_after_its_patience_and_not_before(house: House) -> None:
    house.bus_goes()
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(9.9)
    assert line.events == ["pause"]
    house.clock.advance(0.1)
    assert line.events == ["pause", BUS_AWAY]


def test_a_broker_that_refuses_writes_for_too_long_is_why_it_closes(house: House) -> None:
    house.bus.refusing = "READONLY"
    house.bus_goes()
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(10)
    assert line.events == ["pause", try_later("the message bus refuses writes")]


def test_what_an_away_bus_did_not_take_is_not_published_later(house: House) -> None:
    house.bus_goes()
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(10)
    house.bus_comes_back()
    assert house.turn() == []
    assert line.events == ["pause", BUS_AWAY]


def test_a_silent_client_stays_while_the_bus_is_away(house: House) -> None:
    _, line = house.session()
    house.bus_goes()
    house.clock.advance(1000)
    assert line.events == []


def test_patience_begins_when_a_full_window_turns_into_an_outage(house: House) -> None:
    house.bus.full = True
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(60)
    house.bus_goes()
    house.clock.advance(9.9)
    house.bus_goes("another reason")  # said again: patience goes on, it does not begin anew
    house.clock.advance(0.1)
    assert line.events == ["pause", BUS_AWAY]
    house.clock.advance(100)
    assert line.events == ["pause", BUS_AWAY]


def test_a_bus_that_is_back_in_time_takes_what_was_held(house: House) -> None:
    house.bus_goes()
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(9.9)
    house.bus_comes_back()
    assert house.turn() == [("lobby", "a")]
    house.clock.advance(1000)
    assert line.events == ["pause", "resume"]


def test_a_second_outage_has_a_patience_of_its_own(house: House) -> None:
    house.bus_goes()
    session, line = house.session()
    session.received(["a"])
    house.clock.advance(9)
    house.bus_comes_back()
    house.turn()
    house.bus_goes()
    session.received(["b"])
    house.clock.advance(9.9)
    assert BUS_AWAY not in line.events
    house.clock.advance(0.1)
    assert line.events[-1] == BUS_AWAY


def test_what_a_client_that_left_said_is_published_when_the_bus_is_back(house: House) -> None:
    house.bus_goes()
    session, line = house.session()
    session.received(["last words"])
    session.gone()
    house.bus_comes_back()
    assert house.turn() == [("lobby", "last words")]
    assert line.events == ["pause"]


def test_what_a_client_that_left_could_not_say_is_counted_in_the_log(house: House) -> None:
    house.bus_goes()
    session, _ = house.session()
    session.received(["a"])
    session.received(["b"])
    session.gone()
    with capturedLogs() as events:
        house.clock.advance(10)
    assert [(each["log_level"], each["count"]) for each in events] == [(LogLevel.warn, 2)]


def test_what_clients_that_left_have_left_behind_is_bounded_in_bytes() -> None:
    house = House(replace(CONFIG, left_bytes=3 * (16 + CONFIG.message_overhead_bytes)))
    house.bus_goes()
    with capturedLogs() as events:
        for number in range(5):
            session, _ = house.session(f"s{number}")
            session.received([f"{number}" * 16])
            session.gone()
    assert [each["count"] for each in events] == [1, 1]
    refused = REFUSED_MESSAGES["bus_away"].value
    staying, _ = house.session("s5")
    staying.received(["stays"])
    assert REFUSED_MESSAGES["bus_away"].value == refused
    house.bus_comes_back()
    assert [text for _, text in house.turn()] == ["0" * 16, "1" * 16, "2" * 16, "stays"]
    house.bus_goes()
    for number in range(3):  # there is room again
        session, _ = house.session(f"t{number}")
        session.received([f"{number}" * 16])
        session.gone()
    house.bus_comes_back()
    assert len(house.turn()) == 3


def test_what_ran_out_of_patience_leaves_room_for_others() -> None:
    house = House(replace(CONFIG, left_bytes=16 + CONFIG.message_overhead_bytes))
    house.bus_goes()
    for name in ("s1", "s2"):
        session, _ = house.session(name)
        session.received(["x" * 16])
        session.gone()
        house.clock.advance(CONFIG.bus_patience)
    session, _ = house.session("s3")
    session.received(["last words"])
    session.gone()
    house.bus_comes_back()
    assert house.turn() == [("lobby", "last words")]


def test_a_session_leaves_no_timer_behind(house: House) -> None:
    house.bus_goes()
    session, _ = house.session()
    session.received(["a"])
    session.gone()
    house.clock.advance(10)
    assert house.clock.getDelayedCalls() == []


# What was said before, and while it was away


def keyed(house: House, name: str, *, last: int = 0, echo: bool = False) -> tuple[Session, FakeLine]:
    line = FakeLine()
    place = RoomTarget("lobby", echo, last=last, resume="abcdefgh")
    session = Session(house.hub, CONFIG, house.clock, line, id=name, place=place, address="192.0.2.1")
    session.join()
    return session, line


def test_it_hears_the_last_messages_it_asked_for(house: House) -> None:
    other, _ = house.session("s1")
    other.received(["a", "b", "c"])
    house.turn()
    line = FakeLine()
    place = RoomTarget("lobby", last=2)
    Session(house.hub, CONFIG, house.clock, line, id="s2", place=place, address="192.0.2.1").join()
    house.turn()
    assert b"".join(line.blobs) == text_frame(b"b") + text_frame(b"c")


def test_without_a_key_it_knows_of_no_place(house: House) -> None:
    session, line = house.session()
    line.bytes_written_and_arrived = (0, 0)
    assert (session.key, session.last, session.since) == ("", 0, None)
    assert session.given(StreamPosition("e0", 5)) is None
    session.given_all()
    session.going()


def test_it_is_the_author_that_was_the_first_with_its_key(house: House) -> None:
    first, _ = keyed(house, "s1")
    first.gone()
    second, line = keyed(house, "s2")
    assert (second.id, second.author) == ("s2", "s1")
    second.received(["mine"])
    house.turn()
    [(_, [message])] = house.bus.published
    assert (message.session, message.id) == ("s1", "s2.1")
    assert line.blobs == []


def test_what_arrived_is_its_place_when_it_is_gone(house: House) -> None:
    session, line = keyed(house, "s1")
    other, _ = house.session("s2")
    other.received(["a"])
    house.turn()
    line.bytes_written_and_arrived = (10, 10)
    session.given_all()
    session.going()
    session.gone()
    assert house.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_what_had_not_arrived_is_behind_its_place(house: House) -> None:
    session, line = keyed(house, "s1")
    other, _ = house.session("s2")
    for text in "ab":
        other.received([text])
        house.turn()
        line.bytes_written_and_arrived = (line.bytes_written_and_arrived[0] + 10, 10)
        house.hub.note("lobby", session)
    session.gone()
    assert house.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_what_arrived_before_the_last_moment_is_its_place_though_more_was_on_its_way(house: House) -> None:
    session, line = keyed(house, "s1")
    other, _ = house.session("s2")
    for text in "ab":
        other.received([text])
        house.turn()
        line.bytes_written_and_arrived = (line.bytes_written_and_arrived[0] + 10, 10)
        house.clock.advance(CONFIG.mark_seconds)
    session.given_all()
    session.going()
    session.gone()
    assert house.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_what_is_said_once_no_more_is_written_is_behind_its_place(house: House) -> None:
    session, _ = keyed(house, "s1")
    other, _ = house.session("s2")
    session.given_all()
    other.received(["too late"])
    house.turn()
    house.hub.note("lobby", session)
    session.gone()
    assert house.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 0)


def test_of_what_is_lost_it_is_told_nothing(house: House) -> None:
    session, line = house.session()
    session.lost(OffsetGap("e0", 5, 5))
    assert (line.events, line.blobs) == ([], [])


@pytest.mark.parametrize("count", [7, None])
def test_without_history_one_that_was_too_slow_is_closed(house: House, count: int | None) -> None:
    session, line = house.session()
    session.too_slow(OffsetGap("e0", 7, count))
    assert line.events == [too_slow(count)]


def test_one_whose_place_was_taken_over_is_closed(house: House) -> None:
    _, line = keyed(house, "s1")
    keyed(house, "s2")
    assert line.events == [TAKEN_OVER]


def test_when_its_socket_is_gone_what_had_arrived_before_counts(house: House) -> None:
    session, line = keyed(house, "s1")
    other, _ = house.session("s2")
    other.received(["a"])
    house.turn()
    line.bytes_written_and_arrived = (10, 9)
    session.given_all()
    session.going()
    line.bytes_written_and_arrived = (0, sys.maxsize)  # nobody knows any more
    session.gone()
    assert house.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 0)
