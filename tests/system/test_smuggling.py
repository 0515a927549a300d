"""Requests that one server reads so and another one so: behind a proxy the second half would be somebody else's."""

import contextlib
import socket

import pytest

from tests.system.daemon import Daemon

SMUGGLED = b"POST /smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 8\r\n\r\nsmuggled"
GOOD = b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", end: bytes = b"\r\n") -> bytes:
    return end.join([b"POST /ops HTTP/1.1", b"Host: localhost", *headers, b"", b""]) + body


SHAPES = {
    "a length and chunks": post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks and a length": post(b"Transfer-Encoding: chunked", b"Content-Length: 999", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 0", body=b"abc"),
    "a list of lengths": post(b"Content-Length: 3, 0", body=b"abc"),
    "a length with a sign": post(b"Content-Length: +3", body=b"abc"),
    "a length with underscores": post(b"Content-Length: 0_3", body=b"abc"),
    "a length below zero": post(b"Content-Length: -3", body=b"abc"),
    "another coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunks in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two codings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "a space before the colon": post(b"Transfer-Encoding : chunked", b"Content-Length: 0", body=b"0\r\n\r\n"),
    "a folded header": post(b"X: a", b" Content-Length: 3", b"Content-Length: 0"),
    "a chunk below zero": post(b"Transfer-Encoding: chunked", body=b"-1\r\nabc\r\n0\r\n\r\n"),
    "a chunk with a prefix": post(b"Transfer-Encoding: chunked", body=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk that is too long": post(b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n"),
    "an endless chunk": post(b"Transfer-Encoding: chunked", body=b"ffffffffffffffff\r\nabc"),
    "a trailer": post(b"Transfer-Encoding: chunked", body=b"0\r\nX: y\r\n\r\n"),
    "a trailer with a bare line feed": post(b"Transfer-Encoding: chunked", body=b"0\r\nX: a\nb\r\n\r\n"),
    "a trailer with a bare carriage return": post(b"Transfer-Encoding: chunked", body=b"0\r\nX: a\rb\r\n\r\n"),
    "a trailer that ends with bare line feeds": post(b"Transfer-Encoding: chunked", body=b"0\r\nX: y\n\n"),
    "a trailer that is a request": post(b"Transfer-Encoding: chunked", body=b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    "a trailer with a null": post(b"Transfer-Encoding: chunked", body=b"0\r\nX: \0\r\n\r\n"),
    "a long trailer": post(b"Transfer-Encoding: chunked", body=b"0\r\nX: " + b"y" * 60_000 + b"\r\n\r\n"),
    "a bare line feed for the end of chunks": post(b"Transfer-Encoding: chunked", body=b"0\r\n\n"),
    "bare line feeds": post(b"Content-Length: 0", end=b"\n"),
    "a bare carriage return": post(b"X: y\rContent-Length: 3", b"Content-Length: 0"),
    "a header without a name": post(b": chunked", b"Content-Length: 0"),
    "a null in a header": post(b"X: \0", b"Content-Length: 0"),
    "a request line with a tab": post(b"Content-Length: 0").replace(b" /ops ", b"\t/ops\t"),
    "another version": post(b"Content-Length: 0").replace(b"HTTP/1.1", b"HTTP/9.9"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


WORKERS = 1


def answers(daemon: Daemon, data: bytes) -> bytes:
    """Send all of it; give what is answered up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
        client.sendall(data)
        heard = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while data := client.recv(65536):
                heard += data
                client.settimeout(1)  # or it waits for more of the request
    return heard


@pytest.mark.parametrize("before", [b"", GOOD], ids=["at first", "behind a good one"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_done(
    daemon: Daemon, shape: str, before: bytes
) -> None:
    heard = answers(daemon, before + SHAPES[shape] + SMUGGLED)
    statuses = [line.split(b" ")[1] for line in heard.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses[: bool(before)] == [b"200"] * bool(before)
    assert len(statuses) <= 1 + bool(before), heard
    assert all(each.startswith((b"4", b"5")) for each in statuses[bool(before) :]), heard
    assert daemon.texts().count("smuggled") == 0


def test_what_can_be_read_in_one_way_alone_is_done(daemon: Daemon) -> None:
    chunked = post(b"Transfer-Encoding: chunked", body=b"5;x=y\r\nhello\r\n0\r\n\r\n")
    assert answers(daemon, GOOD + chunked + SMUGGLED.replace(b"/smuggled", b"/ops")).count(b" 201 ") == 2
