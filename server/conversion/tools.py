"""Reads and checks tools and the choice among them, for prompts/ to render.

Both spellings end up the same: `tools` with `tool_choice`, and the older `functions` with `function_call`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.contract.errors import InvalidRequestError
from prompts.messages import ToolSpec
from prompts.schemas.schema import TextInput
from prompts.tool_format import Named, ToolChoice
from server.conversion.tool_descriptions import DescribedTool, read_function, read_tool

MAX_TOOLS = 128
_CHOICES: dict[str, ToolChoice] = {"none": "none", "auto": "auto", "required": "required"}


@dataclass(frozen=True, slots=True)
class FunctionCalling:
    """The tools of a request, and the choice among them.

    Attributes:
        tools: the tools that the model may call.
        choice: whether it may, must, or must not call one.
        param: the field of the request that holds the tools.
    """

    tools: tuple[DescribedTool, ...] = ()
    choice: ToolChoice = "auto"
    param: str = "tools"

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """Each tool's description for the model."""
        return tuple(tool.spec for tool in self.tools)

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which the model calls them."""
        return tuple(tool.name for tool in self.tools)

    @property
    def custom_tools(self) -> frozenset[str]:
        """Names of those that are custom tools in OpenAI's sense."""
        return frozenset(tool.name for tool in self.tools if tool.is_custom)

    @property
    def text_tools(self) -> frozenset[str]:
        """Names of those whose input is text or code, not JSON."""
        return frozenset(tool.name for tool in self.tools if isinstance(tool.input, TextInput))


NO_TOOLS = FunctionCalling()


def read_function_calling(
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None = None,
    functions: Sequence[Mapping[str, Any]] | None = None,
    function_call: str | Mapping[str, Any] | None = None,
) -> FunctionCalling:
    """Reads the tools or functions of a request and its choice among them.

    Args:
        tools: OpenAI's objects; in the Responses API they have no inner object.
        functions: the older form of tools.
        function_call: the older form of `tool_choice`.

    Raises:
        InvalidRequestError: malformed, contradictory, or a choice of something that is not there.
    """
    if tools and functions:
        raise InvalidRequestError("Send either 'tools' or 'functions', not both.", param="functions")
    param, given = ("functions", functions) if functions else ("tools", tools or ())
    if len(given) > MAX_TOOLS:
        raise InvalidRequestError(f"At most {MAX_TOOLS} {param} are allowed, not {len(given)}.", param=param)
    described = tuple(
        read_function(tool, f"functions[{i}]") if param == "functions" else read_tool(tool, i)
        for i, tool in enumerate(given)
    )
    names = [tool.name for tool in described]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequestError(
                f"Two tools are called {name!r}; give each its own name.", param=described[index].where
            )
    return _read_choices(FunctionCalling(described, param=param), tool_choice, function_call)


def _read_choices(
    calling: FunctionCalling,
    tool_choice: str | Mapping[str, Any] | None,
    function_call: str | Mapping[str, Any] | None,
) -> FunctionCalling:
    """Applies `tool_choice` and `function_call`; where both are given, the one that fits the tools decides.

    "none" demands nothing that could be missing, so it is fine without tools and in the other spelling.
    """
    chosen = calling
    given: list[tuple[str, str, ToolChoice, list[str] | None]] = []
    if tool_choice is not None:
        given.append(("tool_choice", "tools", *_choice(tool_choice)))
    if function_call is not None:
        given.append(("function_call", "functions", _legacy_choice(function_call), None))
    for param, tools_param, choice, allowed in sorted(given, key=lambda one: one[1] == calling.param):
        if choice == "none":
            chosen = replace(calling, choice="none")
        else:
            chosen = _choose(calling, choice, allowed, param, tools_param)
    return chosen


def _legacy_choice(value: str | Mapping[str, Any]) -> ToolChoice:
    if isinstance(value, Mapping):
        return Named(_name_in(value, "function_call"))
    if value in ("none", "auto"):
        return _CHOICES[value]
    raise InvalidRequestError(
        f"'function_call' is 'none', 'auto' or {{\"name\": ...}}, not {value[:40]!r}.", param="function_call"
    )


def _choice(value: str | Mapping[str, Any]) -> tuple[ToolChoice, list[str] | None]:
    """Returns the choice, and the names to which `allowed_tools` limits it, or None."""
    if isinstance(value, str) and value in _CHOICES:
        return _CHOICES[value], None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and kind in ("function", "custom"):
        return Named(_name_in(value.get(kind, value), f"tool_choice.{kind}")), None
    if isinstance(value, Mapping) and kind == "allowed_tools":
        inner = value.get("allowed_tools", value)
        mode, tools = (inner.get("mode", "auto"), inner.get("tools")) if isinstance(inner, Mapping) else (None, None)
        if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
            raise InvalidRequestError(
                "'tool_choice.allowed_tools' needs a mode, 'auto' or 'required', and a list of tools.",
                param="tool_choice",
            )
        inners = (t.get("function", t.get("custom", t)) if isinstance(t, Mapping) else t for t in tools)
        return _CHOICES[mode], [_name_in(one, "tool_choice") for one in inners]
    raise InvalidRequestError(
        "'tool_choice' is 'none', 'auto', 'required', {\"type\": \"function\", \"function\": {\"name\": ...}} or"
        ' {"type": "allowed_tools", ...}.',
        param="tool_choice",
    )


def _name_in(value: object, where: str) -> str:
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str):
        raise InvalidRequestError(f"'{where}' needs a 'name'.", param=where.partition(".")[0])
    return name


def _choose(
    calling: FunctionCalling, choice: ToolChoice, allowed: Sequence[str] | None, param: str, tools_param: str
) -> FunctionCalling:
    if not calling.tools or calling.param != tools_param:
        raise InvalidRequestError(f"'{param}' needs '{tools_param}'.", param=param)
    names = calling.names
    wanted = [choice.name] if isinstance(choice, Named) else list(allowed or ())
    for name in wanted:
        if name not in names:
            raise InvalidRequestError(
                f"'{param}' names {name[:100]!r}, which is not among the {tools_param}: {', '.join(names)[:500]}.",
                param=param,
            )
    if allowed is None:
        return replace(calling, choice=choice)
    return replace(calling, tools=tuple(tool for tool in calling.tools if tool.name in allowed), choice=choice)
