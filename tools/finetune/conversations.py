"""Reads and checks the conversations of a file; errors name the line.

Two shapes: the published fine-tuning script's (`conversations`, each turn with `from` and `value`) and OpenAI's
(`messages`, with tools and calls). A file is JSONL, or one JSON list.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.contract.errors import ConfigError
from prompts.call_results import OpenCalls
from prompts.messages import FunctionCall, Message, Role, ToolSpec

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# The published format's names, and those of ShareGPT's files.
_SPEAKERS: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_SPACE = re.compile(r"[ \t\r\n]*")
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One entry of a file.

    Attributes:
        messages: at least one is the assistant's.
        tools: the tools that the prompt describes.
        unlearned: indices of the assistant's messages that are shown and not learned (OpenAI's `weight`: 0).
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    unlearned: frozenset[int] = field(default_factory=frozenset)


def read_conversations(path: Path) -> list[Conversation]:
    """Reads a file of conversations.

    Raises:
        ConfigError: it cannot be read, is empty, or an entry is malformed.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: is not UTF-8") from error
    entries = _entries_of_list(text, path) if text.lstrip().startswith("[") else _entries_of_lines(text, path)
    conversations = []
    for line, entry in entries:
        try:
            conversations.append(_read_entry(entry))
        except _EntryError as error:
            raise ConfigError(f"{path}, line {line}: {error}") from error
    if not conversations:
        raise ConfigError(f"{path}: holds no conversations")
    return conversations


class _EntryError(ValueError):
    """An entry is malformed; the message says how."""


def _entries_of_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: is not JSON ({error})") from error


def _entries_of_list(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the entries of a JSON list with the lines they begin in."""
    decoder, line = json.JSONDecoder(), 1
    counted = 0
    place = _next(text, text.index("[") + 1)
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            entry, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise ConfigError(f"{path}, line {at}: is not JSON ({error})") from error
        yield line, entry
        place = _next(text, place)
        if text[place : place + 1] == ",":
            place = _next(text, place + 1)
        elif text[place : place + 1] != "]":
            at = line + text.count("\n", counted, place)
            raise ConfigError(f"{path}, line {at}: is not JSON (a comma or the end of the list is missing)")
    if text[place + 1 :].strip():
        raise ConfigError(f"{path}: something follows the end of the list")


def _next(text: str, place: int) -> int:
    """Returns the place of the next character that is no space."""
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()


def _read_entry(entry: Any) -> Conversation:
    if not isinstance(entry, dict):
        raise _EntryError("is no object; an entry has `conversations` or `messages`")
    if "messages" in entry:
        conversation = _read_messages(entry)
    elif "conversations" in entry:
        conversation = _read_published(entry["conversations"])
    else:
        raise _EntryError("has neither `conversations` nor `messages`")
    for before, after in itertools.pairwise(conversation.messages):
        if before.role == after.role == "assistant" and not before.calls:
            raise _EntryError("has two replies of the assistant in a row; make them one")
    if not any(m.role == "assistant" and n not in conversation.unlearned for n, m in enumerate(conversation.messages)):
        raise _EntryError("has no reply of the assistant to learn")
    return conversation


def _read_published(turns: Any) -> Conversation:
    if not isinstance(turns, list) or not turns:
        raise _EntryError("`conversations` must be a list of turns")
    messages = []
    for number, turn in enumerate(turns):
        where = f"conversations[{number}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise _EntryError(f"`{where}` needs a `from` and a `value` that is a text")
        role = _SPEAKERS.get(str(turn.get("from")))
        if role is None:
            raise _EntryError(f"`{where}.from` is {turn.get('from')!r}; known are user, assistant and system")
        if role == "assistant" and not turn["value"].strip():
            raise _EntryError(f"`{where}.value` is an empty reply")
        messages.append(Message(role, turn["value"]))
    return Conversation(tuple(messages))


def _read_messages(entry: Mapping[str, Any]) -> Conversation:
    sent = entry["messages"]
    if not isinstance(sent, list) or not sent:
        raise _EntryError("`messages` must be a list of messages")
    tools = _read_tools(entry)
    names = {tool.name_for_model for tool in tools}
    calls, messages, unlearned = OpenCalls(), [], set()
    for number, raw in enumerate(sent):
        where = f"messages[{number}]"
        message = _read_message(raw, where)
        for call in message.calls:
            if call.name not in names:
                offered = f"the tools: {', '.join(sorted(names))}" if names else "`tools`, of which there are none"
                raise _EntryError(f"`{where}` calls {call.name!r}, which is not among {offered}")
        if message.role == "tool":
            message = replace(message, tool_call_id=_answered(message, calls, where))
        calls.push(message)
        messages.append(message)
        if message.role == "assistant" and raw.get("weight") is not None:
            if raw["weight"] not in (0, 1):
                raise _EntryError(f"`{where}.weight` must be 0 or 1")
            if raw["weight"] == 0:
                unlearned.add(number)
    return Conversation(tuple(messages), tools, frozenset(unlearned))


def _read_tools(entry: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    tools = entry.get("tools") or entry.get("functions") or ()
    if not isinstance(tools, list | tuple):
        raise _EntryError("`tools` must be a list")
    specs = []
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        try:
            if not isinstance(function, dict):
                raise ValueError("must be an object")
            specs.append(ToolSpec.from_dict(function))
        except ValueError as error:
            raise _EntryError(f"`tools[{number}]`: {error}") from error
    return tuple(specs)


def _read_message(raw: Any, where: str) -> Message:
    role = _ROLES.get(raw["role"]) if isinstance(raw, dict) and isinstance(raw.get("role"), str) else None
    if role is None:
        raise _EntryError(f"`{where}` needs a `role`: {', '.join(_ROLES)}")
    calls = _read_calls(raw, where)
    if calls and role != "assistant":
        raise _EntryError(f"`{where}`: only the assistant makes calls")
    content = _read_content(raw.get("content"), where)
    if content is None and not calls:
        raise _EntryError(f"`{where}.content` is missing")
    if role == "assistant" and not calls and not (content or "").strip():
        raise _EntryError(f"`{where}.content` is an empty reply")
    call_id = raw.get("tool_call_id")
    if not isinstance(call_id, str | None):
        raise _EntryError(f"`{where}.tool_call_id` must be a text")
    return Message(role, content or "", calls=calls, tool_call_id=call_id)


def _read_content(content: Any, where: str) -> str | None:
    """Reads a text, or parts that are texts; None where there is none."""
    if isinstance(content, str | None):
        return content
    texts = []
    for part in content if isinstance(content, list) else [None]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise _EntryError(f"`{where}.content` must be a text or a list of text parts")
        texts.append(text)
    return "\n".join(texts)


def _read_calls(raw: Mapping[str, Any], where: str) -> tuple[FunctionCall, ...]:
    if raw.get("function_call") is not None:
        return (_read_call(raw["function_call"], None, f"{where}.function_call"),)
    sent = raw.get("tool_calls") or ()
    if not isinstance(sent, list | tuple) or not all(isinstance(call, dict) for call in sent):
        raise _EntryError(f"`{where}.tool_calls` must be a list of calls")
    return tuple(
        _read_call(call.get("function"), call.get("id"), f"{where}.tool_calls[{n}]") for n, call in enumerate(sent)
    )


def _read_call(function: Any, call_id: Any, where: str) -> FunctionCall:
    if (
        not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not isinstance(call_id, str | None)
    ):
        raise _EntryError(f"`{where}` needs a function with a `name`")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str | None):
        raise _EntryError(f"`{where}`: the arguments must be a JSON text")
    try:
        json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise _EntryError(f"`{where}`: the arguments are not JSON ({error})") from error
    return FunctionCall(function["name"], arguments or "{}", call_id)


def _answered(message: Message, calls: OpenCalls, where: str) -> str | None:
    """Returns the id of the call that a result answers; None means the only call that waits."""
    if message.tool_call_id is not None and not calls.knows(message.tool_call_id):
        raise _EntryError(f"`{where}.tool_call_id` {message.tool_call_id[:100]!r} is of no earlier call")
    if message.tool_call_id is None and calls.num_waiting != 1:
        raise _EntryError(f"`{where}` needs a `tool_call_id`: {calls.num_waiting} calls wait for a result")
    return message.tool_call_id
