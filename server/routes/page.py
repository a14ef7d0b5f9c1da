"""The chat page at /, the reference at /docs, their files, and what the page must know before anybody typed a key."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from prompts.chatml import DEFAULT_SYSTEM
from server.hubs.demo import demo_name
from server.hubs.resolve import local_folder
from server.routes.web_files import INDEX, REFERENCE
from server.services import Services, ServicesDep
from server.version import server_version
from server.wire.errors import JsonResponse
from server.wire.openapi import BOUNDS
from server.wire.shapes.chat import ChatCompletionRequest

router = APIRouter(include_in_schema=False)

_METHODS = ["GET", "HEAD"]
# The parameters that the page lets people set, with their values where neither request nor checkpoint says any.
_SAMPLING: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@router.api_route("/", methods=_METHODS)
async def index(request: Request, services: ServicesDep) -> Response:
    """Returns the chat page."""
    return services.web_files[INDEX].response(request.headers)


@router.api_route("/docs", methods=_METHODS)
@router.api_route("/redoc", methods=_METHODS)
async def reference(request: Request, services: ServicesDep) -> Response:
    """Returns the page that shows /openapi.json; FastAPI's would run another host's scripts beside the chat's key."""
    return services.web_files[REFERENCE].response(request.headers)


@router.api_route("/web/settings.json", methods=_METHODS)
async def page_settings(services: ServicesDep) -> Response:
    """Returns the ways to authenticate, and the real defaults and limits of sampling."""
    credentials = services.credentials
    settings = {
        "version": server_version().version,
        "demo": demo_name(local_folder(services.settings.model)) is not None,
        "auth": {"bearer": bool(credentials.key_digests), "basic": credentials.basic_digest is not None},
        "system": DEFAULT_SYSTEM,
        "defaults": _defaults(services),
        "limits": _limits(),
    }
    return JsonResponse(settings, headers={"Cache-Control": "no-store"})


@router.api_route("/web/{name}", methods=_METHODS)
async def web_file(name: str, request: Request, services: ServicesDep) -> Response:
    """Returns a file of the page."""
    if name not in services.web_files:
        raise HTTPException(404)
    return services.web_files[name].response(request.headers)


def _defaults(services: Services) -> dict[str, float]:
    checkpoint = services.converter.encoder.defaults
    return {name: getattr(checkpoint, name, value) for name, value in _SAMPLING.items()}


def _limits() -> dict[str, dict[str, Any]]:
    """Returns the bounds against which requests are checked, named as in JSON Schema."""
    limits = {}
    for name in _SAMPLING:
        field = ChatCompletionRequest.model_fields[name]
        bounds = {
            word: getattr(bound, attribute)
            for bound in field.metadata
            for attribute, word in BOUNDS.items()
            if hasattr(bound, attribute)
        }
        limits[name] = {"type": "integer" if int in get_args(field.annotation) else "number", **bounds}
    return limits
