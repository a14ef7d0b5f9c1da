"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from server.conversion.chat_reader import read_chat, speaks_functions
from server.conversion.generation_request import GenerationRequest
from server.replies.chat import ChatReply
from server.replies.chunk_reply import usage_options
from server.replies.streaming import respond
from server.services import ServicesDep
from server.wire import examples
from server.wire.json_body import JsonBodyRoute
from server.wire.replies import GENERATION_ERRORS, ChatCompletion
from server.wire.requests import ChatCompletionRequest

router = APIRouter(tags=["generation"], route_class=JsonBodyRoute)


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_class=Response,
    responses={
        200: {
            "description": "The reply, or with `stream` its chunks as server-sent events",
            "model": ChatCompletion,
            "content": {"text/event-stream": {}},
        },
        **GENERATION_ERRORS,
    },
)
async def create_chat_completion(
    body: Annotated[ChatCompletionRequest, Body(openapi_examples=examples.CHAT)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Answers a conversation with one or more choices."""
    model = services.resolve_model(body.model)

    async def understand() -> GenerationRequest:
        engine = services.engine.require_ready()
        return await services.converter.chat(await services.read(body, read_chat), engine)

    generation = await services.generate(request, model, understand)
    reply = ChatReply(
        generation.request,
        model,
        services.tokenizer,
        is_legacy=bool(body.functions),
        speaks_functions=speaks_functions(body),
        **usage_options(body),
    )
    ping_interval_s = services.settings.ping_interval_s
    return await respond(request, generation, reply, stream=bool(body.stream), ping_interval_s=ping_interval_s)
