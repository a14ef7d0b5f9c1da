"""The process before replicas that are chosen by their cache: it reads a body, passes it on and streams the reply."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from model.contract.errors import EngineUnavailableError
from server.cluster.asgi import to_send
from server.cluster.prefix_routing import routing_key
from server.gates.body_limits import BodyLimitMiddleware
from server.gates.callers import Network, find_caller
from server.gates.credentials import Credentials
from server.telemetry.metrics import Metrics
from server.wire.anthropic_errors import AnthropicErrorMiddleware
from server.wire.errors import as_api_error

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)


class Front:
    """An ASGI app without a model.

    Args:
        replicas: the deployment of servers.
        max_body_bytes: largest body. A front holds bodies whole, also files, and all together no more than a server
            does. It knows no keys: one address may have half of that.
        trusted_proxies: networks of proxies whose `X-Forwarded-For` is believed.
    """

    def __init__(
        self, replicas: DeploymentHandle[Any], max_body_bytes: int, trusted_proxies: tuple[Network, ...] = ()
    ) -> None:
        self._replicas = replicas.options(stream=True, method_name="asgi")
        self._trusted_proxies = trusted_proxies
        metrics = Metrics("front")  # nobody reads them
        self._limited = BodyLimitMiddleware(self._serve_http, max_body_bytes, metrics, max_upload_bytes=None)
        self._shaped = AnthropicErrorMiddleware(self._limited)  # for the front's own refusals

    def __serve_build_asgi_app__(self) -> Any:
        """Returns the ASGI app; Ray asks for it."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # uvicorn takes a method for ASGI 2
            await self._serve(scope, receive, send)

        return app

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Router().lifespan(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = find_caller(scope, None, Credentials(), self._trusted_proxies)
        await self._shaped(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        key = routing_key(body) if scope["method"] == "POST" else None
        answer = self._replicas.remote(to_send(scope), body, key=key)
        has_begun = False
        try:
            async for messages in answer:
                for message in messages:
                    has_begun = True
                    await send(message)
        except BaseException as error:  # Ray cancels this when the client has left
            answer.cancel()
            if has_begun or not isinstance(error, Exception):
                raise
            logger.warning("a replica was lost before it answered: %s", error)
            gone = EngineUnavailableError("The server that took this request is gone; please send it again.")
            await as_api_error(gone).response()(scope, receive, send)
