"""Requests as a server with a vocabulary of bytes converts them."""

from __future__ import annotations

from typing import Any

from model.contract.messages import EngineReady
from server.conversion.converter import Converter
from server.conversion.defaults import GenerationDefaults
from server.conversion.generation_request import GenerationRequest
from server.conversion.prompt_encoding import PromptEncoder
from server.conversion.readers.chat import read_chat
from server.conversion.readers.completions import read_completion
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from tests.support.grammars import GRAMMARS
from tests.support.vocabulary import byte_tokenizer

TOKENIZER = byte_tokenizer()
ENGINE = EngineReady(
    max_model_len=200, vocab_size=512, num_blocks=9, block_size=16, kv_cache_bytes=1, weights_bytes=1, dtype="float32",
    device="cpu",
)  # fmt: skip
DEFAULTS = GenerationDefaults(temperature=0.7, top_p=0.8, top_k=5, repetition_penalty=1.1, eos_token_ids=(256, 300))
HI = [{"role": "user", "content": "hi"}]


def converter(chat_format: str = "auto", defaults: GenerationDefaults = DEFAULTS) -> Converter:
    return Converter(PromptEncoder(TOKENIZER, defaults, chat_format), GRAMMARS)


async def chat(**body: Any) -> GenerationRequest:
    return await converter().chat(read_chat(ChatCompletionRequest.model_validate({"messages": HI, **body})), ENGINE)


async def completion(**body: Any) -> GenerationRequest:
    return await converter().completion(
        read_completion(CompletionRequest.model_validate({"prompt": "hi", **body})), ENGINE
    )
