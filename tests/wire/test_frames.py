from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.wire.frames import text_frame


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


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "81 00"),
        (125, "81 7d"),
        (126, "81 7e 00 7e"),
        (256, "81 7e 01 00"),
        (65535, "81 7e ff ff"),
        (65536, "81 7f 00 00 00 00 00 01 00 00"),
    ],
)
def test_the_length_of_a_frame_takes_the_fewest_bytes(size: int, head: str) -> None:
    assert text_frame(b"x" * size) == bytes.fromhex(head) + b"x" * size


@given(st.lists(st.binary(max_size=300) | st.integers(65500, 65600).map(bytes), max_size=5))
def test_frames_joined_in_one_blob_come_apart_again(payloads: list[bytes]) -> None:
    assert list(read_frames(b"".join(map(text_frame, payloads)))) == payloads
