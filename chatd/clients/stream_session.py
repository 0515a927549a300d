"""The session of a client that follows a room over HTTP, and so only receives."""

from typing import Any

from chatd.clients.pipe_session import Session
from chatd.protocol.http_stream import Stream
from chatd.protocol.message import OffsetGap, StreamPosition


class StreamSession(Session):
    """One client that follows one room over HTTP; with a nick it is listed there, and receives presence events."""

    protocol = "http"

    __slots__ = ("_since", "_stream")

    def __init__(self, *args: Any, stream: Stream, since: StreamPosition | None, **options: Any) -> None:
        """Store what a Session stores, the encoding of the stream, and the position after which to start."""
        super().__init__(*args, **options)
        if not self._target.nick:  # it is not listed, whatever its token has
            self.nick = self.wanted = ""
        self._stream = stream
        self._since = since
        self.format = stream.format

    @property
    def receives_presence(self) -> bool:  # type: ignore[override]
        """Whether it receives presence events, and has a nick of its own."""
        return bool(self._target.nick)

    @property
    def since(self) -> StreamPosition | None:
        """The position after which the client wants to continue."""
        return self._since

    def opened(self) -> None:
        """Send the nick, if it is not the requested one."""
        if self._target.nick and self.nick != self._target.nick:
            self._connection.send(self._stream.another_nick(self._target.nick, self.nick))
        super().opened()

    def token_ends(self, seconds: float) -> None:
        """Send when the token ends."""
        if warning := self._stream.token_ends(seconds):
            self._connection.send(warning)

    def report_gap(self, gap: OffsetGap, *, slow: bool = False) -> None:
        """Send the gap."""
        self._connection.send(self._stream.lost(self._target.room, gap))
