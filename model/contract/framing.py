"""Messages in a stream of bytes: a frame is a 4-byte little-endian length, then so many bytes."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
MAX_FRAME_BYTES = 1 << 30


class FramingError(ValueError):
    """The stream holds something that is no frame; nothing after it can be trusted."""


def frame(payload: bytes) -> bytes:
    """Returns the bytes to send."""
    return _HEADER.pack(len(payload)) + payload


class FrameSplitter:
    """Cuts whole payloads out of bytes as they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """Returns the payloads that these bytes complete.

        Raises:
            FramingError: a frame claims to be longer than MAX_FRAME_BYTES.
        """
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise FramingError(f"a frame of {length} bytes")
            end = start + HEADER_BYTES + length
            if len(buffer) < end:
                break
            payloads.append(bytes(memoryview(buffer)[start + HEADER_BYTES : end]))
            start = end
        if start:
            del buffer[:start]
        return payloads
