"""The testee itself: how it is started and ends, and that an ordinary client can talk to it."""

import signal
import subprocess
import sys

from websockets.sync.client import connect as connect_websockets

from chatd.protocol.websocket_frames import deflated_text_frame, text_frame
from tests.conformance.conftest import running
from tests.conformance.testee import binary_frame, deflated_binary_frame


def test_it_ends_at_sigterm() -> None:
    command = [sys.executable, "-m", "tests.conformance.testee", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as testee:
        assert testee.stdout
        assert testee.stdout.readline().startswith("listening on 127.0.0.1:")
        testee.send_signal(signal.SIGTERM)
        assert testee.wait(20) in (0, -signal.SIGTERM)


def test_it_ends_with_its_standard_input() -> None:
    with running():
        pass


def test_it_echoes_what_it_was_sent_exactly(testee: tuple[str, int]) -> None:
    messages: list[str | bytes] = ["hello\n", "\r\n", "", "grüß 𝄞", b"", b"\x00\xff", "x" * 100_000, b"y" * 100_000]
    with connect_websockets("ws://{}:{}/".format(*testee), compression=None, max_size=None) as client:
        for each in messages:
            client.send(each)
        assert [client.recv(timeout=20) for _ in messages] == messages


def test_a_binary_frame_differs_in_its_opcode_alone() -> None:
    assert binary_frame(b"Hello") == b"\x82" + text_frame(b"Hello")[1:]
    assert deflated_binary_frame(b"x" * 99) == b"\xc2" + deflated_text_frame(b"x" * 99)[1:]
    assert deflated_binary_frame(b"\xff") == binary_frame(b"\xff")
    assert binary_frame(b"x" * 70_000) == b"\x82" + text_frame(b"x" * 70_000)[1:]
