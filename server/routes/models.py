"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server.services import Services, ServicesDep
from server.wire.errors import JsonResponse
from server.wire.openapi import COMMON_ERRORS, NOT_FOUND, success_reply
from server.wire.shapes.models import Model, ModelList

router = APIRouter(tags=["models"], default_response_class=Response)


def _model(services: Services, name: str) -> Model:
    ready, base = services.engine.ready, services.settings.served_names[0]
    adapter = services.engine.adapters.find(name)
    return {
        "id": name,
        "object": "model",
        "created": services.created if adapter is None else adapter.created,
        "owned_by": "qwen-server",
        "root": base if adapter is None else adapter.source,
        "parent": None if adapter is None else base,
        "max_model_len": None if ready is None else ready.max_model_len,
    }


@router.get("/v1/models", summary="The names of the model", responses=success_reply(ModelList) | COMMON_ERRORS)
async def list_models(services: ServicesDep) -> Response:
    """Lists the names a request's `model` may be."""
    adapters = (adapter.name for adapter in services.engine.adapters)
    names = (*services.settings.served_names, *adapters)
    models: ModelList = {"object": "list", "data": [_model(services, name) for name in names]}
    return JsonResponse(models)


@router.get(
    "/v1/models/{model_id:path}",
    summary="One name of the model",
    responses=success_reply(Model) | NOT_FOUND | COMMON_ERRORS,
)
async def get_model(model_id: str, services: ServicesDep) -> Response:
    """Describes one name; it may hold slashes."""
    return JsonResponse(_model(services, services.resolve_model(model_id)))
