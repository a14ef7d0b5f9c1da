"""Reads requests of Anthropic's Messages API: from its wire types to a neutral request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model.contract.errors import InvalidRequestError
from prompts.call_results import OpenCalls
from prompts.messages import FunctionCall, Message
from server.conversion.neutral_request import AnswerFormat, ChatRequest, ReplyOptions
from server.conversion.readers.formats import read_response_format
from server.conversion.readers.unsupported import refuse_unserved
from server.conversion.tools import FunctionCalling, read_function_calling
from server.wire.shapes.messages import ContentBlock, CountTokensRequest, InputMessage, MessagesRequest

_THOUGHTS = ("thinking", "redacted_thinking")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def read_messages(request: MessagesRequest) -> ChatRequest:
    """Reads a request for a message.

    Raises:
        InvalidRequestError: it cannot be served as asked.
    """
    options = ReplyOptions.from_fields(request, stop=request.stop_sequences or (), answer=_answer(request))
    return _read(request, options)


def _answer(request: MessagesRequest) -> AnswerFormat | None:
    """Returns the form that the reply must have, from its present field or that of the beta."""
    place, form = "output_config.format", (request.output_config or {}).get("format")
    if form is None:
        place, form = "output_format", request.output_format
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise InvalidRequestError(
            f'\'{place}\' should be {{"type": "json_schema", "schema": ...}}.', param=place.partition(".")[0]
        )
    return read_response_format({"type": "json_schema", "schema": form["schema"]}, place)


def read_count(request: CountTokensRequest) -> ChatRequest:
    """Reads a request for the size of a prompt.

    Raises:
        InvalidRequestError: it cannot be rendered.
    """
    return _read(request, ReplyOptions())


def _read(request: CountTokensRequest, options: ReplyOptions) -> ChatRequest:
    refuse_unserved(request)
    messages = [*_system(request.system), *_conversation(request.messages)]
    if messages[-1].calls:
        where = f"messages[{len(request.messages) - 1}]"
        raise InvalidRequestError(f"'{where}' makes calls; append a user message with their tool_result.", param=where)
    # Results have blocks of their own in this API, so that nothing in one was meant as the assistant's words.
    return ChatRequest(messages=messages, calling=_calling(request), options=options, guards_results=True)


def _system(system: str | Sequence[ContentBlock] | None) -> list[Message]:
    if not system:
        return []
    if isinstance(system, str):
        return [Message("system", system)]
    return [Message("system", "\n".join(_text(block, f"system[{index}]") for index, block in enumerate(system)))]


def _conversation(sent: Sequence[InputMessage]) -> Iterator[Message]:
    calls = OpenCalls()
    for index, message in enumerate(sent):
        where = f"messages[{index}]"
        for read in _read_message(message, where, calls):
            calls.push(read)
            yield read


def _read_message(message: InputMessage, where: str, calls: OpenCalls) -> list[Message]:
    """Returns the message, and before a user's message one for each result in it: the calls came first, too."""
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    texts: list[str] = []
    made: list[FunctionCall] = []
    results: list[Message] = []
    for number, block in enumerate(message.content):
        place = f"{where}.content[{number}]"
        if block.type == "tool_use" and message.role == "assistant":
            made.append(_call(block, place))
        elif block.type == "tool_result" and message.role == "user":
            results.append(_result(block, place, calls))
        elif block.type not in _THOUGHTS or message.role != "assistant":
            texts.append(_text(block, place))
    if message.role == "assistant":
        return [Message("assistant", "\n".join(texts), calls=tuple(made))]
    return results + ([Message("user", "\n".join(texts))] if texts or not results else [])


def _text(block: ContentBlock, where: str) -> str:
    if block.type == "text" and block.text is not None:
        return block.text
    if block.type == "text":
        raise InvalidRequestError(f"'{where}.text' is missing.", param=f"{where}.text")
    raise InvalidRequestError(
        f"'{where}' of type {block.type[:40]!r} cannot be read: these models read text only; send blocks of type"
        " 'text', of the assistant 'tool_use' too, and of the user 'tool_result'.",
        param=where,
    )


def _call(block: ContentBlock, where: str) -> FunctionCall:
    for name in ("id", "name"):
        if not getattr(block, name):
            raise InvalidRequestError(f"'{where}.{name}' is missing.", param=f"{where}.{name}")
    assert block.name is not None
    return FunctionCall(block.name, json.dumps(block.input or {}, ensure_ascii=False), block.id)


def _result(block: ContentBlock, where: str, calls: OpenCalls) -> Message:
    id = block.tool_use_id
    if id is None or not calls.knows(id):
        what = "is missing" if id is None else f"{id[:100]!r} is of no earlier tool_use"
        raise InvalidRequestError(f"'{where}.tool_use_id' {what}.", param=f"{where}.tool_use_id")
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(_result_text(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    return Message("tool", f"Error: {content}" if block.is_error else content, tool_call_id=id)


def _result_text(part: Mapping[str, Any], where: str) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    raise InvalidRequestError(
        f"'{where}' of type {str(kind)[:40]!r} cannot be read: these models read text only.", param=where
    )


def _calling(request: CountTokensRequest) -> FunctionCalling:
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    choice = request.tool_choice
    if choice is None:
        return read_function_calling(tools)
    kind = choice.get("type")
    if kind == "tool":
        return read_function_calling(tools, {"type": "function", "function": {"name": choice.get("name")}})
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise InvalidRequestError(
            "'tool_choice.type' is 'auto', 'any', 'tool' (with a 'name') or 'none'.", param="tool_choice"
        )
    return read_function_calling(tools, None if kind == "auto" and not tools else _CHOICES[kind])


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise InvalidRequestError(
            f"'{where}' of type {str(kind)[:40]!r} is not served: this server runs no tools of its own; send"
            " {name, description, input_schema}.",
            param=where,
        )
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise InvalidRequestError(
            f"'{where}.input_schema' should be a JSON schema of an object.", param=f"{where}.input_schema"
        )
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
    return {"type": "function", "function": function | ({"strict": True} if tool.get("strict") else {})}
