"""RFC 6455, sections 5.5.1 and 7: Close frames, what they may say, and how the socket ends."""

from tests.conformance.conftest import Connect
from tests.conformance.raw import BOTH_WAYS, Chop
from tests.conformance.testee import LIMIT
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, header
from tests.rows import rows

both_ways = rows("chop", BOTH_WAYS)

GOOD_CODES = [
    *(1000, 1001, 1002, 1003),
    *(1007, 1008, 1009, 1010, 1011),
    *(1012, 1013, 1014),  # IANA's registry of close codes
    *(3000, 3001, 3999, 4000, 4001, 4999),
]
BAD_CODES = [
    *(0, 1, 999),
    *(1004, 1005, 1006, 1015),  # reserved; 1005, 1006 and 1015 must never be sent
    *(1016, 1100, 1999, 2000, 2999),  # not given to anything
    *(5000, 9999, 32_768, 65_535),
]


@both_ways
@rows("body", [b"", *(code.to_bytes(2) for code in GOOD_CODES)])
def test_an_empty_close_or_its_code_comes_back_and_the_server_ends_the_socket(
    connect: Connect, body: bytes, chop: Chop
) -> None:
    with connect() as client:
        client.send(frame(body, CLOSE), chop)
        client.expect([(CLOSE, body)])
        client.expect_end()


@both_ways
@rows("code", BAD_CODES)
def test_a_bad_close_code_is_1002(connect: Connect, code: int, chop: Chop) -> None:
    with connect() as client:
        client.send(close_frame(code), chop)
        client.expect_failure(1002)


def test_a_bad_close_code_with_a_reason_is_1002(connect: Connect) -> None:
    with connect() as client:
        client.send(close_frame(1005, b"because"))
        client.expect_failure(1002)


@both_ways
@rows("byte", [0x00, 0x03, 0xFF])
def test_a_close_of_one_byte_is_1002(connect: Connect, byte: int, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(bytes((byte,)), CLOSE), chop)
        client.expect_failure(1002)


@both_ways
@rows("reason", [b"", b"x", b"x" * 123, "€".encode() * 41, "Grüße 𝄞".encode()])
def test_any_reason_that_is_utf_8_is_taken(connect: Connect, reason: bytes, chop: Chop) -> None:
    with connect() as client:
        client.send(close_frame(1000, reason), chop)
        opcode, payload = client.frame()
        assert (opcode, payload[:2]) == (CLOSE, (1000).to_bytes(2))
        client.expect_end()


@both_ways
@rows(
    "reason",
    [
        b"\xff",
        b"ok\x80",
        b"\xc3",
        "€".encode()[:2],
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
        b"x" * 122 + b"\xe2",
    ],
)
def test_a_reason_that_is_not_utf_8_is_1007(connect: Connect, reason: bytes, chop: Chop) -> None:
    with connect() as client:
        client.send(close_frame(1000, reason), chop)
        client.expect_failure(1007)


@both_ways
def test_a_reason_of_124_bytes_is_1002(connect: Connect, chop: Chop) -> None:
    with connect() as client:
        client.send(close_frame(1000, b"x" * 124), chop)
        client.expect_failure(1002)


@both_ways
@rows(
    "later",
    [
        frame(b"Hello"),
        frame(b"Hello", BINARY),
        frame(b"", PING),
        close_frame(1001),
        frame(b"unmasked", mask=b""),
        frame(b"\xff"),
        header(TEXT, 2**62),
        bytes(range(256)) * 100,
    ],
)
def test_what_comes_after_a_close_is_not_read(connect: Connect, later: bytes, chop: Chop) -> None:
    with connect() as client:
        client.send(close_frame(1000) + later, chop)
        client.expect([(CLOSE, (1000).to_bytes(2))])
        client.expect_end()


def test_what_comes_after_the_answer_to_a_close_resets_nothing(connect: Connect) -> None:
    with connect() as client:
        client.send(close_frame(1000))
        client.expect([(CLOSE, (1000).to_bytes(2))])
        client.send(frame(b"Hello") * 1000)
        client.expect_end()


def test_messages_before_a_close_come_back_before_its_answer(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"a") + frame(b"", PING) + frame(b"b" * 70_000) + close_frame(1000))
        client.expect([(TEXT, b"a"), (PONG, b""), (TEXT, b"b" * 70_000), (CLOSE, (1000).to_bytes(2))])
        client.expect_end()


@both_ways
def test_a_close_inside_a_message_in_fragments_ends_it(connect: Connect, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(b"Hel", fin=False) + close_frame(1000) + frame(b"lo", CONTINUATION), chop)
        client.expect([(CLOSE, (1000).to_bytes(2))])
        client.expect_end()


def too_large() -> bytes:
    """Make a message for which the server begins to close, after which it waits for our Close."""
    return header(BINARY, LIMIT + 1) + bytes(4 + LIMIT + 1)  # masked with zeros


def test_the_server_waits_for_the_answer_to_its_close_and_then_ends_the_socket(connect: Connect) -> None:
    with connect() as client:
        client.send(too_large())
        client.expect_closing(1009)


def test_when_both_sides_close_at_once_each_says_it_once(connect: Connect) -> None:
    with connect() as client:
        client.send(too_large() + close_frame(4000))
        opcode, payload = client.frame()
        assert (opcode, payload[:2]) == (CLOSE, (1009).to_bytes(2))
        client.expect_end()


@rows(
    "answer",
    [frame(b"", CLOSE), close_frame(1005), frame(b"\x03", CLOSE), close_frame(1000, b"\xff"), frame(b"x", mask=b"")],
)
def test_whatever_answers_the_servers_close_it_says_nothing_more(connect: Connect, answer: bytes) -> None:
    with connect() as client:
        client.send(too_large())
        assert client.frame()[1][:2] == (1009).to_bytes(2)
        client.send(frame(b"not read") + frame(b"", PING) + answer)
        client.expect_end()


def test_a_client_that_is_gone_without_a_close_is_forgotten(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"Hello"))
        client.expect([(TEXT, b"Hello")])
        client.end()
        client.expect_end()
