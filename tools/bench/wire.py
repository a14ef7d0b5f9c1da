"""The parser of an HTTP/1.1 response, pushed in any pieces; no I/O."""

from __future__ import annotations

from collections.abc import Callable

_MAX_HEAD_BYTES = 64 << 10
_MAX_CHUNK_LINE_BYTES = 4 << 10
_BODILESS = frozenset({204, 304})


class ProtocolError(Exception):
    """The server did not speak HTTP/1.1."""


class Disconnected(Exception):
    """The server closed the connection before the reply was complete."""


class ResponseParser:
    """One response, pushed in any pieces.

    Attributes:
        status: 0 until the head is complete.
        headers: names in lower case; a repeated one keeps its last value.
        done: the body is complete.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self._any_bytes = False
        self._keep_alive = True
        self._ends_with_connection = False
        self._buffer = bytearray()
        self._left = 0
        self._step: Callable[[list[bytes]], bool] = self._head

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection."""
        return self.done and self._keep_alive and not self._ends_with_connection and not self._buffer

    def push(self, data: bytes) -> bytes:
        """Takes what arrived.

        Args:
            data: of any length.

        Returns:
            The bytes of the body in it, chunk framing removed.

        Raises:
            ProtocolError: this is not HTTP/1.1.
        """
        self._any_bytes = self._any_bytes or bool(data)
        self._buffer += data
        body: list[bytes] = []
        while not self.done and self._step(body):
            pass
        return body[0] if len(body) == 1 else b"".join(body)

    def eof(self) -> None:
        """Takes the end of the connection.

        Raises:
            Disconnected: the response is not complete.
        """
        if self._ends_with_connection:
            self.done = True
        elif not self.done:
            where = "inside the reply" if self._any_bytes else "before the reply"
            raise Disconnected(f"the connection was closed {where}")

    def _line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > limit:
                raise ProtocolError("a line of the reply's framing is too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r")

    def _head(self, body: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES or not b"HTTP/1.".startswith(self._buffer[:7]):
                raise ProtocolError(f"not an HTTP/1.1 reply: {bytes(self._buffer[:40])!r}")
            return False
        status_line, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = status_line.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdigit():
            raise ProtocolError(f"not an HTTP/1.1 reply: {status_line[:40]!r}")
        status = int(rest[:3])
        if 100 <= status < 200:  # an interim response; the real one follows
            return True
        self.status = status
        self.headers = {name.strip().lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)}
        options = {option.strip() for option in self.headers.get("connection", "").lower().split(",")}
        self._keep_alive = "close" not in options and (version == "HTTP/1.1" or "keep-alive" in options)
        self._choose_framing()
        return True

    def _choose_framing(self) -> None:
        length = self.headers.get("content-length")
        if self.status in _BODILESS:
            self.done = True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._step = self._chunk_size
        elif length is None:
            self._ends_with_connection = True
            self._step = self._until_close
        elif length.isdigit():
            self._left = int(length)
            self.done = self._left == 0
            self._step = self._fixed
        else:
            raise ProtocolError(f"content-length is {length!r}")

    def _chunk_size(self, body: list[bytes]) -> bool:
        line = self._line(_MAX_CHUNK_LINE_BYTES)
        if line is None:
            return False
        digits = line.split(b";", 1)[0].strip()
        try:
            self._left = int(digits, 16) if digits.isalnum() else -1
        except ValueError:
            self._left = -1
        if self._left < 0 or len(digits) > 16:
            raise ProtocolError(f"a chunk of size {line[:20]!r}")
        self._step = self._chunk_data if self._left else self._trailer
        return True

    def _chunk_data(self, body: list[bytes]) -> bool:
        self._take(body)
        if self._left == 0:
            self._step = self._chunk_end
        return bool(self._buffer)

    def _chunk_end(self, body: list[bytes]) -> bool:
        line = self._line(2)
        if line is None:
            return False
        if line:
            raise ProtocolError("a chunk is longer than its size")
        self._step = self._chunk_size
        return True

    def _trailer(self, body: list[bytes]) -> bool:
        line = self._line(_MAX_CHUNK_LINE_BYTES)
        if line is None:
            return False
        self.done = not line
        return True

    def _fixed(self, body: list[bytes]) -> bool:
        self._take(body)
        self.done = self._left == 0
        return False

    def _until_close(self, body: list[bytes]) -> bool:
        self._left = len(self._buffer)
        self._take(body)
        return False

    def _take(self, body: list[bytes]) -> None:
        """Moves what is there of the wanted bytes to the body."""
        piece = bytes(self._buffer[: self._left])
        if piece:
            body.append(piece)
            self._left -= len(piece)
            del self._buffer[: len(piece)]
