"""Who visits the page: what is no page, or another one, is no measurement."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.generator import Failed
from benchmarks.visitor import Visitor

PAGE = (200, "text/html", b"hello")


@contextmanager
def site(*answers: tuple[int, str, bytes], closes: bool = False) -> Iterator[int]:
    """Serve these answers in turn, the last one again and again; give the port."""
    left = list(answers)

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, kind, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if closes:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_the_page_comes_as_often_as_it_is_asked_for() -> None:
    with site(PAGE) as port, Visitor(port, 2) as visitor:
        assert visitor.ask(0.05) > 0


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([(404, "text/html", b"")], "but 404, text/html"),
        ([(200, "text/plain", b"hello")], "but 200, text/plain"),
        ([PAGE, (200, "text/html", b"bye")], "another one than before"),
    ],
)
def test_what_is_not_the_page_is_no_measurement(answers: list[tuple[int, str, bytes]], told: str) -> None:
    with site(*answers) as port, Visitor(port, 1) as visitor, pytest.raises(Failed, match=told):
        visitor.ask(10)


def test_a_connection_that_is_closed_after_a_page_is_no_measurement() -> None:
    with site(PAGE, closes=True) as port, Visitor(port, 1) as visitor, pytest.raises(Failed, match="did not come"):
        visitor.ask(10)
