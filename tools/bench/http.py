"""HTTP/1.1 by hand: the least work a streamed token can cost its client.

Load generator and server share the machine's cores, so what the client burns is missing from the figure. What an event
of one token costs the client in CPU time, 64 streams of 100 events 40 ms apart, JSON parsed, on 2 cores of an EPYC:
httpx 97 µs, aiohttp 30 µs, asyncio's streams 26 µs, this 21 µs (most of it epoll and recv; uvloop changes little). At
3,000 tokens a second httpx would take 15 % of this machine. Knows how bytes travel, not what an event means (see
load).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import SplitResult

from tools.bench.wire import Disconnected, ResponseParser

BodySink = Callable[[int, bytes, float], None]


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time. Make one with `open`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = ResponseParser()
        self._sink: BodySink = _drop
        self._reply: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, url: SplitResult, tls: ssl.SSLContext | None) -> Connection:
        """Connects.

        Args:
            url: whose host and port are meant.
            tls: for https, else None.

        Raises:
            OSError: the connection cannot be made.
        """
        port = url.port or (443 if tls else 80)
        _, connection = await asyncio.get_running_loop().create_connection(cls, url.hostname or "", port, ssl=tls)
        return connection

    @property
    def usable(self) -> bool:
        """Whether it is open and idle."""
        return self._transport is not None and not self._transport.is_closing() and self._reply is None

    async def exchange(self, request: bytes, sink: BodySink) -> ResponseParser:
        """Sends a request and waits for the end of its reply. Cancelled, it closes the connection.

        Args:
            request: head and body.
            sink: called as the body arrives with (status, bytes, `time.perf_counter()` of the arrival).

        Returns:
            The complete response, for its status and headers.

        Raises:
            Disconnected: the connection was closed too early.
            ProtocolError: the server does not speak HTTP/1.1.
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
        """Closes at once; what is under way is dropped."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Hands the body on with its time, and ends the exchange with it."""
        now = time.perf_counter()
        if self._reply is None or self._reply.done():
            self.close()  # nothing was asked for
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
        """Ends the exchange that is under way."""
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
    """Takes a body nobody waits for."""


def request_bytes(method: str, url: SplitResult, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """Returns a request as it goes over the wire.

    Args:
        method: of the request.
        url: whose host is named.
        path: with the query.
        headers: besides host and content-length.
        body: may be empty.
    """
    host = url.netloc.rpartition("@")[2]
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
