"""RFC 6455, sections 7.4.1 and 10.4: what is larger than the server takes is 1009, and not waited for."""

from tests.conformance.conftest import Connect
from tests.conformance.testee import CONFIG, LIMIT
from tests.frames import BINARY, CONTINUATION, PING, TEXT, frame, header
from tests.rows import rows

both_kinds = rows("opcode", [TEXT, BINARY])
ZEROS = bytes(4)  # a mask that changes nothing


@both_kinds
def test_a_message_of_exactly_the_limit_comes_back(connect: Connect, opcode: int) -> None:
    with connect() as client:
        client.send(header(opcode, LIMIT) + ZEROS + b"x" * LIMIT)
        client.expect([(opcode, b"x" * LIMIT)])
        client.expect_alive()


@both_kinds
def test_a_message_of_exactly_the_limit_in_fragments_comes_back(connect: Connect, opcode: int) -> None:
    part = b"x" * (LIMIT // 4)
    with connect() as client:
        for place in range(4):
            client.send(header(CONTINUATION if place else opcode, len(part), fin=place == 3) + ZEROS + part)
        client.expect([(opcode, part * 4)])


@both_kinds
def test_one_byte_more_is_1009(connect: Connect, opcode: int) -> None:
    with connect() as client:
        client.send(header(opcode, LIMIT + 1) + ZEROS + b"x" * (LIMIT + 1))
        client.expect_closing(1009)


@both_kinds
def test_one_byte_more_in_fragments_is_1009(connect: Connect, opcode: int) -> None:
    with connect() as client:
        client.send(header(opcode, LIMIT, fin=False) + ZEROS + b"x" * LIMIT + frame(b"y", CONTINUATION))
        client.expect_closing(1009)


@both_kinds
@rows("length", [LIMIT + 1000, 2**31, 2**32, 2**62, 2**63 - 1])
def test_a_frame_that_is_announced_too_large_is_1009_before_it_comes(
    connect: Connect, length: int, opcode: int
) -> None:
    with connect() as client:
        client.send(frame(b"Hello") + header(opcode, length) + ZEROS)
        client.expect([(TEXT, b"Hello")])
        client.expect_failure(1009)


def test_a_fragment_that_is_announced_too_large_is_1009_before_it_comes(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"Hello", fin=False) + header(CONTINUATION, LIMIT) + ZEROS)
        client.expect_failure(1009)


def test_a_client_that_sends_it_all_the_same_still_reads_why(connect: Connect) -> None:
    with connect() as client:
        client.send(header(TEXT, 2 * LIMIT) + ZEROS + b"x" * (1 << 20))
        client.expect_failure(1009)


def test_too_many_empty_fragments_are_1009(connect: Connect) -> None:
    with connect() as client:
        client.send(
            frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) * (CONFIG.empty_fragments_per_message - 1)
        )
        client.expect_alive()
        client.send(frame(b"", CONTINUATION, fin=False) + frame(b"", PING))
        client.expect_failure(1009)
