"""A session that only listens: somebody who follows a room over HTTP."""

from typing import Any

from chatd.clients.pipe_session import Session
from chatd.protocol.http_stream import Stream
from chatd.protocol.message import OffsetGap, StreamPosition


class StreamSession(Session):
    """One client that follows one room; with a nick it is seen there, and sees who comes and goes."""

    protocol = "http"

    __slots__ = ("_since", "_stream")

    def __init__(self, *args: Any, stream: Stream, since: StreamPosition | None, **options: Any) -> None:
        """Take what a Session takes, how the client hears the room, and from where on it wants to."""
        super().__init__(*args, **options)
        if not self._target.nick:  # nobody sees it, whatever its token says
            self.nick = self.wanted = ""
        self._stream = stream
        self._since = since
        self.format = stream.format

    @property
    def listens(self) -> bool:  # type: ignore[override]
        """Whether it is told who comes and goes, and has a nick of its own."""
        return bool(self._target.nick)

    @property
    def since(self) -> StreamPosition | None:
        """From where on it wants to hear the room."""
        return self._since

    def opened(self) -> None:
        """Say which nick it got, where that is not the one it wanted."""
        if self._target.nick and self.nick != self._target.nick:
            self._connection.send(self._stream.another_nick(self._target.nick, self.nick))
        super().opened()

    def token_ends(self, seconds: float) -> None:
        """Say so."""
        if told := self._stream.token_ends(seconds):
            self._connection.send(told)

    def lost(self, gap: OffsetGap) -> None:
        """Say what is gone for good."""
        self._connection.send(self._stream.lost(self._target.room, gap))

    def too_slow(self, gap: OffsetGap) -> None:
        """Say what it missed, and go on."""
        self.lost(gap)
