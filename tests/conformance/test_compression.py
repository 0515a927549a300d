"""RFC 7692: permessage-deflate, as a client on a raw socket sees it where the server has agreed to it."""

import zlib
from collections.abc import Callable, Iterator

import pytest
from websockets.sync.client import connect as connect_websockets

from tests.conformance.conftest import Connect, running
from tests.conformance.raw import BOTH_WAYS, Chop, RawClient
from tests.conformance.testee import LIMIT
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, header
from tests.rows import rows

RSV1, FIN = 0x40, 0x80
TAIL = b"\x00\x00\xff\xff"
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LONG = b"a word and a word and a word " * 20

both_ways = rows("chop", BOTH_WAYS)
both_kinds = rows("opcode", [TEXT, BINARY])


@pytest.fixture(scope="module")
def compressing() -> Iterator[tuple[str, int]]:
    """Run a testee that compresses; give its address."""
    with running("--compress") as address:
        yield address


@pytest.fixture
def agree(compressing: tuple[str, int]) -> Connect:
    """Give what opens a WebSocket on which both sides have agreed."""
    return lambda: RawClient(compressing, Sec_WebSocket_Extensions="permessage-deflate")


def deflated(payload: bytes, level: int = 6) -> bytes:
    """Compress a message by itself (section 7.2.1)."""
    deflate = zlib.compressobj(level, wbits=-15)
    return (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def expect(client: RawClient, opcode: int, payload: bytes) -> bool:
    """See that this message comes next, compressed or not; give which. It is read without what came before it."""
    first, got = client.raw_frame()
    assert first & ~RSV1 == FIN | opcode
    if first & RSV1:
        assert len(got) < len(payload)
        got = zlib.decompressobj(wbits=-15).decompress(got + TAIL)
    assert got == payload
    return bool(first & RSV1)


# Agreement (section 7.1)


def answered(address: tuple[str, int], offer: str) -> str:
    """Give the extensions that the server takes up."""
    with RawClient(address, Sec_WebSocket_Extensions=offer) as client:
        lines = dict(line.split(": ", 1) for line in client.head.decode().split("\r\n")[1:])
        client.expect_alive()
        return lines.get("Sec-WebSocket-Extensions", "")


@rows(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate;client_no_context_takeover;server_max_window_bits=15",
        "bbf-usp-protocol, permessage-deflate",
        "permessage-deflate; server_max_window_bits=9, permessage-deflate",
        "permessage-deflate; unheard_of=1, permessage-deflate; client_max_window_bits",
    ],
)
def test_an_offer_that_can_be_met_is_taken_up(compressing: tuple[str, int], offer: str) -> None:
    window = "; server_max_window_bits=15" if offer.endswith("=15") else ""  # what is asked for is said again (7.1.2.1)
    assert answered(compressing, offer) == ANSWER + window


@rows(
    "offer",
    [
        "",
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits=14",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; unheard_of",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover=yes",
    ],
)
def test_without_one_the_connection_goes_on_without_compression(compressing: tuple[str, int], offer: str) -> None:
    assert answered(compressing, offer) == ""


def test_a_server_without_compression_takes_no_offer_up(testee: tuple[str, int]) -> None:
    assert answered(testee, "permessage-deflate") == ""


# Messages (sections 6 and 7.2)


@both_ways
@both_kinds
@rows("size", [0, 1, 5, 125, 126, 127, 65_535, 65_536, 300_000])
def test_a_compressed_message_comes_back(agree: Connect, size: int, opcode: int, chop: Chop) -> None:
    payload = (LONG * (size // len(LONG) + 1))[:size]
    with agree() as client:
        client.send(frame(deflated(payload), opcode | RSV1), chop)
        assert expect(client, opcode, payload) == (size > 100)


@both_ways
@rows(
    "hexed",
    [
        "f2 48 cd c9 c9 07 00",  # 7.2.3.1: one block
        "00 05 00 fa ff 48 65 6c 6c 6f 00",  # 7.2.3.3: a block without compression
        "f3 48 cd c9 c9 07 00 00",  # 7.2.3.4: BFINAL is 1
        "f2 48 05 00 00 00 ff ff ca c9 c9 07 00",  # 7.2.3.5: two blocks
    ],
)
def test_the_examples_of_the_rfc_say_hello(agree: Connect, hexed: str, chop: Chop) -> None:
    with agree() as client:
        client.send(frame(bytes.fromhex(hexed), TEXT | RSV1) * 2, chop)
        client.expect([(TEXT, b"Hello")] * 2)
        client.expect_alive()


def test_a_compressed_message_of_nothing_is_one(agree: Connect) -> None:
    with agree() as client:
        client.send(frame(b"\x00", TEXT | RSV1) + frame(b"\x02\x00", BINARY | RSV1))  # 7.2.3.6
        client.expect([(TEXT, b""), (BINARY, b"")])


@both_ways
@both_kinds
def test_only_the_first_fragment_says_that_the_message_is_compressed(agree: Connect, opcode: int, chop: Chop) -> None:
    data = deflated(LONG)
    parts = [data[:1], b"", data[1:20], data[20:], b""]
    frames = [
        frame(part, CONTINUATION if place else opcode | RSV1, fin=place == 4) + frame(b"%d" % place, PING)
        for place, part in enumerate(parts)
    ]
    with agree() as client:
        client.send(b"".join(frames), chop)
        client.expect([(PONG, b"%d" % place) for place in range(4)])
        assert expect(client, opcode, LONG)
        client.expect([(PONG, b"4")])


@both_ways
def test_a_message_that_is_not_compressed_is_taken_among_those_that_are(agree: Connect, chop: Chop) -> None:
    with agree() as client:
        client.send(frame(b"a") + frame(deflated(LONG), TEXT | RSV1) + frame(b"b", BINARY), chop)
        client.send(frame(b"c", fin=False) + frame(b"d", CONTINUATION) + frame(deflated(LONG), BINARY | RSV1), chop)
        client.expect([(TEXT, b"a")])
        assert expect(client, TEXT, LONG)
        client.expect([(BINARY, b"b"), (TEXT, b"cd")])
        assert expect(client, BINARY, LONG)


def test_each_answer_can_be_read_without_those_before_it(agree: Connect) -> None:
    with agree() as client:
        client.send(frame(LONG) * 3)
        assert all(expect(client, TEXT, LONG) for _ in range(3))


def test_what_compression_does_not_make_smaller_is_sent_as_it_is(agree: Connect) -> None:
    with agree() as client:
        client.send(frame(b"short") + frame(bytes(range(256)), BINARY))
        assert not expect(client, TEXT, b"short")
        assert not expect(client, BINARY, bytes(range(256)))


# What is wrong


@both_ways
@rows("opcode", [PING, PONG, CLOSE])
def test_a_compressed_control_frame_is_1002(agree: Connect, opcode: int, chop: Chop) -> None:
    with agree() as client:
        client.send(frame(b"\x03\xe8", opcode | RSV1), chop)
        client.expect_failure(1002)


@both_ways
@rows("compressed", [RSV1, 0])
def test_a_continuation_that_says_it_is_compressed_is_1002(agree: Connect, compressed: int, chop: Chop) -> None:
    with agree() as client:
        client.send(frame(b"\x00", TEXT | compressed, fin=False) + frame(b"\x00", CONTINUATION | RSV1), chop)
        client.expect_failure(1002)


@rows("bits", [0x10, 0x20, 0x30, 0x50, 0x60, 0x70])
def test_the_other_reserved_bits_stay_reserved(agree: Connect, bits: int) -> None:
    with agree() as client:
        client.send(frame(deflated(b"Hello"), TEXT | bits))
        client.expect_failure(1002)


@rows("opcode", [3, 7, 0xB, 0xF])
def test_a_reserved_opcode_is_1002_compressed_or_not(agree: Connect, opcode: int) -> None:
    with agree() as client:
        client.send(frame(deflated(b"Hello"), opcode | RSV1))
        client.expect_failure(1002)


NOT_DEFLATE: dict[str, Callable[[], bytes]] = {
    "no such block": lambda: b"\xff" * 20,
    "a length that does not match": lambda: bytes.fromhex("00 05 00 05 00 48 65 6c 6c 6f 00"),
    "too far back": lambda: bytes.fromhex("02 03 06 00"),
    "cut off": lambda: deflated(LONG)[:-5],
    "more behind its end": lambda: bytes.fromhex("f3 48 cd c9 c9 07 00") + deflated(b"more"),
    "nothing at all": lambda: b"",
}


@both_ways
@rows("made", NOT_DEFLATE.values())
def test_what_is_no_whole_deflate_stream_is_1007(agree: Connect, made: Callable[[], bytes], chop: Chop) -> None:
    with agree() as client:
        client.send(frame(made(), TEXT | RSV1) + frame(b"later"), chop)
        client.expect_failure(1007)


@both_ways
@rows("bad", [b"\xff", b"x" * 500 + b"\xed\xa0\x80", "€".encode()[:2]])
def test_what_inflates_to_no_utf_8_is_1007(agree: Connect, bad: bytes, chop: Chop) -> None:
    with agree() as client:
        client.send(frame(deflated(bad), TEXT | RSV1), chop)
        client.expect_failure(1007)


@both_kinds
def test_the_limit_is_on_what_a_message_inflates_to(agree: Connect, opcode: int) -> None:
    whole = deflated(b"x" * LIMIT)
    with agree() as client:
        client.send(header(opcode | RSV1, len(whole)) + bytes(4) + whole)
        assert expect(client, opcode, b"x" * LIMIT)
        stored = deflated(b"x" * LIMIT, level=0)
        client.send(header(opcode | RSV1, len(stored)) + bytes(4) + stored)
        assert expect(client, opcode, b"x" * LIMIT)
        client.send(frame(deflated(b"x" * (LIMIT + 1)), opcode | RSV1))
        client.expect_closing(1009)


def test_a_bomb_is_1009(agree: Connect) -> None:
    with agree() as client:
        client.send(frame(deflated(bytes(LIMIT * 4)), BINARY | RSV1))
        client.expect_failure(1009)


def test_a_bomb_in_fragments_is_1009(agree: Connect) -> None:
    data = deflated(bytes(LIMIT * 4))
    with agree() as client:
        client.send(frame(data[:100], BINARY | RSV1, fin=False))
        for start in range(100, len(data), 1000):
            client.send(frame(data[start : start + 1000], CONTINUATION, fin=False))
        client.expect_failure(1009)


# A client that is not ours


def test_another_library_understands_and_is_understood(compressing: tuple[str, int]) -> None:
    messages: list[str | bytes] = ["hello", "", LONG.decode(), "€" * 50_000, b"\x00" * 300_000, bytes(range(256)) * 9]
    with connect_websockets("ws://{}:{}/".format(*compressing), max_size=None) as client:
        assert client.response is not None
        assert client.response.headers["Sec-WebSocket-Extensions"] == ANSWER
        for each in messages * 2:
            client.send(each)
        assert [client.recv(timeout=20) for _ in messages * 2] == messages * 2
