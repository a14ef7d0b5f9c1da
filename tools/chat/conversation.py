"""A conversation with its settings. It is saved as a request body, so that curl can send it too.

This is state only: no terminal, no network.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.chat.errors import ChatError
from tools.chat.settings import check_settings

JsonObject = dict[str, Any]

_NOT_SETTINGS = frozenset({"model", "messages", "tools", "functions", "stream", "stream_options", "n"})
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_LARGEST_FILE_BYTES = 64 << 20


@dataclass(slots=True)
class Conversation:
    """A conversation and the settings of its requests.

    Attributes:
        system: the system prompt, or None.
        messages: all messages after the system prompt, in the API's form.
        settings: further fields of each request, such as {"temperature": 0.2}.
        draft: the last question without an answer, for /retry.
    """

    model: str
    system: str | None = None
    messages: list[JsonObject] = field(default_factory=list)
    tools: list[JsonObject] = field(default_factory=list)
    settings: JsonObject = field(default_factory=dict)
    draft: str | None = None

    def body(self) -> JsonObject:
        """Returns the body of the next request."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        tools = {"tools": self.tools} if self.tools else {}
        return {"model": self.model, "messages": [*system, *self.messages], **tools, **self.settings}

    def ask(self, text: str) -> None:
        """Adds a user message."""
        self.messages.append({"role": "user", "content": text})
        self.draft = None

    def answer(self, content: str, calls: list[JsonObject]) -> None:
        """Adds a message of the assistant, with its tool calls in the API's form."""
        message: JsonObject = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def add_result(self, call_id: str, text: str) -> None:
        """Adds the result of a tool call."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def take_back(self) -> str | None:
        """Removes the last question and all after it; returns it (None if there is none) and keeps it as draft."""
        for place in range(len(self.messages) - 1, -1, -1):
            if self.messages[place]["role"] == "user":
                self.draft = _text(self.messages[place].get("content"))
                del self.messages[place:]
                return self.draft
        return None

    def clear(self) -> None:
        """Removes all messages; system prompt, tools and settings stay."""
        self.messages.clear()
        self.draft = None

    def save(self, path: Path) -> None:
        """Writes the conversation as a request body. Of existing files, only saved conversations are replaced.

        Raises:
            ChatError: it cannot be written, or the file exists and is no saved conversation.
        """
        try:
            is_there = path.exists()
        except OSError as error:
            raise ChatError(f"Cannot write {path}: {error.strerror}.") from error
        if is_there:
            _require_conversation(path)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        text = json.dumps(self.body(), ensure_ascii=False, indent=1) + "\n"
        try:
            partial.write_bytes(text.encode("utf-8", errors="replace"))
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise ChatError(f"Cannot write {path}: {error.strerror}.") from error

    def load(self, path: Path) -> None:
        """Replaces this conversation by a saved one; the model stays the same.

        Raises:
            ChatError: the file contains none; then nothing has changed.
        """
        body = read_body(path)
        messages = [dict(message) for message in body["messages"]]
        system = None
        if messages and messages[0]["role"] in ("system", "developer"):
            system = _text(messages.pop(0).get("content"))
        settings = check_settings({name: value for name, value in body.items() if name not in _NOT_SETTINGS})
        tools = as_tools(body.get("tools") or body.get("functions") or [], path)
        self.system, self.messages, self.tools, self.settings = system, messages, tools, settings
        self.draft = None


def _require_conversation(path: Path) -> None:
    try:
        read_body(path)
    except ChatError as error:
        raise ChatError(f"{path} exists and is no saved conversation; choose another name.") from error


def as_path(text: str) -> Path:
    """Returns the path that a user typed, with ~ expanded.

    Raises:
        ChatError: the home directory does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ChatError(f"There is no home directory for {text}.") from error


def read_body(path: Path) -> JsonObject:
    """Reads a request body, or a bare list of messages, from a file.

    Raises:
        ChatError: the file contains neither.
    """
    body = read_json(path)
    if isinstance(body, list):
        body = {"messages": body}
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and message.get("role") in _ROLES for message in messages
    ):
        raise ChatError(f'{path} holds no conversation: it must be an object with "messages", as /save writes it.')
    assert isinstance(body, dict)
    return body


def read_tools(path: Path) -> list[JsonObject]:
    """Reads a list of tools or functions from a file, bare or as "tools" or "functions" of an object.

    Raises:
        ChatError: the file contains none.
    """
    value = read_json(path)
    if isinstance(value, dict):
        value = value.get("tools") or value.get("functions") or ([value] if "name" in value else None)
    return as_tools(value, path)


def as_tools(value: Any, path: Path) -> list[JsonObject]:
    """Converts a list of tools or bare functions into the API's `tools`.

    Raises:
        ChatError: the value, read from `path`, is something else.
    """
    entries: list[Any] = value if isinstance(value, list) else [None]
    tools: list[JsonObject] = []
    for entry in entries:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        name = function.get("name", function.get("name_for_model")) if isinstance(function, dict) else None
        if not isinstance(entry, dict) or not isinstance(name, str):
            raise ChatError(
                f"{path} holds no list of functions: each needs a name, as in"
                ' [{"name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}].'
            )
        tools.append(entry if "function" in entry else {"type": "function", "function": function})
    return tools


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ChatError: it cannot be read, or is not JSON.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise ChatError(f"{path} is too large.")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ChatError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path} is not JSON: {error}.") from error


def _text(content: Any) -> str:
    """Returns a message's content as text, its parts joined."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
