"""Who may use the API: bearer keys and one Basic user, kept and compared only as hashes.

A pure ASGI middleware. Everything is closed but the routes named here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/version", "/docs", "/redoc", "/openapi.json"})
OPEN_PREFIXES = ("/web/",)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Hashes of what lets a caller in; the secrets themselves are not kept.

    Attributes:
        key_digests: SHA-256 of each bearer key.
        basic_digest: SHA-256 of `user:password`, or None.
    """

    key_digests: tuple[bytes, ...] = ()
    basic_digest: bytes | None = None

    @classmethod
    def from_secrets(cls, api_keys: tuple[str, ...], basic_auth: str | None) -> Credentials:
        """Hashes the secrets.

        Args:
            api_keys: bearer keys.
            basic_auth: `user:password`.
        """
        basic_digest = None if basic_auth is None else _digest(basic_auth.encode())
        return cls(tuple(_digest(key.encode()) for key in api_keys), basic_digest)

    @property
    def required(self) -> bool:
        """Whether callers must show anything at all."""
        return bool(self.key_digests) or self.basic_digest is not None

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header lets its sender in; the time taken does not depend on how near it came."""
        scheme, _, value = (authorization or "").partition(" ")
        secret = value.strip().encode("utf-8", errors="replace")
        candidates: tuple[bytes, ...] = ()
        if scheme.lower() == "bearer":
            candidates = self.key_digests
        elif scheme.lower() == "basic" and self.basic_digest is not None:
            candidates = (self.basic_digest,)
            try:
                secret = base64.b64decode(secret, validate=True)
            except (binascii.Error, ValueError):
                secret = b""
        digest = _digest(secret)
        matches = [hmac.compare_digest(digest, candidate) for candidate in candidates]
        return any(matches)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


class AuthMiddleware:
    """Answers 401 to requests without a valid key.

    Args:
        app: what is protected.
        credentials: what lets a caller in.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it."""
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        if self._credentials.accepts(authorization):
            await self._app(scope, receive, send)
            return
        await self._refusal(authorization).response()(scope, receive, send)

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
