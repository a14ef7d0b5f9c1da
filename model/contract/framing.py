"""How messages are cut out of a stream of bytes: a 4-byte little-endian length, then so many bytes."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
MAX_FRAME_BYTES = 1 << 30


class FramingError(ValueError):
    """What came cannot be a frame; nothing after it can be trusted."""


def frame(payload: bytes) -> bytes:
    """Returns the bytes to send."""
    return _HEADER.pack(len(payload)) + payload


class FrameSplitter:
    """Takes bytes as they come and gives whole payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """Returns the payloads that are complete with these bytes.

        Raises:
            FramingError: a frame says that it is longer than any of ours.
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
