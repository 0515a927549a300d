"""Somebody who asks for the chat page again and again, one request at a time, over connections that stay open."""

import time
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Self

from benchmarks.generator import Failed

PATIENCE_SECONDS = 10.0
AS_BROWSERS_DO = {
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Encoding": "gzip, deflate, br",
    "Accept-Language": "en-US,en;q=0.5",
}


class Visitor:
    """The visitor, connected from ``with`` to the end of it."""

    def __init__(self, port: int, connections: int) -> None:
        """Take where to ask, and over how many connections in turn."""
        self._connections = [HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS) for _ in range(connections)]
        self._page = b""

    def __enter__(self) -> Self:
        for each in self._connections:
            each.connect()
            each.auto_open = 0  # one that was closed is not opened again unseen
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._connections:
            each.close()

    def ask(self, seconds: float) -> int:
        """Ask for so long; give how often the page came. Raises Failed where it did not, or was another one."""
        end = time.monotonic() + seconds
        came = 0
        while time.monotonic() < end:
            page = _page(self._connections[came % len(self._connections)])
            if page != (self._page or page):
                raise Failed("the page was another one than before")
            self._page = page
            came += 1
        return came


def _page(connection: HTTPConnection) -> bytes:
    try:
        connection.request("GET", "/", headers=AS_BROWSERS_DO)
        answer = connection.getresponse()
        body = answer.read()
    except (HTTPException, OSError) as error:
        raise Failed(f"the page did not come: {error!r}") from error
    kind = answer.getheader("Content-Type")
    if answer.status != 200 or not (kind or "").startswith("text/html"):
        raise Failed(f"the page did not come, but {answer.status}, {kind}")
    return body
