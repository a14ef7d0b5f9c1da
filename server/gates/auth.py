"""Who may use the API.

A pure ASGI middleware. Everything is closed but the routes named here.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.gates.credentials import Credentials
from server.metrics import Metrics
from server.wire.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/version", "/docs", "/redoc", "/openapi.json"})
OPEN_PREFIXES = ("/web/",)


class AuthMiddleware:
    """Answers 401 to requests without a valid key.

    Args:
        app: what is protected.
        credentials: what lets a caller in.
        metrics: told of those refused.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials, metrics: Metrics) -> None:
        self._app = app
        self._credentials = credentials
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it."""
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        caller = self._credentials.caller(authorization)
        if caller is not None:
            scope.setdefault("state", {})["key"] = caller
            await self._app(scope, receive, send)
            return
        error = self._refusal(authorization)
        self._metrics.count_rejected(error.code or "")
        await error.response()(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)

    def _refusal(self, authorization: str | None) -> ApiError:
        what = "Incorrect API key provided." if authorization else "You did not provide an API key."
        ways = ["'Authorization: Bearer KEY'"] if self._credentials.key_digests else []
        if self._credentials.basic_digest is not None:
            ways.append("HTTP Basic authentication")
        challenge = 'Basic realm="qwen-server"' if self._credentials.basic_digest is not None else "Bearer"
        return ApiError(
            401,
            f"{what} Send one with {' or '.join(ways)}.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": challenge},
        )
