"""A program in one of its rooms: what it is told there, and how far it has surely come."""

from collections.abc import Sequence
from typing import Any

import pytest

from chatd.clients.json_session import JsonSession
from chatd.clients.subscription import Subscription
from chatd.protocol.close_codes import OUR_FAULT
from chatd.protocol.message import Batch, Message, OffsetGap, StreamPosition
from tests.clients.server import ChatServer, events
from tests.fakes import FakeLine

TOP = StreamPosition("e0", 9)


@pytest.fixture
def server() -> ChatServer:
    return ChatServer()


def member(server: ChatServer, **target: Any) -> tuple[Subscription, JsonSession, FakeLine]:
    program, line = server.program("p1", **target)
    server.turn()
    line.blobs.clear()
    return program._rooms["lobby"], program, line


def told(server: ChatServer, line: FakeLine) -> list[dict[str, Any]]:
    server.turn()
    return events(line)


def batch(first: int, *texts: str) -> Batch:
    messages = tuple(Message(f"s.{text}", 0, "s", text) for text in texts)
    return Batch("lobby", "e0", first, "w", 1, messages)


@pytest.mark.parametrize(
    ("gaps", "recovered", "lost"),
    [
        ((), True, 0),
        ((OffsetGap("e0", 3, 3),), False, 3),
        ((OffsetGap("e0", 3, 3), OffsetGap("e0", 7, 2)), False, 5),
        ((OffsetGap("e0", 3, 3), OffsetGap("e1", 0, None)), False, None),
    ],
)
def test_it_is_told_in_one_piece_what_it_missed_and_what_of_it_is_lost(
    server: ChatServer, gaps: Sequence[OffsetGap], recovered: bool, lost: int | None
) -> None:
    membership, _, line = member(server)
    membership.ref = "r"
    membership.recovered(TOP, gaps, [batch(6, "a", "b"), batch(9, "c")])
    [joined] = told(server, line)
    assert (joined["recovered"], joined["lost"], joined["offset"], joined["ref"]) == (recovered, lost, 9, "r")
    assert [(each["offset"], each["text"]) for each in joined["messages"]] == [(6, "a"), (7, "b"), (9, "c")]


def test_it_is_told_that_the_rest_of_it_follows(server: ChatServer) -> None:
    membership, _, line = member(server)
    membership.recovered(TOP, (), [batch(6, "a")], more=True)
    membership.recovered(TOP, (), [batch(6, "a")])
    assert [each.get("more") for each in told(server, line)] == [True, None]


def test_a_reference_is_answered_once(server: ChatServer) -> None:
    membership, _, line = member(server)
    membership.ref = "r"
    membership.recovered(TOP, (), ())
    membership.recovered(TOP, (), ())
    assert [each.get("ref") for each in told(server, line)] == ["r", None]


@pytest.mark.parametrize(
    ("gap", "first", "last"), [(OffsetGap("e0", 7, 3), 5, 7), (OffsetGap("e0", 7, None), None, None)]
)
@pytest.mark.parametrize("slow", [False, True])
def test_what_is_lost_for_good_is_told_from_where_to_where(
    server: ChatServer, gap: OffsetGap, first: int | None, last: int | None, *, slow: bool
) -> None:
    membership, _, line = member(server)
    membership.report_gap(gap, slow=slow)
    assert told(server, line) == [{"type": "gap", "room": "lobby", "epoch": "e0", "from": first, "to": last}]
    assert line.events == []


def test_a_gap_comes_after_what_was_delivered_before_it_and_before_what_follows(server: ChatServer) -> None:
    membership, _, line = member(server)
    membership.deliver(b'\x81\x0c{"type":"x"}', 1)
    membership.report_gap(OffsetGap("e0", 7, 3))
    membership.deliver(b'\x81\x0c{"type":"y"}', 1)
    assert [each["type"] for each in told(server, line)] == ["x", "gap", "y"]


def test_it_falls_behind_where_it_was_just_given_something(server: ChatServer) -> None:
    membership, program, _ = member(server)
    membership.deliver(b"", 0)
    assert program.delivering is membership


def test_without_a_key_it_knows_of_no_place(server: ChatServer) -> None:
    membership, _, _ = member(server)
    assert membership.record(TOP) is None
    membership.seal()
    membership.close()


def test_with_a_key_it_knows_what_has_arrived(server: ChatServer) -> None:
    membership, _, line = member(server, resume="abcdefgh")
    line.bytes_written_and_arrived = (10, 5)
    assert membership.record(TOP) == StreamPosition("e0", 0)  # where it was when it came
    line.bytes_written_and_arrived = (10, 10)
    assert membership.record(TOP) == TOP
    membership.seal()
    membership.close()
    line.bytes_written_and_arrived = (0, 0)  # nobody knows any more
    assert membership.record(StreamPosition("e0", 10)) == TOP


def test_its_place_is_kept_when_it_goes(server: ChatServer) -> None:
    _, program, line = member(server, resume="abcdefgh")
    speaker, _ = server.session()
    speaker.received(["a"])
    server.turn()
    line.bytes_written_and_arrived = (10, 10)
    program.record_positions()
    program.record_arrival()
    program.closed()
    assert server.bus.places["lobby", "abcdefgh"].position == StreamPosition("e0", 1)


def test_one_with_a_key_comes_back_to_what_it_missed(server: ChatServer) -> None:
    _, program, line = member(server, resume="abcdefgh")
    line.bytes_written_and_arrived = (10, 10)
    program.record_positions()
    program.record_arrival()
    program.closed()
    speaker, _ = server.session()
    speaker.received(["a", "b"])
    server.turn()
    _, line = server.program("p2", resume="abcdefgh")
    [welcome, joined] = told(server, line)
    assert (welcome["type"], [each["text"] for each in joined["messages"]]) == ("welcome", ["a", "b"])


def test_another_room_of_it_has_no_key(server: ChatServer) -> None:
    _, program, _ = member(server, resume="abcdefgh")
    program.received(['{"type":"join","room":"ops"}'])
    assert (program._rooms["ops"].key, program._rooms["ops"].delays_leave) == ("", True)


def test_one_that_can_not_go_on_is_hung_up_on(server: ChatServer) -> None:
    membership, _, line = member(server)
    membership.disconnect(OUR_FAULT)
    assert line.events == [OUR_FAULT]


def test_what_was_not_sent_each_receipt_tells(server: ChatServer) -> None:
    membership, _, line = member(server)
    membership.publish_refused(OUR_FAULT)
    assert (told(server, line), line.events) == ([], [])


def test_where_it_missed_who_came_and_went_it_is_told_who_is_there(server: ChatServer) -> None:
    membership, _, line = member(server)
    membership.missed_presence()
    [members] = told(server, line)
    assert (members["type"], members["count"], "ref" in members) == ("members", 1, False)


def test_it_has_enough_where_its_line_has(server: ChatServer) -> None:
    membership, _, line = member(server)
    line.buffer_full = True
    assert membership.buffer_full
