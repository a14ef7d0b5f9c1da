"""The settings of /set: the fields of a chat request, checked as the server checks them.

Servers silently ignore unknown fields, so names are checked here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from server.wire.shapes.chat import ChatCompletionRequest
from tools.chat.errors import ChatError

# Fields that the chat itself sets, or cannot show.
_OURS = frozenset(
    {"model", "messages", "tools", "functions", "function_call", "stream", "stream_options", "n", "user"}
    | {"continue_final_message", "modalities", "audio", "web_search_options", "return_token_ids"}
    | {"logprobs", "top_logprobs"}
)
NAMES = tuple(name for name in ChatCompletionRequest.model_fields if name not in _OURS)

_NEXT_ASSIGNMENT = re.compile(r"\s+(?=[A-Za-z_][\w-]*=)")


def parse_assignments(text: str) -> dict[str, Any]:
    """Parses `temperature=0.2 stop=["a", "b"]`. A value is JSON, or else text; an empty one (None) unsets.

    Raises:
        ChatError: the text cannot be parsed, or the server would refuse a value.
    """
    values: dict[str, Any] = {}
    for part in _NEXT_ASSIGNMENT.split(text.strip()):
        name, equals, value = part.partition("=")
        if not equals:
            raise ChatError(f"Write /set NAME=VALUE, as in /set temperature=0.2; {part!r} has no '='.")
        values[name.strip().replace("-", "_")] = _value(value.strip())
    return check_settings(values)


def check_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings if the server would accept them.

    Raises:
        ChatError: it would refuse one, or the chat itself sets that field.
    """
    for name in values:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            raise ChatError(f"There is no setting {name!r}" + (f"; did you mean {near[0]}?" if near else "."))
    try:
        ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": ""}], **values})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ChatError(f"{first['loc'][0]}: {message[:1].lower()}{message[1:]}.") from error
    return dict(values)


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
