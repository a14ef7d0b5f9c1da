"""Tools and functions as they come over the wire: read, checked, and turned into what prompts/ renders.

Both spellings end up the same: `tools` with `tool_choice`, and the older `functions` with `function_call`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from model.contract.errors import InvalidRequestError
from prompts.messages import FunctionCall, Message, ToolSpec
from prompts.react.call_results import OpenCalls
from prompts.react.render import Named, ToolChoice
from prompts.schemas.schema import TextInput, ToolInput
from server.conversion.tool_descriptions import read_function, read_tool
from server.wire.requests import ChatCompletionRequest, ChatMessage, TokenizeRequest

MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class FunctionCalling:
    """What a request says about functions.

    Attributes:
        tools: those the model is told about, and may call.
        schemas: (name, JSON schema of the arguments, or what else the input is) of each of them.
        choice: whether it may, must, or must not call.
        is_legacy: the request spoke of functions, and so does the reply.
        custom_tools: names of those that are custom tools in OpenAI's sense.
        places: of the schemas in the request, by the names of the tools.
        strict: names of the tools all of whose schema must be enforced.
    """

    tools: tuple[ToolSpec, ...] = ()
    schemas: tuple[tuple[str, ToolInput], ...] = ()
    choice: ToolChoice = "auto"
    is_legacy: bool = False
    custom_tools: frozenset[str] = frozenset()
    places: Mapping[str, str] = field(default_factory=dict)
    strict: frozenset[str] = frozenset()

    @property
    def text_tools(self) -> frozenset[str]:
        """Names of those whose input is text or code, not JSON."""
        return frozenset(name for name, tool_input in self.schemas if isinstance(tool_input, TextInput))


def read_function_calling(request: ChatCompletionRequest | TokenizeRequest) -> FunctionCalling:
    """Reads the tools or functions of a request and its choice among them.

    Raises:
        InvalidRequestError: malformed, contradictory, or a choice of something that is not there.
    """
    if request.tools and request.functions:
        raise InvalidRequestError("Send either 'tools' or 'functions', not both.", param="functions")
    is_legacy = bool(request.functions)
    param, given = ("functions", request.functions) if is_legacy else ("tools", request.tools)
    if len(given or ()) > MAX_TOOLS:
        raise InvalidRequestError(f"At most {MAX_TOOLS} {param} are allowed, not {len(given or ())}.", param=param)
    described = [
        read_function(tool, f"functions[{i}]") if is_legacy else read_tool(tool, i)
        for i, tool in enumerate(given or ())
    ]
    names = [tool.name for tool in described]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequestError(
                f"Two tools are called {name!r}; give each its own name.", param=described[index].where
            )
    calling = FunctionCalling(
        tools=tuple(tool.spec for tool in described),
        schemas=tuple((tool.name, tool.input) for tool in described),
        is_legacy=is_legacy,
        custom_tools=frozenset(tool.name for tool in described if tool.is_custom),
        places={tool.name: tool.input_place for tool in described},
        strict=frozenset(tool.name for tool in described if tool.is_strict),
    )
    return _read_choices(calling, request)


def _read_choices(calling: FunctionCalling, request: ChatCompletionRequest | TokenizeRequest) -> FunctionCalling:
    """Applies `tool_choice` and `function_call`; where both are given, the one that fits the tools decides.

    "none" demands nothing that could be missing, so it is fine without tools and in the other spelling.
    """
    chosen = calling
    given: list[tuple[str, str, ToolChoice, list[str] | None]] = []
    if request.tool_choice is not None:
        given.append(("tool_choice", "tools", *_choice(request.tool_choice)))
    if request.function_call is not None:
        given.append(("function_call", "functions", _legacy_choice(request.function_call), None))
    for param, tools_param, choice, allowed in sorted(given, key=lambda one: calling.is_legacy == (one[1] != "tools")):
        if choice == "none":
            chosen = replace(calling, choice="none")
        else:
            chosen = _choose(calling, choice, allowed, param, tools_param)
    return chosen


def _legacy_choice(value: str | Mapping[str, Any]) -> ToolChoice:
    if isinstance(value, Mapping):
        return Named(_name_in(value, "function_call"))
    if value == "none":
        return "none"
    if value == "auto":
        return "auto"
    raise InvalidRequestError(
        f"'function_call' is 'none', 'auto' or {{\"name\": ...}}, not {value[:40]!r}.", param="function_call"
    )


def _choice(value: str | Mapping[str, Any]) -> tuple[ToolChoice, list[str] | None]:
    """Returns the choice, and the names it is limited to, if it is."""
    if value == "none":
        return "none", None
    if value == "auto":
        return "auto", None
    if value == "required":
        return "required", None
    if isinstance(value, Mapping) and value.get("type") == "function":
        return Named(_name_in(value.get("function", value), "tool_choice.function")), None
    if isinstance(value, Mapping) and value.get("type") == "custom":
        return Named(_name_in(value.get("custom", value), "tool_choice.custom")), None
    if isinstance(value, Mapping) and value.get("type") == "allowed_tools":
        inner = value.get("allowed_tools", value)
        mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
        tools = inner.get("tools") if isinstance(inner, Mapping) else None
        if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
            raise InvalidRequestError(
                "'tool_choice.allowed_tools' needs a mode, 'auto' or 'required', and a list of tools.",
                param="tool_choice",
            )
        names = [
            _name_in(t.get("function", t.get("custom", t)) if isinstance(t, Mapping) else t, "tool_choice")
            for t in tools
        ]
        return ("required" if mode == "required" else "auto"), names
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
    if not calling.tools or calling.is_legacy != (param == "function_call"):
        raise InvalidRequestError(f"'{param}' needs '{tools_param}'.", param=param)
    names = [tool.name_for_model for tool in calling.tools]
    wanted = [choice.name] if isinstance(choice, Named) else list(allowed or ())
    for name in wanted:
        if name not in names:
            raise InvalidRequestError(
                f"'{param}' names {name[:100]!r}, which is not among the {tools_param}: {', '.join(names)[:500]}.",
                param=param,
            )
    if allowed is None:
        return replace(calling, choice=choice)
    keep = [index for index, name in enumerate(names) if name in allowed]
    tools, schemas = tuple(calling.tools[i] for i in keep), tuple(calling.schemas[i] for i in keep)
    return replace(calling, tools=tools, schemas=schemas, choice=choice)


def read_calls(message: ChatMessage, index: int) -> tuple[FunctionCall, ...]:
    """Reads the calls an assistant's message made.

    Raises:
        InvalidRequestError: calls in a message of another role, or one without an id.
    """
    where = f"messages[{index}]"
    if not (message.tool_calls or message.function_call):
        return ()
    if message.role != "assistant":
        raise InvalidRequestError(f"Only an assistant's message makes calls, not '{where}'.", param=where)
    if message.function_call is not None:
        call = message.function_call
        return (FunctionCall(call.name, call.arguments or "{}"),)
    calls = []
    for number, tool_call in enumerate(message.tool_calls or ()):
        if tool_call.id is None:
            param = f"{where}.tool_calls[{number}].id"
            raise InvalidRequestError(f"'{param}' is missing: results refer to it.", param=param)
        if tool_call.custom is not None:
            calls.append(FunctionCall(tool_call.custom.name, tool_call.custom.input or "", tool_call.id, is_text=True))
        elif tool_call.function is not None:
            calls.append(FunctionCall(tool_call.function.name, tool_call.function.arguments or "{}", tool_call.id))
    return tuple(calls)


def match_results(messages: Sequence[Message], sent: Sequence[ChatMessage], *, must_be_answered: bool) -> list[Message]:
    """Checks that results answer calls, and that no call at the end is left unanswered.

    A tool message that names no call by `tool_call_id` may do so by `id`, or be the result of the one call that waits.

    Args:
        messages: as read.
        sent: the same as they came over the wire: "tool" and "function" are one role in `messages`.
        must_be_answered: refuse a conversation that ends with calls: nothing can be generated for it.

    Returns:
        The messages, with the ids of the calls they answer.

    Raises:
        InvalidRequestError: naming the message.
    """
    calls = OpenCalls()
    matched = []
    for index, (message, wire) in enumerate(zip(messages, sent, strict=True)):
        where = f"messages[{index}]"
        if wire.role == "tool":
            message = replace(message, tool_call_id=_answered_id(wire, calls, where))
        calls.push(message)
        matched.append(message)
    if must_be_answered and messages and messages[-1].calls:
        raise InvalidRequestError(
            "The last message makes calls that no message answers; append a message with each result.",
            param=f"messages[{len(messages) - 1}]",
        )
    return matched


def _answered_id(message: ChatMessage, calls: OpenCalls, where: str) -> str | None:
    """The id of the call that a tool message answers; None is that of the only call that waits for a result."""
    if message.tool_call_id is not None and calls.knows(message.tool_call_id):
        return message.tool_call_id
    if message.tool_call_id:
        raise InvalidRequestError(
            f"'{where}.tool_call_id' {message.tool_call_id[:100]!r} is of no earlier tool call.", param=where
        )
    if message.id is not None and calls.knows(message.id):
        return message.id
    if calls.num_waiting != 1:
        reason = "no call waits for one" if not calls.num_waiting else f"{calls.num_waiting} calls wait for one"
        raise InvalidRequestError(
            f"'{where}.tool_call_id' is missing: whose result is this? Since the last user message {reason}.",
            param=where,
        )
    return None
