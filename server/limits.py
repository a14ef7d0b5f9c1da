"""Bounds on what one request may cost before any of it is worked on.

A pure ASGI middleware for the size of the body and the time it takes; it counts while the body is read and never
stores it.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, dump_json
from server.metrics import Metrics

# A client that is cut off while it sends never reads the reply: what it still sends is read and dropped, up to a point.
_DRAIN_TIMEOUT_S = 5.0
_DRAIN_FACTOR = 8
# The longest pause in a body.
_BODY_TIMEOUT_S = 60.0

_GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})


def is_generating(scope: Scope) -> bool:
    """Whether a request asks the engine for something."""
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _GENERATING_PATHS


class BodyLimitMiddleware:
    """Answers 413 to bodies that are too large.

    Args:
        app: what is protected.
        max_body_bytes: the largest body let through.
        metrics: told of those refused.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, counting, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:19]) > self._max_body_bytes:
            await self._refuse(receive, send)
            return
        num_bytes = 0
        is_complete = False
        started = False

        async def counting_receive() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()  # the news that the client has left
            try:
                async with asyncio.timeout(_BODY_TIMEOUT_S):
                    message = await receive()
            except TimeoutError:
                raise _too_slow() from None
            is_complete = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise self._error()
            return message

        async def watching_send(message: Message) -> None:
            nonlocal started
            if not started and num_bytes > self._max_body_bytes:
                return  # whatever the app makes of the broken read, the reply is ours
            started = True
            await send(message)

        try:
            await self._app(scope, counting_receive, watching_send)
        except ApiError:
            if num_bytes <= self._max_body_bytes:
                raise
        if num_bytes > self._max_body_bytes and not started:
            await self._refuse(receive, send)

    def _error(self) -> ApiError:
        return ApiError(
            413,
            f"The request body is larger than the {self._max_body_bytes} bytes this server takes (--max-body-bytes).",
            code="request_too_large",
        )

    async def _refuse(self, receive: Receive, send: Send) -> None:
        error = self._error()
        self._metrics.count_rejected(error.code or "")
        body = dump_json(error.body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        left = self._max_body_bytes * _DRAIN_FACTOR
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while left > 0:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
                    left -= len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_slow() -> ApiError:
    return ApiError(
        408,
        f"The request body paused for more than {_BODY_TIMEOUT_S:g} s; please send it again.",
        code="request_timeout",
        headers={"Connection": "close"},
    )
