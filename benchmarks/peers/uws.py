"""A broadcast on uWebSockets: ``python uws.py PORT``. Prints ``ready`` when it listens.

The WebSockets and the fan-out are C++ (uWebSockets' own publish to a topic); Python, through socketify, only passes
each message on. A sender gets its own messages too. One process, one thread, no log, no broker.
"""

import sys
from typing import Any

from socketify import App, AppListenOptions, OpCode

BACKLOG_BYTES = 16 * 1024 * 1024
"""Beyond it uWebSockets would drop messages for a slow client."""


def joined(socket: Any) -> None:
    """A client is there."""
    socket.subscribe("chat")


def said(socket: Any, message: str | bytes, _: Any) -> None:
    """A client said something: all get it."""
    socket.publish("chat", message, OpCode.TEXT)


app = App()
behaviour = {"open": joined, "message": said, "max_payload_length": 16384, "max_backpressure": BACKLOG_BYTES}
app.ws("/*", {**behaviour, "compression": 0, "idle_timeout": 120})
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"), lambda _: print("ready", flush=True))
app.run()
