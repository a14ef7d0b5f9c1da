"""The one gate that every request passes: whose it is, whether its rate allows it, whether it could wait.

Pure ASGI. Nothing of a body is read here. Every path but those named here asks for a key; the routes themselves say
which of them ask for work (`JsonBodyRoute`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from model.contract.errors import EngineUnavailableError
from server.gates.admission import Admission
from server.gates.callers import Network, find_caller
from server.gates.credentials import Credentials
from server.gates.rate_limits import RateLimiter
from server.off_loop import begin_request
from server.telemetry.metrics import Metrics
from server.wire.errors import ApiError, as_api_error
from server.wire.json_body import JsonBodyRoute

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/version", "/docs", "/redoc", "/openapi.json"})
OPEN_PREFIXES = ("/web/",)
# More bytes of a body than a token of its prompt takes: what is refused for its size would also be refused later.
_BYTES_PER_TOKEN = 6


class WorkRoutes:
    """The requests that ask for work: `scope in work_routes`."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        work = [route for route in routes if isinstance(route, JsonBodyRoute)]
        self._paths = frozenset(route.path for route in work if not route.param_convertors)
        self._patterns = [route for route in work if route.param_convertors]

    def __contains__(self, scope: Scope) -> bool:
        if scope["method"] != "POST":
            return False
        return scope["path"] in self._paths or any(route.matches(scope)[0] is Match.FULL for route in self._patterns)


@dataclass(eq=False, slots=True)
class GateMiddleware:
    """Answers requests that may not come in: 401, 429 or 503.

    Attributes:
        trusted_proxies: networks of proxies whose `X-Forwarded-For` is believed.
        work: the requests that `limiter` and `admission` are asked about.
    """

    app: ASGIApp
    _: KW_ONLY
    credentials: Credentials
    trusted_proxies: tuple[Network, ...]
    limiter: RateLimiter
    admission: Admission
    work: WorkRoutes
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with ExitStack() as inside:
            try:
                self._enter(scope, inside)
            except (ApiError, EngineUnavailableError) as error:
                await as_api_error(error).response()(scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _enter(self, scope: Scope, inside: ExitStack) -> None:
        is_work = scope in self.work
        try:
            key = check_key(scope, self.credentials)
            caller = find_caller(scope, key, self.credentials, self.trusted_proxies)
            if is_work:
                self.limiter.admit(caller.name)
        except ApiError as error:
            self.metrics.count_rejected(error.code or "")
            raise
        scope.setdefault("state", {})["caller"] = caller
        begin_request(caller)
        if is_work:
            declared = Headers(scope=scope).get("content-length", "")
            num_bytes = int(declared[:19]) if declared.isdecimal() else 0
            inside.enter_context(self.admission.enter(caller, num_bytes // _BYTES_PER_TOKEN))


def check_key(scope: Scope, credentials: Credentials) -> str | None:
    """Returns the name of the key that lets a request in; None where it needs none.

    Raises:
        ApiError: 401, the request has no valid key.
    """
    path = scope["path"]
    if not credentials.required or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
        return None
    headers = Headers(scope=scope)
    authorization = headers.get("authorization")
    if authorization is None and "x-api-key" in headers:  # as clients of Anthropic's API send it
        authorization = f"Bearer {headers['x-api-key']}"
    key = credentials.caller(authorization)
    if key is None:
        raise refusal(credentials, authorization)
    return key


def refusal(credentials: Credentials, authorization: str | None) -> ApiError:
    """Returns the 401 that says which keys or passwords would let the caller in."""
    what = "Incorrect API key provided." if authorization else "You did not provide an API key."
    ways = ["'Authorization: Bearer KEY'", "'x-api-key: KEY'"] if credentials.key_digests else []
    if credentials.basic_digest is not None:
        ways.append("HTTP Basic authentication")
    challenge = 'Basic realm="qwen-server"' if credentials.basic_digest is not None else "Bearer"
    return ApiError(
        401,
        f"{what} Send one with {' or '.join(ways)}.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": challenge},
    )
