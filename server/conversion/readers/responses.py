"""Reads requests of the Responses API: from items of a conversation to neutral messages.

Kept items, of an earlier response or of a conversation, stand in front of the new ones. How they are kept is not known
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.contract.errors import InvalidRequestError
from prompts.call_results import OpenCalls
from prompts.messages import FunctionCall, Message, Role
from server.conversion.neutral_request import ChatRequest, ReplyOptions
from server.conversion.readers.chat import part_texts, refuse_stream_options
from server.conversion.readers.formats import read_answer_format
from server.conversion.readers.unsupported import refuse_unserved
from server.conversion.tools import read_function_calling
from server.wire.shapes.chat import ContentPart
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.responses import LOGPROBS, InputItem, ResponsesRequest

# Items of a whole conversation, those that are kept included.
MAX_ITEMS = 4096
REFERENCE = "item_reference"
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PART_TYPES = {"system": "input_text", "developer": "input_text", "user": "input_text", "assistant": "output_text"}
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_RESULTS = ("function_call_output", "custom_tool_call_output")


def new_items(sent: str | Sequence[InputItem] | None, param: str = "input") -> list[JsonObject]:
    """Returns the items of a request as they are kept, without ids where none were sent.

    Raises:
        InvalidRequestError: one is of a type that is not served, or lacks what its type needs.
    """
    items = [InputItem(role="user", content=sent)] if isinstance(sent, str) else sent or ()
    read = (_item(item, f"{param}[{number}]") for number, item in enumerate(items))
    return [item for item in read if item is not None]


def _item(item: InputItem, where: str) -> JsonObject | None:
    kind = item.type or ("message" if item.role is not None else REFERENCE if item.id is not None else None)
    if kind == "reasoning":
        return None
    if kind == REFERENCE:
        return {"type": kind, "id": _needed(item.id, f"{where}.id")}
    if kind == "message":
        role, content = _needed(item.role, f"{where}.role"), _needed(item.content, f"{where}.content")
        parts = _parts(content, f"{where}.content", _PART_TYPES[role])
        read = {"type": kind, "role": role, "content": parts, "status": "completed"}
    elif kind in _CALLS:
        key = _CALLS[kind]
        read = {
            "type": kind,
            "call_id": _needed(item.call_id, f"{where}.call_id"),
            "name": _needed(item.name, f"{where}.name"),
            key: getattr(item, key) or ("{}" if kind == "function_call" else ""),
            "status": "completed",
            **({} if item.namespace is None else {"namespace": item.namespace}),
        }
    elif kind in _RESULTS:
        output = _needed(item.output, f"{where}.output")
        if not isinstance(output, str):
            output = _parts(output, f"{where}.output", "input_text")
        read = {"type": kind, **_answered(item, where), "output": output, "status": "completed"}
    else:
        kinds = ", ".join(("message", *_CALLS, *_RESULTS, REFERENCE))
        raise InvalidRequestError(
            f"'{where}.type' {str(kind)[:40]!r} is not supported; these are: {kinds} and reasoning.",
            param=f"{where}.type",
        )
    return read if item.id is None else {"id": item.id, **read}


def _answered(item: InputItem, where: str) -> JsonObject:
    """Says which call a result answers; a call that the client made itself, as codex does, has no id but a name."""
    if item.call_id is not None or item.name is None:
        return {"call_id": _needed(item.call_id, f"{where}.call_id")}
    return {"name": item.name} | ({} if item.namespace is None else {"namespace": item.namespace})


def _needed(value: Any, where: str) -> Any:
    if value is None:
        raise InvalidRequestError(f"'{where}' is missing.", param=where)
    return value


def _parts(content: str | Sequence[ContentPart], where: str, kind: str) -> list[JsonObject]:
    texts = [content] if isinstance(content, str) else part_texts(content, where, "input_text")
    more: JsonObject = {"annotations": []} if kind == "output_text" else {}
    return [{"type": kind, "text": text, **more} for text in texts]


def read_responses(request: ResponsesRequest, items: Sequence[Mapping[str, Any]]) -> ChatRequest:
    """Reads a request.

    Args:
        items: the whole conversation, references replaced by what they name.

    Raises:
        InvalidRequestError: it cannot be served as asked.
    """
    refuse_unserved(request)
    refuse_stream_options(request)
    if request.previous_response_id is not None and request.conversation is not None:
        raise InvalidRequestError(
            "Send either 'previous_response_id' or 'conversation', not both.", param="previous_response_id"
        )
    if request.background and request.store is False:
        raise InvalidRequestError("'background' needs the response to be kept: leave out 'store'.", param="store")
    messages = read_items(items)
    if request.instructions:
        messages.insert(0, Message("system", request.instructions))
    if not messages:
        raise InvalidRequestError("'input' is missing: a text, or a list of items.", param="input")
    text_format = None if request.text is None else request.text.format
    reports_tokens = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    return ChatRequest(
        messages=messages,
        calling=read_function_calling(_without_namespaces(request.tools or ()), request.tool_choice),
        options=ReplyOptions.from_fields(
            request,
            max_tokens=request.max_output_tokens,
            max_tokens_param="max_output_tokens",
            num_logprobs=(request.top_logprobs or 0) if reports_tokens else None,
            answer=read_answer_format(request, text_format, "text.format"),
        ),
        continue_final=False,
        guards_results=True,
        truncation=request.truncation,
        messages_param="input",
    )


def _without_namespaces(tools: Sequence[JsonObject]) -> list[JsonObject]:
    """Returns all tools in one list; the model knows those of a namespace as `namespace.name`."""
    flat: list[JsonObject] = []
    for number, tool in enumerate(tools):
        if tool.get("type") != "namespace":
            flat.append(tool)
            continue
        where, name, inner = f"tools[{number}]", tool.get("name"), tool.get("tools")
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f"'{where}.name' should be a text.", param=f"{where}.name")
        if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
            raise InvalidRequestError(f"'{where}.tools' should be a list of tools.", param=f"{where}.tools")
        flat += [{**one, "name": f"{name}.{one['name']}"} if isinstance(one.get("name"), str) else one for one in inner]
    return flat


def read_items(items: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Returns a conversation's messages: what the assistant says right before its calls is part of their message.

    Raises:
        InvalidRequestError: there are too many, a result is of no call, or calls at the end have no result.
    """
    if len(items) > MAX_ITEMS:
        raise InvalidRequestError(
            f"A conversation may have at most {MAX_ITEMS} items, not {len(items)}; begin a new one.", param="input"
        )
    calls = OpenCalls()
    messages: list[Message] = []
    can_grow = False  # nothing stands behind the assistant's last message, which may have more calls
    for item in items:
        kind = item["type"]
        if kind in _CALLS:
            call = FunctionCall(_name_of(item), item[_CALLS[kind]], item["call_id"], is_text=kind == "custom_tool_call")
            last = messages.pop() if can_grow else Message("assistant")
            messages.append(replace(last, calls=(*last.calls, call)))
            can_grow = True
            continue
        if can_grow:
            calls.push(messages[-1])
        can_grow = False
        if kind not in _RESULTS:
            messages.append(Message(_ROLES[item["role"]], _text_of(item["content"])))
            can_grow = messages[-1].role == "assistant"
        elif "call_id" in item:
            if not calls.knows(item["call_id"]):
                raise InvalidRequestError(
                    f"No tool call found for function call output with call_id {item['call_id'][:100]!r}.",
                    param="input",
                )
            messages.append(Message("tool", _text_of(item["output"]), tool_call_id=item["call_id"]))
        else:  # the client made the call itself
            messages.append(Message("assistant", calls=(FunctionCall(_name_of(item), "{}"),)))
            calls.push(messages[-1])
            messages.append(Message("tool", _text_of(item["output"])))
        if not can_grow:
            calls.push(messages[-1])
    if messages and messages[-1].calls:
        raise InvalidRequestError(
            f"No tool output found for function call {str(messages[-1].calls[-1].id)[:100]!r}.", param="input"
        )
    return messages


def _text_of(content: str | Sequence[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _name_of(call: Mapping[str, Any]) -> str:
    """Returns the name by which the model calls the tool of a call."""
    return f"{call['namespace']}.{call['name']}" if "namespace" in call else str(call["name"])
