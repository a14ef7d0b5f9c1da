"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: vLLM's way to change adapters while the server runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from model.contract.errors import AdapterError, StartupError
from model.contract.files.checkpoint_folder import ADAPTER_CONFIG
from server.config.types import check_adapter_name
from server.engine.adapters import ServedAdapter
from server.hubs.resolve import resolve_adapter
from server.services import Services, ServicesDep
from server.wire.errors import ApiError
from server.wire.json_body import JsonBodyRoute
from server.wire.openapi import BAD_REQUEST, COMMON_ERRORS, NOT_FOUND, UNAVAILABLE
from server.wire.shapes.models import LoadAdapterRequest, UnloadAdapterRequest

_DONE: dict[int | str, dict[str, Any]] = {
    200: {"description": "It is done, in a sentence", "content": {"text/plain": {}}}
}

router = APIRouter(tags=["models"], route_class=JsonBodyRoute, default_response_class=Response)


@router.post(
    "/v1/load_lora_adapter",
    summary="Load a LoRA adapter",
    responses={**_DONE, **BAD_REQUEST, **UNAVAILABLE, **COMMON_ERRORS},
)
async def load_lora_adapter(body: LoadAdapterRequest, services: ServicesDep) -> Response:
    """Loads an adapter beside what runs; from then on it is a model of that name."""
    _require_allowed(services)
    services.engine.require_open()
    try:
        check_adapter_name(body.lora_name)
    except ValueError as error:
        raise ApiError(400, f"lora_name {error}", param="lora_name") from error
    if body.lora_name in services.settings.served_names:
        raise ApiError(400, f"The model itself is served as '{body.lora_name}'.", param="lora_name")
    root = services.settings.lora_root
    try:
        folder = await asyncio.to_thread(_find, body.lora_path, root, services)  # it may download from a hub
        services.engine.require_open()  # the engine may have gone while the download took its time
        adapter = ServedAdapter(body.lora_name, body.lora_path, folder)
        await services.engine.adapters.load(adapter, replace=bool(body.load_inplace))
    except StartupError as error:
        raise ApiError(400, str(error), param="lora_path") from error
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post(
    "/v1/unload_lora_adapter",
    summary="Unload a LoRA adapter",
    responses={**_DONE, **BAD_REQUEST, **NOT_FOUND, **UNAVAILABLE, **COMMON_ERRORS},
)
async def unload_lora_adapter(body: UnloadAdapterRequest, services: ServicesDep) -> Response:
    """Takes an adapter's name away; requests that have it already finish."""
    _require_allowed(services)
    if not services.engine.adapters.unload(body.lora_name):
        raise ApiError(
            404,
            f"The lora adapter '{body.lora_name[:200]}' cannot be found.",
            code="model_not_found",
            param="lora_name",
        )
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _require_allowed(services: Services) -> None:
    if not services.settings.allow_lora_updates:
        raise ApiError(
            403,
            "Adapters of this server are those it was started with; --allow-lora-updates lets requests change them.",
            type="permission_error",
            code="lora_updates_not_allowed",
        )


def _find(source: str, root: Path | None, services: Services) -> Path:
    """Returns an adapter's folder; if there is a root, the folder and the files read from it must lie below.

    Raises:
        AdapterError: it is not there, or outside.
        ConfigError: it is on a hub whose library is missing.
    """
    if root is None:
        return resolve_adapter(source, services.settings.hub)
    try:
        top = root.expanduser().resolve()
        folder = (top / source).resolve()
        inside = [folder, *(path.resolve() for path in folder.glob("adapter_*"))] if _is_below(folder, top) else []
    except (OSError, RuntimeError, ValueError) as error:
        raise AdapterError(f"{source[:200]!r} is no folder that can be looked at.") from error
    if not inside or not all(_is_below(path, top) for path in inside):
        raise AdapterError(f"{source[:200]!r} lies outside of what this server may load adapters from (--lora-root).")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"{source[:200]!r} is no folder with an {ADAPTER_CONFIG} in it.")
    return folder


def _is_below(path: Path, top: Path) -> bool:
    return path == top or top in path.parents
