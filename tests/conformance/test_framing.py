"""RFC 6455, section 5.2: frames, their lengths, masks, reserved bits and opcodes."""

from tests.conformance.conftest import Connect
from tests.conformance.raw import BOTH_WAYS, Chop, at_once
from tests.frames import BINARY, CONTINUATION, PING, PONG, TEXT, frame, header
from tests.rows import rows

both_ways = rows("chop", BOTH_WAYS)

HELLO = frame(b"Hello")
MASK = b"\x01\x02\x03\x04"


def payload(size: int) -> bytes:
    """Give ASCII in which each piece differs from its neighbours."""
    return b"".join(b"%07x " % place for place in range(0, size + 8, 8))[:size]


# Lengths


@both_ways
@rows("opcode", [TEXT, BINARY])
@rows("size", [0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 65_534, 65_535, 65_536, 65_537, 1 << 20])
def test_a_message_of_any_length_comes_back(connect: Connect, size: int, opcode: int, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(payload(size), opcode), chop)
        client.expect([(opcode, payload(size))])
        client.expect_alive()


def extended(size: int, length_bytes: int, opcode: int = TEXT) -> bytes:
    """Make a frame that says its length in so many bytes, more than it needs."""
    short = {2: 126, 8: 127}[length_bytes]
    return bytes((0x80 | opcode, 0x80 | short)) + size.to_bytes(length_bytes) + bytes(4) + b"x" * size


@both_ways
@rows("opcode", [TEXT, BINARY])
@rows(("size", "length_bytes"), [(0, 2), (1, 2), (125, 2), (0, 8), (1, 8), (125, 8), (126, 8), (65_535, 8)])
def test_a_length_in_more_bytes_than_needed_is_1002(
    connect: Connect, size: int, length_bytes: int, opcode: int, chop: Chop
) -> None:
    with connect() as client:
        client.send(HELLO + extended(size, length_bytes, opcode), chop)
        client.expect([(TEXT, b"Hello")])
        client.expect_failure(1002)


@both_ways
@rows("opcode", [TEXT, BINARY, CONTINUATION, PING])
@rows("length", [1 << 63, (1 << 63) + 5, (1 << 64) - 1])
def test_a_length_with_its_top_bit_set_is_1002(connect: Connect, length: int, opcode: int, chop: Chop) -> None:
    with connect() as client:
        client.send(bytes((0x80 | opcode, 0xFF)) + length.to_bytes(8) + MASK, chop)
        client.expect_failure(1002)


# Masks


@both_ways
@rows("mask", [bytes(4), b"\xff\xff\xff\xff", b"\x00\x00\x00\x01", b"\x80\x00\x00\x00", b"Hell"])
@rows("size", [0, 1, 3, 4, 5, 125, 126, 70_000])
def test_any_mask_is_taken_off(connect: Connect, mask: bytes, size: int, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(payload(size), mask=mask) + frame(payload(size), BINARY, mask=mask), chop)
        client.expect([(TEXT, payload(size)), (BINARY, payload(size))])


@both_ways
@rows("opcode", [CONTINUATION, TEXT, BINARY, 0x8, PING, PONG])
@rows("size", [0, 5, 125])
def test_an_unmasked_frame_is_1002(connect: Connect, size: int, opcode: int, chop: Chop) -> None:
    with connect() as client:
        client.send(HELLO + frame(b"x" * size, opcode, mask=b"") + HELLO, chop)
        client.expect([(TEXT, b"Hello")])
        client.expect_failure(1002)


# Reserved bits and opcodes


@both_ways
@rows("bits", range(1, 8))
@rows("opcode", [TEXT, BINARY, PING, PONG, 0x8])
def test_a_reserved_bit_is_1002(connect: Connect, opcode: int, bits: int, chop: Chop) -> None:
    bad = bytearray(frame(b"\x03\xe8Hello", opcode))
    bad[0] |= bits << 4
    with connect() as client:
        client.send(HELLO + bytes(bad) + frame(b"", PING), chop)
        client.expect([(TEXT, b"Hello")])
        client.expect_failure(1002)


@rows("bits", range(1, 8))
def test_a_reserved_bit_on_a_continuation_is_1002(connect: Connect, bits: int) -> None:
    bad = bytearray(frame(b"lo", CONTINUATION))
    bad[0] |= bits << 4
    with connect() as client:
        client.send(frame(b"Hel", fin=False) + bytes(bad))
        client.expect_failure(1002)


@both_ways
@rows("fin", [True, False])
@rows("size", [0, 5, 126])
@rows("opcode", [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])
def test_a_reserved_opcode_is_1002(connect: Connect, opcode: int, size: int, fin: bool, chop: Chop) -> None:
    with connect() as client:
        client.send(HELLO + frame(b"x" * size, opcode, fin=fin) + frame(b"", PING), chop)
        client.expect([(TEXT, b"Hello")])
        client.expect_failure(1002)


# Several frames


@both_ways
def test_many_frames_in_a_row_come_back_in_their_order(connect: Connect, chop: Chop) -> None:
    sent = [(TEXT, b"%d" % each) if each % 3 else (BINARY, payload(each * 5)) for each in range(200)]
    with connect() as client:
        client.send(b"".join(frame(payload, opcode) for opcode, payload in sent), chop)
        client.expect(sent)
        client.expect_alive()


def test_a_frame_may_be_cut_anywhere(connect: Connect) -> None:
    with connect() as client:
        for whole in (HELLO, frame(b"x" * 126), frame("grüß".encode()), frame(b"", PING), frame(b"\xff", BINARY)):
            for cut in range(1, len(whole)):
                client.send(whole[:cut])
                client.send(whole[cut:])
        for opcode, content, header_size in (
            (TEXT, b"Hello", 6),
            (TEXT, b"x" * 126, 8),
            (TEXT, "grüß".encode(), 6),
            (PONG, b"", 6),
            (BINARY, b"\xff", 6),
        ):
            client.expect([(opcode, content)] * (header_size + len(content) - 1))
        client.expect_alive()


@both_ways
def test_nothing_after_a_bad_frame_is_read(connect: Connect, chop: Chop) -> None:
    with connect() as client:
        client.send(HELLO + frame(b"bad", mask=b"") + HELLO * 10 + frame(b"", PING), chop)
        client.expect([(TEXT, b"Hello")])
        client.expect_failure(1002)


def test_a_client_that_goes_on_sending_after_a_bad_frame_still_reads_why(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"bad", mask=b""))
        for _ in range(20):
            client.send(HELLO * 1000)
        client.expect_failure(1002)


def test_a_header_that_stops_halfway_is_waited_for(connect: Connect) -> None:
    with connect() as client:
        client.send(header(BINARY, 1000) + MASK[:2], at_once)
        client.send(MASK[2:] + bytes(1000))
        client.expect([(BINARY, (MASK * 250))])
        client.expect_alive()
