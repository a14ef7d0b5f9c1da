"""A conversation as prompts see it: who said what, which functions were called, which tools exist.

It exists so that rendering does not depend on any wire format. It must not know HTTP, OpenAI's
field rules (the server maps `developer` to `system` and `function` to `tool`), tokens or models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

# A pair of surrogates is one character. Other escapes are passed over whole: `\\\\u0041` is a backslash and a text.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.")

# The published server's words for how an input is written, and its counterpart in Chinese; Qwen-Agent has them too.
_ARGS_FORMATS = {
    "code": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
    "json": "Format the arguments as a JSON object.",
}
_CODE_HINTS = ("Enclose the code within triple backticks", "此工具的输入应为Markdown代码块")

# What a function without `parameters` takes: an object with nothing in it.
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call an assistant made.

    Args:
        name: of the function, as the model wrote it.
        arguments: as the model wrote them, usually a JSON text.
        id: pairs the call with the tool message that answers it; None in the legacy form.
        is_text: the arguments are plain text or code, whatever they look like.
    """

    name: str
    arguments: str
    id: str | None = None
    is_text: bool = False

    def readable_arguments(self) -> str:
        r"""The arguments with \uXXXX escapes written as the characters, as the model has read them in training.

        What a JSON text must escape stays escaped, and what is no JSON stays as it is.
        """
        if self.is_text or "\\u" not in self.arguments or not is_json(self.arguments):
            return self.arguments
        return _ESCAPE.sub(_written_out, self.arguments)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Args:
        role: who speaks; "tool" is the result of a function.
        content: the text; empty where the wire had null.
        name: of the speaker, or of the function whose result this is. Never rendered by ChatML.
        calls: functions the assistant called in this message.
        tool_call_id: of a tool message, the call it answers; None in the legacy form.
    """

    role: Role
    content: str = ""
    name: str | None = None
    calls: tuple[FunctionCall, ...] = ()
    tool_call_id: str | None = None

    def stripped(self) -> Message:
        """Returns the message without newlines before and without whitespace after its content.

        The published API server treats every message so; its `chat()` method does not.
        Spaces in front stay: they may be indentation.
        """
        return replace(self, content=strip_content(self.content))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model is told about it; every field is text and goes into the prompt as it stands.

    Args:
        name_for_model: what the model writes after `Action:`.
        name_for_human: what the tool is called in the sentence that introduces it.
        description: what it is for.
        parameters_json: its parameters, rendered.
        args_format: a sentence on how the input is written, behind the parameters; empty for none.
    """

    name_for_model: str
    name_for_human: str
    description: str
    parameters_json: str
    args_format: str = ""

    @classmethod
    def from_dict(cls, function: Mapping[str, Any]) -> ToolSpec:
        """Reads an OpenAI-style or a Qwen-style function description, or a mixture of both.

        `name_for_model` and `name_for_human` default to `name`, `description_for_model` to
        `description`; absent and null mean the same, and absent parameters mean none. `args_format` is
        Qwen-Agent's: a sentence, or "code" or "json" for the usual ones.

        Args:
            function: {name, description, parameters}, or {name_for_model, name_for_human,
                description_for_model, parameters}. Key order of the parameters is kept.

        Raises:
            ValueError: it has no name.
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
            # As it is, not escaped: the model read Chinese descriptions as characters when it was trained.
            parameters_json=json.dumps(_NO_PARAMETERS if parameters is None else parameters, ensure_ascii=False),
            args_format=_ARGS_FORMATS.get(args_format, args_format),
        )

    @property
    def takes_code(self) -> bool:
        """Whether the model is told to write code in a fence as the input, and so no JSON."""
        text = f"{self.description} {self.args_format}"
        return any(hint in text for hint in _CODE_HINTS)


def strip_content(text: str) -> str:
    """Drops newlines before and whitespace after a message's text, as the published API server does."""
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
