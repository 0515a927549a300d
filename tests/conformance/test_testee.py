"""The testee itself: how it is started and ends, and that an ordinary client can talk to it."""

import signal
import subprocess
import sys

from websockets.sync.client import connect as connect_websockets

from tests.conformance.conftest import running


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
