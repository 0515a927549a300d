"""The plain-text dress: the contract of a pipe. One message is one frame; its text goes out as it came in."""

from collections.abc import Callable, Sequence

from chatd.message import Message
from chatd.wire.frames import deflated_text_frame, text_frame


def read_line(text: str) -> str:
    r"""Read a text message as a line: one ``\n`` or ``\r\n`` at its end is dropped.

    What is empty then stays so, and is for nobody: an empty frame makes websocat 1.13 deaf.
    """
    if text[-1:] != "\n":
        return text
    return text[:-2] if text[-2:-1] == "\r" else text[:-1]


def utf8_size(text: str) -> int:
    """Count the bytes of a text's UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class Dress:
    """How messages look to a kind of client: the hub frames a batch once for each dress that members wear."""

    def __init__(self, show: Callable[[Message], str], frame: Callable[[bytes], bytes] = text_frame) -> None:
        """Take how a message reads, and how its UTF-8 is framed."""
        self._show = show
        self._frame = frame
        self.deflated = self if frame is deflated_text_frame else Dress(show, deflated_text_frame)
        """The same for clients that have agreed to compression."""

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        """Give each message's frame."""
        show, frame = self._show, self._frame
        return [frame(show(each).encode()) for each in messages]


def bare(message: Message) -> str:
    """Show a message to a bare client."""
    return message.text


BARE = Dress(bare)
"""Unchanged, one message one frame."""
