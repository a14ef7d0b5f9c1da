"""The shapes of replies, for the OpenAPI document. Replies themselves are built by hand, not validated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ReplyModel(BaseModel):
    """A documented reply."""

    model_config = ConfigDict(protected_namespaces=())


class PageModel(ReplyModel):
    """A documented page of a list; `page_object` makes one."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_object(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Returns the wire object of a page."""
    first_id, last_id = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more}


class ErrorDetail(ReplyModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(ReplyModel):
    """Every error."""

    error: ErrorDetail


class PromptTokensDetails(ReplyModel):
    """Where prompt tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(ReplyModel):
    """How completion tokens came: as was expected, by `prediction` or by the text so far, or otherwise."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(ReplyModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(ReplyModel):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """One token of the content."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ReplyModel):
    """The tokens of the content; their bytes join to it."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CalledFunction(ReplyModel):
    """A function and its arguments, a JSON text."""

    name: str
    arguments: str


class CalledCustom(ReplyModel):
    """A custom tool and its input, a text."""

    name: str
    input: str


class ToolCall(ReplyModel):
    """A call of a tool: of a function, or of a custom tool."""

    id: str
    type: Literal["function", "custom"]
    function: CalledFunction | None = None
    custom: CalledCustom | None = None


class AssistantMessage(ReplyModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None


class ChatChoice(ReplyModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]
    stop_reason: str | int | None
    token_ids: list[int] | None = None


class PromptLogprob(ReplyModel):
    """A token in a place of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatCompletion(ReplyModel):
    """The reply of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class DeletedChat(ReplyModel):
    """A stream that is no more."""

    id: str
    object: Literal["chat.completion.deleted"]
    deleted: Literal[True]


class CompletionLogprobs(ReplyModel):
    """Tokens of the text, in step."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ReplyModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(ReplyModel):
    """The reply of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(ReplyModel):
    """A name of the model, or a LoRA adapter: `root` is where that is from, and `parent` the model it belongs to."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(ReplyModel):
    """All names."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(ReplyModel):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class AddedToken(ReplyModel):
    """A control token."""

    content: str
    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool
    special: bool


class TokenizerInfo(ReplyModel):
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


class Detokenized(ReplyModel):
    """Text of token ids."""

    prompt: str


class State(ReplyModel):
    """State of the engine."""

    status: str


class Version(ReplyModel):
    """Version of the server, and the commit it was built from."""

    version: str
    commit: str | None


Responses = dict[int | str, dict[str, Any]]
CHUNKS = "The reply, or with `stream` its chunks as server-sent events"


def success_reply(model: type[BaseModel], description_of_streams: str = "") -> Responses:
    """Returns the entry of the document for what a route answers; a description is of one that streams, too."""
    streams = {"description": description_of_streams, "content": {"text/event-stream": {}}}
    return {200: {"model": model, **(streams if description_of_streams else {})}}


def error_reply(status: int, description: str) -> Responses:
    """Returns an entry of the document for an error."""
    return {status: {"model": ErrorReply, "description": description}}


BAD_REQUEST = error_reply(400, "The request cannot be served as asked") | error_reply(413, "The body is too large")
NOT_FOUND = error_reply(404, "No such model")
UNAVAILABLE = error_reply(503, "The engine is loading, recovering, draining or gone")
COMMON_ERRORS = (
    error_reply(401, "A key is missing or wrong")
    | error_reply(403, "A page of another origin, or a name this server does not go by")
    | error_reply(500, "The server failed")
)
GENERATION_ERRORS = (
    BAD_REQUEST
    | NOT_FOUND
    | UNAVAILABLE
    | COMMON_ERRORS
    | error_reply(429, "Too many requests wait")
    | error_reply(504, "The request took longer than the server allows")
)
