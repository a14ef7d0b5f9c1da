"""What a browser may be made to do here by pages that are not ours.

A page of anywhere can have its reader's browser send requests to a server on the reader's own machine. What it sends
without asking first (a body without a Content-Type, say) would be served, and a name of its own that it lets point to
127.0.0.1 would even show it the replies. Browsers say where a request comes from; clients that are none say nothing of
the kind and are not looked at.
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
        app: what is protected.
        metrics: told of those refused.
        host: the address that is listened on; one that only this machine reaches is asked for by names of this machine.
        allowed_hosts: further names in a request's Host; with any, others are refused on whatever address.
        allowed_origins: web origins whose pages may send.
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
        self._checks_host = ANY not in allowed_hosts and (bool(allowed_hosts) or _is_of_this_machine(host))
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
        if host and self._checks_host and not self._is_known(_bare(host)):
            return ApiError(
                403,
                f"This server is not called {_bare(host)[:200]!r}; whoever runs it allows a name by --allowed-host.",
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
            # A browser sends such a body anywhere without asking, so no page may: nor one that was allowed by mistake.
            return ApiError(
                415, "Send the header 'Content-Type: application/json' with the body.", code="unsupported_media_type"
            )
        return None

    def _is_known(self, name: str) -> bool:
        return _is_of_this_machine(name) or name in self._allowed_hosts

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
    """A name or an address without port, brackets and a closing dot."""
    host = host.strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host
    return (name.partition(":")[0] if name.count(":") == 1 else name).removesuffix(".")


def _is_of_this_machine(name: str) -> bool:
    name = name.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
