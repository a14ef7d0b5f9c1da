"""Tools as requests describe them: what the model is told about each, and what its input is.

Descriptions may be OpenAI's ({name, description, parameters}) or the older Qwen's ({name_for_model, parameters as a
list, ...}); OpenAI's custom tools are read by custom_tools.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.contract.errors import InvalidRequestError
from prompts.messages import ToolSpec
from prompts.schemas.check import has_finite_value
from prompts.schemas.schema import TextInput, ToolInput, arguments_schema
from server.conversion.custom_tools import described_custom, read_custom_input

MAX_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class DescribedTool:
    """One tool of a request.

    Attributes:
        spec: what the model is told.
        input: the JSON schema of its arguments, or what else it takes.
        where: it stands in the request.
        is_custom: it is a custom tool in OpenAI's sense.
        is_strict: a schema that cannot be enforced in full is to be refused.
    """

    spec: ToolSpec
    input: ToolInput
    where: str
    is_custom: bool = False
    is_strict: bool = False

    @property
    def name(self) -> str:
        """What the model calls it by."""
        return self.spec.name_for_model

    @property
    def input_place(self) -> str:
        """Where the request says what its input is."""
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
