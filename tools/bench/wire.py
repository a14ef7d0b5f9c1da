"""The parser of an HTTP/1.1 response, pushed in any pieces; no I/O."""

from __future__ import annotations

import httptools

_MAX_HEAD_BYTES = 64 << 10
_BODILESS = frozenset({204, 304})


class ProtocolError(Exception):
    """The server did not speak HTTP/1.1."""


class Disconnected(Exception):
    """The server closed the connection before the reply was complete."""


class ResponseParser:
    """One response, pushed in any pieces; httptools calls the methods that begin with `on_`.

    Attributes:
        status: 0 until the head is complete.
        headers: names in lower case; a repeated one keeps its last value.
        done: the body is complete.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self._parser = httptools.HttpResponseParser(self)
        self._num_head_bytes = 0
        self._ends_with_connection = False
        self._keep_alive = False
        self._body: list[bytes] = []

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection."""
        return self.done and self._keep_alive

    def push(self, data: bytes) -> bytes:
        """Takes what arrived.

        Args:
            data: of any length.

        Returns:
            The bytes of the body in it, chunk framing removed.

        Raises:
            ProtocolError: this is not HTTP/1.1.
        """
        if not self.status:
            self._num_head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done:
                raise ProtocolError(f"not an HTTP/1.1 reply: {error}") from None
            self._keep_alive = False  # something follows that nobody asked for
        if not self.status and self._num_head_bytes > _MAX_HEAD_BYTES:
            raise ProtocolError(f"the head of the reply has more than {_MAX_HEAD_BYTES} bytes")
        body, self._body = self._body, []
        return body[0] if len(body) == 1 else b"".join(body)

    def eof(self) -> None:
        """Takes the end of the connection.

        Raises:
            Disconnected: the response is not complete.
        """
        if self._ends_with_connection:
            self.done = True
        elif not self.done:
            where = "inside the reply" if self._num_head_bytes else "before the reply"
            raise Disconnected(f"the connection was closed {where}")

    def on_message_begin(self) -> None:
        """A response begins: ours, perhaps after an interim one, or one too many."""
        if self.done:
            self._keep_alive = False
        else:
            self.headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        if not self.done:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """The head is complete; an interim one (1xx) is passed over."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            raise ProtocolError(f"not an HTTP/1.1 reply: it is HTTP/{self._parser.get_http_version()}")
        if status >= 200 and not self.done:
            self.status = status
            has_length = not self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
            self._ends_with_connection = not has_length and status not in _BODILESS

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self.done:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self.status and not self.done:
            self.done = True
            self._keep_alive = self._parser.should_keep_alive()
