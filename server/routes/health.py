"""State of the server: /health, /ready, /metrics and /version."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.engine.supervisor import EngineState
from server.services import Services, ServicesDep
from server.version import server_version
from server.wire.errors import JsonResponse
from server.wire.openapi import UNAVAILABLE, success_reply
from server.wire.shapes.models import State, Version

router = APIRouter(tags=["server"], default_response_class=Response)


@router.get("/health", summary="Whether the process can be left running", responses=success_reply(State) | UNAVAILABLE)
async def health(services: ServicesDep) -> Response:
    """200 while the process lives, 503 once its engine cannot be brought back."""
    if services.engine.state is EngineState.DEAD:
        raise services.engine.unavailable()
    return _state(services)


@router.get("/ready", summary="Whether to send requests here", responses=success_reply(State) | UNAVAILABLE)
async def ready(services: ServicesDep) -> Response:
    """200 only when requests should be sent here; 503 while loading or recovering, and from the moment of a stop on."""
    if services.engine.state is not EngineState.READY:
        raise services.engine.unavailable()
    return _state(services)


def _state(services: Services) -> Response:
    state: State = {"status": services.engine.state.value}
    return JsonResponse(state)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDep) -> Response:
    """Returns the Prometheus text format."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="Version of the server", responses=success_reply(Version))
async def get_version() -> Response:
    """Returns the version of this package, and the commit it was built from."""
    known = server_version()
    version: Version = {"version": known.version, "commit": known.commit}
    return JsonResponse(version)
