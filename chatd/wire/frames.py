"""RFC 6455 frames, written whole: what a server sends is neither masked nor fragmented (sections 5.1, 5.2)."""

_TEXT = 0x81  # FIN and the opcode of a text frame


def text_frame(payload: bytes) -> bytes:
    """Frame one text message; payload is its UTF-8."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65536:
        return bytes((_TEXT, 126)) + size.to_bytes(2) + payload
    return bytes((_TEXT, 127)) + size.to_bytes(8) + payload
