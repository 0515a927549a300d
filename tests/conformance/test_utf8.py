"""RFC 6455, section 8.1, and Unicode's Table 3-7: what is UTF-8 and what is not, cut at every byte."""

from collections.abc import Iterator
from itertools import product

from tests.conformance.conftest import Connect
from tests.conformance.raw import BOTH_WAYS, Chop, in_pieces
from tests.frames import BINARY, CONTINUATION, TEXT, frame, header
from tests.rows import rows

both_ways = rows("chop", BOTH_WAYS)

TAIL = (0x80, 0xBF)
TABLE_3_7 = [
    [(0x00, 0x7F)],
    [(0xC2, 0xDF), TAIL],
    [(0xE0, 0xE0), (0xA0, 0xBF), TAIL],
    [(0xE1, 0xEC), TAIL, TAIL],
    [(0xED, 0xED), (0x80, 0x9F), TAIL],
    [(0xEE, 0xEF), TAIL, TAIL],
    [(0xF0, 0xF0), (0x90, 0xBF), TAIL, TAIL],
    [(0xF1, 0xF3), TAIL, TAIL, TAIL],
    [(0xF4, 0xF4), (0x80, 0x8F), TAIL, TAIL],
]
"""The first and the last byte there may be at each place of a well-formed sequence."""


def may_begin(data: bytes) -> bool:
    """Whether a well-formed sequence begins with data, or is it."""
    return any(
        len(data) <= len(row) and all(low <= byte <= high for byte, (low, high) in zip(data, row, strict=False))
        for row in TABLE_3_7
    )


def well_formed() -> Iterator[bytes]:
    """Give the first and the last sequences of each row, and those between at the edges of each place."""
    for row in TABLE_3_7:
        yield from sorted({bytes(each) for each in product(*row)})


def ill_formed() -> Iterator[bytes]:
    """Give what is wrong at its last byte and nowhere before: just beside what there may be, and far from it."""
    found = set()
    for row in TABLE_3_7:
        for place, (low, high) in enumerate(row):
            for before in zip(*row[:place], strict=True) if place else [()]:  # the first ones, and the last ones
                for bad in (low - 1, high + 1, 0x41, 0xC0, 0xC1, 0xF5, 0xFF):
                    each = bytes((*before, bad % 256))
                    if not may_begin(each):
                        found.add(each)
    yield from sorted(found)


WELL_FORMED, ILL_FORMED = list(well_formed()), list(ill_formed())
SHORT = "κόσμε, Grüße €𝄞 \U0010ffff\ufeff\ud7ff\ue000\0".encode()


def test_the_tables_are_what_they_should_be() -> None:
    assert len(WELL_FORMED) == 62
    assert len(ILL_FORMED) > 150
    surrogate, overlong, beyond = b"\xed\xa0", b"\xe0\x9f", b"\xf4\x90"
    assert {surrogate, overlong, beyond, b"\xc0", b"\xc1", b"\xf5", b"\x80", b"\xf0\x8f"} <= set(ILL_FORMED)


# What is UTF-8


@both_ways
@rows("around", [b"", b"x", b"x" * 200, b"x" * 70_000])
def test_well_formed_text_comes_back(connect: Connect, around: bytes, chop: Chop) -> None:
    with connect() as client:
        for each in WELL_FORMED[:: 1 if len(around) < 1000 else 8]:
            text = around + each + around
            client.send(frame(text), chop)
            client.expect([(TEXT, text)])
        client.expect_alive()


def test_all_of_it_in_one_message_comes_back(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"".join(WELL_FORMED) * 10), in_pieces)
        client.expect([(TEXT, b"".join(WELL_FORMED) * 10)])


@rows("text", [SHORT, *WELL_FORMED[2:]])
def test_text_may_be_cut_at_every_byte_into_fragments(connect: Connect, text: bytes) -> None:
    with connect() as client:
        for cut in range(len(text) + 1):
            client.send(frame(text[:cut], fin=False))
            client.send(frame(text[cut:], CONTINUATION))
            client.expect([(TEXT, text)])
        for each in range(len(text)):
            client.send(frame(text[each : each + 1], CONTINUATION if each else TEXT, fin=each == len(text) - 1))
        client.expect([(TEXT, text)])


def test_text_may_be_cut_at_every_byte_into_writes(connect: Connect) -> None:
    whole = frame(SHORT)
    with connect() as client:
        for cut in range(1, len(whole)):
            client.send(whole[:cut])
            client.send(whole[cut:])
            client.expect([(TEXT, SHORT)])


def test_a_binary_message_may_hold_anything(connect: Connect) -> None:
    with connect() as client:
        for each in ILL_FORMED:
            client.send(frame(each, BINARY) + frame(each, BINARY, fin=False) + frame(each, CONTINUATION))
        for each in ILL_FORMED:
            client.expect([(BINARY, each), (BINARY, each * 2)])


def test_each_message_begins_anew(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"\xc3", BINARY) + frame(b"a") + frame(b"\xff", BINARY, fin=False))
        client.send(frame(b"\xff", CONTINUATION) + frame("ü".encode(), fin=False) + frame(b"", CONTINUATION))
        client.expect([(BINARY, b"\xc3"), (TEXT, b"a"), (BINARY, b"\xff\xff"), (TEXT, "ü".encode())])


# What is not


@rows("bad", ILL_FORMED)
def test_ill_formed_text_is_1007(connect: Connect, bad: bytes) -> None:
    with connect() as client:
        client.send(frame(b"good") + frame(b"ab" + bad + b"\x80\x80\x80") + frame(b"later"))
        client.expect([(TEXT, b"good")])
        client.expect_failure(1007)


@rows("around", [b"x" * 200, b"x" * 70_000])
@rows("bad", ILL_FORMED[::20])
def test_ill_formed_text_in_a_long_message_is_1007(connect: Connect, bad: bytes, around: bytes) -> None:
    with connect() as client:
        client.send(frame(around + bad + around), in_pieces)
        client.expect_failure(1007)


@rows("bad", ILL_FORMED)
def test_a_fragment_fails_at_its_first_bad_byte_and_no_earlier(connect: Connect, bad: bytes) -> None:
    with connect() as client:
        client.send(frame(b"ab" + bad[:-1], fin=False))
        client.expect_alive()
        client.send(frame(bad[-1:], CONTINUATION, fin=False))
        client.expect_failure(1007)


@rows("announced", [100, 1000, 100_000])
@rows("bad", ILL_FORMED)
def test_a_frame_fails_at_its_first_bad_byte_though_more_has_to_come(
    connect: Connect, bad: bytes, announced: int
) -> None:
    with connect() as client:
        client.send(header(TEXT, announced) + bytes(4) + b"ab" + bad[:-1])
        client.send(bad[-1:])
        client.expect_failure(1007)


@rows("whole", [each for each in WELL_FORMED if len(each) > 1])
def test_text_that_ends_inside_a_character_is_1007(connect: Connect, whole: bytes) -> None:
    for cut in range(1, len(whole)):
        with connect() as client:
            client.send(frame(b"ab" + whole[:cut]))
            client.expect_failure(1007)
        with connect() as client:
            client.send(frame(b"ab", fin=False) + frame(whole[:cut], CONTINUATION, fin=False))
            client.expect_alive()
            client.send(frame(b"", CONTINUATION))
            client.expect_failure(1007)
