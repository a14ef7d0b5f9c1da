"""POST /v1/completions: its requests and replies."""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.wire.shapes.fields import MAX_LOGPROBS, AllowedSpecial, Integer, PromptField
from server.wire.shapes.generation import PromptLogprobs, SamplingFields, Usage


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: PromptField = Field(None, description="text or token ids, or a list of either")
    logprobs: Integer | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="report each token's log-probability and this many alternatives"
    )
    echo: bool | None = Field(None, description="repeat the prompt in front of the text")
    suffix: str | None = Field(None, description="not supported by these models")
    best_of: Integer | None = Field(None, description="accepted where it equals n")
    add_special_tokens: bool | None = Field(
        None, description="read the names of control tokens in a text prompt as the tokens; trusted text only"
    )
    allowed_special: AllowedSpecial | None = Field(
        None, description="names of the control tokens that are read so, or all; beats add_special_tokens"
    )


class CompletionLogprobs(TypedDict):
    """Tokens of the text, in step."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None
    token_ids: NotRequired[list[int] | None]
    prompt_token_ids: NotRequired[list[int] | None]
    prompt_logprobs: NotRequired[PromptLogprobs | None]


class Completion(TypedDict):
    """The reply of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
