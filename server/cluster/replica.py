"""One replica: our app, with an engine of its own, run by Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from model.contract.errors import StartupError
from server.app import create_app
from server.cluster.asgi import run_asgi
from server.cluster.metrics_board import MetricsRoute
from server.engine.supervisor import EngineState
from server.settings import Settings
from server.startup import load
from server.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)

_POLL_S = 0.1


class Replica:
    """Serves while Ray wants it to; Ray replaces it once `check_health` fails.

    Args:
        board: deployment of the `MetricsBoard` of all replicas.
    """

    def __init__(self, settings: Settings, board: DeploymentHandle[Any]) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._send_timeout_s = settings.send_timeout_s
        self._fatal: list[str] = []
        # Streams end when they are finished or the drain is over, not because a signal came.
        AppStatus.enable_automatic_graceful_drain = False
        tokenizer, defaults, self._engine = load(settings, on_fatal=self._fatal.append)
        self._app = create_app(settings, tokenizer, defaults, self._engine)
        self._app.router.lifespan_context = self._until_ready(self._app.router.lifespan_context)
        self._served = MetricsRoute(self._app, board, serve.get_replica_context().replica_id.unique_id)

    def _until_ready(
        self, lifespan: Callable[[FastAPI], contextlib.AbstractAsyncContextManager[Any]]
    ) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[Any]]:
        """Returns a lifespan that has begun when requests can be served: Ray sends them from then on."""

        @asynccontextmanager
        async def waiting(app: FastAPI) -> AsyncIterator[Any]:
            async with lifespan(app) as state, self._served.reporting():
                while self._engine.state is not EngineState.READY:
                    if self._fatal:
                        raise StartupError(self._fatal[0])
                    await asyncio.sleep(_POLL_S)
                yield state

        return waiting

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Returns the ASGI app; Ray asks for it."""
        return self._served

    def check_health(self) -> None:
        """Ray calls this every few seconds.

        Raises:
            RuntimeError: the engine cannot be brought back; Ray starts another replica.
        """
        if self._engine.state is EngineState.DEAD:
            raise RuntimeError(self._fatal[0] if self._fatal else "the engine is gone for good")


class RoutedReplica(Replica):
    """A replica behind fronts, which are the application's ingress in Ray Serve; so it starts its app itself."""

    async def __init__(self, settings: Settings, board: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        super().__init__(settings, board)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()

    async def __del__(self) -> None:
        """Ray calls this last, when the replica's requests have ended."""
        await self._lifespan.__aexit__(None, None, None)

    async def asgi(self, scope: dict[str, Any], body: bytes, *, key: str | None) -> AsyncIterator[list[Message]]:
        """Serves a request that a front sends here, as `run_asgi`; Ray's router reads the argument `key`."""
        async for messages in run_asgi(self._served, scope, body, send_timeout_s=self._send_timeout_s):
            yield messages
