"""/v1/batches: the requests of a file, done behind the live ones."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from server.batches.batch import BATCH, Batch
from server.files.stored_files import FILE
from server.gates.callers import caller_of
from server.services import Services, ServicesDep
from server.wire import examples
from server.wire.errors import ApiError, JsonResponse
from server.wire.json_body import BoundedJsonRoute
from server.wire.openapi import error_reply, success_reply
from server.wire.shapes.files import ENDPOINTS, STORE_ERRORS, BatchList, BatchObject, BatchRequest
from server.wire.shapes.pages import page_object

router = APIRouter(tags=["files"], route_class=BoundedJsonRoute, default_response_class=Response)

NO_SUCH_BATCH = error_reply(404, "No such batch")


@router.post(
    "/v1/batches",
    summary="Have the requests of a file done",
    responses=success_reply(BatchObject) | STORE_ERRORS | error_reply(429, "Too many batches are not over"),
)
async def create_batch(
    body: Annotated[BatchRequest, Body(openapi_examples=examples.BATCHES)], request: Request, services: ServicesDep
) -> Response:
    """Takes a batch; poll it until its status is `completed`."""
    if body.endpoint not in ENDPOINTS:
        raise ApiError(
            400, f"'endpoint': should be one of {', '.join(ENDPOINTS)}.", param="endpoint", code="invalid_endpoint"
        )
    owner = caller_of(request.scope).owner
    file = await services.store.get(owner, FILE, body.input_file_id)
    if file is None:
        raise ApiError(
            400, f"You have no file '{body.input_file_id[:100]}'.", code="file_not_found", param="input_file_id"
        )
    if file.body["purpose"] != "batch":
        raise ApiError(
            400, f"The file's purpose is {file.body['purpose']}; store it with purpose batch.", param="input_file_id"
        )
    return JsonResponse((await services.batches.create(body, owner)).wire)


@router.get("/v1/batches", summary="List batches", responses=success_reply(BatchList) | STORE_ERRORS)
async def list_batches(
    request: Request,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """Lists your batches, the newest first."""
    page = await services.store.page(caller_of(request.scope).owner, BATCH, limit=limit + 1, after=after)
    if page is None:
        raise ApiError(400, "'after': you have no such batch.", param="after")
    data = [stored.body["wire"] for stored in page[:limit]]
    return JsonResponse(page_object(data, has_more=len(page) > limit))


@router.get(
    "/v1/batches/{batch_id}",
    summary="Describe a batch",
    responses=success_reply(BatchObject) | NO_SUCH_BATCH | STORE_ERRORS,
)
async def get_batch(batch_id: str, request: Request, services: ServicesDep) -> Response:
    """Tells how far a batch is."""
    return JsonResponse(await _find(request, services, batch_id))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    summary="End a batch early",
    responses=success_reply(BatchObject)
    | NO_SUCH_BATCH
    | STORE_ERRORS
    | error_reply(409, "The batch is over, or about to be"),
)
async def cancel_batch(batch_id: str, request: Request, services: ServicesDep) -> Response:
    """Ends a batch; what is done by then is in its files."""
    found = await _find(request, services, batch_id)
    batch: Batch | None = await services.batches.cancel(batch_id)
    if batch is None:
        status = found["status"]
        raise ApiError(409, f"A batch that is {status} cannot be cancelled.", code="invalid_status")
    return JsonResponse(batch.wire)


async def _find(request: Request, services: Services, batch_id: str) -> dict[str, Any]:
    stored = await services.store.get(caller_of(request.scope).owner, BATCH, batch_id)
    if stored is None:
        raise ApiError(404, f"You have no batch '{batch_id[:100]}'.", code="not_found", param="id")
    wire: dict[str, Any] = stored.body["wire"]
    return wire
