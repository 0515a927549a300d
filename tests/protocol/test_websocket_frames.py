import zlib
from collections.abc import Iterator, Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from chatd.protocol.websocket_frames import LONGEST, deflated_text_frame, take_texts, text_frame
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, frame, header
from tests.rows import rows

# What goes out


def read_frames(data: bytes) -> Iterator[bytes]:
    """Read the payloads of whole, unmasked text frames by RFC 6455, section 5.2."""
    while data:
        assert data[0] == 0x81, "FIN, no reserved bits, opcode 1"
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
            assert size >= 126, "the shortest length there is"
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
            assert size >= 65536, "the shortest length there is"
        assert size < 2**63, "neither masked nor too long"
        assert len(data) >= start + size
        yield data[start : start + size]
        data = data[start + size :]


def test_a_frame_is_as_the_rfc_shows_it() -> None:
    assert text_frame(b"Hello") == bytes.fromhex("81 05 48 65 6c 6c 6f")  # RFC 6455, section 5.7


@rows(
    ("size", "head"),
    [
        *((0, "81 00"), (125, "81 7d"), (126, "81 7e 00 7e"), (256, "81 7e 01 00"), (65535, "81 7e ff ff")),
        (65536, "81 7f 00 00 00 00 00 01 00 00"),
    ],
)
def test_the_length_of_a_frame_takes_the_fewest_bytes(size: int, head: str) -> None:
    assert text_frame(b"x" * size) == bytes.fromhex(head) + b"x" * size


@given(st.lists(st.binary(max_size=300) | st.integers(65500, 65600).map(bytes), max_size=5))
def test_frames_joined_in_one_blob_come_apart_again(payloads: list[bytes]) -> None:
    assert list(read_frames(b"".join(map(text_frame, payloads)))) == payloads


def inflated(frame: bytes) -> bytes:
    """Read a frame of up to 65,535 bytes that may be compressed by itself (RFC 7692, section 7.2.2)."""
    payload = frame[4 if frame[1] == 126 else 2 :]
    if frame[0] == 0x81:
        return payload
    assert frame[0] == 0xC1, "FIN, RSV1, opcode 1"
    return zlib.decompressobj(wbits=-15).decompress(payload + b"\x00\x00\xff\xff")


@given(st.text(max_size=900) | st.integers(0, 2000).map(lambda size: "a word " * size))
@example("aaaaaa")  # compressed, it is as long
def test_a_deflated_frame_says_what_was_said_and_is_never_longer(text: str) -> None:
    plain, made = text_frame(text.encode()), deflated_text_frame(text.encode())
    assert inflated(made) == text.encode()
    assert len(made) < len(plain) or made == plain
    assert len(made) < len(plain) / 2 or len(set(text)) > 7 or len(text) < 50


# What comes in

ZEROS = bytes(4)
EURO = "€".encode()


@rows(
    ("data", "texts", "left"),
    [
        (b"", [], b""),
        (frame(b""), [""], b""),
        (frame(b"", mask=ZEROS) * 3, [""] * 3, b""),
        (bytes.fromhex("81 85 37 fa 21 3d 7f 9f 4d 51 58"), ["Hello"], b""),  # RFC 6455, section 5.7
        (frame(EURO + b"\n"), ["€\n"], b""),
        *((frame(b"x" * size), ["x" * size], b"") for size in (1, 3, 4, 5, 124, 125, 126, 127, 255, 256)),
        *((frame(b"x" * size, mask=ZEROS), ["x" * size], b"") for size in (65_534, 65_535)),
        (frame(b"a") + frame(b"x" * 126) + frame(b"b"), ["a", "x" * 126, "b"], b""),
        (frame(b"a") + frame(b"b")[:-1], ["a"], frame(b"b")[:-1]),
        (frame(b"a") + frame(b"", PING) + frame(b"b"), ["a"], frame(b"", PING) + frame(b"b")),
        (frame(b"a") + frame(b"\xff") + frame(b"b"), ["a"], frame(b"\xff") + frame(b"b")),
    ],
)
def test_whole_texts_are_taken_up_to_the_first_that_is_none(data: bytes, texts: list[str], left: bytes) -> None:
    taken, used, _ = take_texts(data, LONGEST)
    assert (taken, data[used:]) == (texts, left)


NOT_FOR_THE_FAST_LANE = {
    "binary": frame(b"x", BINARY),
    "continuation": frame(b"x", CONTINUATION),
    "ping": frame(b"x", PING),
    "close": frame(b"\x03\xe8", CLOSE),
    "fragment": frame(b"x", fin=False),
    "reserved bit 1": b"\xc1" + frame(b"x")[1:],
    "reserved bit 2": b"\xa1" + frame(b"x")[1:],
    "reserved bit 3": b"\x91" + frame(b"x")[1:],
    "reserved opcode": frame(b"x", 3),
    "unmasked": frame(b"Hello you", mask=b""),
    "unmasked and empty": frame(b"", mask=b""),
    "unmasked and long": frame(b"x" * 200, mask=b""),
    "64-bit length": frame(b"x" * 65_536, mask=ZEROS),
    "64-bit length of a short one": b"\x81\xff" + (5).to_bytes(8) + ZEROS + b"Hello",
    "16-bit length of a short one": b"\x81\xfe" + (125).to_bytes(2) + ZEROS + b"x" * 125,
    "16-bit length of an empty one": b"\x81\xfe\x00\x00" + ZEROS,
    "too long": header(TEXT, 1001) + ZEROS + b"x" * 1001,
    "too long, announced": header(TEXT, 1001) + ZEROS,
    "no UTF-8": frame(b"ab\xff"),
    "half a character": frame(EURO[:2]),
    "a surrogate": frame(b"\xed\xa0\x80"),
    "an overlong slash": frame(b"\xc0\xaf"),
    "beyond Unicode": frame(b"\xf4\x90\x80\x80"),
}


@rows("data", NOT_FOR_THE_FAST_LANE.values())
def test_anything_else_is_left_and_not_waited_for(data: bytes) -> None:
    before = frame(b"before")
    assert take_texts(data, 1000) == ([], 0, False)
    assert take_texts(before + data + frame(b"after"), 1000) == (["before"], len(before), False)


@rows("size", [0, 1, 125, 126, 1000])
def test_a_frame_that_is_not_whole_is_waited_for_wherever_it_is_cut(size: int) -> None:
    whole = frame(b"x" * size)
    for cut in range(len(whole)):
        assert take_texts(whole[:cut], 1000) == ([], 0, True)
        assert take_texts(whole + whole[:cut], 1000) == (["x" * size], len(whole), True)


@rows("most", [1, 124, 125, 126, 127, 65_535])
def test_a_message_may_have_as_many_bytes_as_it_may_and_not_one_more(most: int) -> None:
    assert take_texts(frame(b"x" * most, mask=ZEROS), most) == (["x" * most], len(frame(b"x" * most, mask=ZEROS)), True)
    if most < LONGEST:
        assert take_texts(header(TEXT, most + 1) + ZEROS, most) == ([], 0, False)


@rows("begin", ["ff", "c0", "80", "61 ff", "e0 9f", "ed a0", "ed bf", "f0 8f", "f4 90", "e2 82 41"])
def test_a_payload_that_cannot_become_utf_8_is_not_waited_for(begin: str) -> None:
    payload = bytes.fromhex(begin)
    whole = frame(payload + b"x" * 100)
    assert take_texts(whole[: 6 + len(payload) - 1], 1000) == ([], 0, True)
    assert take_texts(whole[: 6 + len(payload)], 1000) == ([], 0, False)


# Against a reference that reads byte by byte, as the RFC says it


def read_client_frame(data: bytes) -> tuple[str, int] | None:
    """Read a whole final masked text frame with a 7- or 16-bit length: its text and size. None where it is none."""
    if len(data) < 6 or data[0] != 0b1000_0001 or not data[1] & 0b1000_0000:
        return None
    length, start = data[1] & 0b0111_1111, 2
    if length == 127:
        return None
    if length == 126:
        length, start = data[2] * 256 + data[3], 4
        if length < 126:
            return None
    mask, masked = data[start : start + 4], data[start + 4 : start + 4 + length]
    if len(mask) < 4 or len(masked) < length:
        return None
    try:
        return bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked)).decode(), start + 4 + length
    except UnicodeDecodeError:
        return None


def read_client_frames(data: bytes, most: int) -> tuple[list[str], int]:
    """Read all that take_texts may take."""
    texts: list[str] = []
    used = 0
    while (read := read_client_frame(data[used:])) and len(read[0].encode()) <= most:
        texts.append(read[0])
        used += read[1]
    return texts, used


TAILS = [bytes.fromhex(each) for each in ("", "80", "8080", "808080", "a080", "908080")]
"""One of them completes any beginning of a well-formed UTF-8 sequence (Unicode, Table 3-7)."""


def may_become_text(begin: bytes, most: int) -> bool:
    """Whether some bytes behind begin make a text frame of it, each length and each end of its text tried."""
    for length in range(most + 1):
        head = header(TEXT, length)
        if head.startswith(begin):
            return True
        if begin.startswith(head):
            mask, masked = begin[len(head) : len(head) + 4], begin[len(head) + 4 :]
            payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))
            if len(payload) >= length:  # it is there, and nothing behind it belongs to it
                return _is_utf8(payload[:length])
            return any(_is_utf8(payload + tail) for tail in TAILS)
    return False


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


TEXTS = (
    st.text(max_size=60) | st.integers(0, 400).map(lambda size: "x" * size) | st.text("aé€𝄞\ud7ff\ue000", max_size=9)
)
MASKS = st.binary(min_size=4, max_size=4) | st.just(ZEROS)
GOOD = st.builds(lambda text, mask: frame(text.encode(), mask=mask), TEXTS, MASKS)
BAD = st.sampled_from(sorted(each for each in NOT_FOR_THE_FAST_LANE.values() if len(each) < 500))
CHANGED = st.builds(
    lambda whole, place, byte: whole[: place % len(whole)] + bytes((byte,)) + whole[place % len(whole) + 1 :],
    GOOD,
    st.integers(0, 40),
    st.integers(0, 255),
)
STREAMS = st.builds(
    lambda whole, rest, cut: b"".join(whole) + rest[: len(rest) - cut],
    st.lists(GOOD, max_size=6),
    st.one_of(GOOD, BAD, CHANGED, st.binary(max_size=20)),
    st.integers(0, 20),
)


@given(STREAMS, st.sampled_from([100, 125, 126, 300, LONGEST]))
@example(frame(b"ab\xed\xa0\x80")[:-1], 100)
def test_what_is_taken_is_what_the_rfc_says_and_ends_where_it_does(data: bytes, most: int) -> None:
    texts, used, _ = take_texts(data, most)
    assert (texts, used) == read_client_frames(data, most)


@given(STREAMS, st.sampled_from([100, 125, 126, 300]))
@example(frame(b"ab\xed\xa0\x80")[:-1], 100)
@example(frame(b"\xe2\x82"), 100)
def test_the_rest_is_waited_for_where_more_bytes_can_make_a_text_of_it_and_nowhere_else(data: bytes, most: int) -> None:
    _, used, wait = take_texts(data, most)
    rest = data[used:]
    whole = read_client_frame(rest)  # one that is too long
    assert wait == (whole is None and may_become_text(rest, most))


@given(STREAMS, STREAMS)
def test_what_follows_changes_nothing_of_what_is_taken(data: bytes, later: bytes) -> None:
    texts, used, _ = take_texts(data, 300)
    more, further, _ = take_texts(data + later, 300)
    assert more[: len(texts)] == texts
    assert further >= used
    assert take_texts(data[:used], 300) == (texts, used, True)


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=5))
def test_a_stream_in_pieces_gives_what_it_gives_at_once(data: bytes, places: Sequence[int]) -> None:
    taken, buffer, start = [], b"", 0
    for place in [*sorted(places), len(data)]:
        buffer, start = buffer + data[start:place], max(start, place)
        texts, used, _ = take_texts(buffer, 300)
        taken += texts
        buffer = buffer[used:]
    assert (taken, len(data) - len(buffer)) == take_texts(data, 300)[:2]
