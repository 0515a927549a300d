"""WebSocket frames (RFC 6455, RFC 7692): a fast parser for incoming text messages, and encoders of outgoing ones.

The fast parser reads what nearly every client sends: whole text messages in one frame each. It leaves all other frames
(fragments, control frames, 64-bit lengths, compression, invalid ones) in the buffer, for the parser of Autobahn.
Outgoing frames are neither masked nor fragmented (sections 5.1, 5.2).
"""

import zlib
from codecs import utf_8_decode

LONGEST = 65_535
"""The longest payload, in bytes, that the fast parser accepts: the largest 16-bit length."""

_TEXT = 0x81  # FIN and the opcode of a text frame
_DEFLATED = 0x40  # RSV1
_TAIL = b"\x00\x00\xff\xff"  # of what deflate flushes; left out on the wire


def text_frame(payload: bytes) -> bytes:
    """Frame one text message; payload is its UTF-8."""
    return _frame(_TEXT, payload)


def deflated_text_frame(payload: bytes) -> bytes:
    """Frame one text message for a client that has permessage-deflate: compressed by itself, where that helps.

    Nothing before it is needed to read it (``server_no_context_takeover``; RFC 7692, sections 7.1.1.1 and 7.2.1).
    """
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)
    return _frame(_TEXT | _DEFLATED, deflated) if len(deflated) < len(payload) else text_frame(payload)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2) + payload
    return bytes((first, 127)) + size.to_bytes(8) + payload


def take_texts(data: bytes, most: int, count: int = LONGEST) -> tuple[list[str], int, bool]:
    """Parse the text messages at the start of data, each a whole frame of a client with at most most bytes.

    There may be more of them than count: then the rest begins with the next one.

    Return the messages; how many bytes of data they are; and whether the rest is an incomplete frame of this kind, or
    empty. If it is not, the rest begins with a frame for the other parser, which may be invalid.
    """
    texts: list[str] = []
    size, start = len(data), 0
    for _ in range(count):
        body = start + 6
        if body > size:
            return texts, start, _may_become_text(data[start:], most)
        length = data[start + 1] - 128
        if data[start] != _TEXT or not 0 <= length < 127:
            break
        if length == 126:
            body += 2
            length = data[start + 2] << 8 | data[start + 3]
            if length < 126:
                break
        if length > most:
            break
        end = body + length
        if end > size:
            return texts, start, _may_become_utf8(_unmasked(data[body - 4 : body], data[body:]))
        try:
            texts.append(_unmasked(data[body - 4 : body], data[body:end]).decode())  # rejects what RFC 3629 rejects
        except UnicodeDecodeError:
            break
        start = end
    return texts, start, False


def _unmasked(mask: bytes, payload: bytes) -> bytes:
    """Return a payload, or its beginning, without the mask of 4 bytes: one XOR of both as large numbers."""
    size = len(payload)
    key = (mask * ((size >> 2) + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)


def _may_become_text(begin: bytes, most: int) -> bool:
    """Return whether the first bytes of a frame, less than its header, leave open that it is one for the fast lane."""
    if begin[:1] not in (b"", b"\x81"):
        return False
    if len(begin) < 2:
        return True
    length = begin[1] - 128
    if length < 126:
        return 0 <= length <= most
    if length > 126:
        return False
    least = int.from_bytes(begin[2:4].ljust(2, b"\0"))
    return 126 <= least <= most if len(begin) >= 4 else max(126, least) <= most


def _may_become_utf8(begin: bytes) -> bool:
    """Return whether the first bytes of a payload leave open that all of it is UTF-8: else it fails at once."""
    try:
        utf_8_decode(begin, "strict", False)
    except UnicodeDecodeError:
        return False
    return not b"\xed\xa0" <= begin[-2:] <= b"\xed\xbf"  # half of a surrogate, of which the decoder waits for the rest
