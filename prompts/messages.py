"""Messages, function calls and tools, free of any wire format.

This file must not know HTTP, OpenAI's field rules (the server maps `developer` to `system` and `function` to
`tool`), tokens or models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

# A surrogate pair is one character. `\\.` skips other escapes whole: in `\\\\u0041` the `u0041` is plain text.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.")

# Sentences on the form of an input, as in the published server and in Qwen-Agent; the code one in Chinese too.
_ARGS_FORMATS = {
    "code": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
    "json": "Format the arguments as a JSON object.",
}
_CODE_HINTS = ("Enclose the code within triple backticks", "此工具的输入应为Markdown代码块")

# A function without `parameters` takes an empty object.
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function call of the assistant.

    Args:
        name: the function's name, as the model wrote it.
        arguments: the model's text, usually JSON.
        id: matches the `tool_call_id` of the tool message that answers it; None in the legacy `function_call` form.
        is_text: the arguments are plain text or code, even if they parse as JSON.
    """

    name: str
    arguments: str
    id: str | None = None
    is_text: bool = False

    def readable_arguments(self) -> str:
        r"""Returns the arguments with \uXXXX escapes replaced by characters, as the model saw them in training.

        Characters that JSON must escape stay escaped. Arguments that are not JSON are returned unchanged.
        """
        if self.is_text or "\\u" not in self.arguments or not is_json(self.arguments):
            return self.arguments
        return _ESCAPE.sub(_written_out, self.arguments)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation.

    Args:
        role: "tool" marks the result of a function.
        content: empty where the wire had null.
        name: the speaker, or the function whose result this is. ChatML never renders it.
        calls: the functions that this message of the assistant calls.
        tool_call_id: the call that a tool message answers; None in the legacy form.
    """

    role: Role
    content: str = ""
    name: str | None = None
    calls: tuple[FunctionCall, ...] = ()
    tool_call_id: str | None = None

    def stripped(self) -> Message:
        """Returns the message without newlines before its content and without whitespace after it.

        The published API server strips every message like this; the published `chat()` does not. Leading spaces stay:
        they may be indentation.
        """
        return replace(self, content=strip_content(self.content))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the prompt describes it. Every field is inserted into the prompt as it is.

    Args:
        name_for_model: the name that the model writes after `Action:`.
        name_for_human: the name in the sentence that introduces the tool.
        parameters_json: the parameters as JSON text.
        args_format: a sentence on the form of the input, appended to the parameters; may be empty.
    """

    name_for_model: str
    name_for_human: str
    description: str
    parameters_json: str
    args_format: str = ""

    @classmethod
    def from_dict(cls, function: Mapping[str, Any]) -> ToolSpec:
        """Reads a function description in OpenAI's style, Qwen's style, or a mixture of both.

        `name_for_model` and `name_for_human` default to `name`, `description_for_model` to `description`. Null means
        absent, and absent parameters mean none. `args_format` is Qwen-Agent's: a sentence, or "code" or "json" for the
        usual sentences.

        Args:
            function: {name, description, parameters}, or {name_for_model, name_for_human, description_for_model,
                parameters}. The key order of the parameters is kept.

        Raises:
            ValueError: the description has no name.
        """
        name = function.get("name") or function.get("name_for_model")
        if not name:
            raise ValueError("a function description needs a 'name' or a 'name_for_model'")
        name_for_model = function.get("name_for_model") or name
        description = function.get("description_for_model")
        if description is None:
            description = function.get("description") or ""
        parameters = function.get("parameters")
        args_format = str(function.get("args_format") or "")
        return cls(
            name_for_model=str(name_for_model),
            name_for_human=str(function.get("name_for_human") or name),
            description=str(description),
            # Not ASCII-escaped: in training, Chinese descriptions were plain characters.
            parameters_json=json.dumps(_NO_PARAMETERS if parameters is None else parameters, ensure_ascii=False),
            args_format=_ARGS_FORMATS.get(args_format, args_format),
        )

    @property
    def takes_code(self) -> bool:
        """Whether the prompt tells the model to write the input as fenced code instead of JSON."""
        text = f"{self.description} {self.args_format}"
        return any(hint in text for hint in _CODE_HINTS)


def strip_content(text: str) -> str:
    """Strips leading newlines and trailing whitespace, as the published API server does."""
    return text.lstrip("\n").rstrip()


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text)
        return True
    except (ValueError, RecursionError):
        return False


def _written_out(escape: re.Match[str]) -> str:
    text = escape.group()
    if not text.startswith("\\u"):
        return text
    code = int(text[2:6], 16)
    if len(text) > 6:
        code = 0x10000 + ((code - 0xD800) << 10) + int(text[8:], 16) - 0xDC00
    must_be_escaped = code < 0x20 or code in (0x22, 0x5C) or 0xD800 <= code <= 0xDFFF
    return text if must_be_escaped else chr(code)
