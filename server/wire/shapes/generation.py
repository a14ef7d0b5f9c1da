"""What generating requests and their replies have in common."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from server.wire.shapes.fields import (
    INT64,
    MAX_CACHE_SALT_CHARS,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    Choices,
    Integer,
    JsonObject,
    LogitBias,
    Number,
    Stop,
    TokenIds,
    WireModel,
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


class PromptTokensDetails(TypedDict):
    """Where prompt tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """How completion tokens came: as was expected, by `prediction` or by the text so far, or otherwise."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class PromptLogprob(TypedDict):
    """A token in a place of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
