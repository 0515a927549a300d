"""permessage-deflate (RFC 7692): which offers are taken up, what comes in deflated, and one deflated blob for all."""

import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.sync.client import connect

from chatd.config.settings import Config
from tests.clients.test_websocket import CONFIG, ChatServer, Client
from tests.conformance.testee import CONFIG as ECHO
from tests.conformance.testee import listen
from tests.frames import BINARY, CONTINUATION, PING, PONG, TEXT, frame, handshake
from tests.rows import rows

COMPRESSING = Config(max_message_size=1000, compress=True, flush_interval=0)
RSV1 = 0x40
TAKEN_UP = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LONG = "a word and a word and a word " * 20


def deflated(payload: bytes) -> bytes:
    """Compress a message as RFC 7692, section 7.2.1, says."""
    deflate = zlib.compressobj(wbits=-15)
    return (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=-15).decompress(payload + b"\x00\x00\xff\xff")


def compressed(payload: bytes, *, fin: bool = True) -> bytes:
    """Make a client's frame that begins a compressed message."""
    return frame(payload, TEXT | RSV1, fin=fin)


def client(server: ChatServer, offer: str = "permessage-deflate") -> Client:
    return server.client(head=handshake(Sec_WebSocket_Extensions=offer))


def sent(to: Client) -> list[tuple[int, bytes]]:
    """Return first byte and payload of each small frame that was sent after the handshake."""
    data = to.transport.value().partition(b"\r\n\r\n")[2]
    frames = []
    while data:
        start, size = (2, data[1]) if data[1] < 126 else (4, int.from_bytes(data[2:4]))
        frames.append((data[0], data[start : start + size]))
        data = data[start + size :]
    return frames


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Return a list that gets the peak of allocated bytes at the end."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@rows(
    ("offer", "taken_up"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),
        ("permessage-deflate; client_max_window_bits=9", True),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", True),
        ('permessage-deflate; server_max_window_bits="15"', True),
        ("x-webkit-deflate-frame, permessage-deflate", True),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", True),
        ("permessage-deflate; no_such_thing, permessage-deflate", True),
        ("", False),
        ("x-webkit-deflate-frame", False),
        ("permessage-deflate; server_max_window_bits=10", False),
        ("permessage-deflate; server_max_window_bits=16", False),
        ("permessage-deflate; server_max_window_bits", False),
        ("permessage-deflate; server_no_context_takeover=1", False),
        ("permessage-deflate; client_max_window_bits=7", False),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", False),
        ("permessage-deflate; no_such_thing", False),
        (";=,;;", False),
    ],
)
def test_the_first_offer_that_can_be_met_is_taken_up_and_without_one_it_goes_on_without(
    offer: str, taken_up: bool
) -> None:
    answer = client(ChatServer(COMPRESSING), offer).heard
    assert answer.status == 101
    asked = "; server_max_window_bits=15" if '="15"' in offer else ""
    assert answer.headers.get("sec-websocket-extensions", "") == (TAKEN_UP + asked if taken_up else "")


def test_it_is_not_taken_up_unless_it_is_switched_on() -> None:
    answer = client(ChatServer(CONFIG)).heard
    assert answer.status == 101
    assert "sec-websocket-extensions" not in answer.headers


class MessageTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer(COMPRESSING)
        self.client = client(self.server)

    def test_a_compressed_message_is_taken(self) -> None:
        self.client.send(compressed(deflated(LONG.encode())))
        assert self.server.published() == [LONG]

    def test_one_that_is_not_compressed_is_taken_too(self) -> None:
        self.client.send(frame(b"a") + compressed(deflated(b"b")) + frame(b"c"))
        assert self.server.published() == ["a", "b", "c"]

    def test_each_message_is_inflated_by_itself(self) -> None:
        self.client.send(*[compressed(deflated(LONG.encode()))] * 3)
        assert self.server.published() == [LONG] * 3

    def test_fragments_with_a_ping_between_are_one_message(self) -> None:
        data = deflated(LONG.encode())
        self.client.send(compressed(data[:7], fin=False), frame(b"hi", PING), frame(data[7:], CONTINUATION))
        assert self.server.published() == [LONG]
        assert sent(self.client) == [(0x80 | PONG, b"hi")]

    def test_a_continuation_that_says_it_is_compressed_is_1002(self) -> None:
        data = deflated(LONG.encode())
        self.client.send(compressed(data[:7], fin=False), frame(data[7:], CONTINUATION | RSV1))
        assert self.client.closed_with == 1002

    def test_a_compressed_ping_is_1002(self) -> None:
        self.client.send(frame(b"hi", PING | RSV1))
        assert self.client.closed_with == 1002

    def test_a_compressed_frame_of_one_that_has_not_agreed_is_1002(self) -> None:
        other = self.server.client()
        other.send(compressed(deflated(b"hello")))
        assert other.closed_with == 1002

    def test_what_is_no_deflate_is_1007(self) -> None:
        self.client.send(compressed(b"\xff" * 20))
        assert self.client.closed_with == 1007
        assert self.server.published() == []

    def test_what_inflates_to_no_utf_8_is_1007(self) -> None:
        self.client.send(compressed(deflated(b"\xff\xff")))
        assert self.client.closed_with == 1007

    def test_the_limit_is_on_what_it_inflates_to(self) -> None:
        self.client.send(compressed(deflated(b"x" * 1000)))
        assert self.server.published() == ["x" * 1000]
        self.client.send(compressed(deflated(b"x" * 1003)))
        assert self.client.closed_with == 1009

    def test_what_is_over_the_limit_is_never_cut_to_fit(self) -> None:
        for size in range(1001, 1300):
            server = ChatServer(COMPRESSING)
            victim = client(server)
            victim.send(compressed(deflated(b"x" * 1000 + b"\r\n" + b"x" * (size - 1000))))
            assert (victim.closed_with, server.published()) == (1009, [])

    def test_a_message_of_the_limit_is_taken_however_it_is_cut(self) -> None:
        whole = compressed(deflated(b"x" * 1000 + b"\r\n"))
        for cut in range(1, len(whole)):
            self.client.send(whole[:cut], whole[cut:])
        for each in whole:
            self.client.send(bytes((each,)))
        assert self.server.published() == ["x" * 1000] * len(whole)

    def test_a_message_of_the_limit_that_compression_makes_longer_is_taken(self) -> None:
        stored = zlib.compressobj(level=0, wbits=-15)
        in_blocks = b"".join(
            stored.compress(b"x" * 50) + stored.flush(zlib.Z_SYNC_FLUSH) for _ in range(20)
        ).removesuffix(b"\0\0\xff\xff")
        fixed = zlib.compressobj(wbits=-15, strategy=zlib.Z_FIXED)
        text = "".join(chr(0x4E00 + each * 37) for each in range(333)) + "!"
        assert len(text.encode()) == 1000
        nine_bits = (fixed.compress(text.encode()) + fixed.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
        assert min(len(in_blocks), len(nine_bits)) > 1002
        self.client.send(compressed(in_blocks), compressed(nine_bits))
        assert self.server.published() == ["x" * 1000, text]

    def test_a_message_without_its_end_is_1007(self) -> None:
        whole = deflated(LONG.encode())
        for size in range(len(whole)):
            server = ChatServer(COMPRESSING)
            victim = client(server)
            victim.send(compressed(whole[:size]))
            assert (victim.closed_with, server.published()) == (1007, [])

    def test_what_follows_the_end_of_a_deflate_stream_is_1007(self) -> None:
        ended = zlib.compressobj(wbits=-15)
        self.client.send(compressed(ended.compress(b"hello") + ended.flush(zlib.Z_FINISH) + deflated(b"more")))
        assert (self.client.closed_with, self.server.published()) == (1007, [])

    def test_a_bomb_is_1009_and_never_unpacked(self) -> None:
        server = ChatServer(Config(max_message_size=100_000, compress=True))
        victim = client(server)
        bomb = frame(deflated(bytes(50_000_000)), TEXT | RSV1)
        assert len(bomb) < 100_000
        with peak_memory() as peak:
            victim.send(bomb)
        assert victim.closed_with == 1009
        assert peak[0] < 5_000_000

    def test_a_bomb_in_fragments_is_1009(self) -> None:
        data = deflated(b"x" * 100_000)
        self.client.send(compressed(data[:10], fin=False), frame(data[10:], CONTINUATION))
        assert self.client.closed_with == 1009

    def test_what_a_program_hears_and_says_is_compressed(self) -> None:
        agreed = handshake(Sec_WebSocket_Protocol="chatd.v1", Sec_WebSocket_Extensions="permessage-deflate")
        program = self.server.client(head=agreed)
        self.server.publish(1, 900)
        first, payload = sent(program)[-1]
        assert first == 0x81 | RSV1
        assert b'"type":"message"' in inflated(payload)
        program.send(compressed(deflated(b'{"type":"publish","room":"lobby","text":"%b"}' % (b"x" * 1000))))
        assert self.server.published() == ["x" * 1000]

    def test_an_idle_client_keeps_nothing_of_a_compressed_message(self) -> None:
        others = [client(self.server) for _ in range(40)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        for each in others:
            each.send(compressed(deflated(LONG.encode())))
        self.server.published()
        for each in others:
            each.transport.clear()
        self.server.bus.published.clear()
        assert (tracemalloc.get_traced_memory()[0] - before) / len(others) < 4000

    def test_a_batch_is_compressed_once_for_all_who_agreed(self) -> None:
        others, plain = [client(self.server) for _ in range(5)], self.server.client()
        self.client.send(frame(LONG.encode()), frame(b"short"))
        self.server.published()
        blobs = {other.transport.value().partition(b"\r\n\r\n")[2] for other in others}
        assert len(blobs) == 1
        [(first, payload), (second, short)] = sent(others[0])
        assert (first, inflated(payload)) == (0x81 | RSV1, LONG.encode())
        assert (second, short) == (0x81, b"short")
        assert plain.heard.texts == [LONG, "short"]
        assert sent(self.client) == []

    def test_compressing_costs_the_same_however_many_have_agreed_and_whoever_spoke(self) -> None:
        made, compressobj = [], zlib.compressobj

        def counted(**options: Any) -> Any:
            made.append(options)
            return compressobj(**options)

        self.patch(zlib, "compressobj", counted)
        others = [client(self.server) for _ in range(10)]
        self.client.send(frame(b"one"), frame(LONG.encode()))
        others[0].send(frame(b"two"))
        self.server.published()
        assert len(made) == 3
        assert len(sent(others[1])) == 3
        assert (len(sent(others[0])), len(sent(self.client))) == (2, 1)

    def test_what_it_hears_is_the_same_object_as_the_others_hear(self) -> None:
        """One blob in memory, however many have agreed."""
        heard: list[bytes] = []
        for each in [client(self.server) for _ in range(3)]:
            each.transport.write = heard.append  # type: ignore[method-assign, assignment]
        self.client.send(frame(LONG.encode()))
        self.server.published()
        assert len(heard) == 3
        assert heard[0] is heard[1] is heard[2]


class LibraryTests(TestCase):
    """A client that is not ours, with a compression of its own."""

    def setUp(self) -> None:
        from dataclasses import replace

        port, self.factory = listen(real_reactor, 0, replace(ECHO, compress=True))
        self.addCleanup(port.stopListening)
        self.url = f"ws://127.0.0.1:{port.getHost().port}/"  # type: ignore[attr-defined]

    def test_it_understands_what_it_is_told_and_is_understood(self) -> None:
        messages: list[str | bytes] = [LONG, "short", "", "€" * 5000, b"\x00" * 3000, LONG]

        def talk() -> tuple[str, list[str | bytes]]:
            with connect(self.url) as websocket:
                answers = []
                for message in messages:
                    websocket.send(message)
                    answers.append(websocket.recv(timeout=20))
                response = websocket.response
                assert response is not None
                return response.headers["Sec-WebSocket-Extensions"], answers

        def talked(result: tuple[str, list[str | bytes]]) -> None:
            assert result == (TAKEN_UP, messages)

        return deferToThread(talk).addCallback(talked)  # type: ignore[return-value]


def test_a_binary_first_fragment_that_is_compressed_is_1003_at_once() -> None:
    bare = client(ChatServer(COMPRESSING))
    bare.send(frame(deflated(b"abc"), BINARY | RSV1, fin=False))
    assert bare.closed_with == 1003
