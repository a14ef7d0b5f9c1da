"""Messages and tools of the prompt tests."""

from __future__ import annotations

from prompts.messages import FunctionCall, Message, ToolSpec

PING = ToolSpec.from_dict({"name": "ping", "description": "d"})


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def call(name: str, arguments: str = "{}", content: str = "", id: str | None = None) -> Message:
    return Message("assistant", content, calls=(FunctionCall(name, arguments, id),))


def result(text: str, id: str | None = None) -> Message:
    return Message("tool", text, tool_call_id=id)
