"""The plain-text dress: the contract of a pipe. One message is one frame; its text goes out as it came in."""

from chatd.message import Message


class TooLarge(Exception):
    """A message over the limit."""


def read_line(payload: bytes, most: int) -> str:
    r"""Read a text message (valid UTF-8) as a line of at most most bytes: one ``\n`` or ``\r\n`` at its end is dropped.

    What is empty then stays so, and is for nobody: an empty frame makes websocat 1.13 deaf. Raises TooLarge.
    """
    line = payload.removesuffix(b"\n")
    if len(line) < len(payload):
        line = line.removesuffix(b"\r")
    if len(line) > most:
        raise TooLarge
    return line.decode()


def bare(message: Message) -> str:
    """Show a message to a bare client."""
    return message.text
