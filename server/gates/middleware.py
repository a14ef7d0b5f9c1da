"""What every HTTP request gets: an id, metrics, a line in the log, and a plain 500 for what nothing else caught.

Pure ASGI: nothing here may stand between a stream and the news that its client has left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gates.request_context import choose_request_id, name_task, request_id_var, route_path
from server.telemetry.metrics import Metrics
from server.wire.errors import server_error

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
# Machines ask for these all the time; good answers to them are not worth a line.
_QUIET = frozenset({"/health", "/ready", "/metrics"})


class RootPathMiddleware:
    """Takes the prefix off paths where a proxy did not, so that the app sees the same paths behind every proxy.

    Args:
        root_path: the prefix, such as "/qwen".
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if (path + "/").startswith(self._root_path + "/"):
                path = path.removeprefix(self._root_path) or "/"
            scope = {**scope, "path": path, "root_path": self._root_path}
        await self._app(scope, receive, send)


class RequestContextMiddleware:
    """Gives each request an id, counts it, and turns what nothing else caught into a plain 500.

    Args:
        is_leaving: whether the server drains; replies then end their connections, so that clients who keep connections
            open go to another server with their next request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the same reply, of which uvicorn sends the head
        request_id = choose_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        token = request_id_var.set(request_id)
        name_task(request_id)
        scope.setdefault("state", {})["arrived"] = started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if self._is_leaving():
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("unexpected failure")
            if status == 0:
                await server_error().response()(scope, receive, send_with_id)
        finally:
            self._record(scope, method, status, time.monotonic() - started)
            request_id_var.reset(token)

    def _record(self, scope: Scope, method: str, status: int, duration_s: float) -> None:
        self._metrics.observe_http(method, route_path(scope) or "none", status, duration_s)
        level = logging.WARNING if status >= 500 else logging.INFO if status >= 400 else logging.DEBUG
        if scope["path"] in _QUIET and status != 500:
            level = logging.DEBUG
        logger.log(
            level,
            "%s %s %d",
            method,
            scope["path"][:200],
            status,
            extra={"fields": {"duration_s": round(duration_s, 4)}},
        )
