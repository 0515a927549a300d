"""RFC 6455, section 5.4: messages in fragments, and control frames between them."""

from tests.conformance.conftest import Connect
from tests.conformance.raw import BOTH_WAYS, Chop, at_once
from tests.frames import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from tests.rows import rows

both_ways = rows("chop", BOTH_WAYS)
both_kinds = rows("opcode", [TEXT, BINARY])


def fragments(*parts: bytes, opcode: int = TEXT) -> list[bytes]:
    """Make the frames of one message."""
    last = len(parts) - 1
    return [
        frame(part, CONTINUATION if place else opcode, fin=place == last, mask=bytes((place % 256, 7, 8, 9)))
        for place, part in enumerate(parts)
    ]


@both_ways
@both_kinds
@rows(
    "parts",
    [
        (b"Hel", b"lo"),
        (b"", b"Hello"),
        (b"Hello", b""),
        (b"", b""),
        (b"", b"", b"", b"Hello", b"", b""),
        (b"H", b"e", b"l", b"l", b"o"),
        (b"x" * 125, b"y" * 126, b"z" * 65_535, b"!" * 65_536),
    ],
)
def test_fragments_are_put_together(connect: Connect, parts: tuple[bytes, ...], opcode: int, chop: Chop) -> None:
    with connect() as client:
        client.send(b"".join(fragments(*parts, opcode=opcode)), chop)
        client.expect([(opcode, b"".join(parts))])
        client.expect_alive()


@both_kinds
def test_thousands_of_fragments_are_one_message(connect: Connect, opcode: int) -> None:
    parts = [b"%d " % each for each in range(5000)]
    with connect() as client:
        client.send(b"".join(fragments(*parts, opcode=opcode)))
        client.expect([(opcode, b"".join(parts))])


def test_thousands_of_empty_fragments_are_one_message(connect: Connect) -> None:
    with connect() as client:
        client.send(b"".join(fragments(b"a", *[b""] * 5000, b"b")))
        client.expect([(TEXT, b"ab")])


@both_ways
@both_kinds
def test_control_frames_between_fragments_are_answered_at_once(connect: Connect, opcode: int, chop: Chop) -> None:
    first, second, third = fragments(b"fragment1", b"fragment2", b"fragment3", opcode=opcode)
    with connect() as client:
        client.send(first + frame(b"1", PING) + frame(b"2", PING) + second + frame(b"3", PONG), chop)
        client.expect([(PONG, b"1"), (PONG, b"2")])
        client.send(frame(b"4", PING) + third, chop)
        client.expect([(PONG, b"4"), (opcode, b"fragment1fragment2fragment3")])
        client.expect_alive()


def test_each_fragment_may_have_a_ping_before_it(connect: Connect) -> None:
    whole = fragments(*[b"x"] * 1000)
    with connect() as client:
        client.send(b"".join(frame(b"%d" % place, PING) + each for place, each in enumerate(whole)))
        client.expect([*((PONG, b"%d" % place) for place in range(1000)), (TEXT, b"x" * 1000)])


@both_ways
def test_messages_in_fragments_and_whole_ones_keep_their_order(connect: Connect, chop: Chop) -> None:
    sent = [*fragments(b"a", b"b"), frame(b"c"), *fragments(b"", b"d", opcode=BINARY), frame(b"e"), frame(b"f")]
    with connect() as client:
        client.send(b"".join(sent), chop)
        client.expect([(TEXT, b"ab"), (TEXT, b"c"), (BINARY, b"d"), (TEXT, b"e"), (TEXT, b"f")])
        client.expect_alive()


@both_ways
@both_kinds
@rows("fin", [True, False])
@rows("second", [TEXT, BINARY])
def test_a_second_message_inside_one_in_fragments_is_1002(
    connect: Connect, opcode: int, second: int, fin: bool, chop: Chop
) -> None:
    with connect() as client:
        client.send(frame(b"Hel", opcode, fin=False) + frame(b"other", second, fin=fin), chop)
        client.expect_failure(1002)


@both_ways
@rows("fin", [True, False])
@rows("size", [0, 5])
def test_a_continuation_of_nothing_is_1002(connect: Connect, size: int, fin: bool, chop: Chop) -> None:
    with connect() as client:
        client.send(frame(b"x" * size, CONTINUATION, fin=fin) + frame(b"Hello"), chop)
        client.expect_failure(1002)


@rows("before", [[frame(b"whole")], fragments(b"who", b"le")])
def test_a_continuation_of_what_has_ended_is_1002(connect: Connect, before: list[bytes]) -> None:
    with connect() as client:
        client.send(b"".join(before) + frame(b"more", CONTINUATION), at_once)
        client.expect([(TEXT, b"whole")])
        client.expect_failure(1002)


def test_a_fragment_alone_is_no_message(connect: Connect) -> None:
    with connect() as client:
        client.send(frame(b"Hel", fin=False))
        client.expect_alive()
