"""permessage-deflate (RFC 7692) for one client: the negotiation, and the decompression of incoming messages.

Neither side keeps a context: an outgoing message is compressed once for all clients, and nothing is kept for a client
between two messages. ``protocol/websocket_frames`` frames outgoing messages.
"""

import contextlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from autobahn.exception import PayloadCorruptError, PayloadExceededError
from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer

_DEFLATE_END = b"\x00\x00\xff\xff\x01\x00\x00\xff\xff"  # the tail of RFC 7692, section 7.2.2, and a last empty block


def take_up(offers: Sequence[tuple[str, Mapping[str, Sequence[Any]]]]) -> str:
    """Answer the extensions that a client offers: the first permessage-deflate that we can meet; empty without one."""
    for name, parameters in offers:
        with contextlib.suppress(Exception):  # Autobahn raises nothing finer for an offer that is wrong
            if name == PerMessageDeflateOffer.EXTENSION_NAME:
                window = PerMessageDeflateOffer.parse(parameters).request_max_window_bits
                if window in (0, zlib.MAX_WBITS):  # a blob for all can't keep to the smallest window of any
                    asked = f"; server_max_window_bits={window}" if window else ""  # must be repeated (7.1.2.1)
                    return f"{name}; server_no_context_takeover; client_no_context_takeover{asked}"
    return ""


def longest_deflated(size: int) -> int:
    """Return how long a compressed message of size bytes may be:

    a literal of 8 bits can take 9, and blocks have headers.
    """
    return size + size // 4 + 64


class Inflater(PerMessageDeflate):
    """The decompressor of one client. Each message is decompressed by itself; nothing is kept between two."""

    _decompressor: Any

    def __init__(self, most: int) -> None:
        """Store how many bytes a message may have."""
        super().__init__(True, True, True, zlib.MAX_WBITS, zlib.MAX_WBITS, None, most + 1)

    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes:
        """Decompress.

        A message with one byte too many is refused here, because zlib does not always report that there is more.
        """
        inflated: bytes = super().decompress_message_data(data, max_output_len)
        if self._decompress_message_size >= self.max_message_size:
            raise PayloadExceededError("too large")
        return inflated

    def end_decompress_message(self) -> None:
        """Check that the message is complete:

        with the tail that its sender omitted it ends at a block, and nothing follows.
        """
        inflate, self._decompressor = self._decompressor, None
        try:
            more = inflate.decompress(_DEFLATE_END, 1)
        except zlib.error as error:
            raise PayloadCorruptError(str(error)) from error
        behind = inflate.unused_data.removesuffix(_DEFLATE_END)  # where the sender ended it himself, perhaps a zero
        if more or not inflate.eof or behind.strip(b"\0"):
            raise PayloadCorruptError("it is not whole")
