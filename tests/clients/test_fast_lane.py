"""The fast lane changes nothing but speed: Autobahn's parser alone gives the same, however the stream is cut."""

from collections.abc import Iterator, Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from chatd.config.settings import Config
from chatd.protocol.http_head import RoomTarget, Upgrade
from tests.conformance.testee import EchoFactory
from tests.depth import depth
from tests.fakes import FakeTransport
from tests.frames import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close_frame, frame, header
from tests.rows import rows

AT_ONCE = 1_000_000
SMALL = Config(
    max_message_size=300, empty_fragments_per_message=6, frame_steps_per_turn=AT_ONCE, messages_per_turn=AT_ONCE
)
LARGE = Config(max_message_size=70_000, frame_steps_per_turn=AT_ONCE, messages_per_turn=AT_ONCE)


class Client:
    """A client of a connection that has the fast lane, or has not, and an echo behind it."""

    def __init__(self, config: Config, *, fast: bool) -> None:
        factory = EchoFactory(Clock(), config)
        if not fast:
            factory.protocol = type("Slow", (factory.protocol,), {"consumeData": WebSocketServerProtocol.consumeData})
        self.connection: Any = factory.make(Upgrade(KEY), RoomTarget("lobby"), "192.0.2.7")
        self.transport = FakeTransport(Clock(), self.connection)
        self.connection.makeConnection(self.transport)
        self.transport.clear()

    def outcome(self) -> tuple[Any, ...]:
        """Return everything that came back, with messages in order, and the resulting state."""
        connection = self.connection
        state = (connection.state, connection.failedByMe, connection.localCloseCode)
        return self.transport.value(), self.transport.disconnecting, state


def cut(stream: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """Cut a stream at these places, and where there are none beyond its end."""
    start = 0
    for place in sorted({place for place in places if 0 < place < len(stream)}):
        yield stream[start:place]
        start = place
    yield stream[start:]


def assert_same(config: Config, pieces: Sequence[bytes]) -> None:
    """See that both ways have the same outcome after each piece."""
    fast, slow = Client(config, fast=True), Client(config, fast=False)
    for each in pieces:
        fast.transport.receive(each)
        slow.transport.receive(each)
        assert fast.outcome() == slow.outcome()


# Streams: mostly good, so that there is something behind a bad frame that would be missed

LENGTHS = st.sampled_from([0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 299, 300, 301, 302, 303, 304])
ILL_FORMED = st.sampled_from(
    [b"\x80", b"\xc0\xaf", b"\xc3", b"\xe2\x82", b"\xed\xa0", b"\xed\xa0\x80", b"\xf0\x9f\x92", b"\xf4\x90", b"\xff"]
)
GOOD_PAYLOADS = st.one_of(
    st.text(max_size=100).map(str.encode),
    LENGTHS.map(lambda size: b"x" * size),
    LENGTHS.map(lambda size: b"x" * (size % 3) + "€".encode() * (size // 3)),
)
PAYLOADS = st.one_of(
    GOOD_PAYLOADS,
    GOOD_PAYLOADS,
    st.binary(max_size=140),
    st.builds(lambda before, bad, after: before + bad + after, GOOD_PAYLOADS, ILL_FORMED, GOOD_PAYLOADS),
)
MASKS = st.sampled_from([b"\x01\x02\x03\x04", bytes(4), b"\xff\x00\x81\x7e"]) | st.binary(min_size=4, max_size=4)


@st.composite
def any_frames(draw: st.DrawFn) -> bytes:
    """Draw a frame of which anything may be wrong."""
    opcode = draw(st.sampled_from([TEXT, TEXT, BINARY, CONTINUATION, PING, CLOSE]) | st.integers(0, 15))
    bits = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 4, 7]))
    payload = draw(PAYLOADS)
    length_bytes = draw(st.sampled_from([0, 0, 0, 2, 8]))
    bare = frame(payload, opcode, fin=draw(st.booleans()), mask=draw(MASKS | st.just(b"")))
    masked = bare[1] & 0x80
    after_length = {126: 4, 127: 10}.get(bare[1] & 0x7F, 2)
    length = bare[1:after_length]
    if length_bytes:
        length = bytes((masked | {2: 126, 8: 127}[length_bytes],)) + len(payload).to_bytes(length_bytes)
    return bytes((bare[0] | bits << 4,)) + length + bare[after_length:]


WHOLE_TEXTS = st.builds(frame, GOOD_PAYLOADS, mask=MASKS)
IN_FRAGMENTS = st.lists(st.text(max_size=20).map(str.encode) | st.just(b""), min_size=2, max_size=5).map(
    lambda parts: b"".join(
        frame(part, CONTINUATION if place else TEXT, fin=place == len(parts) - 1)
        + (frame(b"between", PING) if place % 2 else b"")
        for place, part in enumerate(parts)
    )
)
CONTROL = st.builds(frame, st.binary(max_size=125), st.sampled_from([PING, PONG]), mask=MASKS)
CLOSES = st.builds(close_frame, st.sampled_from([1000, 1001, 1005, 4000, 65_535]), ILL_FORMED | st.just(b"bye"))
OVERSIZED = st.builds(
    lambda opcode, length, more: header(opcode, length) + b"mask" + more,
    st.sampled_from([TEXT, BINARY, CONTINUATION]),
    st.sampled_from([303, 65_535, 65_536, 2**62, 2**63, 2**64 - 1]),
    st.binary(max_size=50),
)
GOOD = st.one_of(
    WHOLE_TEXTS, WHOLE_TEXTS, WHOLE_TEXTS, IN_FRAGMENTS, CONTROL, st.builds(frame, PAYLOADS, st.just(BINARY))
)
NEARLY_GOOD = st.builds(
    lambda whole, place, bit: whole[:place] + bytes((whole[place] ^ 1 << bit,)) + whole[place + 1 :],
    WHOLE_TEXTS,
    st.integers(0, 1),
    st.integers(0, 7),
)
NOT_MINIMAL = st.builds(
    lambda size, length: bytes((0x80 | TEXT,)) + length(size) + bytes(4) + b"x" * size,
    st.sampled_from([0, 1, 124, 125, 126, 127]),
    st.sampled_from([lambda size: b"\xfe" + size.to_bytes(2), lambda size: b"\xff" + size.to_bytes(8)]),
)
BAD = st.one_of(
    NEARLY_GOOD,
    NEARLY_GOOD,
    NEARLY_GOOD,
    NOT_MINIMAL,
    st.builds(frame, PAYLOADS, mask=MASKS),
    any_frames(),
    CLOSES,
    OVERSIZED,
    st.binary(max_size=30),
    st.builds(lambda whole, size: whole[:size], WHOLE_TEXTS, st.integers(0, 50)),
)
STREAMS = st.lists(GOOD | GOOD | GOOD | BAD, max_size=12).map(b"".join)


@settings(max_examples=depth(400))
@given(STREAMS, st.lists(st.integers(0, 3000), max_size=20))
@example(frame(b"ab\xed\xa0\x80"), [9, 10])
@example(header(TEXT, 200) + bytes(4) + b"ab\xff", [8])
@example(frame(b"") * 3 + frame(b"\xc3"), [1, 7, 13])
@example(frame(b"x" * 301) + frame(b"later"), [])
def test_any_stream_cut_anywhere_is_taken_as_autobahn_takes_it(stream: bytes, places: list[int]) -> None:
    assert_same(SMALL, list(cut(stream, places)))


@rows("second", [0x05, 0x7E, 0x80, 0x81, 0x85, 0xFD, 0xFE, 0xFF])
def test_any_first_byte_is_taken_as_autobahn_takes_it(second: int) -> None:
    for first in range(256):
        assert_same(SMALL, [frame(b"a") + bytes((first, second)) + bytes(13), frame(b"later")])


@settings(max_examples=depth(60))
@given(STREAMS)
def test_any_stream_byte_by_byte_is_taken_as_autobahn_takes_it(stream: bytes) -> None:
    assert_same(SMALL, [bytes((each,)) for each in stream])


@settings(max_examples=depth(40))
@given(
    st.lists(st.integers(65_525, 65_545) | st.integers(69_995, 70_005) | st.integers(0, 8000), max_size=4),
    st.sampled_from([b"", b"\xff", b"\xe2\x82"]),
    st.lists(st.integers(0, 280_000), max_size=8),
)
def test_long_frames_cut_anywhere_are_taken_as_autobahn_takes_them(
    sizes: list[int], end: bytes, places: list[int]
) -> None:
    stream = b"".join(frame(b"x" * size, mask=bytes(4)) for size in sizes) + frame(b"x" * 5000 + end) + frame(b"later")
    assert_same(LARGE, list(cut(stream, places)))


def test_what_comes_back_is_what_was_sent() -> None:
    client = Client(SMALL, fast=True)
    client.transport.receive(frame(b"a") + frame(b"b", BINARY) + frame(b"c", fin=False) + frame(b"d", CONTINUATION))
    assert client.transport.value() == frame(b"a", mask=b"") + frame(b"b", BINARY, mask=b"") + frame(b"cd", mask=b"")


def test_a_long_frame_that_trickles_in_is_not_looked_at_anew_with_each_read() -> None:
    client = Client(LARGE, fast=True)
    whole = frame(b"x" * 60_000)
    client.transport.receive(frame(b"a") + whole[:5000])
    assert len(client.connection.data) == 5000
    client.transport.receive(whole[5000:5001])
    assert client.connection.data == b""
    client.transport.receive(whole[5001:] + frame(b"b"))
    assert client.transport.value() == b"".join(frame(each, mask=b"") for each in (b"a", b"x" * 60_000, b"b"))
