"""Types of the fields of requests: bounds, kinds of numbers and texts, and lists that are refused early.

An explicit null means the default; a list that is too long is refused before pydantic checks its items.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    WithJsonSchema,
)

MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
# All stop strings together: each is looked for in every choice.
MAX_STOP_CHARS_IN_ALL = 4096
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 512
MAX_LOGPROBS = 20
MAX_SPECIAL_NAMES = 256
MAX_CHOICE_TEXTS = 1024
# Both are gone through for each token.
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 256
# OpenAI's is 2, the published server had none; logits divided by more are all alike.
MAX_TEMPERATURE = 1e6
MAX_CACHE_SALT_CHARS = 1024
MAX_METADATA = 16
_MAX_KEY_CHARS, _MAX_VALUE_CHARS = 64, 512
INT64 = 1 << 63

JsonObject = dict[str, Any]


class WireModel(BaseModel):
    """Accepts unknown fields; refuses NaN and infinity."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


class FirstError(FailFast):
    """Stops at the first item that is wrong; unlike its base it may stand in a union."""

    def __hash__(self) -> int:
        return hash(type(self))


def at_most(limit: int) -> BeforeValidator:
    """Looks at the length first: pydantic would check every item and keep an error for each, a kilobyte a byte sent."""

    def check(value: object) -> object:
        if isinstance(value, list | dict) and len(value) > limit:
            raise ValueError(f"should have at most {limit} items, not {len(value)}")
        return value

    return BeforeValidator(check)


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if any(len(key) > _MAX_KEY_CHARS or len(value) > _MAX_VALUE_CHARS for key, value in metadata.items()):
        raise ValueError(f"keys have at most {_MAX_KEY_CHARS} characters, values {_MAX_VALUE_CHARS}")
    return metadata


def _check_stop(value: str | list[str] | None) -> str | list[str] | None:
    stops = [value] if isinstance(value, str) else value or []
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
    if any(len(stop) > MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"a stop string may have at most {MAX_STOP_CHARS} characters")
    if sum(map(len, stops)) > MAX_STOP_CHARS_IN_ALL:
        raise ValueError(f"all stop strings together may have at most {MAX_STOP_CHARS_IN_ALL} characters")
    if isinstance(value, list) and not all(stops):
        raise ValueError("a stop string must not be empty")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < INT64


def _check_prompt(value: object) -> object:
    """Checked by hand: a union would try every branch on every one of many thousand ids."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        if not value:
            raise ValueError("must not be an empty list")
        if all(_is_id(item) for item in value):
            return value
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts are allowed in one request")
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and item and all(_is_id(i) for i in item) for item in value):
            return value
    raise ValueError("should be a text, a list of texts, a list of token ids, or a list of lists of token ids")


Metadata = Annotated[dict[str, str], at_most(MAX_METADATA), AfterValidator(_check_metadata)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Integer = Annotated[int, BeforeValidator(_no_bool)]
Stop = Annotated[str | Annotated[list[str], FirstError()] | None, AfterValidator(_check_stop)]
Choices = Annotated[list[str], FirstError(), Field(max_length=MAX_CHOICE_TEXTS), at_most(MAX_CHOICE_TEXTS)] | None
PromptField = Annotated[
    Any,
    PlainValidator(_check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
                },
                {"type": "null"},
            ]
        }
    ),
]
TokenIds = Annotated[
    list[int],
    PlainValidator(lambda v: _check_ids(v)),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}}),
]


def _check_ids(value: object) -> object:
    if isinstance(value, list) and all(_is_id(item) for item in value):
        return value
    raise ValueError("should be a list of token ids")


Tools = Annotated[list[JsonObject], FirstError(), Field(max_length=MAX_TOOLS), at_most(MAX_TOOLS)]
AllowedSpecial = Annotated[Literal["all"] | Annotated[list[str], FirstError()], at_most(MAX_SPECIAL_NAMES)]
LogitBias = Annotated[
    dict[str, Annotated[Number, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIASES),
    at_most(MAX_LOGIT_BIASES),
]
