"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from server.conversion.readers.completions import read_completion
from server.replies.chunk_reply import usage_options
from server.replies.completion import CompletionReply
from server.services import ServicesDep
from server.wire import examples
from server.wire.json_body import JsonBodyRoute
from server.wire.openapi import CHUNKS, GENERATION_ERRORS, success_reply
from server.wire.shapes.completions import Completion, CompletionRequest

router = APIRouter(tags=["generation"], route_class=JsonBodyRoute, default_response_class=Response)


@router.post(
    "/v1/completions",
    summary="Continue a text",
    responses=success_reply(Completion, CHUNKS) | GENERATION_ERRORS,
)
async def create_completion(
    body: Annotated[CompletionRequest, Body(openapi_examples=examples.COMPLETIONS)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Continues one or more prompts, each with one or more choices."""
    model = services.resolve_model(body.model)
    generation = await services.generate(request, model, lambda: services.read(body, read_completion))
    reply = CompletionReply(generation.request, model, services.tokenizer, **usage_options(body))
    return await services.respond(request, generation, reply, stream=body.stream)
