"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Header, Query, Request
from starlette.responses import Response

from server.conversion.readers.chat import read_chat, speaks_functions
from server.detached.resumable import start_resumable
from server.detached.runs import Run
from server.gates.callers import Caller, caller_of
from server.replies.chat import ChatReply
from server.replies.chunk_reply import failure_event, usage_options
from server.services import CallerDep, Services, ServicesDep
from server.wire import examples
from server.wire.errors import ApiError, JsonResponse
from server.wire.json_body import JsonBodyRoute
from server.wire.openapi import (
    BAD_REQUEST,
    CHUNKS,
    COMMON_ERRORS,
    GENERATION_ERRORS,
    NOT_FOUND,
    success_reply,
)
from server.wire.shapes.chat import ChatCompletion, ChatCompletionRequest, DeletedChat

router = APIRouter(tags=["generation"], route_class=JsonBodyRoute, default_response_class=Response)


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    responses=success_reply(ChatCompletion, CHUNKS) | GENERATION_ERRORS,
)
async def create_chat_completion(
    body: Annotated[ChatCompletionRequest, Body(openapi_examples=examples.CHAT)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Answers a conversation with one or more choices."""
    model = services.resolve_model(body.model)
    generation = await services.generate(request, model, lambda: services.read(body, read_chat))
    reply = ChatReply(
        generation.request,
        model,
        services.tokenizer,
        is_legacy=bool(body.functions),
        speaks_functions=speaks_functions(body),
        **usage_options(body),
    )
    if body.stream_options is not None and body.stream_options.resumable:
        run = start_resumable(services, caller_of(request.scope), generation, reply)
        return services.events(run.log.follow(0, failure_event))
    return await services.respond(request, generation, reply, stream=body.stream)


@router.get(
    "/v1/chat/completions/{completion_id}",
    summary="Take a resumable stream up again",
    responses={
        200: {"description": "Its events as they were, and those still to come", "content": {"text/event-stream": {}}},
        **BAD_REQUEST,
        **NOT_FOUND,
        **COMMON_ERRORS,
    },
)
async def resume_chat_completion(
    completion_id: str,
    caller: CallerDep,
    services: ServicesDep,
    stream: Annotated[Literal[True], Query(description="only streams are kept")] = True,
    starting_after: Annotated[int | None, Query(ge=0, description="number of the last event that is there")] = None,
    last_event_id: Annotated[str | None, Header(description="the same, as browsers send it")] = None,
) -> Response:
    """Returns the events of a chat streamed with `stream_options.resumable`, for five minutes after its end."""
    run = _run_of(caller, services, completion_id)
    run.log.require_kept()
    if starting_after is None and last_event_id is not None and last_event_id[:19].isdecimal():
        starting_after = int(last_event_id[:19])
    start = 0 if starting_after is None else starting_after + 1
    return services.events(run.log.follow(start, failure_event))


@router.delete(
    "/v1/chat/completions/{completion_id}",
    summary="End a resumable stream",
    responses=success_reply(DeletedChat) | NOT_FOUND | COMMON_ERRORS,
)
async def end_chat_completion(completion_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Ends a resumable stream, which a lost connection does not, and forgets it."""
    run = _run_of(caller, services, completion_id)
    await services.runs.end(run)
    deleted: DeletedChat = {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}
    return JsonResponse(deleted)


def _run_of(caller: Caller, services: Services, id: str) -> Run:
    run = services.runs.get(caller, id)
    if run is None or run.state:  # only the run of a response has a state
        raise ApiError(
            404,
            f"There is no stream '{id[:100]}' to take up: streams with 'stream_options': {{\"resumable\": true}} are"
            " kept for five minutes.",
            code="stream_not_found",
        )
    return run
