"""One client's WebSocket: bytes, back-pressure and closing, on a clock and a transport in memory."""

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, count, repeat
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from chatd.clients.factory import ConnectionFactory
from chatd.clients.send_buffer import SendBuffer
from chatd.clients.websocket import Connection
from chatd.config.settings import Config
from chatd.protocol.close_codes import OUR_FAULT, STOPPING, TAKEN_OVER, too_slow
from chatd.protocol.http_head import HEAD_END, Upgrade, read_head, read_target, read_upgrade
from chatd.protocol.message import Message
from chatd.protocol.websocket_frames import text_frame
from chatd.rooms.hub import Hub
from tests.depth import depth
from tests.fakes import FakeBus, FakeChatLog, FakeTransport
from tests.frames import (
    ACCEPT,
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    Heard,
    close_frame,
    frame,
    handshake,
    header,
    heard,
)

CONFIG = Config(max_message_size=1000, max_send_buffer=300_000, empty_fragments_per_message=20, flush_interval=0)
KIB64 = b"x" * 65_536


class ChatServer:
    """A factory on a bus in memory and a clock."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.clock = Clock()
        self.clock.advance(1000.7)
        self.bus = FakeBus()
        bus: Any = self.bus
        self.hub = Hub(bus, FakeChatLog().log, config, self.clock)
        self.factory = ConnectionFactory(self.clock, lambda room: self.hub, config, "w")
        self.heard = 0

    def client(self, target: str = "/", head: bytes | None = None) -> "Client":
        return Client(self, target, head)

    def publish(self, count: int, size: int = 65_536) -> list[str]:
        """Publish messages from another worker; return their texts."""
        texts = []
        for _ in range(count):
            self.heard += 1
            texts.append(f"{self.heard:04d}".ljust(size, "x"))
            message = Message(f"e.{self.heard}", int(time.time() * 1000), "elsewhere", texts[-1])
            self.bus.say("lobby", [message], self.heard, "elsewhere")
            self.bus.pump()
            self.clock.advance(0)
        return texts

    def published(self) -> list[str]:
        """End this turn of the reactor; return the texts of all published messages."""
        self.clock.advance(0)
        self.bus.pump()
        self.clock.advance(0)
        return [each.text for _, messages in self.bus.published for each in messages]


class Client:
    """A client of a connection."""

    def __init__(self, server: ChatServer, target: str, head: bytes | None) -> None:
        self.clock = server.clock
        asked, end, rest = (head or handshake(target)).partition(HEAD_END)
        upgrade = read_upgrade(read_head(asked + end))
        self.connection: Connection = server.factory.make(upgrade, read_target(target.encode()), "192.0.2.7")
        self.transport = FakeTransport(server.clock, self.connection)
        self.connection.makeConnection(self.transport)
        if rest:
            self.transport.receive(rest)

    def send(self, *data: bytes) -> None:
        for each in data:
            self.transport.receive(each)

    @property
    def heard(self) -> Heard:
        return heard(self.transport.value())

    def takes_all(self) -> None:
        """Acknowledge everything that was written."""
        self.connection.resumeProducing()

    @property
    def closed_with(self) -> int:
        """Return the code of the Close frame that was received; 0 if there is none."""
        return self.heard.close_code

    @property
    def gone(self) -> str:
        """Return why the connection is lost: the name of the error, or an empty text."""
        self.clock.advance(0)
        return "" if self.transport.lost is None else type(self.transport.lost.value).__name__


class HandshakeTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer()

    def test_it_is_answered_as_rfc_6455_says_and_without_compression(self) -> None:
        head = handshake(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
        for answer in (self.server.client().heard, self.server.client(head=head).heard):
            assert answer.status == 101
            assert answer.headers["sec-websocket-accept"] == ACCEPT
            assert answer.headers["upgrade"].lower() == "websocket"
            assert not {"server", "sec-websocket-extensions"} & answer.headers.keys()

    def test_it_is_answered_only_once_the_room_is_subscribed(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        assert client.heard.status == 0
        self.server.bus.confirm("ops")
        assert client.heard.status == 101

    def test_it_is_answered_before_any_message(self) -> None:
        self.server.bus.confirm_at_once = False
        first, second = self.server.client("/ops"), self.server.client("/ops")
        self.server.bus.confirm("ops")
        first.send(frame(b"a"))
        self.server.published()
        assert second.heard.status == 101
        assert second.heard.texts == ["a"]

    def test_a_frame_right_behind_it_is_not_lost(self) -> None:
        self.server.client(head=handshake() + frame(b"a"))
        assert self.server.published() == ["a"]

    def test_frames_sent_while_joining_are_not_lost(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops", handshake("/ops") + frame(b"a")[:3])
        client.send(frame(b"a")[3:], frame(b"b"))
        assert client.transport.producerState == "paused"
        assert self.server.published() == []
        self.server.bus.confirm("ops")
        assert client.transport.producerState == "producing"
        assert self.server.published() == ["a", "b"]

    def test_a_second_handshake_while_joining_is_not_taken_for_one(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        client.send(handshake("/ops"), frame(b"a"))
        self.server.bus.confirm("ops")
        assert self.server.published() == []
        assert client.heard.status == 101
        assert client.closed_with == 1002

    def test_a_room_that_cannot_be_joined_in_time_is_503(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        self.server.clock.advance(CONFIG.subscribe_timeout - 0.1)
        assert client.heard.status == 0
        self.server.clock.advance(0.1)
        assert client.heard.status == 503
        assert client.heard.headers["retry-after"] == "5"
        assert json.loads(client.heard.body)["error"] == "unavailable"
        assert client.gone == "ConnectionDone"
        assert self.server.bus.rooms == {}

    def test_an_answer_of_the_broker_after_the_503_changes_nothing(self) -> None:
        self.server.bus.answer_at_once = False
        client = self.server.client("/ops?resume=abcdefgh")
        client.transport.client_reads = False
        self.server.bus.answer(1)  # where the order stands; not yet the place
        self.server.clock.advance(CONFIG.subscribe_timeout)
        said = client.transport.value()
        self.server.bus.answer()
        assert client.heard.status == 503
        assert client.transport.value() == said
        assert self.server.bus.rooms == {}

    def test_a_refused_client_that_does_not_read_is_aborted(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        client.transport.client_reads = False
        waiters = self.server.bus.rooms["ops"]
        assert waiters
        self.server.clock.advance(CONFIG.subscribe_timeout)
        assert (self.server.bus.rooms, waiters) == ({}, [])
        self.server.clock.advance(CONFIG.close_timeout - 0.1)
        assert client.gone == ""
        self.server.clock.advance(0.1)
        assert client.gone == "ConnectionAborted"

    def test_a_client_gone_while_joining_is_forgotten(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        client.transport.vanish()
        assert self.server.bus.rooms == {}
        assert len(self.server.factory.connections) == 0
        self.server.clock.advance(CONFIG.subscribe_timeout)
        assert client.heard.status == 0
        assert self.server.clock.getDelayedCalls() == []

    def test_an_error_of_ours_while_joining_is_500_and_logged(self) -> None:
        self.server.hub.join = lambda *args: 1 // 0  # type: ignore[method-assign, assignment]
        client = self.server.client("/ops")
        assert client.heard.status == 500
        assert json.loads(client.heard.body)["message"] == OUR_FAULT.reason
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_an_error_of_ours_right_after_the_answer_is_1011_and_no_second_answer(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops", handshake("/ops") + frame(b"a"))
        client.connection.consumeData = lambda: 1 // 0  # type: ignore[method-assign, assignment]
        self.server.bus.confirm("ops")
        assert client.heard.status == 101
        assert client.closed_with == 1011
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_a_wait_for_a_room_that_came_in_time_is_over(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        self.server.bus.confirm("ops")
        self.server.clock.advance(CONFIG.subscribe_timeout * 2)
        assert (client.heard.status, client.gone) == (101, "")


class MessageTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer()
        self.client = self.server.client()

    def test_a_message_reaches_the_others_in_one_frame(self) -> None:
        other = self.server.client()
        self.client.send(frame(b"hello\n"))
        assert self.server.published() == ["hello"]
        assert other.heard.texts == ["hello"]
        assert self.client.heard.texts == []

    def test_frames_are_parsed(self) -> None:
        empty = frame(b"", CONTINUATION, fin=False)
        rows: list[tuple[str, list[bytes], list[str]]] = [
            (
                "bytes one by one",
                [bytes([byte]) for byte in frame(b"hello") + frame(b"w" * 200) + frame("€".encode())],
                ["hello", "w" * 200, "€"],
            ),
            (
                "fragments with a ping between them",
                [frame(b"a\xe2", fin=False), frame(b"hi", PING), frame(b"\x82\xacb", CONTINUATION)],
                ["a€b"],
            ),
            (
                "line ends do not count",
                [frame(b"x" * 1000 + b"\n"), frame(b"y" * 1000 + b"\r\n")],
                ["x" * 1000, "y" * 1000],
            ),
            (
                "as many fragments as bytes",
                [frame(b"x", fin=False), frame(b"x", CONTINUATION, fin=False) * 998, frame(b"y", CONTINUATION)],
                ["x" * 999 + "y"],
            ),
            (
                "as many empty fragments as allowed",
                [frame(b"a", fin=False), empty * 20, frame(b"b", CONTINUATION)],
                ["ab"],
            ),
            (
                "empty fragments count for each message",
                [frame(b"a", fin=False), empty * 19, frame(b"", CONTINUATION)] * 3,
                ["a"] * 3,
            ),
        ]
        for name, data, texts in rows:
            server = ChatServer()
            client = server.client()
            client.send(*data)
            assert (server.published(), client.closed_with) == (texts, 0), name

    def test_several_frames_in_one_read_are_one_batch(self) -> None:
        self.client.send(frame(b"a") + frame(b"b") + frame(b"c"))
        assert self.server.published() == ["a", "b", "c"]
        assert len(self.server.bus.published) == 1

    def test_a_bad_frame_closes_the_connection_at_once(self) -> None:
        begun = [frame(b"a", fin=False), *[frame(b"", CONTINUATION, fin=False)] * 20]
        rows: list[tuple[str, list[bytes], int]] = [
            ("binary", [frame(b"hello", BINARY)], 1003),
            ("invalid UTF-8", [frame(b"ab\xff")], 1007),
            ("half a character at the end", [frame("€".encode()[:2])], 1007),
            ("one byte too many", [frame(b"x" * 1001)], 1009),
            ("far too many bytes", [frame(b"x" * 1003)], 1009),
            ("a length without its payload", [header(TEXT, 2**62) + b"mask"], 1009),
            ("a length of 63 bits", [header(TEXT, 2**63) + b"mask"], 1002),
            ("large fragments", [frame(b"x" * 600, fin=False), frame(b"x" * 600, CONTINUATION, fin=False)], 1009),
            ("an empty fragment too many", [*begun, frame(b"", CONTINUATION)], 1009),
            ("an unmasked frame", [frame(b"hello", mask=b"")], 1002),
            ("reserved bits", [bytes((0xC1,)) + frame(b"hello")[1:]], 1002),
        ]
        for name, data, code in rows:
            server = ChatServer()
            client = server.client()
            client.send(*data[:-1])
            assert len(data) == 2 or client.closed_with == 0, name
            client.send(data[-1], frame(b"too late"), KIB64)
            assert (client.closed_with, server.published()) == (code, []), name
            assert [opcode for opcode, _ in client.heard.frames] == [CLOSE], name

    def test_an_internal_error_is_1011_logged_and_leaves_other_clients_alone(self) -> None:
        other = self.server.client()
        publish = self.server.hub.publisher.publish
        self.server.hub.publisher.publish = lambda *args: 1 // 0  # type: ignore[method-assign, assignment]
        self.client.send(frame(b"hello"))
        assert self.client.closed_with == 1011
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        self.server.hub.publisher.publish = publish  # type: ignore[method-assign]
        other.send(frame(b"still here"))
        assert self.server.published() == ["still here"]

    def test_a_fault_of_the_client_is_not_for_our_log(self) -> None:
        with capturedLogs() as events:
            self.client.send(frame(b"ab\xff"))
            self.server.clock.advance(CONFIG.close_timeout)
        assert events == []

    def test_a_ping_is_answered_with_its_payload(self) -> None:
        self.client.send(frame(b"abc", PING))
        assert self.client.heard.frames == [(PONG, b"abc")]

    @given(st.lists(st.binary(max_size=40), max_size=8))
    @settings(max_examples=depth(60))
    def test_any_bytes_after_the_handshake_end_in_frames_or_a_close(self, reads: list[bytes]) -> None:
        server = ChatServer()
        client = server.client()
        client.send(*reads)
        server.published()
        assert {opcode for opcode, _ in client.heard.frames} <= {PONG, CLOSE}
        server.clock.pump([1.0] * 60)
        assert client.gone
        assert len(server.factory.connections) == 0


class CloseTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer()
        self.client = self.server.client()

    def test_a_client_that_closes_and_does_not_read_is_aborted(self) -> None:
        self.client.transport.client_reads = False
        self.client.connection.deliver(text_frame(b"x" * 60_000), 1)
        self.client.send(close_frame(1000))
        self.server.clock.advance(CONFIG.close_timeout - 0.1)
        assert self.client.gone == ""
        self.server.clock.advance(0.1)
        assert self.client.gone == "ConnectionAborted"

    def test_a_client_that_does_not_answer_our_close_is_aborted(self) -> None:
        self.client.connection.close(STOPPING)
        assert self.client.closed_with == 1001
        self.server.clock.advance(CONFIG.close_timeout - 0.1)
        assert self.client.gone == ""
        self.server.clock.advance(0.1)
        assert self.client.gone == "ConnectionAborted"

    def test_a_client_that_answers_our_close_is_gone_at_once(self) -> None:
        self.client.connection.close(STOPPING)
        self.client.send(close_frame(1001))
        assert self.client.gone == "ConnectionDone"

    def test_after_our_close_with_its_reason_nothing_is_sent_or_published(self) -> None:
        self.client.connection.close(STOPPING)
        self.client.connection.close(OUR_FAULT)
        self.client.connection.deliver(text_frame(b"hello"), 1)
        assert self.client.heard.frames == [(CLOSE, (1001).to_bytes(2) + STOPPING.reason.encode())]
        self.client.send(frame(b"hello"))
        assert self.server.published() == []

    def test_a_paused_client_can_answer_our_close(self) -> None:
        self.client.connection.pause()
        self.client.connection.close(STOPPING)
        self.client.send(close_frame(1001))
        assert self.client.gone

    def test_a_paused_client_that_broke_the_protocol_is_closed_in_order(self) -> None:
        self.server.bus.away = "it is gone"
        self.client.send(frame(b"held") + frame(b"unmasked", mask=b""))
        assert self.client.closed_with == 1002
        assert self.client.transport.producerState == "producing"
        assert self.client.gone == "ConnectionDone"

    def test_a_close_frame_is_answered_and_the_socket_closed(self) -> None:
        for data, answer in (
            (close_frame(1000), (1000).to_bytes(2)),
            (close_frame(4321, b"enough"), (4321).to_bytes(2)),
            (frame(b"", CLOSE), b""),
        ):
            server = ChatServer()
            client = server.client()
            client.send(data)
            assert client.heard.frames == [(CLOSE, answer)]
            assert client.gone == "ConnectionDone"
            assert server.clock.getDelayedCalls() == []

    def test_a_bad_close_code_is_1002_and_no_reset(self) -> None:
        self.client.send(close_frame(1005))
        assert self.client.closed_with == 1002
        assert self.client.gone == "ConnectionDone"

    def test_a_bad_answer_to_our_close_ends_in_order_too(self) -> None:
        self.client.connection.close(STOPPING)
        self.client.send(close_frame(1001, b"\xff"))
        assert [opcode for opcode, _ in self.client.heard.frames] == [CLOSE]
        assert self.client.gone == "ConnectionDone"

    def test_what_comes_after_the_end_is_not_kept(self) -> None:
        self.client.transport.client_reads = False
        self.client.send(frame(b"unmasked", mask=b""))
        self.client.connection.dataReceived(KIB64)
        assert self.client.connection.data == b""

    def test_closing_while_joining_refuses_the_handshake(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        client.connection.close(STOPPING)
        assert client.heard.status == 503
        said = client.transport.value()
        assert client.gone == "ConnectionDone"
        self.server.clock.advance(CONFIG.subscribe_timeout)
        assert client.transport.value() == said

    def test_one_whose_key_another_takes_over_while_it_joins_is_403(self) -> None:
        self.server.bus.confirm_at_once = False
        client = self.server.client("/ops")
        client.connection.close(TAKEN_OVER)
        assert client.heard.status == 403

    def test_the_one_gone_is_no_member_any_more(self) -> None:
        other = self.server.client()
        self.client.transport.vanish()
        other.send(frame(b"hello"))
        self.server.published()
        assert self.client.heard.texts == []
        assert len(self.server.factory.connections) == 1

    def test_closing_all_fires_when_the_last_one_is_gone(self) -> None:
        other = self.server.client()
        closed = self.server.factory.close_all(STOPPING)
        assert (self.client.closed_with, other.closed_with) == (1001, 1001)
        self.client.send(close_frame(1001))
        assert self.client.gone
        assert not closed.called
        other.transport.vanish()
        self.successResultOf(closed)

    def test_a_client_that_connects_meanwhile_is_closed_too(self) -> None:
        self.server.factory.close_all(STOPPING)
        assert self.server.client().closed_with == 1001
        assert program(self.server).closed_with == 1001

    def test_closing_all_takes_no_longer_than_it_takes_to_abort_them(self) -> None:
        closed = self.server.factory.close_all(STOPPING)
        self.server.clock.advance(CONFIG.close_timeout)
        assert self.client.gone == "ConnectionAborted"
        self.successResultOf(closed)
        self.successResultOf(ChatServer().factory.close_all(STOPPING))

    def test_a_lost_connection_leaves_no_timer_behind(self) -> None:
        self.client.connection.close(STOPPING)
        self.client.transport.vanish()
        self.server.clock.advance(CONFIG.close_timeout)
        assert self.server.clock.getDelayedCalls() == []


class PingTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer()
        self.client = self.server.client()

    def pings(self) -> list[bytes]:
        return [payload for opcode, payload in self.client.heard.frames if opcode == PING]

    def advance(self, *seconds: float) -> None:
        self.server.clock.pump(seconds)

    def test_a_silent_client_is_pinged(self) -> None:
        self.advance(CONFIG.ping_interval - 0.1)
        assert self.pings() == []
        self.advance(0.1)
        assert len(self.pings()) == 1

    def test_one_that_answers_is_pinged_again_and_stays(self) -> None:
        for number in range(1, 6):
            self.advance(CONFIG.ping_interval)
            assert len(self.pings()) == number
            self.client.send(frame(self.pings()[-1], PONG))
        assert self.client.gone == ""

    def test_one_that_does_not_answer_is_dropped(self) -> None:
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout - 0.1)
        assert self.client.gone == ""
        self.advance(0.1)
        assert self.client.gone == "ConnectionAborted"

    def test_half_a_frame_and_silence_is_dropped(self) -> None:
        self.client.send(frame(b"hello")[:-1])
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout)
        assert self.client.gone == "ConnectionAborted"
        assert self.server.published() == []

    def test_a_frame_that_drips_is_no_sign_of_life(self) -> None:
        self.client.send(header(TEXT, 100) + b"mask")
        self.advance(CONFIG.ping_interval)
        for _ in range(int(CONFIG.pong_timeout)):
            self.client.send(b"x")
            self.advance(1)
        assert self.client.gone == "ConnectionAborted"

    def test_any_frame_answers_a_ping(self) -> None:
        clients = [self.server.client() for _ in range(3)]
        self.advance(CONFIG.ping_interval)
        data = (frame(b"I am here"), frame(b"made up", PONG), frame(b"to be", fin=False))
        for client, answer in zip(clients, data, strict=True):
            client.send(answer)
        self.advance(CONFIG.pong_timeout)
        assert [client.gone for client in clients] == ["", "", ""]

    def test_an_answer_at_once_is_one_however_late_it_is_looked_for(self) -> None:
        self.server.clock.advance(CONFIG.client_timer_resolution * 0.34)  # between two ticks of the wheel
        client = self.server.client()
        self.advance(CONFIG.ping_interval + CONFIG.client_timer_resolution)
        client.send(frame(b"", PONG))
        self.advance(*[CONFIG.client_timer_resolution] * int(CONFIG.pong_timeout * 12))
        assert client.gone == ""

    def test_one_that_talks_is_not_pinged(self) -> None:
        for _ in range(10):
            self.advance(CONFIG.ping_interval * 0.9)
            self.client.send(frame(b"hello"))
        assert self.pings() == []
        self.advance(CONFIG.ping_interval - 1, 1.1)
        assert len(self.pings()) == 1

    def test_one_that_answers_late_is_asked_again_only_when_it_has_been_silent(self) -> None:
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout - 1)
        self.client.send(frame(b"", PONG))
        self.advance(1.1, CONFIG.ping_interval - 2)
        assert len(self.pings()) == 1
        self.advance(1.1)
        assert len(self.pings()) == 2

    def test_one_that_says_nothing_new_but_answered_once_is_dropped_the_next_time(self) -> None:
        self.advance(CONFIG.ping_interval)
        self.client.send(frame(b"", PONG))
        self.advance(CONFIG.pong_timeout, CONFIG.ping_interval, CONFIG.pong_timeout + CONFIG.client_timer_resolution)
        assert self.client.gone == "ConnectionAborted"

    def reads(self, acknowledged: Iterable[int], waiting: Iterable[int]) -> None:
        """Set the acknowledged and the unacknowledged bytes of each check."""
        taken, waits = iter(acknowledged), iter(waiting)
        self.patch(SendBuffer, "acknowledged", property(lambda _: next(taken)))
        self.patch(SendBuffer, "unacknowledged", property(lambda _: next(waits)))

    def test_one_that_reads_on_is_not_dropped_however_much_is_written_behind_it(self) -> None:
        self.reads(count(), count(500_000, 100_000))
        self.advance(CONFIG.ping_interval)
        for _ in range(5):
            self.advance(CONFIG.pong_timeout + CONFIG.client_timer_resolution)
            assert self.client.gone == ""
        self.reads(repeat(5), repeat(1))
        self.advance(*[CONFIG.pong_timeout + CONFIG.client_timer_resolution] * 2)
        assert self.client.gone == "ConnectionAborted"

    def test_one_for_which_something_waits_later_than_the_ping_is_not_dropped_while_it_takes_more(self) -> None:
        self.reads(count(), chain([0], repeat(1)))
        self.advance(CONFIG.ping_interval, *[CONFIG.pong_timeout + CONFIG.client_timer_resolution] * 3)
        assert self.client.gone == ""

    def test_one_for_which_nothing_waits_is_dropped_although_its_kernel_takes_what_comes(self) -> None:
        self.reads(count(), repeat(0))
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout)
        assert self.client.gone == "ConnectionAborted"

    def test_one_for_which_something_waits_has_longer_to_take_it_if_its_kernel_answers(self) -> None:
        self.reads(repeat(5), repeat(1))
        self.patch(SendBuffer, "window", 0)
        looks = int(CONFIG.stalled_client_timeout / CONFIG.pong_timeout) - 1
        self.advance(CONFIG.ping_interval, *[CONFIG.pong_timeout] * looks)
        assert self.client.gone == ""
        self.advance(*[CONFIG.pong_timeout + CONFIG.client_timer_resolution] * 2)
        assert self.client.gone == "ConnectionAborted"

    def test_one_for_which_something_waits_and_whose_kernel_is_silent_has_no_longer(self) -> None:
        self.reads(repeat(5), repeat(1))
        self.patch(SendBuffer, "window", 0)
        self.patch(SendBuffer, "is_unheard", lambda *_: True)
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout)
        assert self.client.gone == "ConnectionAborted"

    def test_one_for_which_nothing_waits_and_whose_window_opens_is_pinged_again_and_lives(self) -> None:
        self.reads(repeat(5), repeat(0))
        windows = chain(range(1000, 5000, 1000), repeat(4000))
        self.patch(SendBuffer, "window", property(lambda _: next(windows)))
        self.advance(CONFIG.ping_interval)
        for pings in range(1, 3):
            assert len(self.pings()) == pings
            self.advance(CONFIG.pong_timeout + CONFIG.client_timer_resolution)
            assert self.client.gone == ""
        self.advance(*[CONFIG.pong_timeout + CONFIG.client_timer_resolution] * 2)
        assert self.client.gone == "ConnectionAborted"

    def test_a_client_that_we_do_not_read_is_not_dropped(self) -> None:
        self.client.connection.pause()
        self.advance(CONFIG.ping_interval, *[CONFIG.pong_timeout] * 5)
        assert self.client.gone == ""

    def test_one_that_is_read_again_and_answers_stays(self) -> None:
        self.client.connection.pause()
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout * 1.5)
        self.client.send(frame(self.pings()[0], PONG))
        self.client.connection.resume()
        self.advance(0, CONFIG.pong_timeout)
        assert self.client.gone == ""

    def test_one_that_is_read_again_and_is_silent_is_dropped(self) -> None:
        self.client.connection.pause()
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout * 1.5)
        self.client.connection.resume()
        self.advance(CONFIG.pong_timeout)
        assert self.client.gone == "ConnectionAborted"

    def test_a_paused_client_that_is_lost_leaves_no_timer_behind(self) -> None:
        self.client.connection.pause()
        self.advance(CONFIG.ping_interval, CONFIG.pong_timeout)
        self.client.transport.vanish()
        assert self.server.clock.getDelayedCalls() == []


class BackPressureTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer()
        self.client = self.server.client()

    def fall_behind(self, *clients: "Client", count: int = 50) -> list[str]:
        """Stop the reading of clients and publish messages; return their texts."""
        for client in clients or (self.client,):
            client.transport.client_reads = False
        return self.server.publish(count)

    def test_a_client_that_does_not_read_is_sent_no_more_than_the_bound(self) -> None:
        said = self.fall_behind()
        heard = self.client.heard.texts
        assert heard == said[: len(heard)]
        assert CONFIG.max_send_buffer - 65_546 < len(self.client.transport.value()) < CONFIG.max_send_buffer + 65_536
        assert (self.client.closed_with, self.client.gone) == (0, "")

    def test_once_it_has_read_it_gets_what_it_was_not_given(self) -> None:
        said = self.fall_behind()
        self.client.transport.catch_up()
        assert self.client.heard.texts == said
        assert self.client.closed_with == 0

    def test_it_hears_what_is_said_then(self) -> None:
        said = self.fall_behind()
        self.client.transport.catch_up()
        said += self.server.publish(3)
        assert self.client.heard.texts == said

    def test_as_long_as_it_is_behind_it_gets_no_more_at_once_than_the_bound(self) -> None:
        said = self.fall_behind()
        steps = 0
        while len(self.client.heard.texts) < len(said):
            before = len(self.client.transport.value())
            self.client.transport.read_what_waits()
            assert before < len(self.client.transport.value()) <= before + CONFIG.max_send_buffer + 65_546
            steps += 1
        assert steps >= 50 * 65_536 // (CONFIG.max_send_buffer + 65_546) - 1
        assert self.client.heard.texts == said

    def test_what_is_said_while_it_is_behind_is_not_written_before_it_has_read(self) -> None:
        said = self.fall_behind()
        before = self.client.transport.value()
        said += self.server.publish(10)
        assert self.client.transport.value() == before
        self.client.transport.catch_up()
        assert self.client.heard.texts == said

    def test_its_own_messages_are_left_out_of_what_it_gets_later(self) -> None:
        said = self.fall_behind()
        self.client.send(frame(b"mine"))
        self.server.published()
        said += self.server.publish(1)
        self.client.transport.catch_up()
        assert self.client.heard.texts == said

    def test_what_history_has_no_more_is_lost_and_it_stays(self) -> None:
        self.server.bus.kept_messages = 10
        said = self.fall_behind()
        heard = self.client.heard.texts
        self.client.transport.catch_up()
        assert self.client.heard.texts == heard + said[-10:]
        assert (self.client.closed_with, self.client.gone) == (0, "")
        assert self.client.heard.texts[-10:] + self.server.publish(1) == self.client.heard.texts[-11:]

    def test_one_that_never_reads_and_answers_pings_stays(self) -> None:
        self.fall_behind()
        for _ in range(600):
            self.client.send(frame(b"", PONG))
            self.server.clock.advance(1)
        assert (self.client.closed_with, self.client.gone) == (0, "")

    def test_one_that_is_silent_too_is_dropped_as_any_silent_one(self) -> None:
        self.fall_behind()
        self.server.clock.pump([CONFIG.ping_interval, CONFIG.pong_timeout + 0.2])
        assert self.client.gone == "ConnectionAborted"

    def test_one_that_is_closed_for_another_reason_gets_what_waits_and_that_reason(self) -> None:
        said = self.fall_behind()
        self.client.connection.close(STOPPING)
        self.client.transport.catch_up()
        assert self.client.closed_with == STOPPING.code
        heard = self.client.heard.texts
        assert heard == said[: len(heard)] != said

    def test_one_that_is_lost_while_it_is_behind_leaves_nothing_behind(self) -> None:
        self.fall_behind()
        self.client.transport.vanish()
        self.server.clock.advance(CONFIG.client_report_interval + CONFIG.client_timer_resolution)
        assert self.server.clock.getDelayedCalls() == []
        assert self.server.bus.rooms == {}

    def test_many_that_did_not_keep_up_are_one_line_in_the_log(self) -> None:
        others = [self.server.client() for _ in range(3)]
        with capturedLogs() as events:
            self.fall_behind(*others)
            assert events == []
            self.server.clock.advance(CONFIG.client_report_interval + CONFIG.client_timer_resolution)
        assert [formatEvent(event) for event in events] == ["slow consumers: 3"]
        assert events[0]["log_level"] == LogLevel.warn

    def test_those_that_come_later_are_a_line_of_their_own(self) -> None:
        with capturedLogs() as events:
            for client in (self.client, self.server.client()):
                self.fall_behind(client)
                client.transport.catch_up()
                self.server.clock.advance(CONFIG.client_report_interval + CONFIG.client_timer_resolution)
        assert [event["clients"] for event in events] == [1, 1]

    def test_those_that_fell_behind_when_everybody_is_closed_are_logged_before_the_end(self) -> None:
        self.fall_behind()
        logged: list[int] = []
        with capturedLogs() as events:
            closed = self.server.factory.close_all(STOPPING)
            closed.addCallback(lambda _: logged.extend(event["clients"] for event in events))
            self.client.transport.vanish()
        assert logged == [1]
        self.server.clock.advance(CONFIG.client_report_interval + CONFIG.client_timer_resolution)
        assert len(events) == 1

    def test_one_that_reads_in_time_never_falls_behind(self) -> None:
        said = []
        with capturedLogs() as events:
            for _ in range(10):
                self.client.transport.client_reads = False
                said += self.server.publish(4)
                self.client.transport.catch_up()
            self.server.clock.advance(10)
        assert (self.client.heard.texts, events) == (said, [])

    def test_what_was_read_in_time_does_not_count_later(self) -> None:
        said = self.server.publish(20, 60_000)  # below the mark of the transport, which so says nothing
        with capturedLogs() as events:
            self.client.transport.client_reads = False
            said += self.server.publish(3)
            self.client.transport.catch_up()
            self.server.clock.advance(10)
        assert (self.client.heard.texts, events) == (said, [])

    def test_others_do_not_wait_for_it(self) -> None:
        self.client.transport.client_reads = False
        sender, reader = self.server.client(), self.server.client()
        for number in range(400):
            sender.send(frame(b"%03d" % number + b"x" * 997))
            self.server.published()
        expected = [f"{number:03d}" + "x" * 997 for number in range(400)]
        assert reader.heard.texts == expected
        heard = self.client.heard.texts
        assert heard == expected[: len(heard)] != expected
        self.client.transport.catch_up()
        assert self.client.heard.texts == expected

    def test_of_a_client_that_does_not_read_the_newest_ping_is_answered_once_it_does(self) -> None:
        self.client.transport.client_reads = False
        self.server.publish(2)
        before = len(self.client.transport.value())
        self.client.send(*[frame(b"x" * 125, PING)] * 1000)
        assert len(self.client.transport.value()) == before
        self.client.send(frame(b"newest", PING))
        self.client.transport.catch_up()
        assert [each for each in self.client.heard.frames if each[0] == PONG] == [(PONG, b"newest")]
        self.client.send(frame(b"now", PING))
        assert self.client.heard.frames[-1] == (PONG, b"now")

    def test_a_paused_client_is_not_read(self) -> None:
        self.client.connection.pause()
        self.client.connection.pause()
        self.client.send(frame(b"hello"))
        assert self.server.published() == []
        self.client.connection.resume()
        self.client.connection.resume()
        self.server.clock.advance(0)
        assert self.server.published() == ["hello"]

    def test_a_full_window_stops_reading_until_there_is_room(self) -> None:
        self.server.bus.full = True
        self.client.send(frame(b"a"), frame(b"b"))
        assert self.client.transport.producerState == "paused"
        self.server.bus.full = False
        self.server.hub.bus_changed()
        self.server.clock.advance(0)
        assert self.server.published() == ["a", "b"]

    def test_a_bus_away_too_long_is_1013(self) -> None:
        self.server.bus.away = "it is gone"
        self.client.send(frame(b"a"))
        self.server.clock.advance(CONFIG.publish_timeout)
        assert self.client.closed_with == 1013
        assert self.server.published() == []


class NoHistoryTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer(replace(CONFIG, history_size=0))
        self.server.bus.kept_messages = 0
        self.client = self.server.client()
        self.client.transport.client_reads = False
        self.said = self.server.publish(50)

    def test_one_that_falls_behind_is_told_what_it_missed_once_it_has_read(self) -> None:
        assert self.client.closed_with == 0
        heard = self.client.heard.texts
        self.client.transport.catch_up()
        missed = 50 - len(heard)
        assert self.client.heard.frames[-1] == (CLOSE, (1013).to_bytes(2) + too_slow(missed).reason.encode())
        assert f" {missed} " in too_slow(missed).reason
        assert self.client.heard.texts == heard == self.said[: len(heard)]

    def test_what_is_said_before_it_has_read_is_counted(self) -> None:
        missed = 50 - len(self.client.heard.texts)
        self.server.publish(7)
        self.client.transport.catch_up()
        assert self.client.heard.frames[-1][1][2:].decode() == too_slow(missed + 7).reason

    def test_it_gets_nothing_after_that(self) -> None:
        self.client.transport.catch_up()
        said = self.client.transport.value()
        self.server.publish(1)
        assert self.client.transport.value() == said

    def test_once_it_is_told_and_answers_it_is_gone(self) -> None:
        self.client.transport.catch_up()
        self.client.send(close_frame(1013))
        assert self.client.gone
        assert len(self.server.factory.connections) == 0

    def test_one_that_was_told_and_does_not_answer_is_dropped(self) -> None:
        self.client.transport.catch_up()
        self.server.clock.pump([1.0] * int(CONFIG.close_timeout + 1))
        assert self.client.gone == "ConnectionAborted"

    def test_one_that_keeps_up_stays(self) -> None:
        other = self.server.client()
        said = self.server.publish(50)
        assert (other.heard.texts, other.closed_with) == (said, 0)


class ReplayTests(TestCase):
    def setUp(self) -> None:
        self.server = ChatServer()
        self.reader = self.server.client()
        self.said = self.server.publish(5, 10)

    def come(self, query: str) -> "Client":
        client = self.server.client("/?" + query)
        self.server.clock.advance(0)
        return client

    def test_the_last_messages_follow_the_answer_to_the_handshake(self) -> None:
        client = self.come("last=3")
        assert client.heard.status == 101
        assert client.heard.texts == self.said[-3:]

    def test_without_asking_it_hears_only_what_is_said_from_then_on(self) -> None:
        client = self.come("")
        assert client.heard.texts == []
        assert client.heard.texts + self.server.publish(1, 10) == client.heard.texts

    def test_with_a_key_it_gets_what_was_said_while_it_was_away(self) -> None:
        client = self.come("resume=abcdefgh")
        heard = self.server.publish(1, 10)
        assert client.heard.texts == heard
        client.takes_all()
        client.send(close_frame())
        client.transport.vanish()
        missed = self.server.publish(3, 10)
        assert self.come("resume=abcdefgh").heard.texts == missed

    def test_what_had_not_arrived_when_it_vanished_comes_again(self) -> None:
        client = self.come("resume=abcdefgh")
        client.takes_all()
        session: Any = client.connection.session
        self.server.hub.record_position("lobby", session)
        heard = self.server.publish(1, 10)
        assert client.heard.texts == heard
        client.transport.vanish()  # whatever it was written, nothing more has arrived
        assert self.come("resume=abcdefgh").heard.texts == heard

    def test_the_newer_of_two_with_one_key_is_alone_with_it(self) -> None:
        older, newer = self.come("resume=abcdefgh"), self.come("resume=abcdefgh")
        assert older.heard.frames[-1] == (CLOSE, (1008).to_bytes(2) + TAKEN_OVER.reason.encode())
        said = self.server.publish(1, 10)
        assert (older.heard.texts, newer.heard.texts) == ([], said)

    def come_and_go(self) -> list[str]:
        """Publish "mine" from a client that leaves, and another message then; return that one."""
        client = self.come("resume=abcdefgh")
        client.takes_all()
        client.send(frame(b"mine"), close_frame())
        self.server.published()
        client.transport.vanish()
        return self.server.publish(1, 10)

    def test_it_does_not_hear_what_it_said_itself_on_its_last_connection(self) -> None:
        missed = self.come_and_go()
        assert self.come("resume=abcdefgh").heard.texts == missed

    def test_with_echo_it_hears_what_it_said_itself_on_its_last_connection(self) -> None:
        missed = self.come_and_go()
        assert self.come("resume=abcdefgh&echo=1").heard.texts == ["mine", *missed]


def program(server: ChatServer, target: str = "/", **headers: str) -> Client:
    """Connect a client of the JSON format."""
    return server.client(target, handshake(target, Sec_WebSocket_Protocol="chatd.v1", **headers))


def ask(**request: Any) -> bytes:
    """Make the frame of a request."""
    return frame(json.dumps(request).encode())


def types(client: Client) -> list[str]:
    """Return the types of the events that a JSON client has received."""
    return [json.loads(each)["type"] for each in client.heard.texts]


PUBLISH = ask(type="publish", room="lobby", text="hi")


class KindTests(TestCase):
    """Which session a client gets, and what its connection allows it."""

    def setUp(self) -> None:
        self.server = ChatServer()

    def test_with_a_subprotocol_it_is_a_program(self) -> None:
        client = program(self.server)
        assert client.heard.headers["sec-websocket-protocol"] == "chatd.v1"
        assert types(client) == ["welcome", "joined"]

    def test_with_a_nick_it_is_a_person(self) -> None:
        client = self.server.client("/?nick=ann")
        client.send(frame(b"/help"))
        assert client.heard.texts[0].startswith("* /help")

    def test_with_both_it_is_a_program_with_a_nick(self) -> None:
        client = program(self.server, "/?nick=ann")
        assert json.loads(client.heard.texts[0])["nick"] == "ann"

    def test_with_neither_it_is_a_pipe(self) -> None:
        client = self.server.client()
        client.send(frame(b"/help"))
        assert self.server.published() == ["/help"]
        assert client.heard.texts == []

    def test_what_comes_right_behind_the_handshake_is_answered_after_the_welcome(self) -> None:
        head = handshake(Sec_WebSocket_Protocol="chatd.v1") + PUBLISH + ask(type="ping")
        client = self.server.client(head=head)
        self.server.published()
        assert types(client) == ["welcome", "joined", "pong", "ack"]

    def test_what_comes_while_it_joins_is_answered_once_it_has(self) -> None:
        self.server.bus.confirm_at_once = False
        client = program(self.server, "/ops")
        client.send(ask(type="publish", room="ops", text="hi"))
        self.server.published()
        assert client.heard.status == 0
        self.server.bus.confirm("ops")
        self.server.published()
        assert types(client) == ["welcome", "joined", "ack"]

    def test_a_text_that_is_too_large_is_an_error_and_a_frame_that_no_text_needs_is_1009(self) -> None:
        client = program(self.server)
        client.send(ask(type="publish", room="lobby", text="x" * 1001))
        self.server.published()
        assert (types(client)[-1], client.closed_with) == ("error", 0)
        client.send(frame(b"x" * (client.connection.longest + 1)))
        assert client.closed_with == 1009

    def test_the_longest_text_is_taken_with_all_of_it_escaped(self) -> None:
        client = program(self.server)
        client.send(frame(b'{"type":"publish","room":"lobby","text":"' + b"\\u0001" * 1000 + b'"}'))
        assert self.server.published() == ["\x01" * 1000]

    def test_a_person_may_say_no_more_than_a_bare_client(self) -> None:
        client = self.server.client("/?nick=ann")
        client.send(frame(b"x" * 1003))
        assert client.closed_with == 1009


class FarewellTests(TestCase):
    """The last message before a Close frame."""

    def setUp(self) -> None:
        self.server = ChatServer()
        self.person, self.program = self.server.client("/?nick=ann"), program(self.server)

    def said(self) -> tuple[str, dict[str, Any]]:
        """Return the last message of each of them, which a Close frame has to follow."""
        for client in (self.person, self.program):
            assert [opcode for opcode, _ in client.heard.frames[-2:]] == [TEXT, CLOSE]
        return self.person.heard.texts[-1], json.loads(self.program.heard.texts[-1])

    def test_both_are_told_why(self) -> None:
        self.server.factory.close_all(STOPPING)
        line, bye = self.said()
        assert line == f"* closing: {STOPPING.reason}"
        assert (bye["type"], bye["code"], bye["reason"]) == ("bye", 1001, STOPPING.reason)

    def test_both_get_the_reason_of_a_bad_frame(self) -> None:
        for data, line, code in (
            (frame(b"ab\xff"), "* closing: ", 1007),
            (frame(b"ab", BINARY), "* closing: text messages only", 1003),
        ):
            self.setUp()
            for client in (self.person, self.program):
                client.send(data)
            last, bye = self.said()
            assert last.startswith(line)
            assert bye["code"] == code
            assert "reconnect_after" not in bye

    def test_one_that_leaves_is_told_nothing(self) -> None:
        for client in (self.person, self.program):
            before = client.heard.texts
            client.send(close_frame())
            assert (client.heard.texts, client.closed_with) == (before, 1000)

    def test_a_bare_client_is_told_nothing(self) -> None:
        client = self.server.client()
        self.server.factory.close_all(STOPPING)
        assert [opcode for opcode, _ in client.heard.frames] == [CLOSE]

    def test_one_that_quits_is_let_go(self) -> None:
        self.person.send(frame(b"/quit\n"), frame(b"too late"))
        assert self.person.heard.texts[-1] == "* closing: you left"
        assert self.person.closed_with == 1000
        assert self.server.published() == []

    def test_one_that_does_not_read_is_told_too_why_it_is_closed(self) -> None:
        for client in (self.person, self.program):
            client.transport.client_reads = False
        self.server.publish(50)
        self.server.factory.close_all(STOPPING)
        for client in (self.person, self.program):
            assert client.closed_with == STOPPING.code
        line, bye = self.said()
        assert (line, bye["code"]) == (f"* closing: {STOPPING.reason}", STOPPING.code)

    def test_nothing_follows_on_it(self) -> None:
        self.program.send(ask(type="ping"))
        self.server.factory.close_all(STOPPING)
        self.server.factory.close_all(OUR_FAULT)
        self.server.publish(1)
        assert types(self.program)[-2:] == ["pong", "bye"]
        assert types(self.program).count("bye") == 1


class OverwhelmedTests(TestCase):
    """Those who ask and do not read."""

    def setUp(self) -> None:
        self.server = ChatServer()

    def overwhelm(self, client: Client, question: bytes) -> Heard:
        """Send requests without reading answers until the connection is closed; return what was received."""
        client.transport.client_reads = False
        for _ in range(100):
            client.send(question * 100)
            self.server.clock.advance(0)
        assert len(client.transport.value()) < CONFIG.max_send_buffer * 1.5
        return client.heard

    def test_a_person_is_told_so_and_hung_up_on(self) -> None:
        heard = self.overwhelm(self.server.client("/?nick=ann"), frame(b"/help"))
        assert heard.close_code == 1013
        assert heard.texts[-1] == f"* closing: {too_slow(None).reason}"

    def test_a_program_is_not_read_until_it_has_read(self) -> None:
        client = program(self.server)
        heard = self.overwhelm(client, ask(type="ping"))
        assert (heard.close_code, client.transport.producerState) == (0, "paused")
        client.transport.catch_up()
        self.server.published()
        client.send(PUBLISH)
        assert self.server.published() == ["hi"]
        assert client.closed_with == 0

    def test_a_program_that_is_given_more_than_it_reads_is_hung_up_on(self) -> None:
        client = program(self.server)
        client.transport.client_reads = False
        session: Any = client.connection.session
        for _ in range(CONFIG.max_send_buffer // 500):
            session.refuse("r" * 64, "bad_request", "x" * 1000)
            session.flush()
        assert client.closed_with == 1013
        assert json.loads(client.heard.texts[-1])["code"] == 1013
        assert types(client).count("bye") == 1

    def test_one_that_reads_may_ask_as_long_as_it_likes(self) -> None:
        client = self.server.client("/?nick=ann")
        for _ in range(1000):
            client.send(frame(b"/help"))
        assert client.closed_with == 0


class MemoryTests(TestCase):
    def test_a_connection_that_has_seen_every_kind_of_frame_keeps_all_it_has_in_slots(self) -> None:
        server = ChatServer()
        client = server.client()
        client.send(frame(b"a"), frame(b"b", fin=False), frame(b"hi", PING), frame(b"c", CONTINUATION))
        server.clock.advance(CONFIG.ping_interval + CONFIG.client_timer_resolution)
        client.send(frame(b"", PONG))
        assert server.published() == ["a", "bc"]
        assert vars(client.connection) == {}


class FactoryTests(TestCase):
    def test_sessions_have_ids_of_their_own(self) -> None:
        server = ChatServer()
        ids = [server.client().connection.session.id for _ in range(3)]
        assert ids == ["w.1", "w.2", "w.3"]

    def test_two_factories_keep_their_own_limits_and_time(self) -> None:
        small, large = (
            ChatServer(replace(CONFIG, max_message_size=10)),
            ChatServer(replace(CONFIG, max_message_size=2000)),
        )
        clients = [server.client() for server in (small, large)]
        small.clock.advance(CONFIG.ping_interval)
        assert [[opcode for opcode, _ in client.heard.frames] for client in clients] == [[PING], []]
        for client in clients:
            client.send(frame(b"x" * 500))
        assert small.published() == []
        assert large.published() == ["x" * 500]

    def test_an_address_is_the_sessions(self) -> None:
        connection = ChatServer().factory.make(Upgrade(KEY), read_target(b"/ops?echo=1"), "198.51.100.4")
        assert connection.session.address == "198.51.100.4"
        assert connection.session.echo

    def test_a_lost_client_on_a_server_that_closes_is_counted_once(self) -> None:
        server = ChatServer()
        client = server.client()
        closed: Deferred[None] = server.factory.close_all(STOPPING)
        client.transport.vanish()
        server.factory.connection_gone()
        self.successResultOf(closed)
