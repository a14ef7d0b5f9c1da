"""Joins the events of a parsed reply, as the server does for replies that are not streamed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from prompts.messages import FunctionCall
from prompts.reply_events import CallArguments, CallStart, Content, Event


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A complete reply.

    Args:
        content: None if the reply is a call without text; "" if it is empty.
        calls: these models make at most one.
    """

    content: str | None
    calls: tuple[FunctionCall, ...]


def fold(events: Iterable[Event]) -> ParsedReply:
    """Joins events into the complete reply."""
    content = ""
    calls: list[FunctionCall] = []
    for event in events:
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, CallStart):
            calls.append(FunctionCall(event.name, ""))
        elif isinstance(event, CallArguments):
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + event.text)
    return ParsedReply(None if calls and not content else content, tuple(calls))
