"""RFC 6455, section 5.5: pings and pongs, and what no control frame may be."""

from tests.conformance.conftest import Connect
from tests.conformance.raw import BOTH_WAYS, Chop
from tests.frames import CLOSE, PING, PONG, TEXT, frame
from tests.rows import rows

both_ways = rows("chop", BOTH_WAYS)


@both_ways
@rows("payload", [b"", b"x", b"Hello", bytes(range(125)), b"\xff\xfe\xc3" * 41])
def test_a_ping_is_answered_with_its_payload(connect: Connect, payload: bytes, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(payload, PING), chop)
        client.expect([(PONG, payload)])
        client.expect_alive()


@both_ways
def test_pings_are_answered_in_their_order_among_messages(connect: Connect, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(b"1", PING) + frame(b"a") + frame(b"2", PING) + frame(b"b") + frame(b"3", PING), chop)
        client.expect([(PONG, b"1"), (TEXT, b"a"), (PONG, b"2"), (TEXT, b"b"), (PONG, b"3")])


def test_a_flood_of_pings_is_answered_in_order(connect: Connect) -> None:
    with connect() as client:
        client.send(b"".join(frame(b"%d" % each, PING) for each in range(3000)))
        client.expect((PONG, b"%d" % each) for each in range(3000))
        client.expect_alive()


@both_ways
@rows("size", [0, 1, 125])
def test_a_pong_that_nobody_asked_for_is_not_answered(connect: Connect, size: int, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(b"x" * size, PONG) * 3, chop)
        client.expect_alive()


@both_ways
@rows("opcode", [CLOSE, PING, PONG])
@rows("size", [126, 127, 65_535, 65_536])
def test_a_control_frame_of_more_than_125_bytes_is_1002(connect: Connect, size: int, opcode: int, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(b"\x03\xe8" + b"x" * (size - 2), opcode) + frame(b"", PING), chop)
        client.expect_failure(1002)


@both_ways
@rows("opcode", [CLOSE, PING, PONG])
@rows("payload", [b"", b"\x03\xe8"])
def test_a_control_frame_in_fragments_is_1002(connect: Connect, payload: bytes, opcode: int, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(payload, opcode, fin=False) + frame(b"", 0), chop)
        client.expect_failure(1002)


def test_a_control_frame_in_fragments_inside_a_message_is_1002(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"Hel", fin=False) + frame(b"", PING, fin=False))
        client.expect_failure(1002)
