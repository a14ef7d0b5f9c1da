"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from server.conversion.readers.messages import read_count, read_messages
from server.replies.messages import MessagesReply
from server.services import Services, ServicesDep
from server.wire import examples
from server.wire.errors import JsonResponse
from server.wire.json_body import JsonBodyRoute
from server.wire.openapi import success_reply
from server.wire.shapes.messages import MESSAGE_ERRORS, CountTokensRequest, MessageReply, MessagesRequest, TokenCount

router = APIRouter(tags=["generation"], route_class=JsonBodyRoute, default_response_class=Response)


@router.post(
    "/v1/messages",
    summary="Answer a conversation (Anthropic's API)",
    responses=success_reply(MessageReply, "The reply, or with `stream` its events") | MESSAGE_ERRORS,
)
async def create_message(
    body: Annotated[MessagesRequest, Body(openapi_examples=examples.MESSAGES)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Answers a conversation, as clients of Anthropic's API ask for it."""
    model = services.resolve_model(body.model)
    generation = await services.generate(request, model, lambda: services.read(body, read_messages))
    reply = MessagesReply(generation.request, model, body.stop_sequences or ())
    return await services.respond(request, generation, reply, stream=body.stream)


@router.post(
    "/v1/messages/count_tokens",
    summary="Count the tokens of a conversation (Anthropic's API)",
    responses=success_reply(TokenCount) | MESSAGE_ERRORS,
)
async def count_tokens(
    body: Annotated[CountTokensRequest, Body(openapi_examples=examples.COUNT_TOKENS)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Counts what the model would see."""
    services.resolve_model(body.model)
    count: TokenCount = {"input_tokens": await services.prepare(request, _count(body, services))}
    return JsonResponse(count)


async def _count(body: CountTokensRequest, services: Services) -> int:
    chat = await services.read(body, read_count)
    return len((await services.converter.encoder.chat(chat)).ids)
