"""Anthropic's Messages API as it comes over the wire, and the shapes of its replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from server.wire.openapi import Responses
from server.wire.shapes.fields import (
    INT64,
    MAX_CACHE_SALT_CHARS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    FirstError,
    Integer,
    JsonObject,
    Number,
    Stop,
    Tools,
    WireModel,
    at_most,
)
from server.wire.shapes.generation import RequestBody

ResultBlocks = Annotated[list[JsonObject], FirstError(), Field(max_length=MAX_PARTS), at_most(MAX_PARTS)]


class ContentBlock(WireModel):
    """A piece of a message's content: text, a call, the result of one; thinking is left out of the prompt."""

    type: str
    text: str | None = None
    id: str | None = Field(None, description="of a tool_use")
    name: str | None = Field(None, description="of the tool a tool_use calls")
    input: JsonObject | None = Field(None, description="of a tool_use")
    tool_use_id: str | None = Field(None, description="of a tool_result: the call it is of")
    content: str | ResultBlocks | None = Field(None, description="of a tool_result: text, or blocks of text")
    is_error: bool | None = Field(None, description="of a tool_result: the call failed")


Blocks = Annotated[list[ContentBlock], FirstError(), Field(max_length=MAX_PARTS), at_most(MAX_PARTS)]


class InputMessage(WireModel):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | Blocks


InputMessages = Annotated[
    list[InputMessage], FirstError(), Field(min_length=1, max_length=MAX_MESSAGES), at_most(MAX_MESSAGES)
]


def _check_sequences(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("should be a list of texts")
    return value


class CountTokensRequest(RequestBody):
    """POST /v1/messages/count_tokens."""

    model: str | None = Field(None, description="a served name; the first of /v1/models when absent")
    messages: InputMessages = Field(description="the conversation, oldest first")
    system: str | Blocks | None = Field(None, description="what the model is told to be: text, or blocks of text")
    tools: Tools | None = Field(None, description="{name, description, input_schema}; inputs fit the schema")
    tool_choice: JsonObject | None = Field(None, description='{"type": "auto", "any", "tool" (with a name) or "none"}')
    output_config: JsonObject | None = Field(
        None, description='its "format", {"type": "json_schema", "schema"}, is enforced'
    )
    output_format: JsonObject | None = Field(None, description="older form of output_config.format")
    thinking: JsonObject | None = Field(None, description="accepted; these models do not think apart")


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: Integer = Field(ge=1, lt=INT64, description="most tokens of the reply")
    stream: bool | None = Field(None, description="send the reply as server-sent events while it is generated")
    stop_sequences: Annotated[Stop, BeforeValidator(_check_sequences)] = Field(
        None, description=f"up to {MAX_STOPS} texts at which the reply ends"
    )
    temperature: Number | None = Field(None, ge=0, le=MAX_TEMPERATURE, description="0 is greedy")
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: Integer | None = Field(None, ge=-1, lt=INT64)
    seed: Integer | None = Field(None, ge=-INT64, lt=INT64, description="ours: the same seed gives the same reply")
    priority: Integer | None = Field(None, ge=-INT64, lt=INT64, description="ours: as in /v1/chat/completions")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=MAX_CACHE_SALT_CHARS, description="ours: as in /v1/chat/completions"
    )
    metadata: JsonObject | None = Field(None, description="accepted; does nothing")


class MessageUsage(TypedDict):
    """Tokens of a request; those found in the prefix cache count as input."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class OutputBlock(TypedDict):
    """A piece of the reply: text, or a call."""

    type: Literal["text", "tool_use"]
    text: NotRequired[str | None]
    id: NotRequired[str | None]
    name: NotRequired[str | None]
    input: NotRequired[dict[str, Any] | None]


class MessageReply(TypedDict):
    """The reply of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[OutputBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(TypedDict):
    """The reply of /v1/messages/count_tokens."""

    input_tokens: int


class MessageErrorDetail(TypedDict):
    """What went wrong."""

    type: str
    message: str


class MessageError(TypedDict):
    """Every error of these routes."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: NotRequired[str | None]


MESSAGE_ERRORS: Responses = {
    status: {"model": MessageError, "description": description}
    for status, description in {
        400: "The request cannot be served as asked",
        401: "A key is missing or wrong",
        403: "A page of another origin, or a name this server does not go by",
        404: "No such model",
        413: "The body is too large",
        429: "The key's limit is used up",
        500: "The server failed",
        503: "The engine is loading, recovering, draining or gone",
        504: "The request took longer than the server allows",
        529: "Too many requests wait",
    }.items()
}
