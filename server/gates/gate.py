"""The one gate that every request passes: whose it is, whether its rate allows it, whether it could wait.

Pure ASGI. Nothing of a body is read here. The routes say which of them ask for work: those that take a JSON body.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from model.contract.errors import EngineUnavailableError
from server.gates.admission import Admission
from server.gates.auth import check_key
from server.gates.callers import Network, find_caller
from server.gates.credentials import Credentials
from server.gates.rate_limits import RateLimiter
from server.telemetry.metrics import Metrics
from server.wire.errors import ApiError, as_api_error
from server.wire.json_body import JsonBodyRoute

# Bytes of a request's body a token of its prompt takes, rather too many: what is refused for it would be refused later.
_BYTES_PER_TOKEN = 6


class WorkRoutes:
    """Knows which requests ask for work."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        work = [route for route in routes if isinstance(route, JsonBodyRoute)]
        self._paths = frozenset(route.path for route in work if not route.param_convertors)
        self._patterns = [route for route in work if route.param_convertors]

    def __contains__(self, scope: Scope) -> bool:
        if scope["method"] != "POST":
            return False
        return scope["path"] in self._paths or any(route.matches(scope)[0] is Match.FULL for route in self._patterns)


class GateMiddleware:
    """Answers requests that may not come in: 401, 429 or 503.

    Args:
        app: what is protected.
        credentials: what lets a caller in.
        trusted_proxies: whose `X-Forwarded-For` is believed.
        limiter: counts what callers ask for.
        admission: decides who may wait for the engine.
        work: the requests that rates and queue are about.
        metrics: told of those refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        credentials: Credentials,
        trusted_proxies: tuple[Network, ...],
        limiter: RateLimiter,
        admission: Admission,
        work: WorkRoutes,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._credentials = credentials
        self._trusted_proxies = trusted_proxies
        self._limiter = limiter
        self._admission = admission
        self._work = work
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as inside:
            try:
                self._enter(scope, inside)
            except (ApiError, EngineUnavailableError) as error:
                await as_api_error(error).response()(scope, receive, send)
                return
            await self._app(scope, receive, send)

    def _enter(self, scope: Scope, inside: ExitStack) -> None:
        is_work = scope in self._work
        try:
            key = check_key(scope, self._credentials)
            caller = find_caller(scope, key, self._credentials, self._trusted_proxies)
            if is_work:
                self._limiter.admit(caller.name)
        except ApiError as error:
            self._metrics.count_rejected(error.code or "")
            raise
        scope.setdefault("state", {})["caller"] = caller
        if is_work:
            declared = Headers(scope=scope).get("content-length", "")
            num_bytes = int(declared[:19]) if declared.isdecimal() else 0
            inside.enter_context(self._admission.enter(caller, num_bytes // _BYTES_PER_TOKEN))
