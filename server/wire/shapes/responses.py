"""The Responses API on the wire: its requests, and the shapes of its replies for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from fastapi import Query
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from server.wire.openapi import error_reply
from server.wire.shapes.chat import Parts
from server.wire.shapes.fields import (
    INT64,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    FirstError,
    Integer,
    JsonObject,
    Metadata,
    Tools,
    WireModel,
    at_most,
)
from server.wire.shapes.generation import GenerationFields
from server.wire.shapes.pages import Page

LOGPROBS = "message.output_text.logprobs"
# The others are about tools and models that are not here, so that there is nothing to include.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Include = Annotated[list[Includable] | None, Query(description="accepted; all there is is there")]


class InputItem(WireModel):
    """A message, a call, the result of a call, or a reference to an item that is kept here."""

    type: str | None = Field(
        None,
        description="message (the default where there is a role), function_call, function_call_output,"
        " custom_tool_call, custom_tool_call_output, item_reference, or reasoning, which is ignored",
    )
    id: str | None = Field(None, max_length=128)
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Parts | None = None
    call_id: str | None = Field(None, description="pairs a call with its result")
    name: str | None = Field(None, description="of the tool that is called")
    namespace: str | None = Field(None, description="that the tool stands in")
    arguments: str | None = Field(None, description="of a function_call: a JSON text")
    input: str | None = Field(None, description="of a custom_tool_call")
    output: str | Parts | None = Field(None, description="the result of a call")


InputItems = Annotated[list[InputItem], FirstError(), Field(max_length=MAX_MESSAGES), at_most(MAX_MESSAGES)]


class TextConfig(WireModel):
    """How the text is to be."""

    format: JsonObject | None = Field(
        None, description='{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "schema"}; enforced'
    )
    verbosity: str | None = Field(None, description="accepted; does nothing")


class ResponsesStreamOptions(WireModel):
    """Options of a streamed response."""

    include_obfuscation: bool | None = Field(None, description="accepted; events are never padded")


@with_config(ConfigDict(extra="ignore"))  # the request around it keeps what it does not know
class ConversationReference(TypedDict):
    """A conversation that is kept here."""

    id: str


class ResponsesRequest(GenerationFields):
    """POST /v1/responses."""

    input: str | InputItems | None = Field(None, description="a text of the user, or items, oldest first")
    instructions: str | None = Field(None, description="a system message in front, of this response only")
    previous_response_id: str | None = Field(None, description="go on from what that response saw and said")
    conversation: str | ConversationReference | None = Field(
        None, description="go on from a kept conversation, and add to it"
    )
    store: bool | None = Field(None, description="keep the response (the default), for previous_response_id and GET")
    background: bool | None = Field(None, description="return at once; the response is polled, or its stream resumed")
    stream_options: ResponsesStreamOptions | None = None
    max_output_tokens: Integer | None = Field(None, ge=1, lt=INT64, description="most tokens of the response")
    tools: Tools | None = Field(
        None,
        description='{"type": "function", name, description, parameters, strict}; arguments fit the schema; or'
        ' {"type": "custom", name, description, format}; or {"type": "namespace", name, tools}; others are refused',
    )
    tool_choice: str | JsonObject | None = Field(
        None, description="none, auto, required, one function, or allowed_tools"
    )
    parallel_tool_calls: bool | None = Field(None, description="accepted; these models make one call a turn")
    max_tool_calls: Integer | None = Field(None, ge=1, lt=INT64, description="of hosted tools, so of none")
    text: TextConfig | None = Field(None, description="how the text is to be")
    truncation: str | None = Field(None, description="auto drops whole oldest turns that do not fit the context")
    include: Annotated[list[Includable], FirstError(), at_most(64)] | None = Field(
        None, description=f"{LOGPROBS} reports the tokens of the text"
    )
    top_logprobs: Integer | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="alternatives to report a token; above 0 it includes log-probabilities"
    )
    metadata: Metadata | None = Field(None, description="kept with the response")
    reasoning: JsonObject | None = Field(None, description="accepted; these models do not reason apart")
    service_tier: str | None = Field(None, description="accepted; does nothing")
    safety_identifier: str | None = Field(None, description="accepted; does nothing")
    prompt_cache_key: str | None = Field(None, description="accepted; prompts are cached without it")
    prompt_cache_retention: str | None = Field(None, description="accepted; does nothing")


class ResponseLogprob(TypedDict):
    """One token of the text, or an alternative."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: NotRequired[list[dict[str, Any]] | None]


class OutputText(TypedDict):
    """A piece of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseLogprob]


class OutputItem(TypedDict):
    """A message, or a call of a tool."""

    type: Literal["message", "function_call", "custom_tool_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: NotRequired[Literal["assistant"] | None]
    content: NotRequired[list[OutputText] | None]
    call_id: NotRequired[str | None]
    name: NotRequired[str | None]
    namespace: NotRequired[str | None]
    arguments: NotRequired[str | None]
    input: NotRequired[str | None]


class InputTokensDetails(TypedDict):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    """What output tokens were for."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(TypedDict):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    conversation: ConversationReference | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None


KEPT_ERRORS = (
    error_reply(400, "The request cannot be served as asked")
    | error_reply(404, "No such response, or another key's")
    | error_reply(503, "What is kept cannot be read or written now")
    | error_reply(507, "There is no room for what was to be kept")
)


class DeletedResponse(TypedDict):
    """A response that is no more."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(Page):
    """A page of items."""

    data: list[dict[str, Any]]
