"""Thousands of frames that are nearly right, or not at all: each is answered, or ends its connection as it must.

``FUZZ_SEED=4711`` says other ones; those of a seed are always the same, but not how connections take turns.
"""

import json
import os
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import UNSET

from chatd.protocol.json_v1 import Ack, Code, Error, Event, Joined, Pong
from docs.schema import schema
from tests.conformance.raw import RawClient
from tests.depth import depth
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, header
from tests.system.daemon import Daemon
from tests.waiting import until

FRAMES = depth(100_000)
SEED = int(os.environ.get("FUZZ_SEED", "5"))
PROGRAMS, PEOPLE = 6, 2
AT_ONCE = 100
"""Frames that a connection sends before it reads."""
ENDS = 0.5
"""How often a frame follows on those that ends the connection."""
SLACK = 12_000_000
"""Bytes that the worker may have more in the end than after the first tenth."""

DEFINITIONS = schema()["$defs"]
ROOMS = ["fuzz"] * 4 + ["a", "b", "c", "d", "\u00e5", "A\u030a"]
WORDS = [
    "",
    "ann",
    "bob",
    "hi",
    "\n",
    "\r\n",
    "a b",
    "*",
    ":",
    "a/b",
    "-x",
    "\0",
    "\x1b[2J",
    "\u202e",
    "\U0001f680",
    "fuzz",
]
JUNK: list[Any] = [None, True, False, 0, -1, 1.5, 1e300, 2**53, -(2**53), 10**30, "", "x" * 65, [], [[]], {}, {"a": 1}]
ANSWERS = {
    "publish": "ack",
    "join": "joined",
    "leave": "left",
    "members": "members",
    "history": "history",
    "nick": "nick",
    "auth": "auth",
    "ping": "pong",
}
read_event = msgspec.json.Decoder(Event).decode

UNSAFE = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
UNASKED = ("welcome", "message", "presence", "gap", "bye")


# What is sent


class Author:
    """Thinks up what one connection says."""

    def __init__(self, name: str) -> None:
        self.random = random.Random(f"{SEED} {name}")
        self._number = 0

    def request(self, epoch: str) -> str:
        """Write a frame's text: a request of the schema, or one that was changed into something near it."""
        pick, kind = self.random.random(), self.random.choice(DEFINITIONS["Request"]["anyOf"])
        request: Any = self._value("", kind)
        self._number += 1
        request["ref"] = self._number if pick < 0.5 else f"r{self._number}"
        if "since" in request and "epoch" in request["since"] and pick < 0.7:
            request["since"]["epoch"] = epoch
        if pick < 0.4:
            return json.dumps(request)
        if pick < 0.45 and request["type"] in ("publish", "ping"):
            del request["ref"]
            return json.dumps(request)
        if pick < 0.8:
            self._change(request)
            return json.dumps(request, ensure_ascii=self.random.random() < 0.9)
        if pick < 0.95:
            return self._garbled(json.dumps(request))
        return self._text()

    def line(self) -> str:
        """Write what a person types."""
        word = self.random.choice(["", "", "/", "//", "/who ", "/nick ", "/last ", "/me ", "/ping", "/help", "/quit x"])
        return word + self._text() if self.random.random() < 0.7 else word.strip()

    def _value(self, name: str, kind: dict[str, Any]) -> Any:
        """Make a value that is right."""
        choose = self.random
        if "$ref" in kind:
            return self._value(name, DEFINITIONS[kind["$ref"].rpartition("/")[2]])
        if "anyOf" in kind:
            return self._value(name, choose.choice(kind["anyOf"]))
        if "enum" in kind:
            return choose.choice(kind["enum"])
        if kind["type"] == "object":
            return self._object(kind)
        if kind["type"] == "integer":
            least, most = kind["minimum"], kind["maximum"]
            return choose.choice([least, most, choose.randint(least, most), min(most, least + choose.randint(0, 99))])
        return self._word(name, kind)

    def _word(self, name: str, kind: dict[str, Any]) -> str:
        choose = self.random
        if name == "room":
            return choose.choice(ROOMS)
        if "pattern" in kind:
            return "".join(choose.choices(string.ascii_letters, k=choose.randint(1, kind["maxLength"])))
        return (choose.choice(WORDS) + self._text())[: kind.get("maxLength")] or "x"

    def _object(self, kind: dict[str, Any]) -> dict[str, Any]:
        choose = self.random
        if kind["title"] == "Since":
            names = choose.choice([("epoch", "offset"), ("last",)])
        else:
            names = tuple(each for each in kind["properties"] if each in kind["required"] or choose.random() < 0.5)
        return {each: self._value(each, kind["properties"][each]) for each in names}

    def _change(self, request: dict[str, Any]) -> None:
        """Make something wrong, perhaps."""
        name = self.random.choice([*request, "x", "since", "id"])
        match self.random.randrange(3):
            case 0:
                request.pop(name, None)
            case 1:
                request[name] = self.random.choice(JUNK)
            case _:
                request[name] = self._text()
        if "ref" not in request:  # only what is wrong has none: an answer without one could be anybody's
            request["type"] = "none"

    def _garbled(self, text: str) -> str:
        place, what = (
            self.random.randrange(len(text)),
            self.random.choice(["", "\0", '"', "{", "}", ",", "\\ud800", "9"]),
        )
        garbled = text[:place] + what + text[place + self.random.randint(0, 2) :]
        return garbled if '"ref": ' in garbled else f"?{garbled}"  # it must not be right, as above

    def _text(self) -> str:
        return "".join(
            self.random.choices(
                ["a", "ab ", "0", "\t", "\x07", "\u20ac", "\u202e", "\x9b"], k=self.random.randint(0, 12)
            )
        )

    def ends(self) -> bool:
        """Whether it is time for a frame that ends the connection."""
        return self.random.random() < ENDS

    def fatal(self, longest: int) -> tuple[bytes, int]:
        """Make a frame that ends the connection, and the code of the Close frame that answers it."""
        return self.random.choice(
            [
                (frame(b"ab", BINARY), 1003),
                (frame(b"\xff"), 1007),
                (frame(b"\xed\xa0\x80"), 1007),
                (header(TEXT, longest + 1) + bytes(4), 1009),
                (header(TEXT, 2**62) + bytes(4), 1009),
                (frame(b"ab", mask=b""), 1002),
                (frame(b"ab", CONTINUATION), 1002),
                (frame(b"ab", self.random.choice([3, 7, 11, 15])), 1002),
                (frame(b"x" * 126, PING), 1002),
                (frame(b"ab", PING, fin=False), 1002),
                (close_frame(1005), 1002),
                (close_frame(1000, b"\xff"), 1007),
                (close_frame(4000), 4000),
            ]
        )


def framed(text: str) -> bytes:
    """Frame a text with a mask that changes nothing: it is quickly made."""
    payload = text.encode(errors="surrogatepass")
    return header(TEXT, len(payload)) + bytes(4) + payload


# Who sends it


class Line(RawClient):
    """A connection, of which texts and the end are read."""

    def __init__(self, port: int, target: str, **headers: str) -> None:
        super().__init__(("127.0.0.1", port), target, **headers)

    def text(self) -> bytes:
        """Return the next text message, which has to come before anything else but pings and pongs."""
        opcode, payload = self.frame()
        while opcode in (PING, PONG):
            opcode, payload = self.frame()
        assert opcode == TEXT, (opcode, payload)
        return payload

    def ends(self) -> tuple[int, bytes]:
        """Return the code with which it is closed, and the last text before that; the socket ends too."""
        last = b""
        while (found := self.frame())[0] != CLOSE:
            last = found[1] if found[0] == TEXT else last
        with suppress(OSError):
            self.send(close_frame())
            while self._socket.recv(65_536):
                pass
        self._socket.close()
        return int.from_bytes(found[1][:2]), last


def talk_as_program(port: int, name: str, count: int) -> None:
    """Send so many frames, and see that each is answered once, under its reference."""
    author = Author(name)
    while count > 0:
        line = Line(port, "/fuzz", Sec_WebSocket_Protocol="chatd.v1")
        assert b'"welcome"' in line.text()
        joined = read_event(line.text())
        assert isinstance(joined, Joined)
        while count > 0 and not author.ends():
            texts = [author.request(joined.epoch) for _ in range(min(AT_ONCE, count))]
            count -= len(texts)
            line.send(b"".join(map(framed, texts)))
            see_answers(texts, line)
        data, code = author.fatal(16_384 * 6 + 4096)
        line.send(data)
        closed_with, last = line.ends()
        assert closed_with == code, (data[:60], last)
        assert code == 4000 or f'"type":"bye","code":{code}' in last.decode()
        count -= 1


def see_answers(texts: Sequence[str], line: Line) -> None:
    """See that to each of these comes an answer that the contract has for it."""
    asked: dict[tuple[type, Any] | None, list[str]] = {}
    for text in texts:
        asked.setdefault(reference(text), []).append(text)
    waiting = Counter({key: len(those) for key, those in asked.items()})
    while waiting:
        try:
            event = read_event(line.text())
        except TimeoutError:
            raise AssertionError(f"not answered: {[asked[key] for key in waiting]}") from None
        if event.__struct_config__.tag in UNASKED:
            continue
        ref = getattr(event, "ref", UNSET)
        key = None if ref is UNSET else (type(ref), ref)
        if key is None and not answers_anonymous(event):
            continue  # who is there, or which nick it has now: nobody asked for it
        assert key in waiting, (event, texts)
        waiting[key] -= 1
        if not waiting[key]:
            del waiting[key]
        if key is not None:
            see_answer(asked[key], event)


def answers_anonymous(event: Event) -> bool:
    """Whether it can be the answer to a request without a reference: those are all to publish, pings, or wrong."""
    return isinstance(event, Ack | Pong) or (isinstance(event, Error) and event.code != "rate_limited")


def see_answer(texts: Sequence[str], event: Event) -> None:
    """See that an answer is one of those to these requests, which have one reference."""
    if isinstance(event, Error):
        assert event.code in get_args(Code)
        assert event.message.isprintable()
    else:
        kinds = [json.loads(text)["type"] for text in texts]
        assert event.__struct_config__.tag in [
            ANSWERS[kind] for kind in kinds if isinstance(kind, str) and kind in ANSWERS
        ], (texts, event)


def reference(text: str) -> tuple[type, Any] | None:
    """Give the reference of a request, right or wrong, under which it has to be answered."""
    try:
        ref = json.loads(text)["ref"]
        if isinstance(ref, str):
            ref.encode()
            return (str, ref) if len(ref) <= 64 else None
        return (int, ref) if type(ref) is int and abs(ref) < 2**53 else None
    except (ValueError, TypeError, LookupError):
        return None


def talk_as_person(port: int, name: str, count: int) -> None:
    """Type so many lines, and see that what is shown is safe, and that the server goes on obeying."""
    author = Author(name)
    while count > 0:
        line = Line(port, "/fuzz?nick=ann")
        while count > 0 and not author.ends():
            lines = [author.line() for _ in range(min(AT_ONCE, count))]
            count -= len(lines)
            line.send(b"".join(map(framed, [*lines, f"/sync{count}"])))
            shown = ""
            while f"/sync{count} " not in shown:
                shown = line.text().decode()
                assert not UNSAFE.search(shown), shown
        data, code = author.fatal(16_386)
        line.send(data)
        closed_with, last = line.ends()
        assert closed_with == code, (data[:60], last)
        assert code == 4000 or last.startswith(b"* closing: ")
        count -= 1


# What becomes of the server


def talk(port: int, name: str, count: int) -> None:
    """Let all of them talk at once."""
    share = count // (PROGRAMS + PEOPLE)
    with ThreadPoolExecutor(PROGRAMS + PEOPLE) as pool:
        talks = [pool.submit(talk_as_program, port, f"{name} program {number}", share) for number in range(PROGRAMS)]
        talks += [pool.submit(talk_as_person, port, f"{name} person {number}", share) for number in range(PEOPLE)]
        for each in talks:
            each.result()


def memory(pid: int) -> int:
    """Give how much memory a process has, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_whatever_comes_is_answered_or_ends_its_connection_and_the_worker_lives(tmp_path: Path) -> None:
    options = ("--tuning", "rooms_per_client=8", "--history-size", "50")
    print(f"FUZZ_SEED={SEED} says the same frames again")
    with Daemon(tmp_path, *options, workers=1) as daemon:
        [worker] = daemon.worker_pids()
        talk(daemon.port, "first", FRAMES // 10)
        before = memory(worker)
        talk(daemon.port, "second", FRAMES - FRAMES // 10)
        assert daemon.worker_pids() == [worker]
        until(lambda: memory(worker) < before + SLACK, f"memory to return to {before} bytes; it is {memory(worker)}")
        assert "Traceback" not in daemon.log()
