"""What web pages of other origins may have a browser do here.

Any page on the web can have its reader's browser send requests to a server on the reader's own machine. Requests that
a browser sends without asking first (a body without a Content-Type, say) would be served; a host name of the page's own
that resolves to 127.0.0.1 would even show it the replies (DNS rebinding). Browsers say where a request comes from;
other clients do not, and are let through.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.telemetry.metrics import Metrics
from server.wire.errors import ApiError

ANY = "*"
_HARMLESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class BrowserGuardMiddleware:
    """Refuses what pages of other origins send, and names under which a local server was not meant to be found.

    Args:
        host: the address that is listened on. On a loopback address, a request's Host must name this machine.
        allowed_hosts: further names for a request's Host; with any of them, others are refused on every address.
        allowed_origins: web origins whose pages may send requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        host: str,
        allowed_hosts: tuple[str, ...],
        allowed_origins: tuple[str, ...],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._allowed_hosts = frozenset(map(_bare, allowed_hosts))
        self._checks_host = ANY not in allowed_hosts and (bool(allowed_hosts) or _is_loopback(host))
        self._allowed_origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it."""
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
            return
        self._metrics.count_rejected(error.code or "")
        await error.response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _bare(host)
        if host and self._checks_host and not (_is_loopback(name) or name in self._allowed_hosts):
            return ApiError(
                403,
                f"This server is not called {name[:200]!r}; whoever runs it allows a name by --allowed-host.",
                code="host_not_allowed",
            )
        if scope["method"] in _HARMLESS_METHODS or not ("origin" in headers or "sec-fetch-site" in headers):
            return None
        origin = headers.get("origin")
        if not self._may_send(origin, headers.get("sec-fetch-site"), host):
            return ApiError(
                403,
                f"Pages of {(origin or 'other sites')[:200]} may not send requests here; whoever runs this server"
                " allows them by --cors-allow-origin.",
                code="origin_not_allowed",
            )
        if "content-type" not in headers and (
            headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        ):
            # A browser sends such a body anywhere without asking first, so no page may, allowed or not.
            return ApiError(
                415, "Send the header 'Content-Type: application/json' with the body.", code="unsupported_media_type"
            )
        return None

    def _may_send(self, origin: str | None, site: str | None, host: str) -> bool:
        if ANY in self._allowed_origins or origin in self._allowed_origins:
            return True
        if site == "same-origin":  # the browser's own word, also where a proxy rewrote Host
            return True
        if origin is None:
            return site == "none"
        scheme, _, name = origin.lower().partition("://")
        port = _DEFAULT_PORTS.get(scheme, "")
        return bool(name) and name.removesuffix(port) == host.lower().removesuffix(port)


def _bare(host: str) -> str:
    """Returns a host's name or address without port, brackets and a closing dot."""
    host = host.strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host
    return (name.partition(":")[0] if name.count(":") == 1 else name).removesuffix(".")


def _is_loopback(name: str) -> bool:
    name = name.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
