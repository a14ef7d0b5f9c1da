"""POST /v1/chat/completions: its requests and replies."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field, model_validator
from typing_extensions import TypedDict

from server.wire.shapes.fields import (
    INT64,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    FirstError,
    Integer,
    JsonObject,
    Tools,
    WireModel,
    at_most,
)
from server.wire.shapes.generation import PromptLogprobs, SamplingFields, StreamOptions, Usage


class ChatStreamOptions(StreamOptions):
    """Options of a streamed chat."""

    resumable: bool | None = Field(
        None,
        description="number the events, and go on when the connection is lost; GET /v1/chat/completions/{id} takes"
        " the stream up again",
    )


class ContentPart(WireModel):
    """A piece of a message's content; only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None

    def readable_text(self) -> str | None:
        """Returns its text; None where it is something else."""
        if self.type == "refusal":
            return self.refusal
        return self.text if self.type in ("text", "input_text", "output_text") else None


class FunctionCallField(WireModel):
    """A function and its arguments as the model wrote them."""

    name: str
    arguments: str | None = None


class CustomCallField(WireModel):
    """A custom tool and its input as the model wrote it."""

    name: str
    input: str | None = None


class ToolCallField(WireModel):
    """A call an assistant made: of a function, or of a custom tool."""

    id: str | None = None
    type: str | None = None
    function: FunctionCallField | None = None
    custom: CustomCallField | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> ToolCallField:
        if (self.function is None) == (self.custom is None):
            raise ValueError("should have either 'function' or 'custom'")
        return self


Parts = Annotated[list[ContentPart], FirstError(), Field(max_length=MAX_PARTS), at_most(MAX_PARTS)]
ToolCalls = Annotated[list[ToolCallField], FirstError(), Field(max_length=MAX_TOOLS), at_most(MAX_TOOLS)]


class ChatMessage(WireModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Parts | None = None
    name: str | None = Field(None, description="of the speaker, or of the function whose result this is; accepted")
    tool_calls: ToolCalls | None = None
    function_call: FunctionCallField | None = None
    tool_call_id: str | None = Field(None, description="of role tool: the call whose result this is")
    id: str | None = Field(None, description="read where a tool message has no tool_call_id")


Messages = Annotated[
    list[ChatMessage], FirstError(), Field(min_length=1, max_length=MAX_MESSAGES), at_most(MAX_MESSAGES)
]


class PredictionField(WireModel):
    """What the client expects the reply to be, mostly."""

    type: Literal["content"]
    content: str | Parts


class ChatCompletionRequest(SamplingFields):
    """POST /v1/chat/completions."""

    stream_options: ChatStreamOptions | None = None
    messages: Messages = Field(description="the conversation, oldest first")
    max_completion_tokens: Integer | None = Field(None, ge=1, lt=INT64, description="most tokens of a choice")
    max_tokens: Integer | None = Field(None, ge=1, lt=INT64, description="older name of max_completion_tokens")
    max_length: Integer | None = Field(
        None, ge=1, lt=INT64, description="most tokens of prompt and choice together, as openai_api.py had it"
    )
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(None, ge=0, le=MAX_LOGPROBS, description="above 0 it needs logprobs")
    continue_final_message: bool | None = Field(
        None, description="whether a last message of the assistant is continued (the default) or answered"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false, as in vLLM, only where a last message of the assistant is continued"
    )
    tools: Tools | None = Field(
        None,
        description='{"type": "function", "function": {name, description, parameters}}; arguments fit the schema;'
        ' or {"type": "custom", "custom": {name, description, format}}; the input is text, or fits the grammar',
    )
    tool_choice: str | JsonObject | None = Field(
        None, description="none, auto, required, one function, or allowed_tools"
    )
    parallel_tool_calls: bool | None = Field(None, description="accepted; these models make one call a turn")
    functions: Tools | None = Field(None, description="older form of tools, OpenAI's or Qwen's")
    function_call: str | JsonObject | None = Field(None, description="older form of tool_choice")
    prediction: PredictionField | None = Field(
        None, description="text that the reply is expected to repeat: it then comes faster, never otherwise"
    )
    truncation: str | None = Field(None, description="auto drops whole oldest turns that do not fit the context")
    modalities: Annotated[list[str], FirstError()] | None = None
    audio: JsonObject | None = None
    web_search_options: JsonObject | None = None


class TopLogprob(TypedDict):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """One token of the content."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """The tokens of the content; their bytes join to it."""

    content: list[ChatTokenLogprob]
    refusal: NotRequired[None]


class CalledFunction(TypedDict):
    """A function and its arguments, a JSON text."""

    name: str
    arguments: str


class CalledCustom(TypedDict):
    """A custom tool and its input, a text."""

    name: str
    input: str


class ToolCall(TypedDict):
    """A call of a tool: of a function, or of a custom tool."""

    id: str
    type: Literal["function", "custom"]
    function: NotRequired[CalledFunction | None]
    custom: NotRequired[CalledCustom | None]


class AssistantMessage(TypedDict):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: NotRequired[list[ToolCall] | None]
    function_call: NotRequired[CalledFunction | None]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]
    stop_reason: str | int | None
    token_ids: NotRequired[list[int] | None]


class ChatCompletion(TypedDict):
    """The reply of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: NotRequired[list[int] | None]
    prompt_logprobs: NotRequired[PromptLogprobs | None]


class DeletedChat(TypedDict):
    """A stream that is no more."""

    id: str
    object: Literal["chat.completion.deleted"]
    deleted: Literal[True]
