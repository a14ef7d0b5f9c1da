"""Requests as they come over the wire.

Types and bounds only: what a field means is decided in conversion. An explicit null means the default, and fields that
OpenAI has but that do nothing here are listed so that /docs shows it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from server.wire.fields import (
    INT64,
    MAX_CACHE_SALT_CHARS,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MAX_TOOLS,
    AllowedSpecial,
    Choices,
    FirstError,
    Integer,
    JsonObject,
    LogitBias,
    Number,
    PromptField,
    Stop,
    TokenIds,
    Tools,
    WireModel,
    at_most,
)


class RequestBody(WireModel):
    """A whole request: fields that are not known here are kept, for `unserved` to refuse or to name in the log."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(WireModel):
    """Options of a streamed reply."""

    include_usage: bool | None = Field(None, description="end the stream with a chunk that carries the usage")
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage: every chunk carries the usage so far"
    )


class ChatStreamOptions(StreamOptions):
    """Options of a streamed chat."""

    resumable: bool | None = Field(
        None,
        description="number the events, and go on when the connection is lost; GET /v1/chat/completions/{id} takes"
        " the stream up again",
    )


class GenerationFields(RequestBody):
    """What every generating route takes."""

    model: str | None = Field(None, description="a served name; the first of /v1/models when absent")
    stream: bool | None = Field(None, description="send the reply as server-sent events while it is generated")
    min_tokens: Integer | None = Field(None, ge=0, lt=INT64, description="no choice ends before this many tokens")
    temperature: Number | None = Field(None, ge=0, le=MAX_TEMPERATURE, description="0 is greedy")
    top_p: Number | None = Field(None, ge=0, le=1, description="0 is the likeliest token")
    top_k: Integer | None = Field(None, ge=-1, lt=INT64, description="-1 and 0 are off")
    min_p: Number | None = Field(None, ge=0, le=1)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    repetition_penalty: Number | None = Field(None, ge=1e-6, le=1e6, description="1 is off")
    logit_bias: LogitBias | None = Field(None, description="token id (as a text) to what is added to its logit")
    seed: Integer | None = Field(
        None, ge=-INT64, lt=INT64, description="the same seed gives the same reply, whatever else is being served"
    )
    stop: Stop = Field(None, description=f"text, or up to {MAX_STOPS} texts, at which a choice ends")
    stop_token_ids: TokenIds | None = Field(
        None, max_length=MAX_STOP_TOKEN_IDS, description="token ids at which a choice ends"
    )
    include_stop_str_in_output: bool | None = Field(None, description="leave what ended the choice in its text")
    ignore_eos: bool | None = Field(None, description="do not end at the end-of-text tokens")
    priority: Integer | None = Field(
        None, ge=-INT64, lt=INT64, description="lower is served first, among the caller's own"
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_CACHE_SALT_CHARS,
        description="share cached prompt starts only with its equals",
    )
    skip_special_tokens: bool | None = Field(None, description="false shows control tokens in the text, by name")
    structured_outputs: JsonObject | None = Field(
        None, description="hold the reply to one of {json, regex, choice, grammar, json_object}, as in vLLM"
    )
    guided_json: str | JsonObject | None = Field(None, description="as structured_outputs.json")
    guided_regex: str | None = Field(None, description="as structured_outputs.regex")
    guided_choice: Choices = Field(None, description="as structured_outputs.choice")
    guided_grammar: str | None = Field(None, description="as structured_outputs.grammar")
    json_schema: str | JsonObject | None = Field(None, description="as structured_outputs.json")
    regex: str | None = Field(None, description="as structured_outputs.regex")
    grammar: str | None = Field(None, description="as structured_outputs.grammar")
    ebnf: str | None = Field(None, description="as structured_outputs.grammar")
    user: str | None = Field(None, description="accepted; does nothing")


class SamplingFields(GenerationFields):
    """What chat and completions take."""

    stream_options: StreamOptions | None = None
    n: Integer | None = Field(
        None, ge=1, le=MAX_CHOICES, description="independent choices; the prompt is computed once"
    )
    max_tokens: Integer | None = Field(None, ge=0, lt=INT64, description="most tokens of a choice")
    return_token_ids: bool | None = Field(None, description="add the token ids of prompt and choices to the reply")
    response_format: JsonObject | None = Field(
        None,
        description='{"type": "text"}, {"type": "json_object"} (with "schema" too) or {"type": "json_schema", ...};'
        " enforced",
    )
    prompt_logprobs: Integer | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="report the log-probability of each token of the prompt and this many alternatives; not in streams",
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description="in log-probabilities name each token by its id, as token_id:5"
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


class LoadAdapterRequest(RequestBody):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(max_length=256, description="what requests will name as their model")
    lora_path: str = Field(max_length=4096, description="folder, or hub id; below --lora-root where that is set")
    load_inplace: bool | None = Field(None, description="let the name go over from the adapter that has it")


class UnloadAdapterRequest(RequestBody):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = Field(max_length=256, description="the adapter's name; requests that have it already finish")
