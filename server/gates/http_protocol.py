"""uvicorn's HTTP protocol with what it lacks: bounds on the heads of requests, and on clients that do not read.

httptools bounds neither the size of a head nor the time it takes, and a client that stops reading would keep its
stream and its place in the engine. uvicorn drops the body of a request that offers another protocol, as every request
of Java's own client does (`Upgrade: h2c`); it sends chunks to HTTP/1.0 clients, who know of none; and of pipelined
requests it tells only the last one that the client has left. This module knows connections and nothing of what is
served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, NoReturn

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.gates.direct_body import offer_direct_body
from server.wire.errors import ApiError, dump_json

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
# From the first byte of a request (or from the connection) to the end of its head.
HEAD_TIMEOUT_S = 60.0
# Requests that may wait on a connection for the reply to the first: 30 bytes on the wire are some kilobytes here.
_MAX_PIPELINED = 128
# Pauses between probes of clients that may have left: a system near by has answered by then, one far away later.
_FIRST_PROBE_S = 0.02
_LAST_PROBE_S = 1.0
_UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        send_timeout_s: how long a client may leave what was written to it unread.
        options: arguments of the base class.
    """

    def __init__(self, *, send_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._send_timeout_s = send_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        # Received since a head, a piece of a body or a request was complete.
        self._num_pending_bytes = 0
        self._declined_head: bytes | None = None
        # Why the parser was stopped from within a callback.
        self._refusal: ApiError | None = None
        # The request that is being answered; `cycle` is the latest, which may wait behind it.
        self._answered: RequestResponseCycle | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts to wait for a request."""
        super().connection_made(transport)
        self._restart_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and tells the request that is being answered; the base class tells the latest one."""
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        answered = self._answered
        if answered is not None and answered is not self.cycle and not answered.response_complete:
            answered.disconnected = True
            answered.message_event.set()
        super().connection_lost(exc)

    # --- clients that send nothing more

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more; returns whether it is answered all the same.

        It may have left, or may wait for the reply (`nc -N`, and clients older than keep-alive). Before the reply has
        begun, probes tell which. After that nothing can be sent but the reply, which may be silent for long while its
        request waits for the engine: there, whoever sends nothing more has left, and its place is free at once.
        """
        answered = self._answered
        if answered is None or answered.response_started or self.cycle.more_body:
            return False
        # TLS has no such state, and HTTP/1.0 none of the replies by which one can tell.
        if self.transport.get_extra_info("sslcontext") or answered.scope["http_version"] == "1.0":
            return False
        self.cycle.keep_alive = False
        self._probe(_FIRST_PROBE_S)
        return True

    def _probe(self, next_s: float) -> None:
        """Sends what a client passes over. If it has left, its system answers so, and the next write fails."""
        answered = self._answered
        if answered is not None and not (answered.response_started or self.transport.is_closing()):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if next_s <= _LAST_PROBE_S:
                self.loop.call_later(next_s, self._probe, 2 * next_s)

    # --- how long the head of a request may be, and how long it may take

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        self._num_pending_bytes += len(data)
        self._unset_keepalive_if_required()
        while data:
            data = self._parse(data)
        if self._num_pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._answer_and_close(_head_too_large())

    def _parse(self, data: bytes) -> bytes:
        """Returns what is left to parse, by a parser that knows of no upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        except httptools.HttpParserUpgrade as upgrade:
            if self._declined_head is not None:
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
                head, self._declined_head = self._declined_head, None
                return head + data[upgrade.args[0] :]
        return b""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._restart_head_timer()

    def on_headers_complete(self) -> None:
        """Its head is complete."""
        self._num_pending_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        if len(self.pipeline) >= _MAX_PIPELINED:
            message = f"At most {_MAX_PIPELINED} requests may wait on a connection."
            self._refuse(ApiError(400, message, code="bad_request"))
        version = self.parser.get_http_version()
        if version == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            # RFC 9112, 3.2; with two of them, a proxy before us may have looked at the other one.
            self._refuse(ApiError(400, "A request has exactly one Host header.", code="bad_request"))
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            # A server may ignore the offer (RFC 9110, 7.8). The parser does not let go of it, and takes no body.
            self._declined_head = _head(method, self.url, version.encode(), self.headers)
        else:
            super().on_headers_complete()
            offer_direct_body(self.cycle)
            if version == "1.0":
                self.cycle.send = _without_chunks(self.cycle)  # type: ignore[method-assign,assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._num_pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is complete."""
        self._num_pending_bytes = 0
        if self._declined_head is None:
            super().on_message_complete()

    def _refuse(self, error: ApiError) -> NoReturn:
        """Stops the parser, which then has `send_400_response` answer."""
        self._refusal = error
        raise ValueError(error.message)

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, in the shape of all errors."""
        error = self._refusal or ApiError(400, f"{msg} Send HTTP/1.1 with a complete body.", code="bad_request")
        self._answer_and_close(error)

    def _answer_and_close(self, error: ApiError) -> None:
        answered = self._answered
        if answered is None or answered.response_complete or not answered.response_started:
            body = dump_json(error.body())
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b"
                % (error.status_code, HTTPStatus(error.status_code).phrase.encode(), len(body), body)
            )
        self.transport.close()

    def _restart_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_silent_connection)

    def _end_silent_connection(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # else the head is of a pipelined request
            self.transport.abort()

    # --- how long a client may not read

    def pause_writing(self) -> None:
        """More is written than the client takes."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._send_timeout_s, self._end_slow_reader)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def _end_slow_reader(self) -> None:
        logger.warning("ending a connection whose client has read nothing for %g s", self._send_timeout_s)
        self.transport.abort()  # to the request it is a client that left


def _head_too_large() -> ApiError:
    return ApiError(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.", code="request_too_large")


def _without_chunks(cycle: RequestResponseCycle) -> Callable[[Any], Awaitable[None]]:
    """Returns a `send` for a reply of unknown length: its end is that of the connection, which uvicorn closes."""
    send = cycle.send
    has_length = True

    async def send_plain(message: Any) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not has_length:
                cycle.chunked_encoding = False
        elif not has_length:
            cycle.expected_content_length = len(message.get("body", b""))  # of this piece: uvicorn counts
        await send(message)

    return send_plain


def _head(method: bytes, url: bytes, version: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Writes a request's head without its offer of another protocol."""
    lines = [b"%b %b HTTP/%b" % (method, url, version)]
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(option for option in options if option.lower() not in _UPGRADE_HEADERS)
        if name not in _UPGRADE_HEADERS and (value or name != b"connection"):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
