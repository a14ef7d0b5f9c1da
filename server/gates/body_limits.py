"""Bounds the size of bodies, of each and of all together, and the time they take to arrive.

A pure ASGI middleware: it counts while a body is read, and never stores it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gates.callers import Caller, CallerCounts, caller_of
from server.telemetry.metrics import Metrics
from server.wire.errors import ApiError, as_api_error, server_overloaded

# A client that is cut off while it sends never reads the reply: what it still sends is read and dropped, up to a point.
_DRAIN_TIMEOUT_S = 5.0
_DRAIN_FACTOR = 8
# From the first byte of a body to its last.
_BODY_TIMEOUT_S = 60.0
# Files have more time: a second more for so many bytes that have come, but never more than that ahead, so that a file
# which stops coming ends then, however fast its beginning was.
_MIN_UPLOAD_RATE = 16384
# So many bodies of the largest size may be held at a time, half of them by one caller. Small ones are not counted: the
# number of connections bounds what they take together.
_MAX_LARGEST_BODIES = 32
_SMALL_BODY_BYTES = 64 << 10
_RETRY_AFTER_S = 5


def is_upload(scope: Scope) -> bool:
    """Whether the body is a file that goes into the store piece by piece."""
    return bool(scope["method"] == "POST" and scope["path"] == "/v1/files")


class BodyBudget:
    """Counts the bytes of all bodies together, from their first byte to the end of their requests.

    Args:
        max_bytes: most bytes of all callers; one caller may have half of them.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = CallerCounts()

    def hold(self, caller: Caller, num_bytes: int) -> None:
        """Counts bytes that have come.

        Raises:
            ApiError: 429, the budget does not have so many.
        """
        if self._held[caller] + num_bytes > self._max_bytes // 2 or self._held.total() + num_bytes > self._max_bytes:
            raise server_overloaded(
                "Too many large requests are being sent or served; please try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._held[caller] += num_bytes

    def release(self, caller: Caller, num_bytes: int) -> None:
        """Gives them back."""
        self._held.change(caller, -num_bytes)

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return self._held.total()


class _Body:
    """A body that is being read.

    Args:
        receive: the ASGI function that it comes from.
        max_bytes: its largest size.
        is_stored: it is never held as a whole: it takes nothing of the budget, and a large one may take longer.

    Attributes:
        is_complete: its last byte has come.
        refusal: why it is read no further, or None.
        num_held: bytes taken from the budget.
    """

    def __init__(
        self, receive: Receive, caller: Caller, budget: BodyBudget, max_bytes: int, *, is_stored: bool = False
    ) -> None:
        self._receive = receive
        self._caller = caller
        self._budget = budget
        self._max_bytes = max_bytes
        self._is_stored = is_stored
        self._num_bytes = 0
        self.is_complete = False
        self._left_s = _BODY_TIMEOUT_S  # of the time that it may be waited for
        self.refusal: ApiError | None = None
        self.num_held = 0

    async def receive(self) -> Message:
        """Returns the next message of the request.

        Raises:
            ApiError: the body is too large, too slow, or one too many.
        """
        if self.is_complete:
            return await self._receive()  # the news that the client has left
        if self.refusal is not None:
            raise self.refusal
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s):
                message = await self._receive()
            self._left_s -= time.monotonic() - started
            self.is_complete = not message.get("more_body", False)
            self._count(len(message.get("body", b"")))
        except TimeoutError:
            self.refusal = _file_too_slow() if self._is_stored else _too_slow()
        except ApiError as error:
            self.refusal = error
        if self.refusal is not None:
            raise self.refusal
        return message

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise _file_too_large(self._max_bytes) if self._is_stored else _too_large(self._max_bytes)
        if self._is_stored:
            self._left_s = min(self._left_s + num_bytes / _MIN_UPLOAD_RATE, _BODY_TIMEOUT_S)
        elif self._num_bytes > _SMALL_BODY_BYTES:
            self._budget.hold(self._caller, self._num_bytes - self.num_held)
            self.num_held = self._num_bytes


class BodyLimitMiddleware:
    """Refuses bodies that are too large (413), too slow (408) or too many at a time (429).

    Args:
        max_body_bytes: largest body that is let through.
        max_upload_bytes: largest file; None treats files like other bodies, where they are held in memory.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, metrics: Metrics, max_upload_bytes: int | None = 512 << 20
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._metrics = metrics
        self.budget = BodyBudget(_MAX_LARGEST_BODIES * max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, counting, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_stored = is_upload(scope) and self._max_upload_bytes is not None
        max_bytes = self._max_upload_bytes or 0 if is_stored else self._max_body_bytes
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:19]) > max_bytes:
            error = _file_too_large(max_bytes) if is_stored else _too_large(max_bytes)
            await self._refuse(error, scope, receive, send)
            return
        caller = caller_of(scope)
        body = _Body(receive, caller, self.budget, max_bytes, is_stored=is_stored)
        started = False

        async def watching_send(message: Message) -> None:
            nonlocal started
            if not started and body.refusal is not None:
                return  # whatever the app makes of the broken read, the reply is ours
            started = True
            await send(message)

        try:
            await self._app(scope, body.receive, watching_send)
        except ApiError:
            if body.refusal is None:
                raise
        finally:
            self.budget.release(caller, body.num_held)
        if body.refusal is not None and not started:
            await self._refuse(body.refusal, scope, receive, send, is_complete=body.is_complete)

    async def _refuse(
        self, error: ApiError, scope: Scope, receive: Receive, send: Send, *, is_complete: bool = False
    ) -> None:
        self._metrics.count_rejected(error.code or "")
        response = as_api_error(error).response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        # Some proxies (Caddy) cut off a client that still sends when they have the whole reply, so it is sent after the
        # body; at once to a client that asks before it sends (Expect), and to a slow one, which has been waited for.
        at_once = "expect" in Headers(scope=scope) or error.status_code == 408
        if not at_once and not is_complete:
            await self._drop_rest(receive)
        await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if at_once and not is_complete:
            await self._drop_rest(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_rest(self, receive: Receive) -> None:
        left = self._max_body_bytes * _DRAIN_FACTOR
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while left > 0:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
                    left -= len(message.get("body", b""))


def _too_large(max_body_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than the {max_body_bytes} bytes this server takes (--max-body-bytes).",
        code="request_too_large",
    )


def _file_too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The file is larger than the {max_bytes} bytes it may have (half of --max-store-bytes, at most 512 MiB).",
        code="request_too_large",
        param="file",
    )


def _file_too_slow() -> ApiError:
    return ApiError(
        408,
        f"The file came too slowly, with less than {_MIN_UPLOAD_RATE} bytes a second for {_BODY_TIMEOUT_S:g} s;"
        " please send it again.",
        code="request_timeout",
        param="file",
    )


def _too_slow() -> ApiError:
    return ApiError(
        408,
        f"The request body took more than {_BODY_TIMEOUT_S:g} s to come; please send it again.",
        code="request_timeout",
    )
