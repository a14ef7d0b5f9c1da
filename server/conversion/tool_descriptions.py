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
        return _read_custom(tool, index)
    where = f"tools[{index}].function" if "function" in tool else f"tools[{index}]"
    return read_function(_function_of(tool, index), where)


def read_function(function: Mapping[str, Any], where: str) -> DescribedTool:
    """Reads one of `functions`, or the function of a tool.

    Raises:
        InvalidRequestError: it is malformed.
    """
    spec = _tool_spec(function, where)
    taken: ToolInput = TextInput() if spec.takes_code else _schema(function, where)
    return DescribedTool(spec, taken, where, is_strict=function.get("strict") is True)


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


def _read_custom(tool: Mapping[str, Any], index: int) -> DescribedTool:
    """Reads {"type": "custom", "custom": {name, description, format}}, or with the inner fields at the top."""
    where = f"tools[{index}].custom" if "custom" in tool else f"tools[{index}]"
    custom = tool.get("custom", tool)
    if not isinstance(custom, Mapping):
        raise InvalidRequestError(f"'{where}' must be an object.", param=where)
    how, rule = "Write the input as plain text, not as JSON.", None
    if (grammar := _input_grammar(custom.get("format"), f"{where}.format")) is not None:
        syntax, definition = grammar
        kind = "the regular expression" if syntax == "regex" else "the Lark grammar"
        how += f" It must match {kind}: {definition}"
        rule = regex_rule(definition) if syntax == "regex" else lark_rule(definition)
    told = {"name": custom.get("name"), "description": custom.get("description"), "args_format": how}
    return DescribedTool(_tool_spec(told | {"parameters": []}, where), TextInput(rule), where, is_custom=True)


def _input_grammar(input_format: object, param: str) -> tuple[str, str] | None:
    """Returns syntax and definition of the grammar that an input must match; None is free text."""
    if input_format is None:
        return None
    kind = input_format.get("type") if isinstance(input_format, Mapping) else None
    if not isinstance(input_format, Mapping) or kind not in ("text", "grammar"):
        raise InvalidRequestError(f"'{param}.type' is 'text' or 'grammar', not {str(kind)[:40]!r}.", param=param)
    if kind == "text":
        return None
    place = f"{param}.grammar" if "grammar" in input_format else param
    grammar = input_format.get("grammar", input_format)
    fields: Mapping[str, Any] = grammar if isinstance(grammar, Mapping) else {}
    syntax, definition = fields.get("syntax"), fields.get("definition")
    if syntax not in ("lark", "regex"):
        raise InvalidRequestError(f"'{place}.syntax' is 'lark' or 'regex', not {str(syntax)[:40]!r}.", param=param)
    if not isinstance(definition, str) or not definition or len(definition) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(f"'{place}.definition' must be a text of reasonable length.", param=param)
    if definition != definition.encode(errors="replace").decode():
        raise InvalidRequestError(f"'{place}.definition' has half a surrogate pair in it.", param=param)
    return syntax, definition
