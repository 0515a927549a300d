"""A session that only listens: somebody who follows a room over HTTP."""

from typing import Any

from chatd.clients.pipe_session import Session
from chatd.protocol.http_stream import Stream
from chatd.protocol.message import Gap, Position


class Follower(Session):
    """One client that follows one room; with a nick it is seen there, and sees who comes and goes."""

    talks = "http"

    __slots__ = ("_since", "_stream")

    def __init__(self, *args: Any, stream: Stream, since: Position | None, **options: Any) -> None:
        """Take what a Session takes, how the client hears the room, and from where on it wants to."""
        super().__init__(*args, **options)
        if not self._place.nick:  # nobody sees it, whatever its token says
            self.nick = self.wanted = ""
        self._stream = stream
        self._since = since
        self.dress = stream.dress

    @property
    def listens(self) -> bool:  # type: ignore[override]
        """Whether it is told who comes and goes, and has a nick of its own."""
        return bool(self._place.nick)

    @property
    def since(self) -> Position | None:
        """From where on it wants to hear the room."""
        return self._since

    def opened(self) -> None:
        """Say which nick it got, where that is not the one it wanted."""
        if self._place.nick and self.nick != self._place.nick:
            self._line.tell(self._stream.another_nick(self._place.nick, self.nick))
        super().opened()

    def token_ends(self, seconds: float) -> None:
        """Say so."""
        if told := self._stream.token_ends(seconds):
            self._line.tell(told)

    def lost(self, gap: Gap) -> None:
        """Say what is gone for good."""
        self._line.tell(self._stream.lost(self._place.room, gap))

    def too_slow(self, gap: Gap) -> None:
        """Say what it missed, and go on."""
        self.lost(gap)
