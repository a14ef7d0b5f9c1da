"""POST /tokenize and /detokenize, between what the model sees as ids and as text; GET /tokenizer_info."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from model.contract.errors import InvalidRequestError
from model.contract.tokenizer import ENDOFTEXT
from prompts.chatml import JINJA_TEMPLATE
from server.conversion.prompt_encoding import PromptEncoder, check_ids
from server.conversion.readers.chat import read_tokenize_chat
from server.services import Services, ServicesDep
from server.wire import examples
from server.wire.errors import JsonResponse, dump_json
from server.wire.json_body import JsonBodyRoute
from server.wire.json_list import JsonList
from server.wire.openapi import BAD_REQUEST, COMMON_ERRORS, NOT_FOUND, UNAVAILABLE, success_reply
from server.wire.shapes.tokens import (
    AddedToken,
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)

router = APIRouter(
    tags=["tokens"], route_class=JsonBodyRoute, default_response_class=Response, responses=UNAVAILABLE | COMMON_ERRORS
)


@router.post(
    "/tokenize",
    summary="Text or a conversation to token ids",
    responses=success_reply(Tokenized) | BAD_REQUEST | NOT_FOUND,
)
async def tokenize(
    body: Annotated[TokenizeRequest, Body(openapi_examples=examples.TOKENIZE)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Returns the ids the model would see."""
    services.resolve_model(body.model)
    services.unknown_fields.note(body)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Send either 'prompt' or 'messages'.", param="prompt")
    return Response(await services.prepare(request, _tokenized(body, services)), media_type="application/json")


async def _tokenized(body: TokenizeRequest, services: Services) -> bytes:
    encoder = services.converter.encoder
    if body.messages is not None:
        ids = (await encoder.chat(await services.off_loop.run(lambda: read_tokenize_chat(body)))).ids
    elif body.prompt:
        (ids,) = await encoder.texts([body.prompt], _special_names(body, encoder))
    else:
        ids = []
    max_model_len = services.engine.require_ready().max_model_len

    def write() -> bytes:
        reply: Tokenized = {"count": len(ids), "max_model_len": max_model_len, "tokens": JsonList(ids).whole()}
        if body.return_token_strs:
            reply["token_strs"] = JsonList(list(map(services.tokenizer.token_name, ids))).whole()
        return dump_json(reply)

    return await services.off_loop.run(write)


def _special_names(body: TokenizeRequest, encoder: PromptEncoder) -> frozenset[str]:
    if body.allowed_special is None and body.add_special_tokens is False:
        # Evaluation harnesses learn the id of the end token by a prompt that is nothing but its name.
        return encoder.tokenizer.special_names & {body.prompt or ""}
    return encoder.special_names(body.allowed_special, bool(body.add_special_tokens))


@router.get(
    "/tokenizer_info",
    summary="What the tokenizer is like",
    responses=success_reply(TokenizerInfo),
)
async def tokenizer_info(services: ServicesDep) -> Response:
    """Returns what the tokenizer's configuration would say, as vLLM does: evaluation harnesses ask for it."""
    tokenizer, encoder = services.tokenizer, services.converter.encoder
    names = sorted(tokenizer.special_names, key=tokenizer.special_id)
    info: TokenizerInfo = {
        "tokenizer_class": "QWenTokenizer",
        "model_max_length": services.engine.require_ready().max_model_len,
        "vocab_size": tokenizer.num_tokens,
        "bos_token": None,
        "eos_token": ENDOFTEXT,
        "pad_token": ENDOFTEXT,
        "unk_token": None,
        "additional_special_tokens": [name for name in names if name != ENDOFTEXT],
        "added_tokens_decoder": {str(tokenizer.special_id(name)): _added_token(name) for name in names},
        "chat_template": JINJA_TEMPLATE if encoder.speaks_chatml else None,
    }
    return JsonResponse(info)


def _added_token(name: str) -> AddedToken:
    return {
        "content": name, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True,
    }  # fmt: skip


@router.post(
    "/detokenize",
    summary="Token ids to text",
    responses=success_reply(Detokenized) | BAD_REQUEST | NOT_FOUND,
)
async def detokenize(
    body: Annotated[DetokenizeRequest, Body(openapi_examples=examples.DETOKENIZE)],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Returns the text of the ids, control tokens shown by name; those of padding rows add nothing."""
    services.resolve_model(body.model)
    services.unknown_fields.note(body)
    vocab_size = services.engine.require_ready().vocab_size

    def work() -> bytes:
        check_ids(body.tokens, vocab_size, param="tokens")
        try:
            text = services.tokenizer.decode(body.tokens, show_special_tokens=True, errors=body.errors or "replace")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"The tokens are no whole text: byte {error.start} of theirs is not UTF-8.", param="tokens"
            ) from error
        reply: Detokenized = {"prompt": text}
        return dump_json(reply)

    return Response(await services.prepare(request, services.off_loop.run(work)), media_type="application/json")
