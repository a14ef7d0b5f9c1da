"""Tools as requests describe them: what the model is told about each, and what its input is.

Descriptions may be OpenAI's ({name, description, parameters}) or the older Qwen's ({name_for_model, parameters as a
list, ...}). The input of OpenAI's custom tools is text, free or held to a grammar, and no JSON: the model is told about
one as about any other tool, with a sentence on how its input is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.contract.errors import InvalidRequestError
from model.contract.grammar_compiler import MAX_GRAMMAR_CHARS
from prompts.messages import ToolSpec
from prompts.schemas.check import has_finite_value
from prompts.schemas.schema import TextInput, ToolInput, arguments_schema, lark_rule, regex_rule

MAX_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class DescribedTool:
    """One tool of a request.

    Attributes:
        spec: its description for the model.
        input: the JSON schema of its arguments, or the text it takes.
        where: its place in the request.
        is_custom: OpenAI's word for a tool whose input is text.
        is_strict: refuse a schema that cannot be enforced in full.
    """

    spec: ToolSpec
    input: ToolInput
    where: str
    is_custom: bool = False
    is_strict: bool = False

    @property
    def name(self) -> str:
        """The name by which the model calls it."""
        return self.spec.name_for_model

    @property
    def input_place(self) -> str:
        """The place in the request that describes its input."""
        return f"{self.where}.{'format' if self.is_custom else 'parameters'}"


def read_tool(tool: Mapping[str, Any], index: int) -> DescribedTool:
    """Reads one of `tools`.

    Raises:
        InvalidRequestError: it is malformed.
    """
    if tool.get("type") == "custom":
        where = f"tools[{index}].custom" if "custom" in tool else f"tools[{index}]"
        spec = _tool_spec(described_custom(tool, index), where)
        return DescribedTool(spec, read_custom_input(tool, index), where, is_custom=True)
    where = f"tools[{index}].function" if "function" in tool else f"tools[{index}]"
    return read_function(_function_of(tool, index), where)


def read_function(function: Mapping[str, Any], where: str) -> DescribedTool:
    """Reads one of `functions`, or the function of a tool.

    Raises:
        InvalidRequestError: it is malformed.
    """
    spec = _tool_spec(function, where)
    return DescribedTool(spec, _input(spec, function, where), where, is_strict=function.get("strict") is True)


def _function_of(tool: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    kind = tool.get("type", "function")
    if kind != "function":
        raise InvalidRequestError(
            f"'tools[{index}].type' {str(kind)[:40]!r} is not supported; 'function' and 'custom' are.",
            param=f"tools[{index}].type",
        )
    function = tool.get("function", tool)
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f"'tools[{index}].function' must be an object.", param=f"tools[{index}].function")
    return function


def _tool_spec(function: Mapping[str, Any], where: str) -> ToolSpec:
    for key in ("name", "name_for_model", "name_for_human", "description", "description_for_model", "args_format"):
        if not isinstance(function.get(key), str | None):
            raise InvalidRequestError(f"'{where}.{key}' must be a text.", param=f"{where}.{key}")
    try:
        spec = ToolSpec.from_dict(function)
    except ValueError as error:
        raise InvalidRequestError(f"'{where}': {error}.", param=f"{where}.name") from error
    name = spec.name_for_model
    # The name is one line of the model's reply, up to its end.
    if len(name) > MAX_NAME_CHARS or name != name.strip() or not name.isprintable():
        raise InvalidRequestError(
            f"'{where}.name' must be at most {MAX_NAME_CHARS} characters on one line, without spaces around.",
            param=f"{where}.name",
        )
    return spec


def _input(spec: ToolSpec, function: Mapping[str, Any], where: str) -> ToolInput:
    """What a function takes: by its schema JSON, unless its description asks the model for code."""
    return TextInput() if spec.takes_code else _schema(function, where)


def _schema(function: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    param = f"{where}.parameters"
    try:
        schema = arguments_schema(function.get("parameters"))
    except ValueError as error:
        raise InvalidRequestError(f"'{param}': {error}.", param=param) from error
    if not has_finite_value(schema):
        raise InvalidRequestError(
            f"'{param}' requires itself without end, so no arguments satisfy it; make a property optional.", param=param
        )
    return schema


_HOW = "Write the input as plain text, not as JSON."


def described_custom(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns a custom tool described as a function, for the prompt.

    Args:
        tool: {"type": "custom", "custom": {name, description, format}}, or with these fields at the top, as the
            Responses API has it.
        index: among the tools.

    Raises:
        InvalidRequestError: it is malformed.
    """
    custom = _custom(tool, index)
    grammar = _grammar(custom, index)
    how = _HOW
    if grammar is not None:
        syntax, definition = grammar
        kind = "the regular expression" if syntax == "regex" else "the Lark grammar"
        how = f"{_HOW} It must match {kind}: {definition}"
    return {
        "name": custom.get("name"),
        "description": custom.get("description"),
        "parameters": [],
        "args_format": how,
    }


def read_custom_input(tool: Mapping[str, Any], index: int) -> TextInput:
    """Returns what the input of a custom tool is held to.

    Raises:
        InvalidRequestError: its format is malformed.
    """
    grammar = _grammar(_custom(tool, index), index)
    if grammar is None:
        return TextInput()
    syntax, definition = grammar
    return TextInput(regex_rule(definition) if syntax == "regex" else lark_rule(definition))


def _custom(tool: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    custom = tool.get("custom", tool)
    if not isinstance(custom, Mapping):
        raise InvalidRequestError(f"'tools[{index}].custom' must be an object.", param=f"tools[{index}].custom")
    return custom


def _grammar(custom: Mapping[str, Any], index: int) -> tuple[str, str] | None:
    """Returns syntax and definition of the grammar an input is held to; None is free text."""
    param = f"tools[{index}].custom.format"
    custom_format = custom.get("format")
    if custom_format is None:
        return None
    kind = custom_format.get("type") if isinstance(custom_format, Mapping) else None
    if not isinstance(custom_format, Mapping) or kind not in ("text", "grammar"):
        raise InvalidRequestError(f"'{param}.type' is 'text' or 'grammar', not {str(kind)[:40]!r}.", param=param)
    if kind == "text":
        return None
    grammar = custom_format.get("grammar", custom_format)
    syntax, definition = (
        (grammar.get("syntax"), grammar.get("definition")) if isinstance(grammar, Mapping) else (None, None)
    )
    if syntax not in ("lark", "regex"):
        raise InvalidRequestError(
            f"'{param}.grammar.syntax' is 'lark' or 'regex', not {str(syntax)[:40]!r}.", param=param
        )
    if not isinstance(definition, str) or not definition or len(definition) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"'{param}.grammar.definition' must be a text of reasonable length.", param=param)
    if definition != definition.encode(errors="replace").decode():
        raise InvalidRequestError(f"'{param}.grammar.definition' has half a surrogate pair in it.", param=param)
    return syntax, definition
