"""/v1/responses: making, polling, streaming again, cancelling and deleting responses."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from server.detached.runs import Run
from server.gates.callers import Caller, caller_of
from server.replies.responses import follower_failure, last_event, new_response, numbered
from server.responses.maker import NewResponse
from server.responses.pages import read_page
from server.services import CallerDep, Services, ServicesDep
from server.wire import examples
from server.wire.errors import ApiError, JsonResponse
from server.wire.json_body import JsonBodyRoute
from server.wire.openapi import COMMON_ERRORS, GENERATION_ERRORS, success_reply
from server.wire.shapes.pages import After, Limit, Order
from server.wire.shapes.responses import (
    KEPT_ERRORS,
    DeletedResponse,
    Include,
    ItemList,
    ResponseObject,
    ResponsesRequest,
)

router = APIRouter(tags=["responses"], default_response_class=Response, responses=KEPT_ERRORS | COMMON_ERRORS)
generating = APIRouter(tags=["generation"], route_class=JsonBodyRoute, default_response_class=Response)


@generating.post(
    "/v1/responses",
    summary="Answer a conversation, as items",
    responses=success_reply(ResponseObject, "The response, or with `stream` its events")
    | KEPT_ERRORS
    | GENERATION_ERRORS,
)
async def create_response(
    body: Annotated[ResponsesRequest, Body(openapi_examples=examples.RESPONSES)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Answers a conversation that is sent, kept from before, or both."""
    model = services.resolve_model(body.model)
    if body.background and body.seed is None:  # with a seed it can be generated again after a restart
        body = body.model_copy(update={"seed": secrets.randbits(63)})
    response = new_response(f"resp_{uuid.uuid4().hex}", body, model, truncation=services.converter.truncation)
    new = NewResponse(body, response, caller_of(request.scope))
    if body.background:
        run = await services.background.create(request, new)
        if body.stream:
            return services.events(run.log.follow(0, follower_failure))
        return JsonResponse(new.response)
    generation = await services.responses.generate(request, new)
    reply = services.responses.reply(generation, new)
    keep = partial(services.responses.keep, new, generation, reply)
    return await services.respond(request, generation, reply, stream=body.stream, keep=keep)


@router.get(
    "/v1/responses/{response_id}",
    summary="A kept response",
    responses=success_reply(ResponseObject, "The response, or with `stream` the events of one in the background"),
)
async def get_response(
    response_id: str,
    caller: CallerDep,
    services: ServicesDep,
    stream: Annotated[bool, Query(description="its events, also those still to come")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, description="with stream: number of the last event that is there already")
    ] = None,
    include: Include = None,
    include_obfuscation: Annotated[bool | None, Query(description="accepted; events are never padded")] = None,
) -> Response:
    """Returns a response as it is now."""
    run = _run_of(services, caller, response_id)
    if not stream:
        if starting_after is not None:
            raise ApiError(400, "'starting_after' needs 'stream': true.", param="starting_after")
        if run is not None:
            return JsonResponse(run.state)
        kept = await services.responses.stored.response(caller.owner, response_id)
        return JsonResponse(services.background.as_known(kept))
    start = 0 if starting_after is None else starting_after + 1
    if run is not None:
        run.log.require_kept()
        return services.events(run.log.follow(start, follower_failure))
    return await _kept_events(services, caller.owner, response_id, start)


def _run_of(services: Services, caller: Caller, id: str) -> Run | None:
    """Returns the run of a response that is being made; resumable chats are runs too, but have no state."""
    run = services.runs.get(caller, id)
    return run if run is not None and run.state else None


async def _kept_events(services: Services, owner: str, response_id: str, start: int) -> Response:
    response = await services.responses.stored.response(owner, response_id)
    events = await services.responses.stored.events(owner, response_id)
    if events is None:
        raise ApiError(
            400,
            "The events of this response are not kept; those of responses with 'background': true are.",
            code="events_not_kept",
            param="stream",
        )
    events.append(numbered(last_event(response), len(events)))

    async def all_events() -> AsyncGenerator[bytes, None]:
        yield b"".join(events[start:])

    return services.events(all_events())


@router.delete("/v1/responses/{response_id}", summary="Delete a response", responses=success_reply(DeletedResponse))
async def delete_response(response_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Deletes a response; one that is still being made is cancelled first."""
    if (run := _run_of(services, caller, response_id)) is not None:
        await run.cancel()
    await services.responses.stored.delete_response(caller.owner, response_id)
    deleted: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
    return JsonResponse(deleted)


@router.post(
    "/v1/responses/{response_id}/cancel",
    summary="Cancel a response in the background",
    responses=success_reply(ResponseObject),
)
async def cancel_response(response_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Cancels a response in the background; one that is over stays as it is."""
    if (run := _run_of(services, caller, response_id)) is not None:
        await run.cancel()
    response = await services.responses.stored.response(caller.owner, response_id)
    if not response["background"]:
        raise ApiError(
            400, "Only responses made with 'background': true can be cancelled; to end another, close its connection."
        )
    return JsonResponse(response)


@router.get(
    "/v1/responses/{response_id}/input_items", summary="What a response answers", responses=success_reply(ItemList)
)
async def list_input_items(
    response_id: str,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
    before: Annotated[str | None, Query(description="id of the item behind the page")] = None,
    include: Include = None,
) -> Response:
    """Returns items of the conversation that a response answers, those from before it too."""
    await services.responses.stored.response(caller.owner, response_id)
    page = await read_page(
        services.store, caller.owner, response_id, limit=limit, order=order, after=after, before=before
    )
    return Response(page, media_type="application/json")
