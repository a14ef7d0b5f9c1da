"""POST /tokenize and /detokenize, GET /tokenizer_info: their requests and replies."""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.wire.shapes.chat import Messages
from server.wire.shapes.fields import AllowedSpecial, JsonObject, TokenIds, Tools
from server.wire.shapes.generation import RequestBody


class TokenizeRequest(RequestBody):
    """POST /tokenize: either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        None,
        description="true: as in /v1/completions; false: only a prompt that is one control token's name stands for it",
    )
    allowed_special: AllowedSpecial | None = Field(None, description="as in /v1/completions")
    add_generation_prompt: bool | None = Field(None, description="open the assistant's turn (the default)")
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    tools: Tools | None = None
    tool_choice: str | JsonObject | None = Field(None, description="as in /v1/chat/completions: a forced call opens")
    functions: Tools | None = None
    function_call: str | JsonObject | None = None


class DetokenizeRequest(RequestBody):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds = Field(description="token ids")
    errors: Literal["replace", "ignore", "strict"] | None = Field(
        None, description="broken characters become U+FFFD (the default), are left out, or are an error"
    )


class Tokenized(TypedDict):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: NotRequired[list[str] | None]


class AddedToken(TypedDict):
    """A control token."""

    content: str
    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool
    special: bool


class TokenizerInfo(TypedDict):
    """What a tokenizer_config.json says."""

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    additional_special_tokens: list[str]
    added_tokens_decoder: dict[str, AddedToken]
    chat_template: str | None


class Detokenized(TypedDict):
    """Text of token ids."""

    prompt: str
