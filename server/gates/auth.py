"""Who may use the API.

Everything is closed but the routes named here.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

from server.gates.credentials import Credentials
from server.wire.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/version", "/docs", "/redoc", "/openapi.json"})
OPEN_PREFIXES = ("/web/",)


def check_key(scope: Scope, credentials: Credentials) -> str | None:
    """Returns the name of the key that lets a request in; None where it needs none.

    Raises:
        ApiError: 401, it has no valid key.
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
    """Returns the 401 that says how to get in.

    Args:
        credentials: what would let the caller in.
        authorization: what was tried.
    """
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
