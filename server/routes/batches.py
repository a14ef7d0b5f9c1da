"""/v1/batches: the requests of a file, which run behind the live ones."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.responses import Response

from server.batches.batch import BATCH, batch_object
from server.files.stored_files import FILE
from server.gates.callers import Caller
from server.services import CallerDep, Services, ServicesDep
from server.wire import examples
from server.wire.errors import ApiError, JsonResponse
from server.wire.json_body import BoundedJsonRoute
from server.wire.openapi import error_reply, success_reply
from server.wire.shapes.files import ENDPOINTS, STORE_ERRORS, BatchList, BatchObject, BatchRequest
from server.wire.shapes.pages import Limit, page_ends

router = APIRouter(
    tags=["files"], route_class=BoundedJsonRoute, default_response_class=Response, responses=STORE_ERRORS
)

NO_SUCH_BATCH = error_reply(404, "No such batch")


@router.post(
    "/v1/batches",
    summary="Have the requests of a file done",
    responses=success_reply(BatchObject) | error_reply(429, "Too many batches are not over"),
)
async def create_batch(
    body: Annotated[BatchRequest, Body(openapi_examples=examples.BATCHES)], caller: CallerDep, services: ServicesDep
) -> Response:
    """Takes a batch; poll it until its status is `completed`."""
    if body.endpoint not in ENDPOINTS:
        raise ApiError(
            400, f"'endpoint': should be one of {', '.join(ENDPOINTS)}.", param="endpoint", code="invalid_endpoint"
        )
    file = await services.store.get(caller.owner, FILE, body.input_file_id)
    if file is None:
        raise ApiError(
            400, f"You have no file '{body.input_file_id[:100]}'.", code="file_not_found", param="input_file_id"
        )
    if file.body["purpose"] != "batch":
        raise ApiError(
            400, f"The file's purpose is {file.body['purpose']}; store it with purpose batch.", param="input_file_id"
        )
    return JsonResponse((await services.batches.create(body, caller.owner)).wire)


@router.get("/v1/batches", summary="List batches", responses=success_reply(BatchList))
async def list_batches(
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = 20,
    after: str | None = None,
) -> Response:
    """Lists your batches, the newest first."""
    page = await services.store.page(caller.owner, BATCH, limit=limit + 1, after=after)
    if page is None:
        raise ApiError(400, "'after': you have no such batch.", param="after")
    data = [batch_object(stored) for stored in page[:limit]]
    ends = page_ends([batch["id"] for batch in data], has_more=len(page) > limit)
    batches: BatchList = {"object": "list", "data": data, **ends}
    return JsonResponse(batches)


@router.get("/v1/batches/{batch_id}", summary="Describe a batch", responses=success_reply(BatchObject) | NO_SUCH_BATCH)
async def get_batch(batch_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Tells how far a batch is."""
    return JsonResponse(await _find(caller, services, batch_id))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    summary="End a batch early",
    responses=success_reply(BatchObject) | NO_SUCH_BATCH | error_reply(409, "The batch is over, or about to be"),
)
async def cancel_batch(batch_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Ends a batch; what is done by then is in its files."""
    found = await _find(caller, services, batch_id)
    batch = await services.batches.cancel(batch_id)
    if batch is None:
        status = found["status"]
        raise ApiError(409, f"A batch that is {status} cannot be cancelled.", code="invalid_status")
    return JsonResponse(batch.wire)


async def _find(caller: Caller, services: Services, batch_id: str) -> BatchObject:
    stored = await services.store.get(caller.owner, BATCH, batch_id)
    if stored is None:
        raise ApiError(404, f"You have no batch '{batch_id[:100]}'.", code="not_found", param="id")
    return batch_object(stored)
