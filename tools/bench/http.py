"""A minimal HTTP/1.1 client on asyncio and httptools, to keep the client's CPU time per streamed token low.

Load generator and server share the machine's cores, so the client's CPU time lowers the figures. CPU time per event of
one token, with 64 streams of 100 events 40 ms apart, JSON parsed, on 2 cores of an EPYC: httpx 97 µs, aiohttp 30 µs,
asyncio's streams 26 µs, this 21 µs (most of it epoll and recv; uvloop changes little). At 3,000 tokens a second httpx
would take 15 % of that machine. This file moves bytes; reply.py knows what events mean.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import SplitResult

import httptools

_MAX_HEAD_BYTES = 64 << 10
_BODILESS = frozenset({204, 304})
BodySink = Callable[[int, bytes, float], None]


class ProtocolError(Exception):
    """The response is not HTTP/1.1."""


class Disconnected(Exception):
    """The server closed the connection before the response was complete."""


class ResponseParser:
    """Parses one response, in pieces of any size; httptools calls the methods that begin with `on_`.

    Attributes:
        status: 0 until the head is complete.
        headers: names are in lower case; of a repeated header the last value counts.
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
        """Parses received bytes and returns the part of the body in them, without chunk framing.

        Raises:
            ProtocolError: the response is not HTTP/1.1.
        """
        if not self.status:
            self._num_head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done:
                raise ProtocolError(f"not an HTTP/1.1 reply: {error}") from None
            self._keep_alive = False  # unsolicited bytes follow the response
        if not self.status and self._num_head_bytes > _MAX_HEAD_BYTES:
            raise ProtocolError(f"the head of the reply has more than {_MAX_HEAD_BYTES} bytes")
        body, self._body = self._body, []
        return body[0] if len(body) == 1 else b"".join(body)

    def eof(self) -> None:
        """Handles the end of the connection.

        Raises:
            Disconnected: the response is not complete.
        """
        if self._ends_with_connection:
            self.done = True
        elif not self.done:
            where = "inside the reply" if self._num_head_bytes else "before the reply"
            raise Disconnected(f"the connection was closed {where}")

    def on_message_begin(self) -> None:
        """A response begins: the awaited one, perhaps after an interim one, or an unsolicited one."""
        if self.done:
            self._keep_alive = False
        else:
            self.headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is complete."""
        if not self.done:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """The head is complete; interim responses (1xx) are skipped."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            raise ProtocolError(f"not an HTTP/1.1 reply: it is HTTP/{self._parser.get_http_version()}")
        if status >= 200 and not self.done:
            self.status = status
            has_length = not self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
            self._ends_with_connection = not has_length and status not in _BODILESS

    def on_body(self, body: bytes) -> None:
        """A piece of the body has arrived."""
        if not self.done:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self.status and not self.done:
            self.done = True
            self._keep_alive = self._parser.should_keep_alive()


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time; created with `open`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = ResponseParser()
        self._sink: BodySink = _drop
        self._reply: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, url: SplitResult, tls: ssl.SSLContext | None) -> Connection:
        """Connects to the host and port of a URL.

        Args:
            tls: the TLS context for https, else None.

        Raises:
            OSError: the connection cannot be made.
        """
        port = url.port or (443 if tls else 80)
        _, connection = await asyncio.get_running_loop().create_connection(cls, url.hostname or "", port, ssl=tls)
        return connection

    @property
    def usable(self) -> bool:
        """Whether the connection is open and idle."""
        return self._transport is not None and not self._transport.is_closing() and self._reply is None

    async def exchange(self, request: bytes, sink: BodySink) -> ResponseParser:
        """Sends a request and waits for the end of its response. If cancelled, it closes the connection.

        Args:
            request: head and body, as from `request_bytes`.
            sink: called with (status, bytes, `time.perf_counter()` of their arrival) as the body arrives.

        Returns:
            The parser of the complete response, which has its status and headers.

        Raises:
            Disconnected: the connection was closed before the response was complete.
            ProtocolError: the response is not HTTP/1.1.
        """
        if self._transport is None:
            raise Disconnected("the connection was closed before the request")
        parser = self._parser = ResponseParser()
        self._sink = sink
        self._reply = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            await self._reply
        except BaseException:
            self.close()
            raise
        finally:
            self._reply, self._sink = None, _drop
        if not parser.reusable:
            self.close()
        return parser

    def close(self) -> None:
        """Closes the connection at once and drops any exchange."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it

    def data_received(self, data: bytes) -> None:
        """Passes the body to the sink, and ends the exchange when it is complete."""
        now = time.perf_counter()
        if self._reply is None or self._reply.done():
            self.close()  # unsolicited data
            return
        try:
            body = self._parser.push(data)
            if body:
                self._sink(self._parser.status, body, now)
        except Exception as error:
            self._reply.set_exception(error)
            return
        if self._parser.done:
            self._reply.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the present exchange."""
        self._transport = None
        if self._reply is None or self._reply.done():
            return
        try:
            self._parser.eof()
        except Disconnected as error:
            self._reply.set_exception(error)
        else:
            self._reply.set_result(None)


def _drop(status: int, body: bytes, now: float) -> None:
    """Discards a body nobody waits for."""


def request_bytes(method: str, url: SplitResult, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """Returns the bytes of a request.

    Args:
        url: names the host.
        path: path and query.
        headers: the headers other than Host and Content-Length.
    """
    host = url.netloc.rpartition("@")[2]
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
