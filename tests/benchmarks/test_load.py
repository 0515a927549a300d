"""The load generator: what it counts, against a chat that does wrong; how it sends; how it fails."""

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.generator import FAULTS, PROGRAM, Failed, Load, generate
from tests.benchmarks import faulty
from tests.benchmarks.faulty import Chat, Relay, Say

SHORT = ("--warmup=0", "--seconds=0.1", "--settle=0", "--patience=0.3")
SENT = 40
OPEN = Load(2, senders=1, rate=400)
FOLLOWED = Load(2, senders=1, rate=400, sse=1)


def exchange(chat: Chat, load: Load = OPEN, *options: str, **phases: Callable[[], None]) -> dict[str, Any]:
    return generate(chat.port, load, [*SHORT, *options], phases=phases)


def wrong(figures: dict[str, Any]) -> dict[str, int]:
    return {name: figures[name] for name in FAULTS if figures[name]}


Faults = dict[str, tuple[Relay, dict[str, int]]]
BOTH: Faults = {
    "twice": (faulty.twice, {"duplicates": 1}),
    "never": (faulty.never, {"missing": 1, "gaps": 1}),
    "never again": (faulty.never_again, {"missing": SENT - 4}),
    "altered": (faulty.altered, {"missing": 1, "gaps": 1, "foreign": 1}),
    "shortened": (faulty.shortened, {"missing": 1, "gaps": 1, "foreign": 1}),
    "one too late": (faulty.later(1), {"disorder": 1}),
    "thirty too late": (faulty.later(30), {"disorder": 1}),
}
FRAMES: Faults = {**BOTH, "binary": (faulty.binary, {"missing": 1, "gaps": 1, "foreign": 1})}
EVENTS: Faults = {
    **BOTH,
    "renamed": (faulty.renamed(b"massage"), {"missing": 1, "gaps": 1, "foreign": 1}),
    "half a name": (faulty.renamed(b"mess"), {"missing": 1, "gaps": 1, "foreign": 1}),
    "lost": (faulty.lost, {"missing": 1, "gaps": 1, "foreign": 1}),
    "ended": (faulty.ended, {"missing": SENT - 4, "closed": 1}),
}


@pytest.mark.parametrize(("relay", "found"), FRAMES.values(), ids=FRAMES)
def test_each_fault_of_a_server_is_counted(relay: Relay, found: dict[str, int]) -> None:
    check_that_it_is_counted(relay, found, faulty.text, OPEN)


@pytest.mark.parametrize(("relay", "found"), EVENTS.values(), ids=EVENTS)
def test_each_fault_of_a_stream_of_events_is_counted(relay: Relay, found: dict[str, int]) -> None:
    check_that_it_is_counted(relay, found, faulty.event, FOLLOWED)


def check_that_it_is_counted(relay: Relay, found: dict[str, int], say: Say, load: Load) -> None:
    with Chat(relay, say) as chat:
        figures = exchange(chat, load)
    assert figures["sent"] == SENT
    assert wrong(figures) == found
    assert figures["delivered"] == SENT - found.get("missing", 0)


def test_a_close_is_counted_with_its_code() -> None:
    with Chat(faulty.hung_up) as chat:
        figures = exchange(chat)
    assert figures["closed"] >= 1
    assert figures["close_code"] == 1013
    assert figures["missing"] + figures["unsent"] == SENT - 4


def test_an_echo_nobody_asked_for_is_counted_and_one_that_was_is_expected() -> None:
    with Chat(echo=True) as chat:
        assert wrong(exchange(chat)) == {"echoes": SENT}
        figures = exchange(chat, OPEN, "--echo")
    assert wrong(figures) == {}
    assert figures["delivered"] == 2 * SENT


def test_clients_that_stop_reading_hear_nothing_and_nothing_is_missing() -> None:
    with Chat(faulty.with_ping) as chat:
        figures = exchange(chat, Load(5, senders=1, rate=400, stopped=2))
    assert wrong(figures) == {}
    assert figures["delivered"] == figures["pings"] == 2 * SENT


def test_a_client_that_stopped_reading_and_is_hung_up_on_is_counted() -> None:
    with Chat() as chat:
        figures = exchange(chat, Load(3, senders=1, rate=400, stopped=2), connected=chat.hang_up)
    assert figures["closed"] == 3


def test_an_echo_that_does_not_come_is_missing() -> None:
    with Chat() as chat:
        assert wrong(exchange(chat, OPEN, "--echo")) == {"missing": SENT}


@pytest.mark.parametrize("relay", [faulty.long_lengths, faulty.byte_by_byte, faulty.ten_at_once()])
@pytest.mark.parametrize("size", [16, 64, 126])
def test_frames_are_found_however_they_come(relay: Relay, size: int) -> None:
    with Chat(relay) as chat:
        figures = exchange(chat, Load(2, senders=1, rate=400, size=size), "--patience", "10")
    assert wrong(figures) == {}
    assert figures["delivered"] == SENT


@pytest.mark.parametrize(
    "relay", [faulty.byte_by_byte, faulty.ten_at_once(), faulty.in_small_chunks, faulty.with_comments]
)
@pytest.mark.parametrize("size", [16, 64, 126])
def test_events_are_found_however_they_come(relay: Relay, size: int) -> None:
    with Chat(relay, faulty.event) as chat:
        figures = exchange(chat, Load(3, senders=1, rate=400, sse=2, size=size), "--patience", "10")
    assert wrong(figures) == {}
    assert figures["delivered"] == 2 * SENT


def test_the_longest_message_goes_through() -> None:
    with Chat() as chat:
        assert wrong(exchange(chat, Load(3, senders=2, window=8, size=16384))) == {}


def test_pings_are_answered_with_what_they_say() -> None:
    with Chat(faulty.with_ping) as chat:
        figures = exchange(chat)
    assert figures["pings"] == SENT
    assert chat.pongs == [b"%d" % number for number in range(1, SENT + 1)]


def test_no_more_messages_are_on_their_way_than_the_window_holds() -> None:
    held: list[int] = []

    def hold(say: Say, number: int, payload: bytes) -> list[bytes]:
        held.append(number)
        return []

    with Chat(hold) as chat:
        figures = exchange(chat, Load(3, senders=2, window=7))
    assert figures["sent"] == len(held) == 7
    assert figures["missing"] == 7 * 2


def test_a_message_that_could_not_be_sent_in_time_counts_from_when_it_was_due() -> None:
    reading = threading.Event()
    with Chat(reading=reading) as chat:
        load = Load(2, senders=1, rate=10_000, size=16384)
        figures = exchange(chat, load, "--patience=10", measured=reading.set)
    assert wrong(figures) == {}
    assert figures["sent"] == 1000
    assert figures["latency_ms"]["max"] >= figures["send_lag_ms"] > 0


def test_senders_apart_hear_nothing_that_is_checked() -> None:
    with Chat(echo=True) as chat:
        figures = exchange(chat, Load(5, senders=2, rate=400), "--apart", "--send-path=/in", "--path=/out")
    assert wrong(figures) == {}
    assert (figures["delivered"], figures["aside"]) == (3 * SENT, 2 * SENT)
    assert sorted(chat.targets) == ["/in"] * 2 + ["/out"] * 3


def test_rooms_are_in_the_path() -> None:
    with Chat(lambda *_: []) as chat:
        exchange(chat, Load(4, senders=1, rooms=2, rate=400))
    assert sorted(chat.targets) == ["/room0"] * 2 + ["/room1"] * 2


def test_a_message_of_another_room_is_foreign() -> None:
    with Chat() as chat:
        assert wrong(exchange(chat, Load(4, senders=1, rooms=2, rate=400))) == {"foreign": 2 * SENT}


def test_several_processes_share_the_clients() -> None:
    with Chat() as chat:
        figures = exchange(chat, Load(6, senders=3, window=8, processes=3))
    assert wrong(figures) == {}
    assert len(figures["busy"]) == 3
    assert figures["delivered"] == figures["sent"] * 5 == chat.taken * 5


def test_it_holds_connections_until_its_stdin_ends() -> None:
    phases: list[str] = []
    with Chat() as chat:
        figures = generate(chat.port, Load(20), phases={"connected": lambda: phases.append("connected")})
    assert phases == ["connected"]
    assert figures["clients"] == len(chat.targets) == 20
    assert figures["closed"] == figures["aside"] == 0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "the handshake was answered: HTTP/1.1 404 Not Found"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "without the right Sec-WebSocket-Accept"),
    ],
)
def test_a_refused_handshake_is_an_error(answer: bytes, told: str) -> None:
    with Chat(answer=answer) as chat, pytest.raises(Failed, match=told):
        exchange(chat)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "the handshake was answered: HTTP/1.1 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", "without events in chunks"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "without events in chunks"),
        (faulty.STREAM + b"12x\r\n", "sent a chunk that is none"),
        (faulty.STREAM + b"1\r\n\n:", "sent a chunk that is none"),
    ],
)
def test_a_stream_of_events_that_is_none_is_an_error(answer: bytes, told: str) -> None:
    with Chat(answer=answer) as chat, pytest.raises(Failed, match=told):
        generate(chat.port, Load(1, sse=1, senders=0), phases={})


def test_a_subprotocol_has_to_be_chosen() -> None:
    with Chat() as chat, pytest.raises(Failed, match=r"did not choose the subprotocol chat\.v9"):
        exchange(chat, OPEN, "--subprotocol=chat.v9")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--port is needed"),
        (["--port=1", "--hold"], "connect: Connection refused"),
        (["--port=1"], "either --window or --rate is needed"),
        (["--port=1", "--hold", "--size=15"], "--size must be from 16 to 16384, not 15"),
        (["--port=1", "--hold", "--clients=x"], "--clients must be from 1 to"),
        (["--port=1", "--hold", "--senders=3"], "more senders than clients"),
        (["--port=1", "--hold", "--stopped=2"], "more senders than clients, those that stop reading apart"),
        (["--port=1", "--hold", "--clients=4", "--stopped=2", "--rooms=2"], "--stopped is for one room"),
        (["--port=1", "--hold", "--sse=2"], "more senders than clients, those that only follow apart"),
        (["--port=1", "--hold", "more"], "what is more?"),
    ],
)
def test_an_error_is_said_on_stderr(options: list[str], told: str) -> None:
    done = subprocess.run([PROGRAM, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000])
def test_percentiles_are_right_to_one_part_in_64(scale: int) -> None:
    values = "\n".join(str(value * scale) for value in range(1, 10_001))
    done = subprocess.run([PROGRAM, "--percentiles"], input=values, capture_output=True, text=True, check=True)
    got = {name: value * 1e6 / scale for name, value in json.loads(done.stdout).items()}
    for name, right in {"p50": 5_000, "p99": 9_900, "p99.9": 9_990}.items():
        assert right * 0.999 <= got[name] <= right * (1 + 1 / 64)
    assert got["max"] == pytest.approx(10_000)


def test_small_values_have_their_own_bucket() -> None:
    done = subprocess.run([PROGRAM, "--percentiles"], input="3 3 3 100", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"p50": 3e-6, "p99": 1e-4, "p99.9": 1e-4, "max": 1e-4}
